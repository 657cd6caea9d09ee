"""What an owner stores at its stock key broker: logged, for a contract in force that says so, and nothing else."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloister.broker.trustee_keys import TrusteeKeys
from cloister.client import trustees
from cloister.contracts import Contract, read_trustee_key
from cloister.errors import CloisterError, Denied, Malformed, Misuse, Untrusted
from cloister.sealed import check_dek
from tests.broker_world import Party, World
from tests.client_home import CONTRACT, RECIPE, LocalHome, Run

pytest_plugins = ["tests.broker_fixtures", "tests.client_fixtures"]
ENTRY = {"address": "kbs.example:8080", "repository": "cloister", "tls_pin": "ab" * 32, "unbound": True}


@pytest.fixture
def contract(world: World) -> Contract:
    return world.sign(world.contract_fields(name="unbound", trustees={"lab": ENTRY}))


def documents(party: Party, digest: bytes) -> list[dict[str, str]]:
    return TrusteeKeys(party.broker.core).open_secret_documents(digest)


def test_a_key_for_one_contract_and_the_log_says_so(world: World, contract: Contract) -> None:
    (key,) = documents(world.lab, contract.digest)
    assert key["path"] == f"cloister/asset-key/{world.base.digest.hex()}"
    secret = read_trustee_key(key["document"].encode(), contract=contract.digest, asset=world.base.digest)
    check_dek(world.base.manifest, secret)
    opened = world.lab.log()[-1]
    assert (opened.kind, opened.target) == ("asset.opened", world.base.digest.hex())
    assert (opened.details["contract"], opened.details["purpose"]) == (contract.digest.hex(), "trustee")
    assert secret.hex() not in json.dumps([dict(facts.details) for facts in world.lab.log()])


def test_a_contract_that_names_none(world: World, contract: Contract) -> None:
    for party, digest, code in (
        (world.lab, world.contract.digest, "trustee.none"),
        (world.hospital, contract.digest, "trustee.none"),
        (world.lab, b"\x11" * 32, "contract.unknown"),
    ):
        size = len(party.log())
        with pytest.raises(Denied) as caught:
            documents(party, digest)
        assert caught.value.code == code
        assert len(party.log()) == size


def test_a_contract_that_is_not_in_force(world: World, contract: Contract) -> None:
    world.lab.broker.agreements.revoke(contract.digest, "no more")
    with pytest.raises(Denied) as caught:
        documents(world.lab, contract.digest)
    assert caught.value.code == "contract.revoked"


def test_a_key_that_was_shredded(world: World, contract: Contract) -> None:
    world.lab.broker.lifecycle.shredder.shred("lab/minilm", None, "enough")
    size = len(world.lab.log())
    with pytest.raises(CloisterError) as caught:
        documents(world.lab, contract.digest)
    assert caught.value.code == "asset.shredded"
    assert len(world.lab.log()) == size


def test_the_others_signed_later_and_elsewhere(world: World) -> None:
    """The broker has its own signature only, until somebody brings the others': so the command does."""
    envelope = world.unsigned(world.contract_fields(name="unbound", trustees={"lab": ENTRY}))
    for party in (world.lab, world.hospital):
        envelope = party.broker.agreements.sign(envelope)
    with pytest.raises(Denied) as caught:
        documents(world.lab, envelope.digest)
    assert caught.value.code == "contract.unsigned"
    world.lab.broker.agreements.store(envelope)
    assert len(documents(world.lab, envelope.digest)) == 1


def test_a_broker_that_was_put_back(world: World, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer has seen more of its log: it may have revoked this very contract. It releases nothing, here neither."""
    monkeypatch.setattr(world.lab.broker.core.herald, "_alarm", Untrusted("state.rollback", "A peer has seen more."))
    size = len(world.lab.log())
    with pytest.raises(Untrusted) as caught:
        documents(world.lab, contract.digest)
    assert caught.value.code == "state.rollback"
    assert len(world.lab.log()) == size


def test_a_key_of_an_older_version(world: World, contract: Contract, tmp_path: Path) -> None:
    world.lab.seal(tmp_path / "next", "lab/minilm", "model")
    size = len(world.lab.log())
    with pytest.raises(Denied) as caught:
        documents(world.lab, contract.digest)
    assert caught.value.code == "asset.old"
    assert len(world.lab.log()) == size


def test_a_key_whose_time_is_over(world: World, contract: Contract) -> None:
    """What this broker would release to nobody any more does not go where dates are not looked at."""
    world.lab.broker.lifecycle.retention.retain("lab/minilm", None, world.clock() + 60)
    documents(world.lab, contract.digest)
    world.clock.pass_seconds(60)
    size = len(world.lab.log())
    with pytest.raises(Denied) as caught:
        documents(world.lab, contract.digest)
    assert caught.value.code == "asset.retention"
    assert len(world.lab.log()) == size


# Files


def home(*keys: dict[str, Any]) -> Any:
    """A home whose broker answers with these."""
    agreement = SimpleNamespace(contract=SimpleNamespace(digest=b"c" * 32, envelope="signed by all"))
    stored: list[Any] = []
    agent = SimpleNamespace(
        open_secret_trustee_keys=lambda digest: list(keys) if stored and digest == b"c" * 32 else [],
        store_contract=stored.append,
    )
    return SimpleNamespace(agreement=agreement, agent=lambda _: agent, control=lambda _: None)


def write(monkeypatch: pytest.MonkeyPatch, folder: Path, *keys: dict[str, Any]) -> dict[str, Any]:
    place = home(*keys)
    monkeypatch.setattr(trustees, "find_contract", lambda _client, _reference: place.agreement)
    return trustees.trustee_keys(place, "unbound", folder, party="lab")


def test_files_in_the_layout_of_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = f"cloister/asset-key/{'ab' * 32}"
    key = {"name": "lab/minilm", "path": path, "document": "{}"}
    for _ in range(2):  # again: the file of before is replaced, never written through; the contract came along
        done = write(monkeypatch, tmp_path / "to", key)
    assert done["keys"] == [{"name": "lab/minilm", "path": path}]
    file = tmp_path / "to" / path
    assert file.read_bytes() == b"{}"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "{}" not in json.dumps(done)


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_the_key_for_another_contract_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """Both have one path. Whoever overwrites one here stores the other, and the first contract's runs end."""
    first, second = (f"cloister/asset-key/{octet * 32}" for octet in ("ab", "cd"))
    place = tmp_path / "to" / second
    place.parent.mkdir(parents=True)
    if kind == "file":
        place.write_bytes(b"another contract's")
    elif kind == "link":
        (tmp_path / "elsewhere").write_bytes(b"{}")
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.mkdir()
    keys = [{"name": "lab/minilm", "path": path, "document": "{}"} for path in (first, second)]
    with pytest.raises(Misuse) as caught:
        write(monkeypatch, tmp_path / "to", *keys)
    assert caught.value.code == "trustee.exists"
    assert not (tmp_path / "to" / first).exists()
    assert kind != "file" or place.read_bytes() == b"another contract's"


@pytest.mark.parametrize("path", ["../asset-key/" + "ab" * 32, "a/b/" + "ab" * 32, "/asset-key/" + "ab" * 32, "x", ""])
def test_a_path_that_leads_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str) -> None:
    with pytest.raises(Malformed):
        write(monkeypatch, tmp_path / "to", {"name": "lab/minilm", "path": path, "document": "{}"})
    assert not (tmp_path / "to").exists()


def test_a_folder_that_can_not_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "to").write_bytes(b"a file")
    key = {"name": "lab/minilm", "path": f"cloister/asset-key/{'ab' * 32}", "document": "{}"}
    with pytest.raises(Misuse):
        write(monkeypatch, tmp_path / "to", key)


# From contract.yaml to the files


def test_the_commands_of_an_owner(agreed: LocalHome, run: Run, tmp_path: Path) -> None:
    entry = (
        "trustees: {lab: {address: 'kbs.example:8080', repository: cloister, tls_pin: "
        + "ab" * 32
        + ", unbound: true}}"
    )
    (tmp_path / "c.yaml").write_text(CONTRACT.replace("name: intents", "name: unbound") + entry + "\n")
    assert run("contract", "new", "c.yaml").code == 0
    assert "UNBOUND" in run("contract", "show", "unbound", "--as", "lab").out
    for party in ("hospital", "lab"):
        assert run("contract", "sign", "unbound", "--as", party, "--yes").code == 0
    assert run("key", "trustee", "unbound", "--to", "keys", "--as", "lab").code == 2  # not without a yes
    assert not (tmp_path / "keys").exists()
    ran = run("key", "trustee", "unbound", "--to", "keys", "--as", "lab", "--yes", "--json")
    (written,) = ran.document["keys"]
    stored = (tmp_path / "keys" / written["path"]).read_bytes()
    digest = bytes.fromhex(ran.document["contract"])
    assert len(read_trustee_key(stored, contract=digest, asset=bytes.fromhex(written["path"][-64:]))) == 32
    for contract, party in (("intents", "lab"), ("unbound", "hospital")):
        refused = run("key", "trustee", contract, "--to", "keys", "--as", party, "--yes", "--json")
        assert (refused.code, refused.document["error"]["code"]) == (3, "trustee.none")
    # A recipe that wants checkpoints is refused when it is submitted.
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    job = run("job", "submit", "recipe.yaml", "--contract", "unbound", "--as", "hospital", "--json")
    assert (job.code, job.document["error"]["code"]) == (3, "recipe.checkpoints")
    (tmp_path / "recipe.yaml").write_text(RECIPE + "checkpoint_steps: 0\n")
    job = run("job", "submit", "recipe.yaml", "--contract", "unbound", "--as", "hospital", "--json")
    assert job.code == 0, job.err
