"""Checkpoints beside the training: the copy and its layout, the order of things, and errors that must surface."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from cloister.contracts.recipe import parse_recipe
from cloister.errors import Denied, Internal, Malformed, Unavailable
from cloister.sealed import check_ciphertext
from cloister.workload.checkpoints import SealedCheckpoints
from cloister.workload.data import read_table
from cloister.workload.identity import WorkloadIdentity
from cloister.workload.key_session import RunContext
from cloister.workload.training import background, export_files, load_base, run_training
from cloister.workload.training.background import CheckpointWriter
from cloister.workload.training.snapshot import Snapshot, shard_name
from cloister.workload.training.state import encode_state
from tests.bundles import INSTANCE, make_contract, make_job
from tests.tiny_models import MemorySink, Recorder, banking_csv, readers, tiny_bert

TYPES = [
    torch.int64, torch.float64, torch.float32, torch.int32, torch.bfloat16, torch.float16, torch.int16, torch.int8,
    torch.uint8, torch.bool,
]  # fmt: skip
HEADER: dict[str, Any] = {"kind": "test"}


def files_of(snapshot: Snapshot) -> dict[str, bytes]:
    return {name: file.read() for name, file in snapshot.files()}


# --- the layout ---------------------------------------------------------------------------------------------------

shapes = st.lists(st.integers(0, 4), max_size=3)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.dictionaries(names, st.tuples(st.sampled_from(TYPES), shapes), max_size=8), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_files_are_byte_for_byte_what_the_library_writes(
    described: dict[str, tuple[torch.dtype, list[int]]], seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randint(0, 2, shape, generator=draw).to(dtype) for n, (dtype, shape) in described.items()}
    snapshot = Snapshot()
    snapshot.take({"model": tensors})
    assert files_of(snapshot) == {"model-0000.safetensors": save(tensors)}


@pytest.mark.parametrize("piece", [1, 7, 100, 1 << 20])
def test_a_file_is_the_same_in_pieces_of_any_size(piece: int) -> None:
    tensors = {"a": torch.arange(50.0), "b": torch.arange(9)}
    snapshot = Snapshot()
    snapshot.take({"model": tensors})
    ((_, file),) = snapshot.files()
    buffer, out = bytearray(piece), b""
    while n := file.readinto(buffer):  # type: ignore[attr-defined]
        out += buffer[:n]
    assert out == save(tensors)


def test_parts_are_cut_by_parameter_into_files_of_bounded_size() -> None:
    tensors = {f"t{i}": torch.full((10,), float(i)) for i in range(7)} | {"large": torch.ones(100)}
    snapshot = Snapshot(shard_bytes=100)  # two of 40 bytes; the one of 400 has a file of its own
    snapshot.take({"model": tensors, "optimizer": {}})
    files = files_of(snapshot)
    assert snapshot.counts == {"model": 5, "optimizer": 1}
    assert list(files) == [*(shard_name("model", n) for n in range(5)), "optimizer-0000.safetensors"]
    found = [load(data) for data in files.values()]
    assert [sorted(f) for f in found] == [["t0", "t1"], ["t2", "t3"], ["t4", "t5"], ["t6"], ["large"], []]
    for name, tensor in {k: v for f in found for k, v in f.items()}.items():
        assert torch.equal(tensor, tensors[name])


def test_a_copy_is_of_one_moment_and_its_memory_is_used_again() -> None:
    tensors = {"w": torch.ones(8, 3).t(), "s": torch.tensor(1.0)}  # one of them not in the order of its memory
    snapshot = Snapshot()
    snapshot.take({"model": tensors})
    before = [data.ctypes.data for data in snapshot._data()]
    for tensor in tensors.values():
        tensor.mul_(5)
    assert load(files_of(snapshot)[shard_name("model", 0)])["w"].eq(1).all()
    snapshot.take({"model": tensors})
    assert [data.ctypes.data for data in snapshot._data()] == before
    assert load(files_of(snapshot)[shard_name("model", 0)])["w"].eq(5).all()


@pytest.mark.parametrize("other", [torch.ones(3), torch.ones(2, dtype=torch.float64), None])
def test_other_tensors_are_laid_out_anew(other: torch.Tensor | None) -> None:
    snapshot = Snapshot()
    snapshot.take({"model": {"w": torch.ones(2)}})
    tensors = {"v": torch.ones(2)} if other is None else {"w": other}
    snapshot.take({"model": tensors})
    assert files_of(snapshot) == {"model-0000.safetensors": save(tensors)}


def test_a_type_without_a_form_is_refused() -> None:
    with pytest.raises(Malformed) as caught:
        Snapshot().take({"model": {"w": torch.ones(2, dtype=torch.complex64)}})
    assert caught.value.code == "checkpoint.type"


def test_a_cut_copy_is_overwritten_and_never_read_again() -> None:
    snapshot = Snapshot()
    snapshot.take({"model": {"w": torch.ones(1000)}})
    memory = list(snapshot._data())
    ((_, file),) = snapshot.files()
    assert file.read(100)
    snapshot.cut()
    assert not any(data.any() for data in memory)
    for again in (file.read, partial(snapshot.take, {"model": {"w": torch.ones(1000)}})):
        with pytest.raises(Internal) as caught:
            again()
        assert caught.value.code == "checkpoint.cut"


def test_a_header_that_could_not_be_read_again_is_not_written() -> None:
    with pytest.raises(Malformed) as caught:
        encode_state({"plain": ["x" * (1 << 20)] * 17}, {"model": 1})
    assert caught.value.code == "checkpoint.state"


# --- the writer ---------------------------------------------------------------------------------------------------


class HeldSink(MemorySink):
    """Reads a checkpoint only when it is let: ``reached`` when asked, ``go`` to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go = threading.Event(), threading.Event()
        self.error: BaseException | None = None

    def save(self, step: int, files: Iterable[tuple[str, BinaryIO]]) -> None:
        self.reached.set()
        assert self.go.wait(120)
        if self.error is not None:
            raise self.error
        super().save(step, files)


@pytest.fixture
def held() -> Iterator[HeldSink]:
    sink = HeldSink()
    yield sink
    sink.go.set()


def parts(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((100,), value)}}


def saved(sink: MemorySink, step: int) -> float:
    return float(load(sink.saved[step][shard_name("model", 0)])["w"][0])


def test_saving_returns_before_the_checkpoint_is_kept_and_keeps_that_moment(held: HeldSink) -> None:
    state = parts(1)
    with CheckpointWriter(held, Recorder()) as writer:
        writer.save(5, state, HEADER)
        assert held.reached.wait(60)
        assert writer.busy()
        state["model"]["w"].fill_(2)
        assert held.saved == {}
        held.go.set()
    assert saved(held, 5) == 1
    assert not writer.busy()


def test_the_next_one_waits_so_that_there_is_one_copy_and_none_is_left_out(held: HeldSink) -> None:
    writer, waiting = CheckpointWriter(held, Recorder()), threading.Event()
    with writer:
        writer.save(5, parts(1), HEADER)

        def more() -> None:
            waiting.set()
            writer.save(6, parts(2), HEADER)

        second = threading.Thread(target=more)
        second.start()
        assert waiting.wait(60)
        second.join(0.3)
        assert second.is_alive()
        held.go.set()
        second.join(60)
        assert not second.is_alive()
    assert {step: saved(held, step) for step in held.saved} == {5: 1, 6: 2}
    assert list(held.saved) == [5, 6]


def test_memory_is_got_beside_the_training_and_given_back_overwritten() -> None:
    sink = MemorySink()
    writer = CheckpointWriter(sink, Recorder())
    writer.prepare(parts(1))
    memory = list(writer._snapshot._data())
    writer.save(1, parts(7), HEADER)
    writer.finish()
    assert saved(sink, 1) == 7
    assert len(memory) == 1
    assert not memory[0].any()
    assert writer._snapshot.counts == {}


def failing(held: HeldSink) -> CheckpointWriter:
    writer = CheckpointWriter(held, Recorder())
    held.error = Unavailable("storage.full", "The storage is full; free space or choose another folder.")
    writer.save(5, parts(1), HEADER)
    return writer


def test_an_error_surfaces_at_the_next_look_and_ever_after(held: HeldSink) -> None:
    writer = failing(held)
    writer.check()
    held.go.set()
    assert writer._task is not None
    assert writer._task.done.wait(60)
    for look in (writer.check, writer.check, partial(writer.save, 6, parts(2), HEADER), writer.finish):
        with pytest.raises(Unavailable) as caught:
            look()
        assert caught.value.code == "storage.full"
    assert held.saved == {}


def test_an_error_of_the_last_checkpoint_surfaces_at_the_end(held: HeldSink) -> None:
    writer = failing(held)
    held.go.set()
    with pytest.raises(Unavailable), writer:
        pass
    assert not any(data.any() for data in writer._snapshot._data())


def test_a_lease_that_ends_while_training_waits_ends_the_waiting(held: HeldSink) -> None:
    writer = CheckpointWriter(held, Recorder(lose_at=1))
    writer.save(5, parts(1), HEADER)
    with pytest.raises(Denied) as caught:
        writer.finish()
    assert caught.value.code == "lease.expired"
    assert held.saved == {}


def test_an_error_of_the_training_gives_the_checkpoint_up(held: HeldSink, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CheckpointWriter(held, Recorder())
    cut = writer._snapshot.cut

    def cut_first() -> None:
        cut()
        held.go.set()  # only now is the sink let read on

    monkeypatch.setattr(writer._snapshot, "cut", cut_first)

    def fail() -> None:
        with writer:
            writer.save(5, parts(1), HEADER)
            assert held.reached.wait(60)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert writer._task is not None
    assert writer._task.done.wait(60)
    assert isinstance(writer._task.error, Internal)
    assert held.saved == {}
    assert not any(data.any() for data in writer._snapshot._data())


# --- whole runs ---------------------------------------------------------------------------------------------------

RECIPE = {
    "task": "classification", "method": "lora", "data": "bank/queries", "base": "lab/tiny", "threads": 1,
    "columns": {"text": "text", "label": "label"}, "batch_size": 8, "epochs": 2, "learning_rate": "0.01",
    "checkpoint_steps": 5, "max_steps": 16, "precision": "fp32", "lora": {"rank": 4, "dropout": "0.1"},
}  # fmt: skip


def train(sink: Any, recorder: Recorder | None = None, recipe: Mapping[str, Any] = RECIPE) -> Any:
    parsed = parse_recipe(recipe)
    recorder = recorder or Recorder()
    table = read_table({"q.csv": io.BytesIO(banking_csv(120))}, parsed.columns.names())
    return run_training(parsed, load_base(readers(tiny_bert())), table, sink=sink, progress=recorder, lease=recorder)


def test_training_goes_on_while_a_checkpoint_is_being_kept() -> None:
    recorder = Recorder()

    class Slow(MemorySink):
        waited_for = 0

        def save(self, step: int, files: Iterable[tuple[str, BinaryIO]]) -> None:
            if step == 5:  # not kept before two more steps have begun
                target, pause = recorder.checks + 2, threading.Event()
                while recorder.checks < target:
                    assert not pause.wait(0.002)
                Slow.waited_for = target
            super().save(step, files)

    sink = Slow()
    slow, quick = train(sink, recorder), MemorySink()
    assert Slow.waited_for > 0
    assert export_files(slow) == export_files(train(quick))
    assert sink.saved == quick.saved
    assert set(sink.saved) == {5, 10, 15, 16}


def test_a_checkpoint_that_fails_ends_the_run_with_its_error() -> None:
    class Full(MemorySink):
        def save(self, step: int, files: Iterable[tuple[str, BinaryIO]]) -> None:
            if step == 10:
                raise Unavailable("storage.full", "The storage is full; free space or choose another folder.")
            super().save(step, files)

    sink, recorder = Full(), Recorder()
    with pytest.raises(Unavailable) as caught:
        train(sink, recorder)
    assert caught.value.code == "storage.full"
    assert set(sink.saved) == {5}
    assert recorder.reports[-1][1] < 16


def test_a_last_checkpoint_that_fails_ends_the_run_before_it_is_evaluated() -> None:
    class Full(MemorySink):
        def save(self, step: int, files: Iterable[tuple[str, BinaryIO]]) -> None:
            if step == 16:
                raise Unavailable("storage.full", "The storage is full; free space or choose another folder.")

    recorder = Recorder()
    with pytest.raises(Unavailable):
        train(Full(), recorder)
    assert "evaluate" not in {stage for stage, *_ in recorder.reports}


class Brokers:
    """A sealed sink on disk with brokers that keep what they are told; ``open`` is the next instance of the run."""

    def __init__(self, folder: Path) -> None:
        contract = make_contract()
        self.run = RunContext(contract, make_job(contract), INSTANCE, "tpm", WorkloadIdentity(), None)  # type: ignore[arg-type]
        self.folder, self.records = folder, list[str]()
        self.record: Callable[[str], None] = self.records.append
        self.last: SealedCheckpoints | None = None

    def open(self) -> SealedCheckpoints:
        known = None if self.last is None else self.last._known
        self.last = SealedCheckpoints(self.run, b"s" * 32, self.folder, known=known, record=lambda r: self.record(r))
        return self.last


@pytest.mark.parametrize("recipe", [RECIPE, {**{k: v for k, v in RECIPE.items() if k != "lora"}, "method": "full"}])
def test_going_on_from_a_sharded_sealed_checkpoint_is_bit_identical(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "Snapshot", partial(Snapshot, 8192))
    whole = train(Brokers(tmp_path / "whole").open(), recipe=recipe)
    brokers = Brokers(tmp_path / "broken")

    def down(record: str) -> None:
        if len(brokers.records) == 2:  # steps 5 and 10 are recorded; 15 is sealed, and then the process is gone
            raise InterruptedError("killed")
        brokers.records.append(record)

    brokers.record = down
    with pytest.raises(InterruptedError):
        train(brokers.open(), recipe=recipe)
    assert sorted(p.name for p in brokers.folder.iterdir()) == ["00000005", "00000010", "00000015"]
    assert len(check_ciphertext(brokers.folder / "00000010").files) > 6
    brokers.record = brokers.records.append
    resumed = train(brokers.open(), recipe=recipe)
    assert resumed.timings.resumed_from == 10
    assert export_files(resumed) == export_files(whole)
    assert resumed.evaluation.document() == whole.evaluation.document()
    assert len(brokers.records) == 4
    assert sorted(p.name for p in brokers.folder.iterdir()) == ["00000015", "00000016"]


@pytest.mark.parametrize("shards", [None, 0, True, 10_000, "1", {"model": 1}])
def test_a_state_that_counts_its_files_wrongly_is_refused(shards: Any) -> None:
    from cloister.crypto import canonical_json, parse_canonical

    sink = MemorySink()
    train(sink)
    files = sink.saved[16]
    header = parse_canonical(files["state.json"])
    header["shards"] = shards if isinstance(shards, dict) else {**header["shards"], "model": shards}
    files["state.json"] = canonical_json(header)
    with pytest.raises(Malformed) as caught:
        train(sink)
    assert caught.value.code == "checkpoint.state"
