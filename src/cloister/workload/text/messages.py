"""Conversations from cells: JSON lists of {role, content}, strictly read and bounded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import Malformed

__all__ = ["MOST_MESSAGES", "ROLES", "Message", "read_messages"]

ROLES = ("system", "user", "assistant")
MOST_MESSAGES = 256
_MOST_CHARACTERS = 1 << 20  # of a conversation's JSON, as of any cell


@dataclass(frozen=True)
class Message:
    """``role`` is one of ``ROLES``. Any text may stand in ``content``."""

    role: str
    content: str

    def plain(self) -> dict[str, str]:
        """As chat templates expect it."""
        return {"role": self.role, "content": self.content}


def read_messages(cells: Sequence[str]) -> list[tuple[Message, ...]]:
    """One conversation a cell. Raises Malformed (``data.messages``), which names the row, from 1, and no content."""
    return [_conversation(cell, row) for row, cell in enumerate(cells, 1)]


def _conversation(cell: str, row: int) -> tuple[Message, ...]:
    if len(cell) > _MOST_CHARACTERS:
        raise _bad(row, f"has more than {_MOST_CHARACTERS} characters of messages; shorten it")
    try:
        found = json.loads(cell, object_pairs_hook=_pairs)
    except (ValueError, RecursionError):
        raise _bad(row, "holds no valid JSON in its messages; write a list of {role, content}") from None
    if not isinstance(found, list) or not found:
        raise _bad(row, "holds no list of messages; write a list of {role, content}")
    if len(found) > MOST_MESSAGES:
        raise _bad(row, f"has more than {MOST_MESSAGES} messages; split the conversation")
    messages = tuple(_message(item, row) for item in found)
    if all(message.role != "assistant" for message in messages):
        raise _bad(row, "has no message of the assistant, so nothing can be learned from it; drop it")
    return messages


def _message(item: Any, row: int) -> Message:
    if not isinstance(item, dict) or set(item) != {"role", "content"}:
        # A field that is passed over (weights, tool calls) would change what is learned without a word.
        raise _bad(row, "holds a message with other keys than role and content; give these two only")
    role, content = item["role"], item["content"]
    if role == "tool":
        raise _bad(row, "holds a tool's message; tool calls aren't trained, so drop the row or write it as text")
    if role not in ROLES:
        raise _bad(row, "holds a message of another role than system, user or assistant; mend it")
    if not isinstance(content, str) or any("\ud800" <= character <= "\udfff" for character in content):
        raise _bad(row, "holds a message whose content is no valid text; give text there")
    if role == "assistant" and not content.strip():
        raise _bad(row, "holds an empty message of the assistant; drop it")
    return Message(role, content)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("duplicate key")
    return out


def _bad(row: int, what: str) -> Malformed:
    return Malformed("data.messages", f"Row {row} {what}.")
