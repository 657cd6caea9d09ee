"""The first process's side: it starts the others, hands them what they need, and ends them.

What keeps this safe:

- The others are new programs, not forks: no key, socket or lease of this process is in their memory, and every
  descriptor but three is closed. They get rows, model and settings through anonymous memory that is sealed against
  change before they start (memfd_create(2), F_ADD_SEALS), never through a folder.
- They die with this process, whatever ends it: the kernel kills them (prctl(2), PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ....contracts.recipe import Recipe
from ....errors import CloisterError, Misuse, Unavailable, error_from_wire
from ..health import is_out_of_memory
from ..looks import Look
from ..ports import CheckpointSink, Lease, Progress
from ..trainer import SealedTrainer
from .group import Group, joined, shard
from .handed import READY, FirstSink, Handed, read_inputs, seal_inputs
from .trainer import GroupTrainer

__all__ = ["require_processors", "train_together"]

_MODULE = "cloister.workload.training.distributed.member"
_LOOK_SECONDS = 0.5
_END_SECONDS = 10.0  # for a process that has nothing left to do, or whose reason is asked for
_REPORT = 1 << 16


def require_processors(recipe: Recipe) -> None:
    """Raises Misuse (``distributed.processes``) if this machine has fewer processors, or GPUs, than the recipe asks."""
    cuda = torch.cuda.is_available()
    have = torch.cuda.device_count() if cuda else len(os.sched_getaffinity(0))
    if recipe.processes > have:
        raise Misuse(
            "distributed.processes",
            f"The recipe wants {recipe.processes} processes and this node has {have} {'GPUs' if cuda else 'processors'}"
            "; lower 'processes' or choose a larger node.",
        )


def train_together(
    model: nn.Module,
    settings: Mapping[str, Any],
    *,
    sink: CheckpointSink,
    progress: Progress,
    lease: Lease,
    look: Callable[[], Look] | None,
) -> tuple[int, SealedTrainer]:
    """``SealedTrainer(model, **settings, …).train_sealed()`` by as many processes as ``settings["recipe"]`` says, and
    the first one's trainer.

    ``model`` is trained in place, as by one process. Raises what training in any of them raised; Unavailable
    (``distributed.ended``) if one of them ended without a reason.
    """
    recipe: Recipe = settings["recipe"]
    require_processors(recipe)
    group = Group(0, recipe.processes, recipe.sharding == "fsdp")
    threads = max(1, (recipe.threads or torch.get_num_threads()) // group.size)
    handed = Handed.of(sink)
    ports = {"sink": FirstSink(sink, handed), "progress": progress, "lease": lease, "look": look}
    inputs = seal_inputs((model, dict(settings), None if handed is None else handed.shared()))
    store = os.memfd_create("group", os.MFD_CLOEXEC)
    try:
        with _Team(group, threads, inputs, store, lease) as team, joined(group, store, threads):
            if not group.sharded:
                trainer = GroupTrainer(model, group=group, **settings, **ports)
                return trainer.train_sealed(), trainer
            # The first process cuts its parts, too, from the handed copy: the model stays whole for the result.
            parts, _, _ = read_inputs(inputs)
            team.check()
            shard(parts)
            trainer = GroupTrainer(parts, group=group, **settings, **ports)
            step = trainer.train_sealed()
            group.take_back(parts, model)
            return step, trainer
    finally:
        os.close(inputs)
        os.close(store)


class _Team:
    """The other processes. Entering waits until all have their inputs; leaving ends them."""

    def __init__(self, group: Group, threads: int, inputs: int, store: int, lease: Lease) -> None:
        self._group, self._threads, self._inputs, self._store, self._lease = group, threads, inputs, store, lease
        self._members: list[_Member] = []

    def __enter__(self) -> _Team:
        self._lease.on_loss(self.kill)
        try:
            for rank in range(1, self._group.size):
                self._members.append(self._start(Group(rank, self._group.size, self._group.sharded)))
            for member in self._members:
                while not member.ready():
                    self._lease.check()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: object, problem: BaseException | None, *_: object) -> None:
        # A lost connection is told as a RuntimeError, and only the one that ended knows why it was lost. Any other
        # error is this process's own, and the others end because of it.
        lost = isinstance(problem, RuntimeError) and not is_out_of_memory(problem)
        theirs = self._outcome() if problem is None or lost else None
        self.kill()
        if theirs is not None:
            raise theirs from problem

    def check(self) -> None:
        """Raises the reason of one that ended."""
        for member in self._members:
            if (fault := member.fault(0)) is not None:
                raise fault

    def kill(self) -> None:
        """Their memory goes back to the kernel, which overwrites it before anybody else gets it."""
        for member in self._members:
            member.kill()

    def _outcome(self) -> CloisterError | None:
        """Why one of the others failed, or None. They end by themselves, of success or of a lost connection."""
        until = time.monotonic() + _END_SECONDS
        faults = [member.fault(max(0.0, until - time.monotonic())) for member in self._members]
        told = [fault for fault in faults if fault is not None]
        # The one that ended first broke the others' connections: prefer a reason that somebody gave.
        return next((f for f in told if f.code != _ENDED), told[0] if told else None)

    def _start(self, group: Group) -> _Member:
        read, write = os.pipe2(os.O_CLOEXEC)
        order = {
            "group": [group.rank, group.size, group.sharded],
            "threads": self._threads,
            "parent": os.getpid(),
            "descriptors": [self._inputs, self._store, write],
        }
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-m", _MODULE, json.dumps(order)],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": str(self._threads)},
                pass_fds=(self._inputs, self._store, write),
            )
        except OSError:
            os.close(read)
            raise Unavailable(
                "distributed.start", "A process of the training could not be started; lower 'processes'."
            ) from None
        finally:
            os.close(write)
        return _Member(process, read)


_ENDED = "distributed.ended"


class _Member:
    """One other process, and the pipe on which it says that it is ready, and why it failed."""

    def __init__(self, process: subprocess.Popen[bytes], report: int) -> None:
        self._process, self._report = process, report
        self._said = b""

    def ready(self) -> bool:
        """Raises why it failed, if it did."""
        if self._listen(_LOOK_SECONDS):
            raise self.fault(_END_SECONDS) or _ended()
        return self._said.startswith(READY)

    def fault(self, seconds: float) -> CloisterError | None:
        """Why it failed, once it ended; None if it ended well or, after ``seconds``, not yet."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        while not self._listen(0):
            if not select.select([self._report], [], [], 0)[0]:
                break
        said = self._said.removeprefix(READY)
        if said:
            with contextlib.suppress(ValueError):
                return error_from_wire(json.loads(said))
        return None if code == 0 else _ended()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._report >= 0:
            os.close(self._report)
            self._report = -1

    def _listen(self, seconds: float) -> bool:
        """Hear what it says; True once it said all."""
        if not select.select([self._report], [], [], seconds)[0]:
            return False
        heard = os.read(self._report, _REPORT)
        self._said = (self._said + heard)[:_REPORT]
        return not heard


def _ended() -> Unavailable:
    return Unavailable(
        _ENDED,
        "One of the processes that train together ended without a reason, most often for want of memory; lower"
        " 'batch_size' or 'processes'.",
    )
