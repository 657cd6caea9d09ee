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

__all__ = ["Helper"]

_Work: TypeAlias = Callable[[], object]


class _Task:
    """Work that is done by the helper, or by the thread that made it, if that comes to it first."""

    __slots__ = ("_claim", "_done", "_error", "_over", "_work")

    def __init__(self, work: _Work) -> None:
        self._work: _Work | None = work
        self._claim: dict[str, int] = {}
        self._done = threading.Lock()
        self._done.acquire()
        self._over = False
        self._error: BaseException | None = None

    def _mine(self) -> bool:
        """Whether it falls to this thread; the first to ask has it. May be asked again, as after an interruption."""
        return self._claim.setdefault("thread", threading.get_ident()) == threading.get_ident()

    def run(self) -> None:
        """The helper's side: nothing is raised here, ``finish`` does that."""
        work = self._work
        if work is not None and self._mine():
            try:
                work()
            except BaseException as error:  # noqa: BLE001  whoever asked for the work is told
                self._error = error
            finally:
                self._over = True
                self._done.release()

    def finish(self) -> None:
        """Return when it is done: here, if the helper was busy or is gone. Raises what the work raised."""
        work, self._work = self._work, None  # it holds the caller's memory, and this may lie in the queue for long
        if self._mine():
            if work is not None:
                work()
            return
        self._wait()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """Return when the helper isn't at it and never will be, however often this is interrupted; the last
        interruption is raised then. What the work raised doesn't matter any more."""
        late: BaseException | None = None
        while not self._mine():
            try:
                self._wait()
                break
            except BaseException as error:  # noqa: BLE001  raised below
                late = error
        if late is not None:
            raise late

    def _wait(self) -> None:
        # The helper sets the mark before it gives the lock back, so waiting again after an interruption is safe.
        while not self._over:
            self._done.acquire()


class Helper:
    """Its thread starts with the first work and ends with ``close``, or when nobody holds the helper any longer."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False
        weakref.finalize(self, self._tasks.put, None)

    def both(self, mine: _Work, other: _Work) -> None:
        """Do both, ``other`` in the helper's thread if that is free, else after ``mine`` in this one.

        Raises what either raised. When this returns or raises, also by an interruption, nobody is at it any longer:
        the caller's memory and files are the caller's again.
        """
        task = _Task(other)
        try:
            self._offer(task)
            mine()
            task.finish()
        except BaseException:
            task.abandon()
            raise

    def _offer(self, task: _Task) -> None:
        with self._lock:
            if self._closed:
                return
            if self._thread is None:
                # The thread knows the queue alone, so that it doesn't keep the helper. A daemon, because it never holds
                # anything that a process must not end with.
                thread = threading.Thread(target=_serve, args=(self._tasks,), name="cloister-read", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # this process may not have one more
                    return
                self._thread = thread
        self._tasks.put(task)

    def close(self) -> None:
        """Ends the thread after what it is at. Idempotent."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._tasks.put(None)
            thread.join()


def _serve(tasks: SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None:
        task.run()
        del task  # it holds the caller's memory
