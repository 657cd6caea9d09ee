"""A party's keys come from a stock Trustee, which binds them to no run: so contract and stored key must say whose."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.client.verify import verify_bundle, verify_release
from cloister.contracts import Card
from cloister.crypto import Envelope, canonical_json
from cloister.errors import CloisterError, Denied, Malformed, Untrusted
from cloister.workload.acquire import acquire_keys
from cloister.workload.checkpoints import NoCheckpoints
from tests.broker_world import World, nothing_granted
from tests.trustee_double import Trustee
from tests.trustee_world import REPOSITORY, Run, launched, trustee_contract

pytest_plugins = ["tests.broker_fixtures"]


@pytest.fixture
def trustee(tmp_path: Path) -> Iterator[Trustee]:
    server = Trustee(tmp_path, selects="sha256")
    yield server
    server.close()


@pytest.fixture
def run(world: World, trustee: Trustee) -> Iterator[Run]:
    with launched(world, trustee_contract(world, trustee), trustee) as made:
        made.store()
        yield made


def pins(world: World) -> dict[str, Card]:
    return {name: party.broker.card for name, party in world.parties.items()}


def refused(run: Run, kind: type[CloisterError], code: str, **changes: Any) -> None:
    with pytest.raises(kind) as caught:
        acquire_keys(run.context(**changes), purpose="release")
    assert caught.value.code == code


def test_a_whole_run_says_of_which_key_nothing_is_proved(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run.train(monkeypatch)
    world = run.world
    assert {owner for part in ("keys", "tokens", "permits") for owner in record[part]} == {"hospital"}
    manifest = Envelope.from_bytes(record["manifest"].encode())
    permits = [Envelope.from_bytes(record["permits"]["hospital"]["permit"].encode())]
    wrap = base64.b64decode(record["wraps"]["hospital"]["sealed"])
    dek = world.hospital.broker.permits.open_secret_output(
        run.contract.envelope, run.job.envelope, manifest, wrap, permits
    )
    bundle = run.bundle(dek)
    verified = verify_bundle(bundle, pins(world))
    assert verified.unbound == ("lab/minilm",)
    assert "UNBOUND, as every party signed: the key of lab/minilm" in "\n".join(verified.steps)
    assert "each owner (hospital) logged" in "\n".join(verified.steps)
    resource = f"{REPOSITORY}/asset-key/{world.base.digest.hex()}"
    card = (bundle / "README.md").read_text()
    assert f"**unbound key**: `{resource}` of lab" in card
    # What the workload signed of its keys can't be dropped, and nobody can add it.
    provenance = Envelope.from_bytes((bundle / "provenance.dsse.json").read_bytes()).document()
    said = provenance["predicate"]["buildDefinition"]["internalParameters"]["unbound"]
    assert said == [{"binding": "none", "party": "lab", "resource": resource}]
    assert [event["code"] for event in run.events if event["kind"] == "state"] == ["keys", "gate", "release"]


def test_the_record_alone_is_verified_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run.train(monkeypatch)
    verified, _ = verify_release(canonical_json(record), pins(run.world))
    assert verified.unbound == ("lab/minilm",)
    assert verified.document()["unbound"] == ("lab/minilm",)
    for part in ("keys", "tokens", "permits"):
        with pytest.raises(CloisterError):
            verify_release(canonical_json({**record, part: {}}), pins(run.world))


def test_keys_are_as_they_come(run: Run) -> None:
    got = acquire_keys(run.context(), purpose="release")
    assert [key.statement()["binding"] for key in got.unbound] == ["none"]
    assert set(got.leases) == set(got.released) == {"hospital"}
    assert run.trustee.requests[:2] == ["/kbs/v0/auth", "/kbs/v0/attest"]
    with pytest.raises(CloisterError):
        got.keys.use("checkpoint")  # one owner's share must not be enough


@pytest.mark.parametrize("other", ["contract", "asset"])
def test_a_contract_that_somebody_made_up(run: Run, other: str) -> None:
    """Whoever runs the node names the real Trustee in a contract of its own. The key there is for another one."""
    run.store(**{other: b"\x11" * 32})
    refused(run, Untrusted, "trustee.other")


def test_a_bare_key_is_refused(run: Run) -> None:
    """It would be one for any contract that names its Trustee."""
    run.store(raw=b"k" * 32)
    refused(run, Malformed, "json.syntax")


def test_the_other_owners_say_no_before_the_trustee_is_asked(run: Run) -> None:
    run.world.hospital.broker.agreements.revoke(run.contract.digest, "no more")
    with nothing_granted(run.world.hospital):
        refused(run, Denied, "contract.revoked")
    assert run.trustee.requests == []


def test_a_party_without_a_broker_revokes_through_another_ones(run: Run) -> None:
    """Lab has no broker that could be silent. What it signs counts where it arrives."""
    contract, revocation = run.world.lab.broker.agreements.revoke(run.contract.digest, "no more")
    word = Envelope.from_bytes(revocation.encode())
    run.world.hospital.broker.agreements.accept_revocation(contract.envelope, word)
    refused(run, Denied, "contract.revoked")
    assert run.trustee.requests == []


def test_the_trustee_refuses(run: Run) -> None:
    run.trustee.resources.clear()
    refused(run, Denied, "kbs.refused")


def test_another_server_where_the_trustee_was(world: World, trustee: Trustee) -> None:
    address = f"127.0.0.1:{trustee.port}"
    entry = {"address": address, "repository": REPOSITORY, "tls_pin": "ab" * 32, "unbound": True}
    with launched(world, trustee_contract(world, trustee, trustees={"lab": entry}), trustee) as run:
        run.store()
        refused(run, Untrusted, "tls.pin")
    assert trustee.requests == []


def test_a_platform_without_evidence_for_it_is_told_so_before_anybody_is_asked(run: Run) -> None:
    with nothing_granted(run.world.hospital):
        size = len(run.world.hospital.log())
        refused(run, Denied, "trustee.platform", tee="tpm")
        assert len(run.world.hospital.log()) == size
    assert run.trustee.requests == []


def test_a_recipe_with_checkpoints_is_refused_when_it_is_submitted(world: World, trustee: Trustee) -> None:
    contract = trustee_contract(world, trustee)
    with pytest.raises(Denied) as caught:
        world.make_job(contract, checkpoint_steps=10)
    assert caught.value.code == "recipe.checkpoints"
    assert NoCheckpoints().latest() is None
    with pytest.raises(CloisterError):
        NoCheckpoints().save(1, [])


def test_a_sandbox_under_another_contract_gets_no_such_evidence(world: World, trustee: Trustee) -> None:
    """It is about the whole guest: a key broker that takes it for the sandbox would serve whatever runs there."""
    with launched(world, world.contract, trustee) as run, pytest.raises(Denied) as caught:
        run.context().link.stock_evidence("nonce", {"kty": "EC"}, "sha256")
    assert caught.value.code == "node.stock-evidence"


def test_without_the_contracts_word_nothing_is_asked_there(world: World, trustee: Trustee) -> None:
    """Where lab's broker should be stands its Trustee: it has another TLS key than the one that the contract pins."""
    with launched(world, world.contract, trustee) as run:
        run.store()
        refused(run, Untrusted, "tls.pin")
    assert trustee.requests == []
