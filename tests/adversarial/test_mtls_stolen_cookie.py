"""Somebody who reads a session's cookie uses it, or connects without a key, or with another one than is attested."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from cloister.broker import RunningBroker
from cloister.crypto import SigningKey
from cloister.crypto.tls import client_context, make_certificate
from tests.broker_world import Workload, World, nothing_granted, serving
from tests.kbs_client import Client, client, refused_in_the_handshake

pytest_plugins = ["tests.broker_fixtures"]


@pytest.fixture
def running(world: World) -> Iterator[RunningBroker]:
    with serving(world.hospital) as running:
        yield running


def key_path(world: World) -> str:
    return f"/kbs/v0/resource/hospital/asset-key/{world.data.digest.hex()}"


def attested(world: World, own: Client, workload: Workload) -> None:
    status, challenge = own.ask("POST", "/kbs/v0/auth", workload.request())
    assert status == 200
    assert own.ask("POST", "/kbs/v0/attest", workload.attestation(challenge["nonce"]))[0] == 200


def test_a_stolen_cookie_opens_nothing_and_takes_nothing_away(world: World, running: RunningBroker) -> None:
    workload = world.workload()
    with client(world, running, workload.signing) as own, client(world, running, SigningKey.generate()) as thief:
        status, challenge = own.ask("POST", "/kbs/v0/auth", workload.request())
        assert status == 200
        thief.cookie = own.cookie
        body = workload.attestation(challenge["nonce"])
        with nothing_granted(world.hospital):
            assert thief.code("POST", "/kbs/v0/attest", body) == (401, "session.absent")
        # The thief did not use the challenge up.
        thief.cookie, before = own.cookie, own.cookie
        assert own.ask("POST", "/kbs/v0/attest", body)[0] == 200
        assert own.cookie == before
        with nothing_granted(world.hospital):
            assert thief.code("GET", key_path(world)) == (401, "session.absent")
            assert thief.code("POST", "/cloister/v1/lease", {}) == (401, "session.absent")
        assert own.ask("GET", key_path(world))[0] == 200
        with nothing_granted(world.hospital):  # nor the stored answer
            assert thief.code("GET", key_path(world)) == (401, "session.absent")
    told = [facts.details for facts in world.hospital.log() if facts.details.get("code") == "session.stolen"]
    assert len(told) == 4
    assert told[0]["instance"] == workload.instance.hex()


def test_a_stolen_cookie_is_answered_like_an_invented_one(world: World, running: RunningBroker) -> None:
    workload = world.workload()
    with client(world, running, workload.signing) as own, client(world, running, SigningKey.generate()) as thief:
        attested(world, own, workload)
        answers = []
        for cookie in (own.cookie, "kbs-session-id=" + "A" * 43):
            thief.cookie = cookie
            answers.append(thief.ask("GET", key_path(world)))
        assert answers[0] == answers[1]


def test_the_same_workload_may_come_back_on_another_connection(world: World, running: RunningBroker) -> None:
    workload = world.workload()
    with client(world, running, workload.signing) as own:
        attested(world, own, workload)
        cookie = own.cookie
    with client(world, running, workload.signing) as again:
        again.cookie = cookie
        assert again.ask("GET", key_path(world))[0] == 200


def test_a_request_for_somebody_elses_key(world: World, running: RunningBroker) -> None:
    """The operator has every document and plays the workload's request over a connection of its own."""
    workload = world.workload()
    with client(world, running, SigningKey.generate()) as thief, nothing_granted(world.hospital):
        assert thief.code("POST", "/kbs/v0/auth", workload.request()) == (401, "channel.key")
        assert thief.cookie is None
    assert world.hospital.log()[-1].details["code"] == "channel.key"


def test_a_token_instead_of_the_cookie(world: World, running: RunningBroker) -> None:
    workload = world.workload()
    with client(world, running, workload.signing) as own:
        challenge = own.ask("POST", "/kbs/v0/auth", workload.request())[1]
        token = own.ask("POST", "/kbs/v0/attest", workload.attestation(challenge["nonce"]))[1]["token"]
        own.cookie = None
        with nothing_granted(world.hospital):
            answer = own.code("GET", key_path(world), Authorization=f"Bearer {token}")
        assert answer == (401, "session.token")


def bare_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_a_connection_without_a_key(world: World, running: RunningBroker) -> None:
    with nothing_granted(world.hospital):
        assert refused_in_the_handshake(running, bare_context())
    assert not refused_in_the_handshake(running, client_context())  # any key of one's own will do


def test_a_connection_with_a_certificate_of_some_other_authority(
    world: World, running: RunningBroker, tmp_path: Any
) -> None:
    certificate, key = make_certificate(os.urandom(32), "client")  # issued by itself
    (tmp_path / "c").write_bytes(certificate)
    (tmp_path / "k").write_bytes(key)
    context = bare_context()
    context.load_cert_chain(tmp_path / "c", tmp_path / "k")
    with nothing_granted(world.hospital):
        assert refused_in_the_handshake(running, context)


def test_a_head_is_shown_by_somebody_else_than_its_party(world: World, running: RunningBroker) -> None:
    """Genuine, signed by the lab, and replayed by a stranger: only the lab's broker shows the lab's log."""
    body = {"note": world.lab.broker.core.ledger.log.head(), "party": "lab", "proof": []}
    with client(world, running, SigningKey.generate()) as stranger:
        assert stranger.code("POST", "/cloister/v1/heads", body) == (403, "channel.peer")
        body["party"] = "acme"
        assert stranger.code("POST", "/cloister/v1/heads", body) == (403, "channel.peer")
        body["party"] = "lab"
    assert world.hospital.broker.heads.known("lab") is None
    lab = SigningKey(world.lab.broker.core.keys.tls_seed())
    with client(world, running, lab) as genuine:
        assert genuine.ask("POST", "/cloister/v1/heads", body)[0] == 200


def test_a_stranger_asks_whom_a_party_has_pinned(world: World, running: RunningBroker) -> None:
    """The lab is pinned and acme is nobody: a stranger hears the same of both, and nothing of the lab's log."""
    lab = SigningKey(world.lab.broker.core.keys.tls_seed())
    note = world.lab.broker.core.ledger.log.head()
    with client(world, running, lab) as genuine:
        assert genuine.ask("GET", "/cloister/v1/heads/lab") == (200, {"note": None})
        assert genuine.ask("POST", "/cloister/v1/heads", {"note": note, "party": "lab", "proof": []})[0] == 200
        assert genuine.ask("GET", "/cloister/v1/heads/lab") == (200, {"note": note})
        assert genuine.code("GET", "/cloister/v1/heads/hospital") == (403, "channel.peer")
    with client(world, running, SigningKey.generate()) as stranger:
        answers = [stranger.ask("GET", f"/cloister/v1/heads/{name}") for name in ("lab", "acme", "hospital")]
    assert answers[0][0] == 403
    assert answers[0][1]["error"]["code"] == "channel.peer"
    assert answers == [answers[0]] * 3
