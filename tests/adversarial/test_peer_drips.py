"""A pinned peer answers one byte at a time, for ever: in its handshake, in a header, in a body. Nobody waits for it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from cloister.broker.errands import Line, visit
from cloister.crypto.tls import server_context_from_seed
from cloister.errors import Denied, Unavailable, Untrusted
from tests.broker_party import Party, insecure_judges
from tests.broker_world import World, introduce, serving
from tests.patience import PATIENCE

pytest_plugins = ["tests.broker_fixtures"]

_STARTS = {"header": b"HTTP/1.1 200 OK\r\nX: ", "body": b"HTTP/1.1 200 OK\r\n\r\n", "handshake": b""}


class Dripper:
    """Holds the lab's key. ``over`` ends it; ``tired`` says that it gave up first, so somebody did wait for it."""

    def __init__(self, seed: bytes, where: str) -> None:
        self._where = where
        self._context = server_context_from_seed(seed, "lab", clients="optional")
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.over, self.tired = threading.Event(), threading.Event()
        self.asked = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listening.accept()
            if self.over.is_set():
                sock.close()
                return
            self._threads.append(threading.Thread(target=self._serve, args=(sock,)))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            if self._where == "handshake":
                self.asked.release()
                sock.sendall(b"\x16\x03\x03\x3f\xff\x02\x00\x3f\xfb")  # a long ServerHello, of which little comes
                self._drip(sock)
                return
            with self._context.wrap_socket(sock, server_side=True) as tls:
                tls.recv(65536)
                self.asked.release()
                tls.sendall(_STARTS[self._where])
                self._drip(tls)

    def _drip(self, sock: socket.socket) -> None:
        for _ in range(400):
            sock.sendall(b"a")
            if self.over.wait(0.1):
                return
        self.tired.set()

    def close(self) -> None:
        self.over.set()
        with socket.create_connection(self._listening.getsockname()):
            self._threads[0].join(PATIENCE)
        self._listening.close()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


@contextlib.contextmanager
def dripping(world: World, where: str = "header", *, seconds: float = 0.5) -> Iterator[Dripper]:
    """The hospital, which waits ``seconds`` for an exchange, finds such a peer where the lab was."""
    world.hospital.limits = replace(world.hospital.limits, peer_seconds=seconds)
    world.hospital.restart()
    dripper = Dripper(world.lab.broker.core.keys.tls_seed(), where)
    try:
        world.hospital.broker.core.peers.set_address("lab", dripper.address)
        yield dripper
        assert not dripper.tired.is_set(), "somebody waited until the peer gave up"
    finally:
        dripper.close()


@pytest.mark.parametrize("where", list(_STARTS))
def test_an_exchange_with_a_peer_that_drips(world: World, where: str) -> None:
    with dripping(world, where) as dripper, pytest.raises(Unavailable):
        world.hospital.broker.core.peers.get(world.lab.broker.card, "/cloister/v1/heads/hospital")
    assert dripper.asked.acquire(blocking=False)


def test_a_broker_starts_beside_a_peer_that_drips(world: World) -> None:
    with dripping(world) as dripper:
        world.hospital.restart()
        assert not world.hospital.broker.core.knowledge.witnessed
        assert dripper.asked.acquire(blocking=False)
    world.workload().run()


def test_an_owner_revokes_beside_a_peer_that_drips(world: World) -> None:
    with dripping(world):
        contract, text = world.hospital.broker.agreements.revoke(world.contract.digest, "over")
        assert world.hospital.broker.notices.revoked(contract, text) == ([], ["lab"])


def test_a_sole_witness_that_drips_cosigns_nothing(world: World) -> None:
    witnesses = world.contract.witnesses("hospital")
    with dripping(world):
        herald = world.hospital.broker.core.herald
        with pytest.raises(Untrusted) as refused:
            herald.gather(0, 1, witnesses)
        assert refused.value.code == "witness.quorum"
        assert herald.show_all() == 0


def test_an_honest_witness_is_heard_while_another_one_drips(world: World) -> None:
    """Neither a release nor the background's round waits for the one that holds everybody up; here it has 30 s."""
    acme = Party("acme", world.folder / "acme", world.clock, insecure_judges())
    for party, other in ((world.hospital, acme), (acme, world.hospital)):
        card = other.broker.card
        party.broker.core.parties.pin(card.envelope.to_bytes().decode(), card.fingerprint)
    witnesses = {card.log_origin: card.keys.receipt for card in (acme.broker.card, world.lab.broker.card)}
    with dripping(world, seconds=30.0) as dripper, serving(acme) as running:
        introduce(world.hospital, acme, running)
        herald = world.hospital.broker.core.herald
        background = threading.Thread(target=herald.show_all)
        background.start()
        assert dripper.asked.acquire(timeout=PATIENCE)  # from here on, that exchange lasts
        for _ in range(3):
            receipt = world.hospital.broker.core.ledger.append("attest.ok", target="x", details={})
            assert herald.gather(receipt.index, 1, witnesses).index == receipt.index
        assert background.is_alive()
        dripper.over.set()
        background.join(PATIENCE)


def test_the_errands_of_one_peer_keep_their_order() -> None:
    line, gate, begun = Line(), threading.Event(), threading.Event()
    done: list[int] = []

    def hold() -> bool:
        begun.set()
        return gate.wait(PATIENCE)

    first = line.add(hold)
    assert begun.wait(PATIENCE)
    errands = [line.add(partial(done.append, number)) for number in range(255)]
    errands[100].cancel()
    late = [line.add(lambda: done.append(-1)) for _ in range(3)]
    gate.set()
    assert first.result(PATIENCE)
    for errand in (*errands[:100], *errands[101:], late[0]):
        errand.result(PATIENCE)
    with pytest.raises(Unavailable) as refused:
        late[2].result(PATIENCE)
    assert refused.value.code == "peer.busy"
    assert done[:254] == [number for number in range(255) if number != 100]


def test_a_peer_that_is_silent_once_is_left_alone_for_the_round() -> None:
    heard: list[str] = []

    def say(what: str, error: Exception | None = None) -> None:
        heard.append(what)
        if error is not None:
            raise error

    visit(
        {
            "silent": [lambda: say("a", Unavailable("peer.unreachable", "Away.")), lambda: say("b")],
            "refusing": [lambda: say("c", Denied("x.y", "No.")), lambda: say("d")],
            "nothing": [],
        },
        seconds=PATIENCE,
    )
    assert sorted(heard) == ["a", "c", "d"]
    visit({"slow": [lambda: say("e")]}, seconds=-1.0)
    stop = threading.Event()
    stop.set()
    visit({"stopped": [lambda: say("f")]}, seconds=PATIENCE, stop=stop)
    assert sorted(heard) == ["a", "c", "d"]
