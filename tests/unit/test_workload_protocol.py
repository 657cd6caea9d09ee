"""The workload's own protocol parts without processes: telemetry, keys, checkpoints, leases, the node's socket."""

from __future__ import annotations

import copy
import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Denied, Internal, Misuse, Unavailable, Untrusted
from cloister.workload import leases as leases_module
from cloister.workload import reasons
from cloister.workload.acquire import _newest
from cloister.workload.checkpoints import SealedCheckpoints, checkpoint_secret
from cloister.workload.identity import KeyRing, WorkloadIdentity
from cloister.workload.key_session import Lease, ReleasedKey, RunContext, boottime
from cloister.workload.leases import LeaseKeeper
from cloister.workload.node_link import NodeLink
from cloister.workload.reasons import SENTENCES
from cloister.workload.telemetry import Telemetry
from tests.bundles import INSTANCE, make_contract, make_job
from tests.keepers import join_keepers


class Link:
    """Keeps what would have left."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def telemetry(self, event: dict[str, Any]) -> None:
        self.events.append(event)


def run_context(link: Any = None) -> RunContext:
    contract = make_contract()
    return RunContext(contract, make_job(contract), INSTANCE, "tpm", WorkloadIdentity(), link or Link())


# --- telemetry ----------------------------------------------------------------------------------------------------


def test_only_contracted_figures_leave_and_they_are_quantized() -> None:
    link = Link()
    Telemetry(make_contract(), link).report("train", 1, 10, {"loss": "0.123456789", "secret": "1", "grad": "2"})  # type: ignore[arg-type]
    assert link.events[-1]["values"] == {"loss": "0.1235"}


def test_a_stage_sends_at_most_a_hundred_and_one_events() -> None:
    link = Link()
    telemetry = Telemetry(make_contract(), link)  # type: ignore[arg-type]
    for step in range(5001):
        telemetry.report("train", step, 5000, {"loss": "1"})
    assert len([e for e in link.events if e["kind"] == "progress"]) == 101


def test_after_plaintext_was_opened_only_fixed_sentences_leave() -> None:
    link = Link()
    telemetry = Telemetry(make_contract(), link)  # type: ignore[arg-type]
    telemetry.failure(ValueError("patient Jane Roe, MRN 12345"))
    telemetry.failure(Misuse("data.column", "The file x.csv has the columns: Jane Roe, MRN 12345.", found="Jane"))
    telemetry.failure(Untrusted("sealed.size", "File 'Jane Roe' has another size."))
    assert "Jane" not in json.dumps(link.events)
    errors = [event["error"] for event in link.events]
    assert [e["code"] for e in errors] == ["workload.internal", "data.column", "sealed.size"]
    assert errors[1]["message"] == SENTENCES["data.column"]
    assert "store it again" in errors[2]["message"]


def test_a_brokers_refusal_is_passed_on_as_it_was_worded() -> None:
    link = Link()
    Telemetry(make_contract(), link).refusal(Denied("budget.runs", "The contract's 5 runs are used up."))  # type: ignore[arg-type]
    assert link.events[0]["error"]["message"] == "The contract's 5 runs are used up."


def test_every_reason_of_data_and_model_has_its_sentence() -> None:
    folder = Path(reasons.__file__).parent
    raised = set()
    for name in ("data", "training", "evaluation"):
        for path in (folder / name).rglob("*.py"):
            raised |= set(
                re.findall(r'(?:Misuse|Malformed|Denied|Unavailable|Untrusted)\(\s*f?"([a-z_.-]+)"', path.read_text())
            )
    assert len(raised) > 25
    assert sorted(raised - set(SENTENCES)) == []


# --- keys ---------------------------------------------------------------------------------------------------------


def test_keys_are_overwritten_hidden_and_not_copied() -> None:
    ring = KeyRing()
    ring.put("a", b"k" * 32)
    inner = ring._keys["a"]
    assert "k" * 4 not in repr(ring)
    with pytest.raises(TypeError, match="not pickled"):
        copy.deepcopy(ring)
    ring.zeroize()
    assert bytes(inner) == bytes(32)
    with pytest.raises(Internal) as caught:
        ring.use("a")
    assert caught.value.code == "keys.absent"


# --- checkpoints --------------------------------------------------------------------------------------------------


def test_no_single_owners_share_gives_the_checkpoint_key() -> None:
    run = run_context()
    both = checkpoint_secret(run, {"hospital": b"h" * 32, "lab": b"l" * 32})
    assert both == checkpoint_secret(run, {"lab": b"l" * 32, "hospital": b"h" * 32})
    for other in ({"hospital": b"h" * 32}, {"hospital": b"h" * 32, "lab": b"x" * 32}):
        assert checkpoint_secret(run, other) != both


class Sink:
    """A checkpoint sink with brokers that keep what they are told."""

    def __init__(self, folder: Path, run: RunContext, secret: bytes = b"s" * 32) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.run, self.secret = folder, run, secret
        self.records: list[str] = []
        self.known: tuple[int, bytes] | None = None

    def open(self) -> SealedCheckpoints:
        return SealedCheckpoints(self.run, self.secret, self.folder, known=self.known, record=self.records.append)

    def save(self, step: int, **blobs: bytes) -> None:
        sink = self.open()
        sink.save(step, ((name, io.BytesIO(blob)) for name, blob in blobs.items()))
        self.known = sink._known

    def newest(self) -> tuple[int, dict[str, bytes]]:
        found = self.open().latest()
        assert found is not None
        step, files = found
        with files:
            return step, {path: files.read(path) for path in files.paths()}


@pytest.fixture
def sink(tmp_path: Path) -> Sink:
    return Sink(tmp_path / "checkpoints", run_context())


def test_a_later_instance_goes_on_from_the_recorded_checkpoint(sink: Sink) -> None:
    sink.save(10, weights=b"w10", state=b"s")
    sink.save(20, weights=b"w20", state=b"s")
    later = Sink(sink.folder, run_context(), sink.secret)
    later.run = RunContext(sink.run.contract, sink.run.job, b"j" * 16, "tpm", WorkloadIdentity(), Link())  # type: ignore[arg-type]
    later.known = sink.known
    assert later.newest() == (20, {"weights": b"w20", "state": b"s"})
    assert len(sink.records) == 2
    assert b"w20" not in b"".join(p.read_bytes() for p in sink.folder.rglob("*") if p.is_file())


def test_only_the_newest_two_are_kept_and_an_unrecorded_step_is_sealed_again(sink: Sink) -> None:
    for step in (10, 20):
        sink.save(step, weights=str(step).encode())
    taken = sink.records

    class Refusing(list[str]):
        def append(self, _: str) -> None:
            raise Unavailable("broker.unreachable", "The broker of lab does not answer; is it running?")

    sink.records = Refusing()
    with pytest.raises(Unavailable):
        sink.save(30, weights=b"never recorded")
    assert sorted(p.name for p in sink.folder.iterdir()) == ["00000010", "00000020", "00000030"]
    assert sink.newest() == (20, {"weights": b"20"})
    sink.records = taken
    sink.save(30, weights=b"30")
    assert sorted(p.name for p in sink.folder.iterdir()) == ["00000020", "00000030"]
    assert sink.newest() == (30, {"weights": b"30"})
    assert len(sink.records) == 3


def test_a_recorded_step_is_never_written_over(sink: Sink) -> None:
    sink.save(20, weights=b"w20")
    for step in (20, 10):
        with pytest.raises(Internal) as caught:
            sink.save(step, weights=b"other")
        assert caught.value.code == "checkpoint.step"
    assert sink.newest() == (20, {"weights": b"w20"})
    assert len(sink.records) == 1


def test_what_else_lies_in_the_folder_does_not_push_the_newest_out(sink: Sink) -> None:
    for name in ("99999998", "99999999", "00000005", "other"):
        (sink.folder / name).mkdir()
    sink.save(10, weights=b"w10")
    sink.save(20, weights=b"w20")
    assert sorted(p.name for p in sink.folder.iterdir()) == ["00000010", "00000020", "99999998", "99999999", "other"]
    assert sink.newest() == (20, {"weights": b"w20"})


def test_an_older_checkpoint_in_the_newest_ones_place_is_refused(sink: Sink) -> None:
    sink.save(10, weights=b"w10")
    sink.save(20, weights=b"w20")
    newest, older = sink.folder / "00000020", sink.folder / "00000010"
    newest.rename(sink.folder / "away")
    older.rename(newest)
    with pytest.raises(Untrusted):
        sink.open().latest()


def test_a_recorded_checkpoint_that_is_gone_is_said_to_be_gone(sink: Sink) -> None:
    sink.known = (20, b"r" * 32)
    with pytest.raises(Untrusted) as caught:
        sink.open().latest()
    assert caught.value.code == "checkpoint.missing"


def test_another_secret_opens_nothing(sink: Sink) -> None:
    sink.save(10, weights=b"w10")
    other = Sink(sink.folder, sink.run, b"x" * 32)
    other.known = sink.known
    with pytest.raises(Untrusted):
        other.open().latest()


def _released(checkpoint: tuple[int, bytes] | None) -> ReleasedKey:
    return ReleasedKey(b"", b"", None, Lease(0, 0.0), checkpoint)  # type: ignore[arg-type]


def test_the_highest_recorded_step_counts_and_a_fork_is_refused() -> None:
    a, b = (10, b"a" * 32), (20, b"b" * 32)
    assert _newest({"hospital": [_released(a)], "lab": [_released(b)]}) == b
    assert _newest({"hospital": [_released(None)]}) is None
    with pytest.raises(Untrusted) as caught:
        _newest({"hospital": [_released((20, b"x" * 32))], "lab": [_released(b)]})
    assert caught.value.code == "checkpoint.fork"


# --- leases -------------------------------------------------------------------------------------------------------


class Ended(BaseException):
    """Instead of the process's end."""


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    codes: list[int] = []
    monkeypatch.setattr(leases_module.os, "_exit", codes.append)
    yield codes
    join_keepers()


def _keeper(deadline: float, **changes: Any) -> tuple[LeaseKeeper, KeyRing, list[str]]:
    ring, told = KeyRing(), list[str]()
    ring.put("k", b"k" * 32)
    leases = {"hospital": Lease(0, deadline), "lab": Lease(0, deadline)}
    return LeaseKeeper(run_context(), ring, leases, on_lost=lambda e: told.append(e.code)), ring, told


def test_a_refused_renewal_ends_the_run_at_once(monkeypatch: pytest.MonkeyPatch, ended: list[int]) -> None:
    def refuse(_: object) -> list[str]:
        raise Denied("contract.revoked", "The contract was revoked.")

    monkeypatch.setattr(leases_module, "gather_statements", refuse)
    keeper, ring, told = _keeper(boottime() + 15)  # renewal is due at once: a third of 30 seconds is over
    keeper.start()
    keeper._thread.join(60)
    assert (ended, told) == ([leases_module.EXIT_LEASE_LOST], ["contract.revoked"])
    assert repr(ring) == "KeyRing(0 keys)"
    with pytest.raises(Denied):
        keeper.check()


def test_a_lost_lease_clears_copies_of_state_and_does_not_wait_for_one_that_is_slow(ended: list[int]) -> None:
    keeper, _, told = _keeper(boottime() - 1)
    cleared, hang = list[str](), threading.Event()
    keeper.on_loss(lambda: hang.wait(30) and None)
    keeper.on_loss(lambda: cleared.append("copy"))
    keeper._count_down()
    hang.set()
    assert (ended, told, cleared) == ([leases_module.EXIT_LEASE_LOST], ["lease.expired"], ["copy"])


def test_silence_ends_the_run_at_the_deadline(monkeypatch: pytest.MonkeyPatch, ended: list[int]) -> None:
    tries, now = list[int](), [boottime()]

    def silent(_: object) -> list[str]:
        tries.append(1)
        now[0] += 0.3  # the lease is over after some tries, however long they take
        raise Unavailable("broker.unreachable", "The broker does not answer.")

    monkeypatch.setattr(leases_module, "gather_statements", silent)
    monkeypatch.setattr(leases_module, "_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(leases_module, "boottime", lambda: now[0])
    keeper, _, told = _keeper(now[0] + 0.5)
    keeper.start()
    join_keepers()
    assert ended == [leases_module.EXIT_LEASE_LOST]
    assert told in (["broker.unreachable"], ["lease.expired"])  # whichever thread looks first
    assert len(tries) > 1


def test_an_expired_lease_stops_the_loop_even_before_the_watcher_does() -> None:
    keeper, _, _ = _keeper(boottime() - 1)
    with pytest.raises(Denied) as caught:
        keeper.check()
    assert caught.value.code == "lease.expired"


# --- the node's socket --------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[Path, list[bytes]]]:
    """A node agent that answers each connection with the next of ``answers``."""
    path, answers = tmp_path / "n.sock", list[bytes]()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    server.listen(4)

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(answers.pop(0))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield path, answers
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join(60)


def test_bytes_after_the_answer_belong_to_the_tunnel(node: tuple[Path, list[bytes]]) -> None:
    path, answers = node
    answers.append(b'{"ok":true}\nfirst bytes of the broker')
    with NodeLink(path).tunnel("hospital") as sock:
        assert sock.recv(100) == b"first bytes of the broker"


@pytest.mark.parametrize("answer", [b"", b"not json\n", b"[]\n", b'{"ok":false}\n', b'{"ok":1}\n'])
def test_answers_that_are_none_are_errors(node: tuple[Path, list[bytes]], answer: bytes) -> None:
    path, answers = node
    answers.append(answer)
    with pytest.raises((Unavailable, Internal, Exception)) as caught:
        NodeLink(path).tunnel("hospital")
    assert caught.type.__module__ == "cloister.errors"


def test_a_refusal_of_the_node_keeps_its_code(node: tuple[Path, list[bytes]]) -> None:
    path, answers = node
    error = Denied("node.party", "The job has no such party.").to_wire()
    answers.append(json.dumps({"ok": False, "error": error}).encode() + b"\n")
    with pytest.raises(Denied) as caught:
        NodeLink(path).evidence("nonce", {})
    assert caught.value.code == "node.party"


def test_telemetry_that_is_refused_or_unheard_does_not_stop_the_run(node: tuple[Path, list[bytes]]) -> None:
    path, answers = node
    answers.append(b'{"ok":false,"error":{"kind":"denied","code":"node.rate","message":"too much"}}\n')
    NodeLink(path).telemetry({"kind": "state", "code": "keys"})
    NodeLink(path.with_name("nobody")).telemetry({"kind": "state", "code": "keys"})
    assert answers == []
