"""Whoever runs the servers attacks a run in its midst: documents, sockets, wires and databases are all theirs.

One run goes on through the whole module; the last attack but one on it is not theirs: the lab ends it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from cloister.client import Agreement, operations
from cloister.contracts import Job, read_job
from cloister.crypto import Envelope, canonical_json
from tests.e2e.kbs import Asker, Kbs
from tests.e2e.operator import Wire, address, as_user, catalogue, node_socket, workload_pid
from tests.e2e.search import forms
from tests.e2e.story import Run, Story, refused, until
from tests.e2e.story import story as story

# What a process of the operator says to the agent: give me evidence for my own key.
_ASK = """
import json, os, socket, sys
path, nonce, key = sys.argv[1:]
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(20)
try:
    # The path is longer than a socket's address may be.
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
    sock.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
except PermissionError:
    print('"no permission"')
    raise SystemExit
try:
    sock.sendall(json.dumps({"op": "evidence", "nonce": nonce, "tee-pubkey": json.loads(key)}).encode() + b"\\n")
    data = b""
    while not data.endswith(b"\\n"):
        part = sock.recv(65536)
        if not part:
            break
        data += part
except OSError:
    data = b""
print(data.decode().strip() or '"hung up"')
"""


class Stage:
    """A run in the middle of its training, with a recorder on the way to each broker."""

    def __init__(self, story: Story, agreement: Agreement, run: Run, wires: dict[str, Wire]) -> None:
        self.story, self.agreement, self.run, self.wires = story, agreement, run, wires
        order = json.loads((run.folder / "job" / "job.json").read_text())
        self.job: Job = read_job(Envelope.from_bytes(order["job"].encode()), agreement.contract)
        self.instance = bytes.fromhex(order["instance"])

    def asker(self, **changes: Any) -> Asker:
        return Asker(self.story.home, self.agreement.contract, self.job.envelope, **changes)

    def evidence(self, asker: Asker, nonce: str, uid: int) -> Any:
        path, key = str(node_socket(self.run)), json.dumps(asker.jwe.public_jwk)
        return json.loads(as_user(uid, _ASK, path, nonce, key))


@pytest.fixture(scope="module")
def stage(story: Story) -> Iterator[Stage]:
    ports = {name: party["port"] for name, party in story.home.parties().items()}
    with Wire(ports["hospital"]) as hospital, Wire(ports["lab"]) as lab:
        agreement = story.agree()
        with address(story, "hospital", hospital.port), address(story, "lab", lab.port):
            run = story.long_run(agreement)
        yield Stage(story, agreement, run, {"hospital": hospital, "lab": lab})
        if run.state()[0] == "running":
            operations.cancel_job(story.home, run.digest, "hospital")
            run.end()


@pytest.fixture
def nothing_given(story: Story, stage: Stage) -> Iterator[None]:
    """No attack makes a broker give out a key, an attestation result or a permit."""

    kinds = ("key.released", "permit.issued", "output.unwrapped", "contract.signed", "asset.sealed")

    def given() -> list[dict[str, Any]]:
        entries = [e for party in stage.wires for e in operations.show_log(story.home, party, last=100_000)]
        return [e for e in entries if e["kind"] in kinds]

    before = given()
    yield
    assert given() == before


@pytest.fixture(scope="module")
def edited(story: Story, stage: Stage) -> Run:
    """A job that waits while the node is busy, and that somebody with access to the catalogue has changed."""
    run = story.submit(story.agree(), epochs=3)
    ((text,),) = catalogue(story, "SELECT envelope FROM jobs WHERE digest = ?", run.digest)
    envelope = Envelope.from_bytes(text.encode())
    document = json.loads(envelope.payload)
    document["recipe"]["epochs"] = 4
    changed = Envelope(envelope.payload_type, canonical_json(document), envelope.signatures)
    catalogue(story, "UPDATE jobs SET envelope = ? WHERE digest = ?", changed.to_bytes().decode(), run.digest)
    return run


def _resource(stage: Stage) -> str:
    return f"/kbs/v0/resource/hospital/asset-key/{stage.job.data.hex()}"


def _code(answer: tuple[int, Any]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["code"]


@pytest.mark.usefixtures("nothing_given")
def test_a_key_is_asked_for_without_a_session(story: Story, stage: Stage) -> None:
    with Kbs(story.home, "hospital") as kbs:
        assert _code(kbs.get(_resource(stage))) == (401, "session.absent")
        kbs.cookie = "kbs-session-id=" + "A" * 43
        assert _code(kbs.get(_resource(stage))) == (401, "session.absent")


@pytest.mark.usefixtures("nothing_given")
def test_a_key_is_asked_for_with_made_up_evidence(story: Story, stage: Stage) -> None:
    asker = stage.asker()
    with Kbs(story.home, "hospital") as kbs:
        status, challenge = kbs.post("/kbs/v0/auth", asker.request())
        assert status == 200
        assert _code(kbs.get(_resource(stage))) == (401, "session.unattested")
        answer = kbs.post("/kbs/v0/attest", asker.attestation(challenge["nonce"], asker.made_up()))
        assert answer[0] == 401
        assert answer[1]["error"]["kind"] in ("malformed", "untrusted")
        assert _code(kbs.get(_resource(stage))) == (401, "session.unattested")
    assert story.log("hospital", "attest.refused")[-1]["instance"] == asker.instance.hex()


def test_another_user_s_process_at_the_sandbox_s_socket_gets_no_answer(story: Story, stage: Stage) -> None:
    if not story.separate:
        pytest.skip("all parts run as one user here, so no other user is at hand; run as root")
    asker, path = stage.asker(), story.home.path
    nonce = "A" * 88
    assert stage.evidence(asker, nonce, 0) == "hung up"
    for part in ("parties/hospital", "control"):
        assert stage.evidence(asker, nonce, (path / part).stat().st_uid) == "no permission"


@pytest.mark.usefixtures("nothing_given")
def test_a_genuine_quote_for_the_operator_s_own_key(story: Story, stage: Stage) -> None:
    """With the agent's own user the operator gets real quotes of the node's TPM. They speak of the sandbox that runs,
    and that one has its keys already."""
    node = (story.home.path / "node").stat().st_uid
    stranger, twin = stage.asker(), stage.asker(instance=stage.instance)
    with Kbs(story.home, "lab") as kbs:
        challenge = kbs.post("/kbs/v0/auth", stranger.request())[1]
        evidence = stage.evidence(stranger, challenge["nonce"], node)
        assert evidence["ok"] is True
        answer = kbs.post("/kbs/v0/attest", stranger.attestation(challenge["nonce"], evidence))
        assert _code(answer) == (401, "appraisal.instance")
    with Kbs(story.home, "lab") as kbs:
        assert _code(kbs.post("/kbs/v0/auth", twin.request())) == (401, "instance.other")


@pytest.mark.usefixtures("nothing_given")
def test_evidence_that_was_captured_answers_no_other_challenge(story: Story, stage: Stage) -> None:
    asker, node = stage.asker(), (story.home.path / "node").stat().st_uid
    with Kbs(story.home, "lab") as first, Kbs(story.home, "lab") as second:
        old = first.post("/kbs/v0/auth", asker.request())[1]["nonce"]
        new = second.post("/kbs/v0/auth", asker.request())[1]["nonce"]
        evidence = stage.evidence(asker, old, node)
        # As it was captured; then dressed up as the answer to the new challenge.
        assert _code(second.post("/kbs/v0/attest", asker.attestation(old, evidence))) == (401, "nonce.other")
        assert _code(second.post("/kbs/v0/attest", asker.attestation(new, evidence))) == (401, "nonce.replayed")
        assert _code(first.post("/kbs/v0/attest", asker.attestation(old, evidence))) == (401, "appraisal.instance")
        assert _code(first.post("/kbs/v0/attest", asker.attestation(old, evidence))) == (401, "nonce.replayed")


@pytest.mark.usefixtures("nothing_given")
def test_what_a_wire_recorded_says_nothing_and_replays_to_nothing(story: Story, stage: Stage) -> None:
    for party, wire in stage.wires.items():
        sent = until("traffic", lambda wire=wire: [bytes(part) for part in wire.sent if len(part) > 2000])
        everything = b"".join([*sent, *map(bytes, wire.answered)])
        for name, secret in story.secrets().items():
            assert not any(form in everything for form in forms(secret)), name
        size = story.home.agent(party).audit_head()["size"]
        with socket.create_connection(("127.0.0.1", story.home.parties()[party]["port"]), timeout=60) as replay:
            with suppress(OSError):  # the broker may have hung up before all of it was said
                replay.sendall(sent[0])
                replay.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda replay=replay: _received(replay), b""))
        # A handshake of its own, with other keys: what follows the first message makes no sense to the broker.
        assert len(answer) < 2500
        entries = operations.show_log(story.home, party, last=100)
        new = [e for e in entries if e["index"] >= size]
        assert all(e["kind"] in ("attest.ok", "lease.renewed") for e in new)  # of the run that goes on


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except ConnectionResetError:
        return b""


@pytest.mark.usefixtures("nothing_given")
def test_a_job_with_another_recipe_than_was_signed(story: Story, stage: Stage) -> None:
    document = json.loads(stage.job.envelope.payload)
    document["recipe"]["epochs"] = 1
    changed = Envelope(stage.job.envelope.payload_type, canonical_json(document), stage.job.envelope.signatures)
    asker = Asker(story.home, stage.agreement.contract, changed)
    with Kbs(story.home, "lab") as kbs:
        answer = kbs.post("/kbs/v0/auth", asker.request())
        assert (answer[0], answer[1]["error"]["kind"]) == (401, "untrusted")


def test_the_lab_alone_ends_the_run(story: Story, stage: Stage, edited: Run) -> None:
    other = story.agree()
    assert workload_pid(story) is not None
    answer = operations.revoke_contract(story.home, stage.agreement, "lab", "we changed our mind")
    assert answer["party"] == "lab"
    assert stage.run.ended() == ("revoked", "contract.revoked")
    # Its instance is cut, and no other gets a key: neither broker vouches for the contract any more.
    released = {party: story.released(party) for party in ("hospital", "lab")}
    for party in ("hospital", "lab"):
        assert not story.in_force(party, stage.agreement)
        assert story.in_force(party, other)
    assert refused(lambda: story.submit(stage.agreement)) == ("Denied", "contract.revoked")
    for party in ("hospital", "lab"):
        asker = stage.asker(instance=stage.instance)
        asker.statements = list  # type: ignore[method-assign]
        with Kbs(story.home, party) as kbs:
            assert _code(kbs.post("/kbs/v0/auth", asker.request())) == (401, "contract.revoked")
    assert {party: story.released(party) for party in ("hospital", "lab")} == released


def test_a_waiting_job_that_was_edited_in_the_catalogue_ends(story: Story, edited: Run) -> None:
    state, code = edited.ended()
    assert state == "denied"
    assert code is not None
    assert code.startswith("dsse.")
    for party in ("hospital", "lab"):
        assert not [e for e in story.log(party, "key.released") if e["job"] == edited.digest]
