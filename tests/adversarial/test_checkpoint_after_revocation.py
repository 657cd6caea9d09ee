"""A lease is cut while a checkpoint is being sealed in the background: nothing of it may be recorded, none of it stays
in memory, and above all a copy that was half overwritten must never become the state that a run goes on from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from cloister.errors import Denied, Internal
from cloister.workload import checkpoints as checkpoints_module
from cloister.workload import leases as leases_module
from cloister.workload.checkpoints import SealedCheckpoints
from cloister.workload.identity import KeyRing, WorkloadIdentity
from cloister.workload.key_session import Lease, RunContext, boottime
from cloister.workload.leases import LeaseKeeper
from cloister.workload.training.background import CheckpointWriter
from tests.bundles import INSTANCE, make_contract, make_job
from tests.keepers import join_keepers

SECRET = b"s" * 32
HEADER: dict[str, Any] = {"kind": "test"}


def state(value: float) -> dict[str, dict[str, torch.Tensor]]:
    tensors = [torch.full((3_000_000,), value, dtype=torch.float32) for _ in range(2)]
    return {"model": {"w": tensors[0]}, "optimizer": {"m": tensors[1]}}


class Instance:
    """One instance of a run, with a lease that ``cut`` ends as a refused renewal does."""

    def __init__(self, folder: Path, known: tuple[int, bytes] | None = None) -> None:
        contract = make_contract()
        self.run = RunContext(contract, make_job(contract), INSTANCE, "tpm", WorkloadIdentity(), None)  # type: ignore[arg-type]
        self.ring, self.records = KeyRing(), list[str]()
        self.ring.put("checkpoint", SECRET)
        leases = {"hospital": Lease(0, boottime() + 1000)}
        self.lease = LeaseKeeper(self.run, self.ring, leases, on_lost=lambda _: None)
        self.sink = SealedCheckpoints(self.run, SECRET, folder, known=known, record=self.records.append)
        self.writer = CheckpointWriter(self.sink, self.lease)

    def cut(self) -> None:
        self.lease._end(Denied("contract.revoked", "The contract was revoked."))


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Stands in for the process that ends, so that what would still run is seen to be harmless."""
    codes: list[int] = []
    monkeypatch.setattr(leases_module.os, "_exit", codes.append)
    yield codes
    join_keepers()


def between_reads(monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[], None]) -> None:
    """``act`` once, after the sealing has taken ``at`` pieces of the second tensor's file."""
    real = checkpoints_module.seal_object

    class Piecewise:
        def __init__(self, file: BinaryIO) -> None:
            self._file, self._pieces = file, 0

        def readinto(self, buffer: memoryview) -> int:
            self._pieces += 1
            if self._pieces == at + 1:
                act()
            return self._file.readinto(buffer[: 1 << 20])  # type: ignore[attr-defined,no-any-return]

    def seal(files: Iterator[tuple[str, BinaryIO]], *args: Any, **kwargs: Any) -> Any:
        watched = ((name, Piecewise(file) if name.startswith("optimizer") else file) for name, file in files)
        return real(watched, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoints_module, "seal_object", seal)


@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_lease_is_cut_in_the_middle_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: list[int], at: int
) -> None:
    one = Instance(tmp_path)
    one.writer.save(10, state(1), HEADER)
    one.writer._wait()
    before = list(one.records)
    between_reads(monkeypatch, at, one.cut)
    one.writer.save(20, state(2), HEADER)
    memory = list(one.writer._snapshot._data())
    assert one.writer._task is not None
    assert one.writer._task.done.wait(30)
    assert ended == [leases_module.EXIT_LEASE_LOST]
    assert isinstance(one.writer._task.error, Internal)
    assert one.writer._task.error.code == "checkpoint.cut"
    assert not any(data.any() for data in memory)
    assert repr(one.ring) == "KeyRing(0 keys)"
    # Nothing new was recorded or left, and what was recorded before is what the next instance goes on from.
    assert one.records == before
    assert [p.name for p in tmp_path.iterdir()] == ["00000010"]
    found = Instance(tmp_path, one.sink._known).sink.latest()
    assert found is not None
    step, files = found
    with files:
        assert step == 10
        data = files.read("optimizer-0000.safetensors")
    assert torch.frombuffer(bytearray(data[-4_000_000:]), dtype=torch.float32).eq(1).all()


def test_training_that_has_not_noticed_takes_no_more_copies(tmp_path: Path, ended: list[int]) -> None:
    one = Instance(tmp_path)
    one.cut()
    with pytest.raises(Internal) as caught:
        one.writer.save(10, state(1), HEADER)
    assert caught.value.code == "checkpoint.cut"
    with pytest.raises(Denied) as lost:
        one.lease.check()
    assert lost.value.code == "contract.revoked"
    assert one.records == []
    assert list(tmp_path.iterdir()) == []


def test_a_broker_that_hangs_while_it_records_does_not_hold_up_the_lease_check(tmp_path: Path) -> None:
    one = Instance(tmp_path)
    asked, hang = threading.Event(), threading.Event()

    def record(_: str) -> None:
        asked.set()
        assert hang.wait(30)

    one.sink = SealedCheckpoints(one.run, SECRET, tmp_path, known=None, record=record)
    writer = CheckpointWriter(one.sink, one.lease)
    writer.save(10, state(1), HEADER)
    assert asked.wait(30)
    checked = threading.Thread(target=lambda: [one.lease.check() for _ in range(100)])
    checked.start()
    checked.join(60)
    assert not checked.is_alive()
    assert writer.busy()
    writer.check()
    hang.set()
    writer.finish()
    assert one.sink._known is not None
    assert one.sink._known[0] == 10
