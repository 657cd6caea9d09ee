"""The owner's endpoints: what they read, and that the owner learns the whole reason."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from cloister.crypto import Envelope
from tests.broker_world import World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]


@pytest.fixture
def owner(world: World) -> Iterator[TestClient]:
    with TestClient(world.hospital.broker.owner_app(), base_url="http://broker") as client:
        yield client


@pytest.fixture
def asker(calm: World) -> Iterator[TestClient]:
    with TestClient(calm.hospital.broker.owner_app(), base_url="http://broker") as client:
        yield client


def refusal(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_peers_are_hints(owner: TestClient) -> None:
    assert owner.post("/v1/peers", json={"lab": "127.0.0.1:4000"}).json() == {"peers": {"lab": "127.0.0.1:4000"}}
    assert refusal(owner.post("/v1/peers", json={"lab": "nowhere"})) == (400, "broker.listen")
    assert refusal(owner.post("/v1/peers", json={"LAB": "127.0.0.1:1"})) == (400, "form.field")
    assert refusal(owner.post("/v1/peers", json=[])) == (400, "form.field")


def test_status_says_what_is_not_certain(asker: TestClient) -> None:
    status = asker.get("/v1/status").json()
    assert status["witnessed"] is False
    assert any("No peer confirmed" in warning for warning in status["warnings"])
    assert set(status) == {"fingerprint", "log_size", "party", "revision", "warnings", "witnessed"}


def test_the_contracts_that_the_broker_knows(world: World, owner: TestClient) -> None:
    signed = world.unsigned(world.contract_fields(name="half", serial=3)).to_bytes().decode()
    assert owner.post("/v1/contracts/sign", json={"contract": signed}).status_code == 200
    revoke = {"contract": world.contract.digest.hex(), "reason": "enough"}
    assert owner.post("/v1/contracts/revoke", json=revoke).status_code == 200
    rows = {row["digest"]: row for row in owner.get("/v1/contracts").json()["contracts"]}
    fields = {"complete", "contract", "digest", "name", "revoked_by", "serial", "signed"}
    assert all(set(row) == fields for row in rows.values())
    whole = rows.pop(world.contract.digest.hex())
    assert (whole["name"], whole["signed"], whole["complete"], whole["revoked_by"]) == (
        world.contract.name, True, True, "hospital",
    )  # fmt: skip
    (half,) = rows.values()
    assert (half["name"], half["serial"], half["signed"], half["complete"], half["revoked_by"]) == (
        "half", 3, True, False, None,
    )  # fmt: skip
    assert Envelope.from_bytes(half["contract"].encode()).digest.hex() == half["digest"]


def test_compromise_of_another(world: World, owner: TestClient) -> None:
    statement = world.lab.broker.core.parties.declare_compromised().to_bytes().decode()
    wrong = {"party": "hospital", "statement": statement}
    assert refusal(owner.post("/v1/compromised", json=wrong)) == (400, "party.other")
    assert owner.post("/v1/compromised", json={"party": None, "statement": statement}).json() == {"party": "lab"}
    assert owner.get("/v1/pins").json()["lab"]["compromised"] is True


def test_compromise_by_the_owners_own_word(owner: TestClient) -> None:
    assert owner.post("/v1/compromised", json={"party": "lab", "statement": None}).json() == {"party": "lab"}
    assert refusal(owner.post("/v1/compromised", json={"party": "nobody", "statement": None})) == (400, "pin.absent")


@pytest.mark.parametrize("party", [None, "hospital"])
def test_compromise_of_oneself(world: World, owner: TestClient, party: str | None) -> None:
    answer = owner.post("/v1/compromised", json={"party": party, "statement": None}).json()
    world.lab.broker.core.parties.distrust("hospital", answer["statement"])
    assert world.hospital.broker.core.parties.compromised() == {"hospital"}


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/assets", {"manifest": "AAAA", "dek": base64.b64encode(bytes(32)).decode()}, "json.syntax"),
        ("/v1/assets", {"manifest": "?", "dek": ""}, "form.field"),
        ("/v1/assets", {"manifest": ""}, "form.missing"),
        ("/v1/contracts/sign", {"contract": "{}"}, "dsse.form"),
        ("/v1/pins", {"card": "{}", "fingerprint": None, "more": 1}, "form.unknown"),
        ("/v1/contracts/revoke", {"contract": "00" * 32, "reason": "x"}, "contract.unknown"),
        ("/v1/contracts/revoke", {"contract": "00", "reason": "x"}, "form.field"),
        ("/v1/contracts/revoke", {"contract": "00" * 32, "reason": "x" * 501}, "form.field"),
        ("/v1/jobs/sign", {"contract": "{}", "recipe": {}, "output": "hospital/x"}, "dsse.form"),
        ("/v1/requests/sign", {"method": "GET", "path": "/", "audience": "x", "body_digest": "zz"}, "form.field"),
        ("/v1/pins", {"card": "{}", "fingerprint": None}, "dsse.form"),
        ("/v1/pins", {"card": 1, "fingerprint": None}, "form.field"),
        (
            "/v1/outputs/open",
            {"contract": "{}", "job": "{}", "manifest": "{}", "wrap": "", "permits": []},
            "dsse.form",
        ),
    ],
)
def test_requests_of_another_form(calm: World, asker: TestClient, path: str, body: dict[str, Any], code: str) -> None:
    with nothing_granted(calm.hospital):
        response = asker.post(path, json=body)
    assert refusal(response) == (400, code)


def test_permits_that_are_no_text(calm: World, asker: TestClient) -> None:
    envelope = calm.contract.envelope.to_bytes().decode()
    body = {"contract": envelope, "job": envelope, "manifest": envelope, "wrap": "", "permits": [1]}
    assert refusal(asker.post("/v1/outputs/open", json=body)) == (400, "form.text")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/audit/entries?start=0&count=100000", "query.number"),
        ("/v1/audit/entries?start=-1&count=1", "query.number"),
        ("/v1/audit/entries?start=100000&count=1", "query.number"),
        ("/v1/audit/entries", "query.number"),
        ("/v1/audit/receipt/100000", "log.range"),
        ("/v1/audit/proof?old=5&new=2", "query.number"),
        ("/v1/assets/next", "form.field"),
        ("/v1/assets/next?name=nothing", "form.field"),
    ],
)
def test_questions_beyond_the_log(asker: TestClient, path: str, code: str) -> None:
    assert refusal(asker.get(path)) == (400, code)


def test_the_owner_learns_the_whole_reason(world: World, owner: TestClient) -> None:
    envelope = world.unsigned(world.contract_fields(serial=1, runs=9)).to_bytes().decode()
    answer = owner.post("/v1/contracts/sign", json={"contract": envelope}).json()
    assert answer["error"]["code"] == "contract.serial"
    assert "signed already" in answer["error"]["message"]


def test_the_log_is_shown_with_what_proves_it(world: World, owner: TestClient) -> None:
    from cloister.audit import Receipt
    from cloister.crypto.merkle import leaf_hash

    head = owner.get("/v1/audit/head").json()
    entries = owner.get(f"/v1/audit/entries?start=0&count={head['size']}").json()["entries"]
    assert len(entries) == head["size"]
    last = entries[-1]
    receipt = Receipt.from_wire(owner.get(f"/v1/audit/receipt/{last['index']}").json()["receipt"])
    receipt.verify(head["origin"], world.hospital.broker.card.keys.receipt)
    assert receipt.leaf_hash == leaf_hash(base64.b64decode(last["leaf"]))
