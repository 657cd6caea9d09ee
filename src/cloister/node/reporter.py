"""Passing a run's events on to the control plane, in order, on a thread of its own.

The workload waits for the answer to each of its events, between two training steps. So the answer must not wait for
the control plane: a slow one, or one that is away, costs a training nothing.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from ..errors import CloisterError

__all__ = ["Reporter"]

_BATCH = 64  # events a request, of at most 256 that the control plane takes; more wait for the next


class Reporter:
    """A context manager: leaving it returns when all that was put in was passed on, or refused.

    ``tell`` takes events in the order in which they were put in. What it refuses with a ``CloisterError`` is logged on
    standard error and not tried again: events inform people, and no run may fail for want of them.
    """

    def __init__(self, tell: Callable[[list[dict[str, Any]]], None]) -> None:
        self._tell = tell
        self._waiting: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._pass_on, name="node-reporter", daemon=True)

    def put(self, event: dict[str, Any]) -> None:
        """Returns at once."""
        self._waiting.put(event)

    def __enter__(self) -> Reporter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join()

    def _pass_on(self) -> None:
        ended = False
        while not ended:
            batch = self._next()
            ended = None in batch
            events = [event for event in batch if event is not None]
            try:
                if events:
                    self._tell(events)
            except CloisterError as fault:
                print(f"{fault.code}: {fault.message}", file=sys.stderr, flush=True)

    def _next(self) -> list[dict[str, Any] | None]:
        """What waits, at least one: the queue has this one reader, so what isn't empty stays so."""
        batch = [self._waiting.get()]
        while len(batch) < _BATCH and not self._waiting.empty():
            batch.append(self._waiting.get())
        return batch
