"""What every process but the first runs. It has no keys, no socket to the node and no way out but its report.

``python -m cloister.workload.training.distributed.member ORDER``; ``team`` starts it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import BinaryIO

import torch

from ....errors import CloisterError, Internal
from ...identity import harden_process
from ..precision import training_precision
from .group import Group, joined, shard
from .handed import READY, Handed, read_inputs
from .trainer import GroupTrainer

_PR_SET_PDEATHSIG = 1
# This process ends with its training, and by then the weights are in parts: there is nothing to put back.
_NEVER_LEFT = ExitStack()


class _NoPorts:
    """Sink, progress and lease of a process that has none: the first one keeps, tells and asks for all."""

    def __init__(self, handed: Handed | None) -> None:
        self._handed = handed

    def save(self, step: int, files: Iterable[tuple[str, BinaryIO]]) -> None:
        del files
        raise Internal("distributed.sink", "Only the first process writes checkpoints.", step=step)

    def latest(self) -> tuple[int, Handed] | None:
        handed, self._handed = self._handed, None
        return None if handed is None else handed.latest()

    def report(self, stage: str, step: int, total: int, values: Mapping[str, str]) -> None:
        """The first process tells everybody's figures."""

    def check(self) -> None:
        """The first process ends this one with its lease."""

    def on_loss(self, clear: Callable[[], None]) -> None:
        """As above."""


def main(order: str) -> int:
    """Train with the others. No exception's text is printed: it could quote data."""
    harden_process()
    plan = json.loads(order)
    _die_with(plan["parent"])
    inputs, store, report = plan["descriptors"]
    try:
        _train(Group(*plan["group"]), plan["threads"], inputs, store, report)
    except CloisterError as fault:
        os.write(report, json.dumps(fault.to_wire()).encode())
        return fault.exit_code
    except Exception:  # noqa: BLE001 - the first process says that this one ended
        return 1
    return 0


def _train(group: Group, threads: int, inputs: int, store: int, report: int) -> None:
    model, settings, handed = read_inputs(inputs)
    os.close(inputs)  # what is mapped stays
    if torch.cuda.is_available():
        model = model.to(f"cuda:{group.rank}")
    os.write(report, READY)
    ports = _NoPorts(handed)
    with joined(group, store, threads):
        _NEVER_LEFT.enter_context(training_precision(model, settings["bf16"]))
        if group.sharded:
            shard(model)
        GroupTrainer(model, group=group, **settings, sink=ports, progress=ports, lease=ports).train_sealed()
        if group.sharded:
            group.take_back(model, model)


def _die_with(parent: int) -> None:
    """The kernel kills this process when the one that started it ends (prctl(2))."""
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != parent:
        raise SystemExit(1)


if __name__ == "__main__":
    # As in the workload's own main: taking the libraries down object by object would take seconds.
    os._exit(main(sys.argv[1]))
