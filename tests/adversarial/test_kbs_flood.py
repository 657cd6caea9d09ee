"""More requests than a broker wants to serve: by one address, under one contract, or in too many sessions."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from cloister.broker.sessions import Channel, Cookie, Session, Sessions
from cloister.crypto import SigningKey, canonical_json
from cloister.crypto.tls import client_context
from cloister.errors import CloisterError, Unavailable
from tests.broker_world import World, nothing_granted, serving
from tests.kbs_client import client, refused_in_the_handshake
from tests.stock_guest import Judge, StockGuest, allow

pytest_plugins = ["tests.broker_fixtures"]


def test_a_flood_of_requests_from_one_address(world: World) -> None:
    """A bucket that practically never fills: a few requests are served; the rest is told to wait, and nobody else."""
    world.hospital.limits = replace(world.hospital.limits, address_rate=1e-6, address_burst=6.0)
    world.hospital.restart()
    with serving(world.hospital) as running, client(world, running, SigningKey.generate()) as noisy:
        statuses = [noisy.ask("GET", "/cloister/v1/heads/lab")[0] for _ in range(8)]
        assert statuses == [403] * 5 + [429] * 3  # the connection itself counts, too
        assert noisy.code("POST", "/kbs/v0/auth", {}) == (429, "rate.address")
        assert refused_in_the_handshake(running, client_context())  # further ones aren't even greeted
        sock = socket.create_connection(("127.0.0.1", running.port), timeout=60, source_address=("127.0.0.9", 0))
        with client_context().wrap_socket(sock) as other:
            other.sendall(b"GET /cloister/v1/heads/lab HTTP/1.1\r\nHost: broker\r\n\r\n")
            assert other.recv(12) == b"HTTP/1.1 403"


def test_a_flood_of_requests_under_one_contract(world: World) -> None:
    world.hospital.limits = replace(world.hospital.limits, contract_rate=1e-6, contract_burst=4.0)
    world.hospital.restart()
    releases, workload = world.hospital.broker.releases, world.workload()
    other = world.sign(world.contract_fields(serial=1, name="other"))
    cookie = workload.attested(world.hospital)  # two requests
    workload.fetch(world.hospital, cookie, world.data.digest)
    releases.challenge(world.workload().request())
    with nothing_granted(world.hospital):
        size = len(world.hospital.log())
        for again in (
            lambda: workload.fetch(world.hospital, cookie, world.data.digest),
            lambda: releases.challenge(world.workload().request()),
        ):
            with pytest.raises(Unavailable) as caught:
                again()
            assert caught.value.code == "rate.contract"
        assert len(world.hospital.log()) == size  # a flood doesn't fill the log
    elsewhere = world.workload(contract=other, job=world.make_job(other))
    releases.challenge(elsewhere.request())


def test_a_flood_of_knocks_under_one_contract_shuts_out_no_other_and_nobody_who_attested(world: World) -> None:
    """Whoever has a contract's text can knock without any evidence, with as many keys as they like."""
    world.hospital.limits = replace(world.hospital.limits, sessions=8)
    world.hospital.restart()
    releases, served = world.hospital.broker.releases, world.workload()
    cookie = served.attested(world.hospital)
    served.fetch(world.hospital, cookie, world.data.digest)  # what it has not fetched yet is its share
    other = world.sign(world.contract_fields(serial=1, name="other"))
    elsewhere = world.workload(contract=other, job=world.make_job(other))
    begun, challenge = releases.challenge(elsewhere.request())
    with nothing_granted(world.hospital):
        for _ in range(30):
            releases.challenge(world.workload().request())
    releases.attest(begun, elsewhere.attestation(challenge["nonce"]))
    assert elsewhere.fetch(world.hospital, begun, world.data.digest)
    assert elsewhere.attested(world.hospital)
    assert releases.resource(cookie, "hospital", "state-share", "checkpoint")


def test_a_flood_of_anonymous_knocks_from_one_address_shuts_no_stock_guest_out(world: World) -> None:
    """They name no contract, so they would share one rate and one room. Where they come from tells them apart."""
    world.hospital.limits = replace(
        world.hospital.limits, sessions=8, contract_rate=1e-6, contract_burst=20.0, stock_rate=1e-6, stock_burst=6.0
    )
    world.hospital.restart()
    allow(world)
    releases, guest = world.hospital.broker.releases, StockGuest(world.make_job(world.contract))
    noisy, honest = Channel(None, "203.0.113.9"), Channel(None, "198.51.100.7")
    begun, challenge = releases.challenge(guest.request(), channel=honest)
    with nothing_granted(world.hospital):
        for _ in range(6):
            releases.challenge(guest.request(), channel=noisy)
        for _ in range(24):
            with pytest.raises(Unavailable) as caught:
                releases.challenge(guest.request(), channel=noisy)
            assert caught.value.code == "rate.address"
    with pytest.raises(CloisterError) as judged:
        releases.attest(Cookie(begun, honest), guest.attestation(challenge["nonce"]))
    assert judged.value.code not in ("session.absent", "rate.address", "rate.contract"), "it was looked at"
    assert releases.challenge(guest.request(), channel=honest)


def test_evidence_of_anonymous_sessions_counts_for_its_address(world: World) -> None:
    world.hospital.limits = replace(world.hospital.limits, stock_rate=1e-6, stock_burst=3.0)
    world.hospital.restart()
    allow(world)
    releases, guest = world.hospital.broker.releases, StockGuest(world.make_job(world.contract))
    noisy = Channel(None, "203.0.113.9")
    cookie, challenge = releases.challenge(guest.request(), channel=noisy)
    with pytest.raises(CloisterError):
        releases.attest(Cookie(cookie, noisy), guest.attestation(challenge["nonce"]))
    cookie, challenge = releases.challenge(guest.request(), channel=noisy)
    with pytest.raises(Unavailable) as caught:
        releases.attest(Cookie(cookie, noisy), guest.attestation(challenge["nonce"]))
    assert caught.value.code == "rate.address"


def test_knocks_of_many_addresses_take_room_from_their_own_first(world: World) -> None:
    limits = replace(world.hospital.limits, sessions=8)
    sessions = Sessions(limits)
    kept = sessions.open(Session(None, 0, "n", Channel(None, "198.51.100.7"), stock="snp"), now=0)
    for _ in range(30):
        sessions.open(Session(None, 0, "n", Channel(None, "203.0.113.9"), stock="snp"), now=0)
    assert sessions.live(kept, now=0)


def test_the_door_tells_where_a_knock_came_from(world: World) -> None:
    """Each connection's own address, not the proxy's word nor a header of the request."""
    world.hospital.limits = replace(world.hospital.limits, stock_rate=1e-6, stock_burst=1.0)
    world.hospital.guests = {"snp": Judge()}
    world.hospital.restart()
    body = canonical_json(StockGuest(world.make_job(world.contract)).request())
    head = "POST /kbs/v0/auth HTTP/1.1\r\nHost: broker\r\nContent-Type: application/json\r\n" \
        f"X-Forwarded-For: 192.0.2.1\r\nContent-Length: {len(body)}\r\n\r\n"  # fmt: skip
    found = []
    with serving(world.hospital) as running:
        for source in ("127.0.0.8", "127.0.0.8", "127.0.0.9"):
            sock = socket.create_connection(("127.0.0.1", running.port), timeout=60, source_address=(source, 0))
            with client_context().wrap_socket(sock) as tls:
                tls.sendall(head.encode() + body)
                found.append(tls.recv(12))
    assert found == [b"HTTP/1.1 200", b"HTTP/1.1 429", b"HTTP/1.1 200"]
