"""Checkpoints off the training path: training copies its state and goes on; a second thread keeps the copy.

One checkpoint is under way at a time. If the next one is due before, training waits: so memory is bounded by one copy,
every checkpoint that the recipe asks for is written, in order, and a kill never costs more steps than the recipe says.
(Skipping one instead would let the disk's speed decide which steps can be resumed.)
"""

from __future__ import annotations

import contextlib
import io
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO, Self

from .ports import CheckpointSink, Lease
from .snapshot import Parts, Snapshot
from .state import STATE_FILE, encode_state

__all__ = ["CheckpointWriter"]

_LOOK_SECONDS = 0.2  # between two looks at the lease while training waits for a checkpoint
# For a checkpoint that is given up. One that waits for a broker can't be interrupted; it ends with the process.
_CUT_SECONDS = 5.0
_NICE = 10  # training's own threads come first


class CheckpointWriter:
    """In ``with``: leaving it waits for the last checkpoint, or gives it up if an error leads out of the block."""

    def __init__(self, sink: CheckpointSink, lease: Lease, snapshot: Snapshot | None = None) -> None:
        self._sink, self._lease = sink, lease
        self._snapshot = snapshot or Snapshot()
        self._lane = _Lane()
        self._task: _Task | None = None
        lease.on_loss(self._snapshot.cut)

    def prepare(self, parts: Parts) -> None:
        """Get the memory for checkpoints of such ``parts``, beside the training."""
        self._snapshot.lay_out(parts)
        self._begin(self._snapshot.touch)

    def save(self, step: int, parts: Parts, header: Mapping[str, Any]) -> None:
        """Copy ``parts`` and return; ``header`` must not change any more. Waits for the checkpoint before this one.

        Raises what the one before raised, or what the lease raises.
        """
        self._wait()
        self._snapshot.take(parts)
        self._begin(partial(self._write, step, header))

    def check(self) -> None:
        """Raises what went wrong in the background, from then on at every call."""
        if self._task is not None and self._task.error is not None:
            raise self._task.error

    def busy(self) -> bool:
        """Is a checkpoint under way?"""
        return self._task is not None and not self._task.done.is_set()

    def finish(self) -> None:
        """Wait until the last checkpoint is kept; then give the memory back. Raises as ``save``."""
        self._wait()
        self._lane.end()
        self._snapshot.release()

    def give_up(self) -> None:
        """Overwrite the copy. What was under way is not kept, unless it was read to its end already."""
        self._snapshot.cut()
        self._lane.end(_CUT_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return self.give_up()
        try:
            self.finish()
        except BaseException:
            self.give_up()
            raise

    def _wait(self) -> None:
        while self._task is not None and not self._task.done.wait(_LOOK_SECONDS):
            self._lease.check()
        self.check()

    def _begin(self, work: Callable[[], None]) -> None:
        self._task = _Task(work)
        self._lane.put(self._task)

    def _write(self, step: int, header: Mapping[str, Any]) -> None:
        self._sink.save(step, self._files(header))

    def _files(self, header: Mapping[str, Any]) -> Iterator[tuple[str, BinaryIO]]:
        yield STATE_FILE, io.BytesIO(encode_state(header, self._snapshot.counts))
        yield from self._snapshot.files()


class _Task:
    """One piece of work; ``done`` once it ended, with ``error`` if it ended badly."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self.done = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001  a thread has no caller: the training thread raises it
            self.error = error
        finally:
            self._work = _nothing  # what it holds on to may be large
            self.done.set()


def _nothing() -> None:
    """What is left of a task that was done."""


class _Lane:
    """A thread of low priority that waits for tasks: handing one over takes microseconds, starting a thread doesn't."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)

    def put(self, task: _Task) -> None:
        if not self._thread.is_alive():
            self._thread.start()
        self._tasks.put(task)

    def end(self, seconds: float | None = None) -> None:
        """After what is in it. Returns then, or after that many seconds."""
        if self._thread.is_alive():
            self._tasks.put(None)
            self._thread.join(seconds)

    def _run(self) -> None:
        # On Linux a thread has its own priority, and hands it to the threads that it starts. Where it may not be
        # lowered, the checkpoint is as safe and training a little slower.
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while (task := self._tasks.get()) is not None:
            task.run()
