"""Waking long polls when something changed, instead of asking the database every moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

__all__ = ["Changes"]

T = TypeVar("T")


class Changes:
    """``announce`` wakes all who ``wait``; spurious wakes are harmless because every waiter looks again."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._closed = False

    def announce(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    def close(self) -> None:
        """Answer everybody now: the server is about to stop."""
        self._closed = True
        self.announce()

    async def wait(self, look: Callable[[], Awaitable[T]], found: Callable[[T], bool], seconds: float) -> T:
        """What ``look`` gives once ``found`` likes it, or whatever there is after ``seconds``."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            event = self._event  # taken before looking: a change during the look wakes us at once
            answer = await look()
            left = end - loop.time()
            if found(answer) or left <= 0 or self._closed:
                return answer
            try:
                await asyncio.wait_for(event.wait(), left)
            except TimeoutError:
                return answer
