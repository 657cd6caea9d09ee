"""Asking several peers at once, so that one who is slow holds up nobody but itself.

A peer is asked one thing at a time, in the order in which the questions came; peers do not wait for each other.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeVar

from ..errors import CloisterError, Unavailable

__all__ = ["ROUND", "Line", "visit"]

T = TypeVar("T")
_MOST: Final = 256
"""Errands that wait in one line. Whoever comes then finds the peer silent, as it is to all who wait."""
ROUND: Final = 5
"""Exchanges' time that one round of errands gives a peer. A peer could spend nearly ``peer_seconds`` on each answer."""


class Line:
    """The errands of one peer, each in its turn. A thread lives while there are some. Any thread may add one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._busy = False

    def add(self, errand: Callable[[], T]) -> Future[T]:
        """Its result, or what it raised. ``cancel`` takes it out of the line while it has not begun."""
        future: Future[T] = Future()
        with self._lock:
            if len(self._waiting) >= _MOST:
                future.set_exception(Unavailable("peer.busy", "Too much waits for that peer's answer; try again."))
                return future
            self._waiting.append((future, errand))
            if not self._busy:
                threading.Thread(target=self._run, name="errands", daemon=True).start()
                self._busy = True
        return future

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._busy = False
                    return
                future, errand = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = errand()
            except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it, whatever it is
                future.set_exception(error)
            else:
                future.set_result(result)


def visit(
    errands: Mapping[str, Sequence[Callable[[], object]]], *, seconds: float, stop: threading.Event | None = None
) -> None:
    """Run every peer's errands, all peers at once, best effort.

    The rest of a peer's errands is left where one raises Unavailable, after ``seconds``, or once ``stop`` is set.
    """
    end = time.monotonic() + seconds

    def one_after_the_other(mine: Sequence[Callable[[], object]]) -> None:
        for errand in mine:
            if time.monotonic() > end or (stop is not None and stop.is_set()):
                return
            try:
                errand()
            except Unavailable:
                return
            except CloisterError:
                continue  # refused: that says nothing about the next one

    for done in [Line().add(partial(one_after_the_other, mine)) for mine in errands.values() if mine]:
        done.result()
