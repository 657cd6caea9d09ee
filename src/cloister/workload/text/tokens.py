"""From conversations to token ids with a mark on each: learned, or only read."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from ...errors import Malformed
from .messages import Message
from .template import ChatTemplate

__all__ = ["MarkedRow", "mark_rows", "stop_token"]

_CHUNK = 512  # an Encoding with its offsets holds far more than its ids


@dataclass(frozen=True)
class MarkedRow:
    """``ids`` and, beside each, whether it is ``learned``. ``ends``: places of the tokens that end an answer."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    ends: tuple[int, ...]


def mark_rows(
    tokenizer: Tokenizer, template: ChatTemplate, conversations: Sequence[Sequence[Message]], stop: int
) -> Iterator[MarkedRow]:
    """Whole rows, uncut. Learned are the tokens that lie within an answer, up to ``stop``, the token that ends it.

    The text is tokenized as a whole, without further special tokens, as transformers does with chat templates. A token
    that begins before the answer is part of its prompt. Raises Malformed (``template.stop`` where an answer doesn't end
    with ``stop``) and what ``ChatTemplate.rendered`` raises.
    """
    for start in range(0, len(conversations), _CHUNK):
        rendered = [template.rendered(messages) for messages in conversations[start : start + _CHUNK]]
        encodings = tokenizer.encode_batch([each.text for each in rendered], add_special_tokens=False)
        for each, encoding in zip(rendered, encodings, strict=True):
            yield _marked(each.text, encoding, each.answers, stop)


def stop_token(
    tokenizer: Tokenizer, template: ChatTemplate, conversation: Sequence[Message], ends: frozenset[int]
) -> int:
    """The id of the token with which answers end, by the first answer of ``conversation``. ``ends``: the ids at which
    the base itself stops.

    Malformed (``template.stop``) where an answer ends with something else than an end token or a special token.
    """
    rendered = template.rendered(conversation)
    (encoding,) = tokenizer.encode_batch([rendered.text], add_special_tokens=False)
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for place in reversed(_within(encoding, rendered.answers[:1])[0]):
        number = encoding.ids[place]
        if number in ends or number in special:
            return int(number)
        if not _blank(rendered.text, encoding.offsets[place]):
            break
    raise _no_stop()


def _marked(text: str, encoding: Any, answers: Sequence[tuple[int, int]], stop: int) -> MarkedRow:
    learned, ends = [False] * len(encoding.ids), []
    for places in _within(encoding, answers):
        # What a template writes after the end token (a line break, mostly) is never generated, so it isn't learned.
        last = next((at for at in reversed(range(len(places))) if encoding.ids[places[at]] == stop), None)
        if last is None or not all(_blank(text, encoding.offsets[place]) for place in places[last + 1 :]):
            raise _no_stop()
        for place in places[: last + 1]:
            learned[place] = True
        ends.append(places[last])
    return MarkedRow(tuple(encoding.ids), tuple(learned), tuple(ends))


def _within(encoding: Any, answers: Sequence[tuple[int, int]]) -> list[list[int]]:
    """For each answer the places of the tokens that lie wholly in it."""
    starts = [start for start, _ in answers]
    found: list[list[int]] = [[] for _ in answers]
    for place, (left, right) in enumerate(encoding.offsets):
        answer = bisect_right(starts, left) - 1
        if answer >= 0 and left < right <= answers[answer][1]:
            found[answer].append(place)
    return found


def _blank(text: str, offsets: tuple[int, int]) -> bool:
    return not text[offsets[0] : offsets[1]].strip()


def _no_stop() -> Malformed:
    return Malformed(
        "template.stop",
        "The chat template ends an answer with no single token at which generation could stop, or not always with the"
        " same; use template chatml.",
    )
