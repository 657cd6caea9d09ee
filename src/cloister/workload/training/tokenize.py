"""From text to rows of token ids, with the base's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ...errors import Misuse
from ..text import SpecialTokens, answer_ids, completion_ids, document_ids, encode_ids
from .base_model import BaseModel
from .batching import IGNORED, Row

__all__ = ["encode_answers", "encode_completions", "encode_documents", "encode_labelled", "text_bytes"]

# No tokenizer makes fewer tokens than one in so many characters of ordinary text; cutting first keeps huge cells cheap.
_CHARACTERS_PER_TOKEN = 64


def encode_labelled(tokenizer: Tokenizer, texts: Sequence[str], labels: Sequence[int], max_length: int) -> list[Row]:
    """Rows for classification, cut to ``max_length`` tokens with the tokenizer's own special tokens."""
    longest = max_length * _CHARACTERS_PER_TOKEN
    tokenizer.enable_truncation(max_length)
    try:
        encoded = encode_ids(tokenizer, [text[:longest] for text in texts], True)
        rows = [Row(tuple(ids), label) for ids, label in zip(encoded, labels, strict=True)]
    finally:
        tokenizer.no_truncation()
    if any(not row.ids for row in rows):
        raise Misuse(
            "data.blank", "Some rows have an empty text and the tokenizer adds nothing to it; drop these rows."
        )
    return rows


def encode_completions(
    tokenizer: Tokenizer,
    tokens: SpecialTokens,
    prompts: Sequence[str] | None,
    completions: Sequence[str],
    max_length: int,
    *,
    ended: bool = True,
) -> list[Row]:
    """Rows for generation; ``target`` counts what comes before the completion. See ``text.completion_ids``."""
    found = completion_ids(tokenizer, tokens, prompts, completions, max_length, ended=ended)
    return [Row(ids, target) for ids, target in found]


def encode_answers(
    base: BaseModel, prompts: Sequence[str], completions: Sequence[str], max_length: int, *, ended: bool = True
) -> list[Row]:
    """Rows for an encoder-decoder; whole completions with ``ended``, as they are learned, else only their text counts.
    See ``text.answer_ids``."""
    found = answer_ids(base.tokenizer, base.tokens, prompts, completions, max_length, ended=ended)
    return [Row(read, 0 if ended else first, others=(written,)) for read, written, first in found]


def encode_documents(
    tokenizer: Tokenizer, tokens: SpecialTokens, texts: Sequence[str], max_length: int, *, ended: bool = True
) -> list[Row]:
    """Rows of plain text, all of which is learned. See ``text.document_ids``."""
    return [Row(ids, 0) for ids in document_ids(tokenizer, tokens, texts, max_length, ended=ended)]


def text_bytes(base: BaseModel, rows: Sequence[Row]) -> NDArray[np.int64]:
    """UTF-8 bytes of what each row's learned tokens stand for: where a text was cut, of its kept part."""
    texts = base.tokenizer.decode_batch([_learned(row) for row in rows], skip_special_tokens=True)
    return np.array([max(1, len(text.encode())) for text in texts], dtype=np.int64)


def _learned(row: Row) -> list[int]:
    if row.others:
        return list(row.others[0])
    if row.marks:
        return [number for number in row.marks[1:] if number != IGNORED]
    return list(row.ids[max(row.target, 1) :])
