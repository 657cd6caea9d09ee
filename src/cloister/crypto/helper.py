"""One more thread that takes half of a read.

An executor's futures would do, but to hand work over and to wait for it costs them as long as it takes to decrypt half
a segment, and a read at random is two segments.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeAlias

__all__ = ["Helper", "Task"]

_Work: TypeAlias = Callable[[], object]


class Task:
    """Work that is done once, by the helper or by whoever asks for its end first."""

    __slots__ = ("_claimed", "_done", "_error", "_work")

    def __init__(self, work: _Work) -> None:
        self._work = work
        self._claimed = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()
        self._error: BaseException | None = None

    def run(self) -> None:
        """The helper's side: nothing is raised here, ``finish`` does that."""
        if self._claimed.acquire(blocking=False):
            try:
                self._work()
            except BaseException as error:  # noqa: BLE001  whoever asked for the work is told
                self._error = error
            finally:
                self._done.release()

    def abandon(self) -> None:
        """Return when the helper isn't at it and never will be; what it raised doesn't matter any more."""
        if not self._claimed.acquire(blocking=False):
            self._done.acquire()

    def finish(self) -> None:
        """Return when it is done: here, if the helper was busy with something else. Raises what the work raised."""
        if self._claimed.acquire(blocking=False):
            self._work()
            return
        self._done.acquire()
        if self._error is not None:
            raise self._error


class Helper:
    """Its thread starts with the first task and ends with ``close``, or when nobody holds the helper any longer."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False
        weakref.finalize(self, self._tasks.put, None)

    def start(self, work: _Work) -> Task | None:
        """The work, which begins as soon as the helper is free; None if it was closed. Each task must be finished or
        abandoned by who started it."""
        with self._lock:
            if self._closed:
                return None
            if self._thread is None:
                # The thread knows the queue alone, so that it doesn't keep the helper. A daemon, because it never holds
                # anything that a process must not end with.
                self._thread = threading.Thread(target=_serve, args=(self._tasks,), name="cloister-read", daemon=True)
                self._thread.start()
        task = Task(work)
        self._tasks.put(task)
        return task

    def close(self) -> None:
        """Ends the thread after what it is at. Idempotent."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._tasks.put(None)
            thread.join()


def _serve(tasks: SimpleQueue[Task | None]) -> None:
    while (task := tasks.get()) is not None:
        task.run()
        del task  # it holds the caller's memory
