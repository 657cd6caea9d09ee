"""One memory of signatures that held, for all formats: a release meets the same few again and again.

Whether a signature holds depends on key, message and signature alone, neither on time nor on trust: who asks decides
those anew each time. One that did not hold is never remembered, so nobody fills the memory with what nobody signed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

__all__ = ["MOST", "forget", "once_held"]

MOST: Final = 4096
"""Marks that are kept; each is a key, a digest and a signature, none of them secret."""

# Operations on dicts are atomic under the interpreter's lock.
_HELD: dict[Hashable, None] = {}


def once_held(mark: Hashable, check: Callable[[], object]) -> None:
    """Run ``check``, which raises if the signature does not hold, unless it returned for this very ``mark`` before.

    ``mark``: all that the outcome depends on, exactly: the format, the key, the message or its digest, the signature.
    """
    if mark in _HELD:
        return
    check()
    if len(_HELD) >= MOST:
        _HELD.clear()
    _HELD[mark] = None


def forget() -> None:
    """Everything, so that a benchmark measures signatures and not this memory."""
    _HELD.clear()
