"""Two brokers behind their real sockets; the workload's own client and the owner's own client talk to them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from cloister.attestation import verify_token
from cloister.broker import RunningBroker
from cloister.client.agent import OwnerAgent
from cloister.contracts import check_statement, read_contract, read_job
from cloister.crypto import Envelope
from cloister.crypto.tls import connect_pinned
from cloister.errors import CloisterError, Denied, Misuse, Unavailable, Untrusted
from cloister.sealed import check_dek
from cloister.workload.broker_client import BrokerClient
from cloister.workload.identity import WorkloadIdentity
from cloister.workload.key_session import AttestedSession, RunContext, gather_statements, share_resource
from tests.broker_world import MEASUREMENT, OUTPUT, TERMS, Workload, World, introduce, recipe_document, serving
from tests.patience import until

pytest_plugins = ["tests.broker_fixtures"]


class Link:
    """What the node agent gives the workload: tunnels and evidence, without the sandbox around it."""

    def __init__(self, world: World, running: dict[str, RunningBroker], instance: bytes) -> None:
        self._world, self._running, self._instance = world, running, instance

    def tunnel(self, party: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._running[party].port), timeout=60)

    def evidence(self, nonce: str, tee_pubkey: dict[str, str]) -> dict[str, Any]:
        return self._world.attester.evidence(self._instance, nonce, tee_pubkey)


@pytest.fixture
def served(world: World) -> Iterator[dict[str, RunningBroker]]:
    with ExitStack() as stack:
        running = {name: stack.enter_context(serving(party)) for name, party in world.parties.items()}
        introduce(world.hospital, world.lab, running["lab"])
        introduce(world.lab, world.hospital, running["hospital"])
        yield running


def run_context(world: World, running: dict[str, RunningBroker], instance: bytes = bytes(16)) -> RunContext:
    world.attester.extend_launch(instance, MEASUREMENT, world.contract.digest, world.job.digest)
    link: Any = Link(world, running, instance)
    return RunContext(world.contract, world.job, instance, "insecure", WorkloadIdentity(), link)


def test_the_workloads_own_client_gets_its_keys(world: World, served: dict[str, RunningBroker]) -> None:
    run = run_context(world, served)
    statements = gather_statements(run)
    assert {check_statement(Envelope.from_bytes(s.encode()), run.contract, now=world.clock()) for s in statements} == {
        "hospital",
        "lab",
    }
    for owner, sealed in (("hospital", world.data), ("lab", world.base)):
        with AttestedSession(run, owner, purpose="release", sequence=0, statements=statements) as session:
            share = session.key("state-share", "checkpoint", share_resource("checkpoint"))
            key = session.key("asset-key", sealed.digest.hex(), sealed.digest)
        check_dek(sealed.manifest, key.secret)
        assert share.secret != key.secret
        assert (key.lease.sequence, key.checkpoint) == (0, None)
        verify_token(session.token, run.contract.parties[owner].receipt, now=world.clock())
    with AttestedSession(run, "lab", purpose="renew", sequence=1, statements=gather_statements(run)) as session:
        assert session.renew().sequence == 1


def test_a_whole_run_through_the_sockets(world: World, served: dict[str, RunningBroker], folder: Path) -> None:
    workload = world.workload().run()
    run = run_context(world, served, b"\x09" * 16)
    clients = {name: BrokerClient(run.link, run.contract, name) for name in served}
    permits = []
    output = workload.output(folder / "o", dek=b"\x07" * 32)
    for client in clients.values():
        record = workload.record(5).to_bytes().decode()
        first = client.post("/cloister/v1/checkpoint", {"record": record})
        assert client.post("/cloister/v1/checkpoint", {"record": record})["receipt"]["leaf"] == first["receipt"]["leaf"]
        answer = client.post("/cloister/v1/permit", {"manifest": output.envelope.to_bytes().decode()})
        assert set(answer) == {"permit", "receipt"}
        permits.append(answer["permit"])
        client.close()
    agent = OwnerAgent(served["hospital"].admin_socket)
    body = {
        "contract": world.contract.envelope.to_bytes().decode(),
        "job": world.job.envelope.to_bytes().decode(),
        "manifest": output.envelope.to_bytes().decode(),
        "permits": permits,
        "wrap": wrapped(workload, output.digest, b"\x07" * 32),
    }
    assert agent.open_secret_output(body) == b"\x07" * 32
    agent.close()


def wrapped(workload: Workload, digest: bytes, dek: bytes) -> str:
    import base64

    from cloister.crypto import frame, hpke_seal

    info = frame("cloister/output/v1", workload.contract.digest, workload.job.digest, digest)
    return base64.b64encode(hpke_seal(workload.contract.parties["hospital"].hpke, dek, info)).decode()


def test_the_owners_own_client(world: World, served: dict[str, RunningBroker], folder: Path) -> None:
    agent = OwnerAgent(served["hospital"].admin_socket)
    try:
        assert agent.party == "hospital"
        assert set(agent.pinned_cards()) == {"hospital", "lab"}
        assert agent.status()["party"] == "hospital"
        assert agent.next_version("hospital/queries")[1:] == (2, world.data.digest)
        assert [a["digest"] for a in agent.assets()] == [world.data.digest.hex()]
        contract = agent.sign_contract(world.unsigned(world.contract_fields(serial=2)))
        contract = world.lab.broker.agreements.sign(contract)
        agent.store_contract(contract)
        from cloister.contracts import Recipe

        job = agent.sign_job(contract, Recipe.from_document(recipe_document()), OUTPUT)
        assert read_job(job, read_contract(contract)).submitter == "hospital"
        assert agent.authorize("GET", "/v1/info", None, "00" * 32).startswith("Cloister ")
        size = agent.audit_head()["size"]
        kinds = [entry["kind"] for entry in agent.audit_entries(0, size)["entries"]]
        assert kinds[-2:] == ["contract.signed", "contract.signed"]
        assert agent.audit_receipt(0)["receipt"]["index"] == 0
        assert len(agent.audit_proof(1, size)["proof"]) > 0
        agent.pin(world.lab.broker.card, None)
        assert agent.rotate()["begun"] is True
        while (progress := agent.rotation())["pending"]:
            continue
        assert (progress["epoch"], progress["epochs"], progress["last"]["rewrapped"]) == (2, [2], 1)
        serial = agent.card.serial
        assert agent.rotate_signing().serial == serial + 1
    finally:
        agent.close()


def test_sealing_through_the_socket(world: World, served: dict[str, RunningBroker], folder: Path) -> None:
    import io

    from cloister.sealed import SealIdentity, open_sealed, seal_object

    agent = OwnerAgent(served["lab"].admin_socket)
    asset_id, version, previous = agent.next_version("lab/other")
    sealed = seal_object(
        [("a.txt", io.BytesIO(b"text"))],
        folder / "object",
        dek=b"\x05" * 32,
        identity=SealIdentity(
            owner="lab",
            asset_id=asset_id,
            name="lab/other",
            version=version,
            asset_class="model",
            created=world.clock(),
            previous=previous,
        ),
        sign=lambda _, payload: agent.register_secret_dek(payload, b"\x05" * 32),
        terms={"terms": TERMS.document()},
    )
    with open_sealed(
        folder / "object",
        dek=b"\x05" * 32,
        expected_digest=sealed.digest,
        signer_keys=[world.lab.broker.card.keys.signing],
    ) as opened:
        assert opened.paths() == ("a.txt",)
    agent.close()


def test_a_revocation_reaches_the_peer_at_once(world: World, served: dict[str, RunningBroker]) -> None:
    agent = OwnerAgent(served["lab"].admin_socket)
    envelope, reach = agent.revoke(world.contract.digest, "no longer wanted")
    agent.close()
    assert reach == {"reached": ["hospital"], "unreached": []}
    with pytest.raises(Denied) as refused:
        world.workload().attested(world.hospital)
    assert refused.value.code == "contract.revoked"
    assert world.hospital.tables()["contracts"][0]["revocation"] == envelope.to_bytes().decode()
    run = run_context(world, served)
    with pytest.raises(Denied) as refused:
        gather_statements(run)
    assert refused.value.code == "contract.revoked"


def test_a_revocation_that_reaches_nobody_counts_here(world: World) -> None:
    with serving(world.lab) as lab:
        world.lab.broker.core.peers.set_address("hospital", "127.0.0.1:1")
        agent = OwnerAgent(lab.admin_socket)
        _, reach = agent.revoke(world.contract.digest, "no longer wanted")
        agent.close()
        assert reach == {"reached": [], "unreached": ["hospital"]}
        assert world.lab.broker.agreements.status(world.contract.digest).statement is None


def test_a_contract_with_a_witness_quorum(world: World, served: dict[str, RunningBroker]) -> None:
    from cloister.audit import Receipt, verify_quorum

    platform = {**world.contract_fields()["platform"], "witness_quorum": 1}
    contract = world.sign(world.contract_fields(serial=2, platform=platform))
    workload = world.workload(contract=contract, job=world.make_job(contract))
    for _ in range(2):  # the second time, the witness has seen an earlier head
        fresh = world.workload(contract=contract, job=workload.job)
        jwe = fresh.fetch(world.hospital, fresh.attested(world.hospital), world.data.digest)
        _, body = fresh.open(jwe, world.data.digest)
        receipt = Receipt.from_wire(body["receipt"])
        receipt.verify(world.hospital.broker.card.log_origin, contract.parties["hospital"].receipt)
        witness = world.lab.broker.card
        verify_quorum(receipt.checkpoint, {witness.log_origin: witness.keys.receipt}, 1, not_before=world.clock() - 60)


def test_the_heads_are_shown_in_the_background(world: World, folder: Path) -> None:
    from dataclasses import replace

    world.hospital.limits = replace(world.hospital.limits, heads_interval=0.01)
    world.hospital.restart()
    with serving(world.lab) as lab:
        introduce(world.hospital, world.lab, lab)
        with serving(world.hospital):
            world.hospital.broker.core.parties.distrust("lab", None)  # any logged change
            log = world.hospital.broker.core.ledger.log
            until("the head to be shown", lambda: world.lab.broker.heads.known("hospital") == log.head())


def test_another_broker_answers_at_the_address(world: World, served: dict[str, RunningBroker]) -> None:
    """The address is anybody's word; the TLS key is the party's."""
    with pytest.raises(Untrusted) as refused:
        connect_pinned(
            socket.create_connection(("127.0.0.1", served["lab"].port), timeout=60),
            world.hospital.broker.card.keys.tls_pin,
        )
    assert refused.value.code == "tls.pin"
    introduce(world.hospital, world.lab, served["hospital"])
    with pytest.raises(Untrusted) as refused:
        world.hospital.broker.core.peers.get(world.lab.broker.card, "/cloister/v1/heads/hospital")
    assert refused.value.code == "tls.pin"


def test_plain_http_and_old_tls_get_nothing(served: dict[str, RunningBroker]) -> None:
    import ssl

    with socket.create_connection(("127.0.0.1", served["lab"].port), timeout=60) as sock:
        sock.sendall(b"GET /cloister/v1/heads/hospital HTTP/1.1\r\nHost: x\r\n\r\n")
        with suppress(ConnectionResetError):
            assert not sock.recv(100).startswith(b"HTTP")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", served["lab"].port), timeout=60) as sock,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(sock)


def test_peers_that_answer_with_rubbish(world: World) -> None:
    peers = world.hospital.broker.core.peers
    with pytest.raises(Unavailable) as unknown:
        peers.get(world.lab.broker.card, "/")
    assert unknown.value.code == "peer.unknown"
    for bad in ("nowhere", "host:port", ":1", "127.0.0.1:99999"):
        with pytest.raises(Misuse):
            peers.set_address("lab", bad)
    peers.set_address("lab", "127.0.0.1:1")
    with pytest.raises(CloisterError) as refused:
        peers.get(world.lab.broker.card, "/")
    assert refused.value.code in ("peer.unreachable", "tls.handshake")
