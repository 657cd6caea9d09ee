"""Attestation sessions: in memory only, few, short, and each with a challenge that works once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..attestation import Claims
from ..crypto import b64url, random_bytes
from ..errors import Denied, Unavailable, Untrusted
from .config import Limits
from .decision import Request

__all__ = ["Attested", "Session", "Sessions"]

_COOKIE = 43  # characters of 32 bytes in base64url


@dataclass(frozen=True)
class Attested:
    """What a session proved: the claims, and the workload's key for responses (``tee-pubkey``)."""

    claims: Claims
    tee_pubkey: dict[str, Any]


@dataclass(repr=False)
class Session:
    """One request-challenge-attestation exchange. ``attested`` is set once, ``nonce`` is taken away once."""

    request: Request
    opened: int
    nonce: str | None
    attested: Attested | None = None
    _answers: dict[str, bytes] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def once(self, name: str, make: Callable[[], bytes], *, limit: int) -> bytes:
        """The answer to ``name``: made the first time, the identical bytes ever after. One at a time."""
        with self._lock:
            if name not in self._answers:
                if len(self._answers) >= limit:
                    raise Denied("session.answers", "This session has fetched as much as one session may.")
                self._answers[name] = make()
            return self._answers[name]


class Sessions:
    """All open sessions by cookie. The cookie alone proves nothing new: keys go out to the attested key only."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def open(self, request: Request, nonce: str, *, now: int) -> str:
        """The new session's cookie. Raises Unavailable when too many are open."""
        cookie = b64url(random_bytes(32))
        with self._lock:
            self._drop_ended(now)
            if len(self._sessions) >= self._limits.sessions:
                raise Unavailable("session.full", "Too many sessions are open; try again in a minute.")
            self._sessions[cookie] = Session(request, now, nonce)
        return cookie

    def take_challenge(self, cookie: str | None, nonce: str, *, now: int) -> Session:
        """The session that was challenged with ``nonce``. The challenge is used up by this, whatever comes of it.

        Raises Denied("session.absent") without a live session, Untrusted("nonce.*") for a nonce that is used up, too
        old, or another session's.
        """
        session = self._live(cookie, now)
        with self._lock:
            expected, session.nonce = session.nonce, None
        if expected is None:
            raise Untrusted("nonce.replayed", "This challenge was answered before; ask for a new one.")
        if now >= session.opened + self._limits.nonce_seconds:
            raise Untrusted("nonce.expired", "This challenge is too old; ask for a new one.")
        if expected != nonce:
            raise Untrusted("nonce.other", "The evidence answers another challenge than this session's.")
        return session

    def attested(self, cookie: str | None, *, now: int) -> tuple[Session, Attested]:
        """The session of a workload that has proved itself; Denied otherwise."""
        session = self._live(cookie, now)
        if session.attested is None:
            raise Denied("session.unattested", "This session has not attested; send evidence first.")
        return session, session.attested

    def _live(self, cookie: str | None, now: int) -> Session:
        # A lookup by hash of 256 random bits: timing tells nothing that helps to guess one.
        with self._lock:
            session = self._sessions.get(cookie) if cookie is not None and len(cookie) == _COOKIE else None
        if session is None or now >= session.opened + self._limits.session_seconds:
            raise Denied("session.absent", "There is no such session; begin with a new request.")
        return session

    def _drop_ended(self, now: int) -> None:
        keep = self._limits.session_seconds
        waiting = self._limits.nonce_seconds
        for cookie, session in list(self._sessions.items()):
            life = keep if session.attested is not None else waiting
            if now >= session.opened + life:
                del self._sessions[cookie]
