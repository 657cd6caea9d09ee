"""Requests made to break the reader: too large, too deep, of another form, for another version, at another door."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from cloister.broker.http import CHANNEL
from cloister.broker.sessions import Channel
from tests.broker_world import World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]

PUBLIC_POSTS = (
    "/kbs/v0/auth",
    "/kbs/v0/attest",
    "/cloister/v1/checkpoint",
    "/cloister/v1/permit",
    "/cloister/v1/revocations",
    "/cloister/v1/heads",
)


@pytest.fixture
def public(world: World) -> Iterator[TestClient]:
    yield from client_of(world)


@pytest.fixture
def stranger(calm: World) -> Iterator[TestClient]:
    """A client of a broker that never gives it anything."""
    yield from client_of(calm)


def client_of(world: World) -> Iterator[TestClient]:
    with TestClient(
        world.hospital.broker.public_app(), base_url="https://broker", raise_server_exceptions=False
    ) as client:
        yield client


def refusal(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize("path", PUBLIC_POSTS)
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "json.syntax"),
        (b"\xff\xfe", "json.syntax"),
        (b"[]", "form.object"),
        (b"null", "form.object"),
        (b"{}", "form.missing"),
        (b'{"a":1,"a":2}', "json.duplicate"),
        (b'{"a":1e400}', "json.float"),
        (b'{"a":NaN}', "json.float"),
        (b'{"a":' + b"9" * 400 + b"}", "json.integer"),
        (b"[" * 100_000, "json.depth"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "json.depth"),
        (b" " * (256 * 1024 + 1), "request.size"),
    ],
)
def test_bodies_that_are_no_requests(calm: World, stranger: TestClient, path: str, body: bytes, code: str) -> None:
    with nothing_granted(calm.hospital):
        status, found = refusal(stranger.post(path, content=body))
    assert found == code
    assert status in (400, 401)


def test_a_body_without_end(calm: World, stranger: TestClient) -> None:
    """No length is announced; the reader stops at its own limit."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 64 * 1024 * 1024:
            sent += 65536
            yield b"a" * 65536

    with nothing_granted(calm.hospital):
        assert refusal(stranger.post("/kbs/v0/auth", content=endless()))[1] == "request.size"


@pytest.mark.parametrize("version", ["0.1.0", "0.5.0", "1.0.0", "0.0.0", "99.0.0"])
def test_another_version_of_the_protocol(calm: World, stranger: TestClient, version: str) -> None:
    body = {**calm.workload().request(), "version": version}
    with nothing_granted(calm.hospital):
        response = stranger.post("/kbs/v0/auth", json=body)
    assert refusal(response) == (401, "kbs.version")
    assert response.json()["type"] == "https://github.com/confidential-containers/kbs/errors/AttestationError"
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize("version", ["", "0.4", "0.4.0.1", "0.4.x", "٠.٤.٠", "0.4.10000"])
def test_a_version_that_is_none(stranger: TestClient, calm: World, version: str) -> None:
    body = {**calm.workload().request(), "version": version}
    assert refusal(stranger.post("/kbs/v0/auth", json=body)) == (401, "kbs.version")


@pytest.mark.parametrize("version", ["0.1.1", "0.2.0", "0.3.1", "0.4.0", "0.4.9"])
def test_versions_that_are_spoken(stranger: TestClient, calm: World, version: str) -> None:
    workload = calm.workload()
    body = {**workload.request(), "version": version}
    stranger.app_state[CHANNEL] = Channel(workload.signing.public)  # what its TLS handshake proved
    response = stranger.post("/kbs/v0/auth", json=body)
    assert response.status_code == 200
    assert response.json()["extra-params"] == {"selected-hash-algorithm": "sha256"}
    cookie = response.headers["set-cookie"]
    assert cookie.startswith("kbs-session-id=")
    assert "HttpOnly" in cookie
    assert "Secure" in cookie


def test_a_stock_guest_without_our_parameters(stranger: TestClient, calm: World) -> None:
    """Nothing would bind its evidence to a contract and a job."""
    body = {"version": "0.4.0", "tee": "tpm", "extra-params": {}}
    with nothing_granted(calm.hospital):
        assert refusal(stranger.post("/kbs/v0/auth", json=body)) == (401, "kbs.stock-guest")
        assert refusal(stranger.post("/kbs/v0/auth", json={**body, "extra-params": ""})) == (401, "kbs.stock-guest")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"purpose": "train"}, "form.field"),
        ({"instance": "00"}, "form.field"),
        ({"instance": "G" * 32}, "form.field"),
        ({"signing": "00" * 31}, "form.field"),
        ({"hpke": "AAAA"}, "hpke.public"),
        ({"hpke": "?"}, "form.field"),
        ({"sequence": -1}, "form.field"),
        ({"sequence": True}, "form.field"),
        ({"sequence": "0"}, "form.field"),
        ({"sequence": 7}, "lease.sequence"),
        ({"statements": "none"}, "form.field"),
        ({"statements": [1]}, "request.statement"),
        ({"statements": ["{}"]}, "dsse.form"),
        ({"statements": ["{}"] * 65}, "form.field"),
        ({"job": "{}"}, "dsse.form"),
        ({"contract": "{}"}, "dsse.form"),
        ({"contract": 5}, "form.field"),
        ({"extra": 1}, "form.unknown"),
    ],
)
def test_parameters_of_another_form(stranger: TestClient, calm: World, changes: dict[str, Any], code: str) -> None:
    with nothing_granted(calm.hospital):
        assert refusal(stranger.post("/kbs/v0/auth", json=calm.workload().request(**changes)))[1] == code


def test_a_stranger_learns_the_code_and_nothing_else(public: TestClient, world: World) -> None:
    world.lab.broker.core.parties.distrust("hospital", None)
    body = world.workload().request(statements=[])
    answer = public.post("/kbs/v0/auth", json=body).json()
    assert answer["error"]["code"] == "status.missing"
    assert answer["error"]["details"] == {}
    assert "lab" not in json.dumps(answer)
    assert world.hospital.log()[-1].details["reason"].startswith("No fresh in-force statement of lab")


def test_an_attested_workload_learns_why(public: TestClient, world: World) -> None:
    workload = world.workload()
    public.cookies.set("kbs-session-id", workload.attested(world.hospital))
    response = public.get(f"/kbs/v0/resource/hospital/asset-key/{world.base.digest.hex()}")
    assert refusal(response) == (403, "asset.owner")
    assert "its own party's assets" in response.json()["detail"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/kbs/v0/resource/hospital/asset-key/" + "00" * 32, 401, "session.absent"),
        ("/kbs/v0/resource/hospital/asset-key/..%2f..%2fvault", 404, "path.unknown"),
        ("/cloister/v1/status/" + "00" * 32, 403, "contract.unknown"),
        ("/cloister/v1/status/zz", 400, "form.field"),
        ("/cloister/v1/heads/UPPER", 400, "name.party"),
        ("/v1/assets", 404, "path.unknown"),
        ("/v1/card", 404, "path.unknown"),
        ("/kbs/v0/auth", 404, "path.unknown"),
        ("/", 404, "path.unknown"),
    ],
)
def test_doors_that_are_closed(calm: World, stranger: TestClient, path: str, status: int, code: str) -> None:
    with nothing_granted(calm.hospital):
        assert refusal(stranger.get(path)) == (status, code)


def test_the_owners_doors_are_not_on_the_public_side(stranger: TestClient) -> None:
    for path in ("/v1/assets", "/v1/contracts/sign", "/v1/outputs/open", "/v1/keys/rotate"):
        assert refusal(stranger.post(path, json={})) == (404, "path.unknown")


def test_an_unforeseen_error_tells_nothing(
    world: World, public: TestClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Any, **__: Any) -> None:
        raise RuntimeError("a row of the hospital's data")

    monkeypatch.setattr(world.hospital.broker.releases, "challenge", broken)
    with nothing_granted(world.hospital):
        response = public.post("/kbs/v0/auth", json={})
    assert refusal(response) == (500, "broker.internal")
    written = capfd.readouterr()
    assert "unforeseen RuntimeError" in written.err
    assert "row of" not in response.text + written.err + written.out


def test_answers_are_not_cached(world: World, public: TestClient) -> None:
    workload = world.workload()
    public.cookies.set("kbs-session-id", workload.attested(world.hospital))
    response = public.get(f"/kbs/v0/resource/hospital/asset-key/{world.data.digest.hex()}")
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
