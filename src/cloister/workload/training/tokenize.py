"""From text to rows of token ids, with the base's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from ...errors import Misuse
from ..text import SpecialTokens, completion_ids, document_ids, encode_ids
from .batching import Row

__all__ = ["encode_completions", "encode_documents", "encode_labelled"]

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


def encode_documents(
    tokenizer: Tokenizer, tokens: SpecialTokens, texts: Sequence[str], max_length: int, *, ended: bool = True
) -> list[Row]:
    """Rows of plain text, all of which is learned. See ``text.document_ids``."""
    return [Row(ids, 0) for ids in document_ids(tokenizer, tokens, texts, max_length, ended=ended)]
