"""Who asks? Signed requests are judged here, purely, and remembered against replays.

There is no session and no bearer token: what an eavesdropper catches is good for the identical request only, and
one that changes anything is answered once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ..contracts.requests import REQUEST_TYPE, SCHEME
from ..crypto import Envelope, sha256, unb64url
from ..errors import Malformed, Unavailable, Untrusted
from ..fields import Fields
from .errors import Unauthenticated

__all__ = ["MAX_AGE", "Asked", "Caller", "ReplayGuard", "check_request"]

MAX_AGE = 60  # seconds by which a request's time may be off, either way
_MAX_HEADER = 16 * 1024


@dataclass(frozen=True)
class Asked:
    """What really arrived: ``path`` with its query; ``body`` whole, or None where it is streamed and still unread."""

    method: str
    path: str
    body: bytes | None


@dataclass(frozen=True)
class Caller:
    """Who signed; ``request`` is the digest of the signed document, which names it for the replay guard."""

    party: str
    request: bytes


def check_request(
    header: str | None, asked: Asked, *, key_of: Callable[[str], bytes | None], audience: str, now: int, since: int
) -> Caller:
    """The caller, if ``header`` signs exactly this request, here and now. Raises Unauthenticated otherwise.

    ``key_of`` gives a party's signing key, None for strangers. ``since`` is when the replay guard began to remember:
    older requests are refused, because nobody knows whether they were seen. A streamed body is not covered by the
    signature; only routes that check the bytes against a signed manifest take one.
    """
    signed = _parse(header)
    # 1. A party of this directory signed it.
    key = key_of(signed.party)
    if key is None:
        raise Unauthenticated("request.party", "The request is signed by a party that is not in this directory.")
    try:
        signed.envelope.verify(REQUEST_TYPE, [key])
    except (Untrusted, Malformed):
        raise Unauthenticated("request.signature", "The request's signature does not hold.") from None
    # 2. For this control plane, this route and this body.
    if signed.audience != audience:
        raise Unauthenticated("request.audience", "The request was signed for another control plane.")
    if (signed.method, signed.path) != (asked.method, asked.path):
        raise Unauthenticated("request.route", "The request was signed for another route.")
    if signed.body not in _bodies(asked.body):
        raise Unauthenticated("request.body", "The request's body is not the one that was signed.")
    # 3. Now.
    if not max(now - MAX_AGE, since) <= signed.issued <= now + MAX_AGE:
        raise Unauthenticated("request.stale", "The request's time is off; set this machine's clock and try again.")
    return Caller(signed.party, signed.envelope.digest)


@dataclass(frozen=True)
class _Signed:
    """What a header says; nothing is proved by reading it."""

    envelope: Envelope
    party: str
    method: str
    path: str
    body: bytes | None
    audience: str
    issued: int


def _parse(header: str | None) -> _Signed:
    if not header or not header.startswith(SCHEME) or len(header) > _MAX_HEADER:
        raise Unauthenticated("request.unsigned", "The request is not signed; use the Cloister client.")
    try:
        envelope = Envelope.from_bytes(unb64url(header[len(SCHEME) :]), limit=_MAX_HEADER)
        f = Fields(envelope.document(), "signed request")
        f.text("type", choices=("request/v1",))
        f.hex("salt", 16)  # makes two requests of one second two requests
        signed = _Signed(
            envelope=envelope,
            party=f.party("party"),
            method=f.text("method", limit=16),
            path=f.text("path"),
            body=f.optional_hex("body", 32),
            audience=f.text("audience", limit=128),
            issued=f.integer("issued"),
        )
        f.done()
    except Malformed:
        raise Unauthenticated("request.form", "The request's signature header can't be read.") from None
    return signed


def _bodies(body: bytes | None) -> tuple[bytes | None, ...]:
    """What a signature may say of this body: nothing of a streamed one; of an empty one nothing, or its digest."""
    if body is None:
        return (None,)
    return (sha256(body),) if body else (None, sha256(b""))


class ReplayGuard:
    """Remembers signed requests for as long as their time would still be accepted."""

    def __init__(self, *, capacity: int) -> None:
        self._window = 2 * MAX_AGE + 1  # a request may come from the future, and stays good for as long again
        self._capacity = capacity
        self._seen: set[bytes] = set()
        self._order: deque[tuple[int, bytes]] = deque()
        self._lock = threading.Lock()

    def admit(self, caller: Caller, *, now: int) -> None:
        """Raises Unauthenticated for a request seen before, Unavailable when full: it never forgets too early."""
        with self._lock:
            while self._order and self._order[0][0] < now - self._window:
                self._seen.discard(self._order.popleft()[1])
            if caller.request in self._seen:
                raise Unauthenticated("request.replayed", "The identical request was answered before; sign a new one.")
            if len(self._seen) >= self._capacity:
                raise Unavailable("request.busy", "The control plane takes no more requests just now; try again soon.")
            self._seen.add(caller.request)
            self._order.append((now, caller.request))
