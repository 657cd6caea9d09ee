"""Plain text as token ids: prompts with their completions, and documents in pieces."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from ...errors import Misuse
from .tokenizer import SpecialTokens

__all__ = ["ENCODER_DECODERS", "answer_ids", "completion_ids", "document_ids", "encode_ids"]

# Architectures of two parts: one reads the prompt, the other writes. mBART is not among them: its texts begin or end
# with their language's token, which no recipe names.
ENCODER_DECODERS = frozenset({"bart", "mt5", "t5", "umt5"})
_CHUNK = 4096
# No tokenizer makes fewer tokens than one in so many characters of ordinary text; cutting first keeps huge cells cheap.
_CHARACTERS_PER_TOKEN = 64


def completion_ids(
    tokenizer: Tokenizer,
    tokens: SpecialTokens,
    prompts: Sequence[str] | None,
    completions: Sequence[str],
    max_length: int,
    *,
    ended: bool = True,
) -> list[tuple[tuple[int, ...], int]]:
    """Begin token, prompt, completion, end token if ``ended``; beside them, how many come before the completion.

    Where a row is too long, the prompt loses its beginning first, then the completion its end (and its end token).
    Misuse if a completion is empty or too short to hold a token that can be predicted from one before it.
    """
    head = [] if tokens.begin is None else [tokens.begin]
    tail = [tokens.end] if ended and tokens.end is not None else []
    given = [""] * len(completions) if prompts is None else prompts
    starts = encode_ids(tokenizer, given, False)
    wholes = encode_ids(tokenizer, [p + c for p, c in zip(given, completions, strict=True)], False)
    alone = encode_ids(tokenizer, completions, False)
    rows = []
    for start, whole, own, text in zip(starts, wholes, alone, completions, strict=True):
        if not text:
            raise Misuse("data.blank", "Some rows have an empty completion; drop these rows.")
        # At inference the prompt is tokenized alone and the model goes on from there. So the completion's tokens are
        # what follows the prompt's in the joint text; where the border merges into one token, both are taken apart.
        follows = whole[: len(start)] == start and len(whole) > len(start)
        completion = whole[len(start) :] if follows else own
        rows.append(_fit(head, start, [*completion, *tail], max_length))
    if any(len(ids) <= max(target, 1) for ids, target in rows):
        raise Misuse("data.blank", "Some completions are too short to learn from without a prompt; drop these rows.")
    return rows


def answer_ids(
    tokenizer: Tokenizer,
    tokens: SpecialTokens,
    prompts: Sequence[str],
    completions: Sequence[str],
    max_length: int,
    *,
    ended: bool = True,
) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """For an encoder-decoder: what is read, what is written, and how many tokens of that come before the completion.

    Read is the prompt with the tokens that the tokenizer itself adds, cut at its end. Written are a begin token where
    the tokenizer puts one before a text, the completion, and an end token if ``ended``. Both have at most
    ``max_length`` tokens. Misuse where one of them is empty.
    """
    head = [] if tokens.begin is None else [tokens.begin]
    tail = [tokens.end] if ended and tokens.end is not None else []
    longest = max_length * _CHARACTERS_PER_TOKEN
    tokenizer.enable_truncation(max_length)
    try:
        read = encode_ids(tokenizer, [prompt[:longest] for prompt in prompts], True)
    finally:
        tokenizer.no_truncation()
    written = encode_ids(tokenizer, completions, False)
    if not all(written) or not all(read):
        raise Misuse("data.blank", "Some rows have an empty prompt or completion; drop these rows.")
    whole = [(*head, *ids, *tail)[:max_length] for ids in written]
    return [(tuple(r), w, len(head)) for r, w in zip(read, whole, strict=True)]


def document_ids(
    tokenizer: Tokenizer, tokens: SpecialTokens, texts: Sequence[str], max_length: int, *, ended: bool = True
) -> list[tuple[int, ...]]:
    """Begin token, text, end token if ``ended``, cut into pieces of at most ``max_length`` tokens.

    No row holds two documents, so none is learned as going on with another. Misuse where a text is empty.
    """
    head = [] if tokens.begin is None else [tokens.begin]
    tail = [tokens.end] if ended and tokens.end is not None else []
    if not all(texts):
        raise Misuse("data.blank", "Some rows have an empty text; drop these rows.")
    rows = []
    for ids in encode_ids(tokenizer, texts, False):
        whole = (*head, *ids, *tail)
        pieces = [whole[at : at + max_length] for at in range(0, len(whole), max_length)]
        # A piece's first token is learned from none before it, so a piece of one token teaches nothing.
        rows += [piece for piece in pieces if len(piece) > 1]
    if not rows:
        raise Misuse("data.blank", "The texts are too short to learn from; join them into longer ones.")
    return rows


def encode_ids(tokenizer: Tokenizer, texts: Sequence[str], special: bool) -> list[list[int]]:
    """``special``: with the tokens that the tokenizer itself adds."""
    out: list[list[int]] = []
    for start in range(0, len(texts), _CHUNK):  # in pieces: an Encoding holds far more than its ids
        batch = tokenizer.encode_batch_fast(list(texts[start : start + _CHUNK]), add_special_tokens=special)
        out += [encoding.ids for encoding in batch]
    return out


def _fit(head: list[int], start: list[int], completion: list[int], max_length: int) -> tuple[tuple[int, ...], int]:
    completion = completion[: max_length - max(1, len(head))]
    room = max_length - len(head) - len(completion)
    kept = start[len(start) - room :] if len(start) > room else start
    return (*head, *kept, *completion), len(head) + len(kept)
