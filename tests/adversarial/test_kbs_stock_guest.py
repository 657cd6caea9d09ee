"""A guest without our parameters asks for a key: only what its hardware was started with, and only where it may."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from cloister.attestation import verify_token
from cloister.broker import RunningBroker
from cloister.contracts import Contract
from cloister.contracts.documents import JOB_TYPE
from cloister.crypto import JweKey, SigningKey, sign_document
from cloister.errors import Denied, Malformed, Untrusted
from cloister.sealed import check_dek
from tests.broker_world import LEASE, World, introduce, nothing_granted, serving
from tests.stock_guest import StockGuest, allow, stock_contract

pytest_plugins = ["tests.broker_fixtures"]


@pytest.fixture
def lab(world: World) -> Iterator[RunningBroker]:
    """The other party answers, for nobody else brings its word."""
    with serving(world.lab) as running:
        introduce(world.hospital, world.lab, running)
        yield running


@pytest.fixture
def contract(world: World) -> Contract:
    allow(world)
    return stock_contract(world)


@pytest.fixture
def guest(world: World, contract: Contract) -> StockGuest:
    return StockGuest(world.make_job(contract))


def challenged(world: World, guest: StockGuest, **changes: Any) -> tuple[str, str]:
    cookie, challenge = world.hospital.broker.releases.challenge(guest.request(**changes))
    return cookie, challenge["nonce"]


def attested(world: World, guest: StockGuest, **changes: Any) -> tuple[str, str]:
    cookie, nonce = challenged(world, guest)
    return cookie, world.hospital.broker.releases.attest(cookie, guest.attestation(nonce, **changes))


def key(world: World, cookie: str, digest: bytes) -> bytes:
    return world.hospital.broker.releases.resource(cookie, None, "asset-key", digest.hex())


def refused(world: World, guest: StockGuest, code: str, **changes: Any) -> None:
    cookie, nonce = challenged(world, guest)
    with nothing_granted(world.hospital), pytest.raises((Untrusted, Denied, Malformed)) as caught:
        world.hospital.broker.releases.attest(cookie, guest.attestation(nonce, **changes))
    assert caught.value.code == code
    assert world.hospital.log()[-1].details["code"] == code
    with nothing_granted(world.hospital), pytest.raises(Denied) as caught:
        key(world, cookie, world.data.digest)
    assert caught.value.code == "session.unattested"


@pytest.mark.usefixtures("lab")
def test_a_guest_that_may_gets_the_key_itself_and_the_log_says_how(world: World, guest: StockGuest) -> None:
    cookie, nonce = challenged(world, guest)
    assert len(base64.b64decode(nonce)) == 32  # as published: nothing in it
    token = world.hospital.broker.releases.attest(cookie, guest.attestation(nonce))
    verify_token(token, world.hospital.broker.card.keys.receipt, now=world.clock())
    secret = guest.jwe.decrypt(key(world, cookie, world.data.digest))
    check_dek(world.data.manifest, secret)  # the plaintext of the JWE is the resource
    released = world.hospital.log()[-1]
    assert (released.kind, released.details["binding"]) == ("key.released", "init-data")
    assert released.details["job"] == guest.job.digest.hex()
    size = len(world.hospital.log())
    assert guest.jwe.decrypt(key(world, cookie, world.data.digest)) == secret
    assert len(world.hospital.log()) == size  # the stored answer


@pytest.mark.usefixtures("lab")
def test_a_party_takes_long_to_answer(world: World, guest: StockGuest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its word is from then. It is neither from the future, nor is anything decided by a time that has passed."""
    peers = world.hospital.broker.core.peers
    ask = peers.get

    def late(*asked: Any) -> Any:
        world.clock.pass_seconds(10)
        return ask(*asked)

    monkeypatch.setattr(peers, "get", late)
    cookie, _ = attested(world, guest)
    check_dek(world.data.manifest, guest.jwe.decrypt(key(world, cookie, world.data.digest)))
    ending = stock_contract(world, serial=2, expires=world.clock() + 10)
    refused(world, StockGuest(world.make_job(ending)), "contract.expired")


@pytest.mark.usefixtures("lab")
def test_it_gets_nothing_but_the_jobs_own_assets(world: World, guest: StockGuest) -> None:
    cookie, _ = attested(world, guest)
    for kind, tag, code in (
        ("state-share", "checkpoint", "resource.unknown"),
        ("asset-key", world.base.digest.hex(), "asset.owner"),
        ("asset-key", "00" * 32, "contract.asset"),
    ):
        with nothing_granted(world.hospital), pytest.raises(Denied) as caught:
            world.hospital.broker.releases.resource(cookie, "hospital", kind, tag)
        assert caught.value.code == code


@pytest.mark.usefixtures("lab")
def test_its_lease_ends_and_nothing_renews_it(world: World, guest: StockGuest) -> None:
    cookie, _ = attested(world, guest)
    key(world, cookie, world.data.digest)
    with nothing_granted(world.hospital), pytest.raises(Denied) as caught:
        world.hospital.broker.leases.renew(cookie)
    assert caught.value.code == "session.purpose"
    world.clock.pass_seconds(LEASE)
    with nothing_granted(world.hospital), pytest.raises(Denied) as caught:
        key(world, cookie, world.data.digest)
    assert caught.value.code in ("lease.expired", "status.stale")


def test_a_broker_that_was_not_switched_on(world: World) -> None:
    guest = StockGuest(world.job)
    with nothing_granted(world.hospital), pytest.raises(Denied) as caught:
        world.hospital.broker.releases.challenge(guest.request())
    assert caught.value.code == "kbs.stock-guest"


@pytest.mark.usefixtures("lab")
def test_a_contract_that_does_not_allow_it(world: World, guest: StockGuest) -> None:
    allow(world, lambda contract: contract.name != "stock")
    refused(world, guest, "stock.contract")


@pytest.mark.usefixtures("lab")
def test_a_contract_that_names_another_guest(world: World, guest: StockGuest) -> None:
    guest.launch = "5b" * 48
    refused(world, guest, "appraisal.measurement")


@pytest.mark.usefixtures("lab")
def test_a_contract_for_our_own_workload(world: World, contract: Contract) -> None:
    """Its agents and measurements are others: a stock guest is not the workload that it names."""
    refused(world, StockGuest(world.job), "appraisal.measurement")


@pytest.mark.usefixtures("lab")
def test_a_contract_that_is_not_known_here(world: World, guest: StockGuest) -> None:
    document = {**json.loads(guest.job.envelope.payload), "contract": "ab" * 32}
    elsewhere = sign_document(JOB_TYPE, document, SigningKey.generate())
    data = {"cloister.job": elsewhere.to_bytes().decode()}
    refused(
        world,
        guest,
        "stock.contract-unknown",
        init_data=json.dumps({"algorithm": "sha256", "version": "0.1.0", "data": data}),
    )


@pytest.mark.usefixtures("lab")
def test_a_job_that_no_party_signed(world: World, guest: StockGuest) -> None:
    forged = sign_document(JOB_TYPE, json.loads(guest.job.envelope.payload), SigningKey.generate())
    data = {"cloister.job": forged.to_bytes().decode()}
    text = json.dumps({"algorithm": "sha256", "version": "0.1.0", "data": data})
    refused(world, guest, "dsse.unsigned", init_data=text)


@pytest.mark.usefixtures("lab")
def test_the_job_of_another_start_is_shown(world: World, guest: StockGuest, contract: Contract) -> None:
    """The host shows init-data that the hardware was not started with."""
    other = StockGuest(world.make_job(contract))
    refused(world, guest, "init-data.other", init_data=other.init_data())


@pytest.mark.usefixtures("lab")
def test_one_more_entry_than_the_hardware_was_started_with(world: World, guest: StockGuest) -> None:
    shown = json.loads(guest.init_data())
    shown["data"]["policy.rego"] = "default allow := true"
    refused(world, guest, "init-data.other", init_data=json.dumps(shown))


@pytest.mark.usefixtures("lab")
def test_the_same_init_data_in_another_encoding(world: World, guest: StockGuest) -> None:
    refused(world, guest, "init-data.other", init_data=json.dumps(json.loads(guest.init_data()), indent=1))


@pytest.mark.usefixtures("lab")
def test_evidence_for_another_response_key(world: World, guest: StockGuest) -> None:
    cookie, nonce = challenged(world, guest)
    body = guest.attestation(nonce)
    body["runtime-data"]["tee-pubkey"] = JweKey().public_jwk
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as caught:
        world.hospital.broker.releases.attest(cookie, body)
    assert caught.value.code == "snp.report"


@pytest.mark.usefixtures("lab")
def test_evidence_of_another_challenge(world: World, guest: StockGuest) -> None:
    _, old = challenged(world, guest)
    cookie, new = challenged(world, guest)
    for nonce, code in ((old, "nonce.other"), (new, "nonce.replayed")):
        with nothing_granted(world.hospital), pytest.raises(Untrusted) as caught:
            world.hospital.broker.releases.attest(cookie, guest.attestation(nonce))
        assert caught.value.code == code


def test_init_data_that_names_no_job(world: World, guest: StockGuest) -> None:
    text = json.dumps({"algorithm": "sha256", "version": "0.1.0", "data": {}})
    refused(world, guest, "stock.job", init_data=text)


def test_no_init_data(world: World, guest: StockGuest) -> None:
    cookie, nonce = challenged(world, guest)
    body = guest.attestation(nonce)
    del body["init-data"]
    with nothing_granted(world.hospital), pytest.raises(Denied) as caught:
        world.hospital.broker.releases.attest(cookie, body)
    assert caught.value.code == "stock.init-data"


def test_a_party_that_is_silent_has_not_consented(world: World, guest: StockGuest) -> None:
    """Its broker is not reachable: nobody else brings its word."""
    refused(world, guest, "status.missing")


@pytest.mark.usefixtures("lab")
def test_a_contract_that_another_party_revoked(world: World, guest: StockGuest, contract: Contract) -> None:
    world.lab.broker.agreements.revoke(contract.digest, "no more")
    cookie, nonce = challenged(world, guest)
    with nothing_granted(world.hospital), pytest.raises(Denied) as caught:
        world.hospital.broker.releases.attest(cookie, guest.attestation(nonce))
    assert caught.value.code in ("status.missing", "contract.revoked")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": "0.2.0"}, "stock.version"),
        ({"tee": "tdx"}, "stock.platform"),
        ({"tee": "insecure"}, "stock.platform"),
        ({"extra-params": ""}, "kbs.hash"),
        ({"extra-params": {"supported-hash-algorithms": ["sha384"]}}, "kbs.hash"),
    ],
)
def test_guests_that_could_never_be_bound(world: World, guest: StockGuest, changes: dict[str, Any], code: str) -> None:
    with nothing_granted(world.hospital), pytest.raises(Denied) as caught:
        challenged(world, guest, **changes)
    assert caught.value.code == code
