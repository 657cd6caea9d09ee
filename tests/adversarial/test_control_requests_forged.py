"""Attacks on the control plane's signed requests: unsigned, replayed, meant for another, edited on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloister.contracts.requests import authorization_header
from cloister.crypto import canonical_json, sha256
from tests.control_world import NodeParty, Party, World, running_world

ROUTES = [
    ("GET", "/v1/directory"),
    ("POST", "/v1/directory"),
    ("GET", "/v1/assets"),
    ("PUT", f"/v1/objects/{'a' * 64}/manifest"),
    ("PUT", f"/v1/objects/{'a' * 64}/files/0"),
    ("POST", f"/v1/objects/{'a' * 64}/commit"),
    ("GET", f"/v1/objects/{'a' * 64}/manifest"),
    ("GET", f"/v1/objects/{'a' * 64}/files/0"),
    ("POST", "/v1/contracts"),
    ("GET", "/v1/contracts"),
    ("GET", "/v1/contracts/intents"),
    ("POST", "/v1/contracts/intents/revocations"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", f"/v1/jobs/{'a' * 64}"),
    ("GET", f"/v1/jobs/{'a' * 64}/events"),
    ("POST", f"/v1/jobs/{'a' * 64}/cancel"),
    ("GET", f"/v1/jobs/{'a' * 64}/release"),
    ("PUT", f"/v1/jobs/{'a' * 64}/release"),
    ("GET", "/v1/outputs/hospital/adapter"),
    ("POST", "/v1/node/hello"),
    ("POST", "/v1/node/claim"),
    ("POST", f"/v1/node/jobs/{'a' * 64}/events"),
    ("POST", f"/v1/node/jobs/{'a' * 64}/state"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("control")) as made:
        yield made


def send(world: World, method: str, path: str, header: str | None, body: bytes | None = None) -> tuple[int, str]:
    headers = {} if header is None else {"Authorization": header}
    answer = httpx.request(method, world.url + path, content=body, headers=headers)
    return answer.status_code, str(answer.json().get("error", {}).get("code"))


def contracts_known(world: World) -> list[Any]:
    return world.client(world.hospital).contracts()


def offer(world: World) -> tuple[str, bytes]:
    """A request that would change something: a proposal."""
    contract = world.contract(
        {"hospital/queries": sha256(b"1"), "lab/minilm": sha256(b"2")}, serial=int(time.time_ns() % 10**9) + 1
    )
    return "/v1/contracts", canonical_json({"contract": contract.envelope.to_bytes().decode()})


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_refuses_an_unsigned_request(world: World, method: str, path: str) -> None:
    card = world.hospital.card.envelope.to_bytes().decode()
    body = (
        canonical_json({"address": "127.0.0.1:1", "card": card})
        if path == "/v1/directory" and method == "POST"
        else None
    )
    assert send(world, method, path, None, body) == (401, "request.unsigned")


def test_every_route_is_in_the_list_above(world: World) -> None:
    routes = {
        (method, route.path.replace("{digest}", "a" * 64).replace("{index}", "0").replace("{reference}", "intents")
         .replace("{party}", "hospital").replace("{name}", "adapter"))
        for route in world.server.config.app.routes for method in route.methods - {"HEAD"}
    }  # fmt: skip
    assert routes - set(ROUTES) == {("GET", "/v1/info")}


def test_a_replayed_request_is_refused_and_changes_nothing(world: World) -> None:
    path, body = offer(world)
    header = world.hospital.authorize("POST", path, sha256(body).hex(), world.plane.id)
    assert send(world, "POST", path, header, body)[0] == 200
    before = contracts_known(world)
    assert send(world, "POST", path, header, body) == (401, "request.replayed")
    assert contracts_known(world) == before


def test_a_request_for_another_control_plane_is_refused(world: World) -> None:
    path, body = offer(world)
    before = contracts_known(world)
    header = world.hospital.authorize("POST", path, sha256(body).hex(), "ab" * 32)
    assert send(world, "POST", path, header, body) == (401, "request.audience")
    assert contracts_known(world) == before


def test_an_edited_body_is_refused(world: World) -> None:
    path, body = offer(world)
    _, other = offer(world)
    before = contracts_known(world)
    header = world.hospital.authorize("POST", path, sha256(body).hex(), world.plane.id)
    assert send(world, "POST", path, header, other) == (401, "request.body")
    assert contracts_known(world) == before


def test_a_signature_is_not_good_for_another_path_or_query(world: World) -> None:
    header = world.hospital.authorize("GET", "/v1/assets", None, world.plane.id)
    assert send(world, "GET", "/v1/assets?name=lab/minilm", header) == (401, "request.route")
    assert send(world, "GET", "/v1/jobs", header) == (401, "request.route")
    assert send(world, "GET", "/v1/%61ssets", header) == (401, "request.route")


def test_a_request_without_body_cannot_be_given_one(world: World) -> None:
    path, body = offer(world)
    header = world.hospital.authorize("POST", path, None, world.plane.id)
    assert send(world, "POST", path, header, body) == (401, "request.body")


def test_an_old_request_is_refused(world: World) -> None:
    header = authorization_header(
        "hospital", world.hospital.signing, method="GET", path="/v1/jobs", body=None, audience=world.plane.id,
        now=int(time.time()) - 61,
    )  # fmt: skip
    assert send(world, "GET", "/v1/jobs", header) == (401, "request.stale")


def test_an_impostor_with_a_known_name_is_refused(world: World) -> None:
    header = Party("hospital").authorize("GET", "/v1/jobs", None, world.plane.id)
    assert send(world, "GET", "/v1/jobs", header) == (401, "request.signature")
    assert send(world, "GET", "/v1/jobs", Party("mallory").authorize("GET", "/v1/jobs", None, world.plane.id)) == (
        401,
        "request.party",
    )


def test_nobody_publishes_a_card_that_is_not_theirs(world: World) -> None:
    """The card of a stranger is public; only its own key may put it, and its address, into the directory."""
    stranger = Party("clinic")
    body = canonical_json({"address": "127.0.0.1:666", "card": stranger.card.envelope.to_bytes().decode()})
    for signer, answer in (
        (world.hospital, (403, "directory.other")),
        (world.node_party, (403, "directory.other")),
        (Party("clinic"), (401, "request.signature")),
    ):
        header = signer.authorize("POST", "/v1/directory", sha256(body).hex(), world.plane.id)
        assert send(world, "POST", "/v1/directory", header, body) == answer
    assert "clinic" not in world.client(world.hospital).directory()


def test_a_registered_party_cannot_move_anothers_address(world: World) -> None:
    body = canonical_json({"address": "127.0.0.1:666", "card": world.lab.card.envelope.to_bytes().decode()})
    header = world.bank.authorize("POST", "/v1/directory", sha256(body).hex(), world.plane.id)
    assert send(world, "POST", "/v1/directory", header, body) == (403, "directory.other")
    assert world.client(world.lab).directory()["lab"]["address"] == "127.0.0.1:4433"


@pytest.mark.parametrize(("method", "path"), [r for r in ROUTES if "/node/" in r[1] or r == ROUTES[18]])
def test_a_party_cannot_speak_for_the_node(world: World, method: str, path: str) -> None:
    header = world.hospital.authorize(method, path, sha256(b"{}").hex(), world.plane.id)
    assert send(world, method, path, header, b"{}") == (403, "route.node")


def test_another_node_key_is_refused(world: World) -> None:
    header = NodeParty().authorize("POST", "/v1/node/claim", sha256(b"{}").hex(), world.plane.id)
    assert send(world, "POST", "/v1/node/claim", header, b"{}") == (401, "request.signature")


def test_the_node_cannot_act_as_a_party(world: World) -> None:
    path, body = offer(world)
    header = world.node_party.authorize("POST", path, sha256(body).hex(), world.plane.id)
    assert send(world, "POST", path, header, body) == (403, "route.party")


def test_a_body_beyond_the_bound_is_refused(world: World) -> None:
    body = b"x" * (world.plane.limits.body + 1)
    header = world.hospital.authorize("POST", "/v1/jobs", sha256(body).hex(), world.plane.id)
    assert send(world, "POST", "/v1/jobs", header, body) == (400, "request.length")


def test_requests_from_before_a_restart_are_refused(tmp_path: Path) -> None:
    """A restart forgets which requests were answered, so everything signed before it counts as answered."""
    with running_world(tmp_path) as world:
        world.plane._since = int(time.time()) + 30
        header = world.hospital.authorize("GET", "/v1/jobs", None, world.plane.id)
        assert send(world, "GET", "/v1/jobs", header) == (401, "request.stale")
