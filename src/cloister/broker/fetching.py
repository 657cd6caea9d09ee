"""Fetching collateral from the vendors: only where an owner turned it on, in the background, and before it runs out.

A release never waits for this. The refresher looks at the cache, asks for what ends within a margin or was missed, and
notes what did not work; what is in the cache stays good until its own end. Answers are bounded in size and time, and
trusted as little as any other collateral: TLS keeps strangers from watching, the vendors' signatures say who spoke.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import random
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from ..attestation.collateral import MAX_ITEM, Item
from ..crypto import parse_json
from ..errors import CloisterError, Malformed, Unavailable
from ..fields import Fields
from .clock import Clock
from .collateral_facts import examine
from .collateral_store import CollateralStore, Kept
from .vendors import PRODUCTS, Sources, Wanted, request_of

__all__ = ["Answer", "Fetcher", "Refresher", "Sources", "Wanted", "request_of"]

_DAY: Final = 86_400
_TRIES: Final = 3
_MAX_NOTES: Final = 8
_MAX_SHOWN: Final = 80
# Intel's headers that carry the issuer chain, percent-encoded (PCS API version 4).
_CHAINS: Final = {
    "intel-tcb": "tcb-info-issuer-chain",
    "intel-qe-identity": "sgx-enclave-identity-issuer-chain",
    "intel-pck-crl": "sgx-pck-crl-issuer-chain",
}


@dataclass(frozen=True)
class Answer:
    """``fresh`` is False where the vendor said that what it gave before (by its ETag) is still the newest."""

    fresh: bool
    body: bytes
    headers: Mapping[str, str]


class Fetcher:
    """HTTP GET with bounds: ``seconds`` for one try from the first byte sent to the last one received, ``MAX_ITEM``
    bytes, three tries with growing pauses. Redirects are not followed. ``pause`` waits; it is told seconds."""

    def __init__(
        self, sources: Sources, *, seconds: float = 15.0, pause: Callable[[float], object] = time.sleep
    ) -> None:
        self.sources = sources
        self._seconds = seconds
        self._pause = pause

    def fetch(self, wanted: Wanted, *, now: int, known: Kept | None = None, product: str | None = None) -> Kept:
        """The piece, not verified. Raises Unavailable ``fetch.*``, Malformed for an answer of another form."""
        # Only an OCSP response is the answer to a question; of any other piece there is one for all.
        if known is not None and known.request and wanted[0] == "nvidia-ocsp":
            return self.ask(wanted, known.request, now=now)
        url = request_of(wanted, self.sources, product=product)
        answer = self._patiently(url, known.etag if known is not None else "")
        etag = answer.headers.get("etag", "")[:256]
        if not answer.fresh and known is not None:
            item = known.item
            return Kept(Item(item.kind, item.name, item.data, now, item.chain), known.etag)
        return Kept(_item(wanted, answer, now), etag if etag.isprintable() else "")

    def ask(self, wanted: Wanted, request: bytes, *, now: int) -> Kept:
        """What NVIDIA's OCSP service answers to ``request`` (``nvidia.chain.revocation_requests``). Raises as
        ``fetch``."""
        answer = self._patiently(f"{self.sources.nvidia_ocsp}/", "", request)
        return Kept(Item(*wanted, answer.body, now), request=request)

    def _patiently(self, url: str, etag: str, body: bytes | None = None) -> Answer:
        for attempt in range(_TRIES):
            if attempt:
                self._pause(2.0 ** (attempt - 1) * (1 + random.random() / 2))  # noqa: S311 - spreads load, hides nothing
            try:
                return self._once(url, etag, body)
            except Unavailable as error:
                if error.code == "fetch.refused" or attempt == _TRIES - 1:
                    raise
        raise Unavailable("fetch.unreachable", "A vendor's service does not answer.")

    def _once(self, url: str, etag: str, request: bytes | None) -> Answer:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname or "", parts.port
        deadline = time.monotonic() + self._seconds
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(
                host, port, timeout=self._seconds, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self._seconds)
        # A timeout on the socket alone would let a server live on one byte at a time.
        held: list[socket.socket] = []
        watchdog = threading.Timer(self._seconds, lambda: _hang_up(held or [connection.sock]))
        watchdog.daemon = True
        watchdog.start()
        try:
            connection.connect()
            held.append(connection.sock)  # a response that ends with its connection takes the socket away
            headers = {"Accept": "*/*", **({"If-None-Match": etag} if etag else {})}
            target = parts.path + (f"?{parts.query}" if parts.query else "")
            if request is not None:  # RFC 6960, appendix A.1
                headers["Content-Type"] = "application/ocsp-request"
            connection.request("GET" if request is None else "POST", target, request, headers)
            with connection.getresponse() as response:
                body = response.read(2 * MAX_ITEM + 1)
                found = {key.lower(): value for key, value in response.getheaders()}
                status = response.status
        except (OSError, http.client.HTTPException, ValueError, AttributeError):
            raise _unreachable(host) from None
        finally:
            watchdog.cancel()
            connection.close()
            for sock in held:
                sock.close()
        if time.monotonic() > deadline:
            raise _unreachable(host)
        return _answer(host, status, body, found, asked=bool(etag))


def _hang_up(sockets: Iterable[socket.socket | None]) -> None:
    for sock in sockets:
        if sock is not None:
            with contextlib.suppress(OSError):  # it was over already
                sock.shutdown(socket.SHUT_RDWR)


def _unreachable(host: str) -> Unavailable:
    return Unavailable("fetch.unreachable", f"{host} does not answer in time; what is here stays good until its end.")


def _answer(host: str, status: int, body: bytes, headers: dict[str, str], *, asked: bool) -> Answer:
    if status == 304 and asked:
        return Answer(False, b"", headers)
    if status in (408, 429) or status >= 500:
        raise Unavailable("fetch.busy", f"{host} is busy or failing; try again later.", status=status)
    if status != 200:
        raise Unavailable("fetch.refused", f"{host} does not have that piece of collateral.", status=status)
    if len(body) > 2 * MAX_ITEM:
        raise Malformed("fetch.size", f"{host} answered with more than any piece of collateral has.")
    return Answer(True, body, headers)


def _item(wanted: Wanted, answer: Answer, now: int) -> Item:
    kind, name = wanted
    if kind == "nvidia-rim":
        f = Fields(parse_json(answer.body, limit=2 * MAX_ITEM), "manifest service's answer")
        if f.text("id", limit=256) != name:
            raise Malformed(
                "fetch.other", "The manifest service answered with another manifest than the one asked for."
            )
        return Item(kind, name, f.base64("rim", limit=2 * MAX_ITEM), now)
    chain = b""
    if kind in _CHAINS:
        header = answer.headers.get(_CHAINS[kind]) or answer.headers.get(f"sgx-{_CHAINS[kind]}", "")
        chain = urllib.parse.unquote_to_bytes(header)
    data = answer.body
    if kind == "intel-root-crl" and data.lstrip()[:1].isalnum() and not data.startswith(b"\x30"):
        data = _unhex(data)
    return Item(kind, name, data, now, chain)


def _unhex(data: bytes) -> bytes:
    """Some caches write a list in hex."""
    try:
        return base64.b16decode(data.strip(), casefold=True)
    except ValueError:
        return data  # then it is what it is, and its reader says so


class Refresher:
    """The thread that keeps a cache fresh. ``look`` is one round; what did not work stands in ``notes``.

    ``margin`` seconds before a piece's end it is asked for; pieces without an end each ``margin`` after they were
    obtained. ``always``: what an owner wants to have, whether it was used yet or not.
    """

    def __init__(
        self,
        store: CollateralStore,
        fetcher: Fetcher,
        clock: Clock,
        *,
        margin: int = 7 * _DAY,
        interval: float = 3600.0,
        always: Iterable[Wanted] = (),
    ) -> None:
        self._store, self._fetcher, self._clock = store, fetcher, clock
        self._margin, self._interval = margin, interval
        self._always = tuple(always)
        self._trouble: dict[Wanted, str] = {}
        self._guard = threading.Lock()  # over _trouble: owners read it while a round goes on
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def due(self) -> list[Wanted]:
        """What is to be asked for now, missed pieces last: those come from evidence that nobody has verified."""
        now, kept = self._clock(), self._store.kept()
        beside = self._store.snapshot()
        wanted: dict[Wanted, None] = {}
        for piece in kept:
            found = examine(piece.item, beside, now=now, pinned=self._store.pinned)
            end = found.ends if found.ends is not None else piece.item.obtained + 2 * self._margin
            if found.refusal is not None or now >= end - self._margin or piece.item.obtained > now:
                wanted[piece.item.kind, piece.item.name] = None
        have = {(piece.item.kind, piece.item.name) for piece in kept}
        for key in (*self._always, *self._store.missed()):
            if key not in have:
                wanted[key] = None
        return list(wanted)

    def look(self) -> int:
        """Ask for what is due; how many pieces came. Raises nothing."""
        came = 0
        known = {(piece.item.kind, piece.item.name): piece for piece in self._store.kept()}
        due = self.due()
        with self._guard:
            # Names from evidence that nobody has verified would otherwise pile up for as long as the broker runs.
            self._trouble = {wanted: self._trouble[wanted] for wanted in due if wanted in self._trouble}
        for wanted in due:
            if self._stop.is_set():
                break
            try:
                self._get(wanted, known.get(wanted))
            except CloisterError as error:
                self._note(wanted, f"Collateral {wanted[0]} {_shown(wanted[1])}: {error.message}")
            else:
                self._note(wanted, "")
                came += 1
        return came

    def _note(self, wanted: Wanted, trouble: str) -> None:
        with self._guard:
            self._trouble.pop(wanted, None)
            if trouble:
                self._trouble[wanted] = trouble

    def _get(self, wanted: Wanted, known: Kept | None) -> None:
        now = self._clock()
        products: tuple[str | None, ...] = tuple(PRODUCTS) if wanted[0] == "amd-vcek" else (None,)
        if wanted[0] == "amd-vcek" and len(wanted[1].partition("-")[0]) == 16:
            products = ("turin",)  # the only one with chip ids of eight bytes
        for product in products:
            try:
                self._store.put([self._fetcher.fetch(wanted, now=now, known=known, product=product)], now=now)
                return
            except Unavailable as error:
                if error.code != "fetch.refused" or product == products[-1]:
                    raise

    def notes(self) -> list[str]:
        """What the owner should know: files that are damaged, and pieces that could not be fetched. The first few of
        either, what was missed last, so that made-up evidence hides nothing; of the others how many there are."""
        damaged = [f"Collateral: the file {name} is damaged and not used." for name in self._store.damaged]
        with self._guard:
            trouble = list(self._trouble.values())
        return [*_few(damaged, "files are damaged"), *_few(trouble, "pieces could not be fetched")]

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="collateral", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Does not wait for a vendor that hangs: the thread ends by itself, and keeps nothing from ending."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self._interval)


def _shown(name: str) -> str:
    """A name from evidence, for a sentence: no more than people read, and nothing that moves a cursor."""
    return "".join(c if c.isprintable() else "?" for c in name[:_MAX_SHOWN])


def _few(notes: list[str], what: str) -> list[str]:
    more = len(notes) - _MAX_NOTES
    return notes if more <= 0 else [*notes[:_MAX_NOTES], f"Collateral: {more} more {what}."]
