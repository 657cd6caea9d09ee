"""From text to rows of token ids, with the base's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from ...errors import Misuse
from .base_model import SpecialTokens
from .batching import Row

__all__ = ["encode_completions", "encode_documents", "encode_labelled"]

_CHUNK = 4096
# No tokenizer makes fewer tokens than one in so many characters of ordinary text; cutting first keeps huge cells cheap.
_CHARACTERS_PER_TOKEN = 64


def encode_labelled(tokenizer: Tokenizer, texts: Sequence[str], labels: Sequence[int], max_length: int) -> list[Row]:
    """Rows for classification, cut to ``max_length`` tokens with the tokenizer's own special tokens."""
    longest = max_length * _CHARACTERS_PER_TOKEN
    tokenizer.enable_truncation(max_length)
    try:
        encoded = _encode(tokenizer, [text[:longest] for text in texts], True)
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
    """Rows for generation: begin token, prompt, completion, end token if ``ended``; ``target`` counts what comes first.

    Where a row is too long, the prompt loses its beginning first, then the completion its end (and its end token).
    Misuse if a completion is empty or too short to hold a token that can be predicted from one before it.
    """
    head = [] if tokens.begin is None else [tokens.begin]
    tail = [tokens.end] if ended and tokens.end is not None else []
    given = [""] * len(completions) if prompts is None else prompts
    starts = _encode(tokenizer, given, False)
    wholes = _encode(tokenizer, [p + c for p, c in zip(given, completions, strict=True)], False)
    alone = _encode(tokenizer, completions, False)
    rows = []
    for start, whole, own, text in zip(starts, wholes, alone, completions, strict=True):
        if not text:
            raise Misuse("data.blank", "Some rows have an empty completion; drop these rows.")
        # At inference the prompt is tokenized alone and the model goes on from there. So the completion's tokens are
        # what follows the prompt's in the joint text; where the border merges into one token, both are taken apart.
        completion = whole[len(start) :] if whole[: len(start)] == start else own
        rows.append(_fit(head, start, [*completion, *tail], max_length))
    if any(len(row.ids) <= max(row.target, 1) for row in rows):
        raise Misuse("data.blank", "Some completions are too short to learn from without a prompt; drop these rows.")
    return rows


def encode_documents(
    tokenizer: Tokenizer, tokens: SpecialTokens, texts: Sequence[str], max_length: int, *, ended: bool = True
) -> list[Row]:
    """Rows of plain text: begin token, text, end token if ``ended``, cut into pieces of at most ``max_length`` tokens.

    No row holds two documents, so none is learned as going on with another. Misuse where a text is empty.
    """
    head = [] if tokens.begin is None else [tokens.begin]
    tail = [tokens.end] if ended and tokens.end is not None else []
    if not all(texts):
        raise Misuse("data.blank", "Some rows have an empty text; drop these rows.")
    rows = []
    for ids in _encode(tokenizer, texts, False):
        whole = [*head, *ids, *tail]
        pieces = [whole[at : at + max_length] for at in range(0, len(whole), max_length)]
        # A piece's first token is learned from none before it, so a piece of one token teaches nothing.
        rows += [Row(tuple(piece), 0) for piece in pieces if len(piece) > 1]
    if not rows:
        raise Misuse("data.blank", "The texts are too short to learn from; join them into longer ones.")
    return rows


def _fit(head: list[int], start: list[int], completion: list[int], max_length: int) -> Row:
    completion = completion[: max_length - max(1, len(head))]
    room = max_length - len(head) - len(completion)
    kept = start[len(start) - room :] if len(start) > room else start
    return Row((*head, *kept, *completion), len(head) + len(kept))


def _encode(tokenizer: Tokenizer, texts: Sequence[str], special: bool) -> list[list[int]]:
    out: list[list[int]] = []
    for start in range(0, len(texts), _CHUNK):  # in pieces: an Encoding holds far more than its ids
        batch = tokenizer.encode_batch_fast(list(texts[start : start + _CHUNK]), add_special_tokens=special)
        out += [encoding.ids for encoding in batch]
    return out
