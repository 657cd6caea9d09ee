"""Attestation sessions: in memory only, few, short, each with a challenge that works once, each on one client's key."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..attestation import Claims
from ..crypto import b64url, constant_time_equal, random_bytes
from ..errors import Denied, Untrusted
from .config import Limits
from .decided import Decided
from .decision import Request

__all__ = ["Attested", "Channel", "Cookie", "Session", "Sessions"]

_COOKIE = 43  # characters of 32 bytes in base64url
_COMPOSITE = (0, 4, 0)
_WAITING_OF_ONE_KEY = 8


@dataclass(frozen=True)
class Channel:
    """A connection, as far as a session is bound to it: ``key`` is the Ed25519 key (32 bytes) that the client proved in
    its TLS handshake, or None. ``source``: where it came from, as ``source_of`` says it; nothing is bound to that."""

    key: bytes | None
    source: str = ""

    def check(self, signing: bytes) -> None:
        """Raises Untrusted("channel.key") unless the client proved ``signing``, the key that it wants to attest."""
        if self.key is None or not constant_time_equal(self.key, signing):
            raise Untrusted(
                "channel.key", "The connection's client certificate does not carry the workload's signing key."
            )


class Cookie(str):
    """A session cookie as it came over a connection. Plain text, as callers inside this process hand it over, is bound
    to none."""

    channel: Channel

    def __new__(cls, text: str, channel: Channel) -> Cookie:
        cookie = super().__new__(cls, text)
        cookie.channel = channel
        return cookie


@dataclass(frozen=True)
class Attested:
    """What a session proved: the claims, and the workload's key for responses (``tee-pubkey``)."""

    claims: Claims
    tee_pubkey: dict[str, Any]


@dataclass(repr=False)
class Session:
    """One request-challenge-attestation exchange. ``attested`` is set once, ``nonce`` is taken away once.

    ``channel``: the key that the client proved when the session began; None for one opened inside this process.
    ``asked`` is None for a stock guest until its hardware has told what it asks for; ``stock`` says that it is one.
    """

    asked: Request | None
    opened: int
    nonce: str | None
    channel: Channel | None = None
    version: tuple[int, int, int] = _COMPOSITE
    stock: str | None = None  # its platform
    cookie: str = field(default_factory=lambda: b64url(random_bytes(32)))
    decided: Decided = field(default_factory=Decided)
    attested: Attested | None = None
    _answers: dict[str, bytes] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def request(self) -> Request:
        """Raises Denied while nothing is known of it."""
        if self.asked is None:
            raise Denied("session.unattested", "This session has not attested; send evidence first.")
        return self.asked

    @property
    def group(self) -> bytes | str:
        """Whose room it takes: the digest of the contract that it asks under; for a stock guest that has not told,
        where it knocked from."""
        return self.source if self.asked is None else self.asked.contract.digest

    @property
    def source(self) -> str:
        """Where it came from; empty inside this process."""
        return "" if self.channel is None else self.channel.source

    @property
    def served(self) -> bool:
        """Whether anything was given out in it."""
        return bool(self._answers)

    def once(self, name: str, make: Callable[[], bytes], *, limit: int) -> bytes:
        """The answer to ``name``: made the first time, the identical bytes ever after. One at a time."""
        with self._lock:
            if name not in self._answers:
                if len(self._answers) >= limit:
                    raise Denied("session.answers", "This session has fetched as much as one session may.")
                self._answers[name] = make()
            return self._answers[name]

    def reached_by(self, cookie: str) -> bool:
        """Whether the cookie came over a connection of the client that the session began with."""
        if self.channel is None or (self.stock is not None and self.channel.key is None):
            return True  # a stock guest has no key to prove; what it gets opens with its attested key only
        shown = cookie.channel.key if isinstance(cookie, Cookie) else None
        return self.channel.key is not None and shown is not None and constant_time_equal(self.channel.key, shown)


class Sessions:
    """All open sessions by cookie. The cookie alone opens nothing: it counts only on connections of the client that
    began the session, and keys go out to the attested key only.

    One half of the room is for sessions that wait for evidence, the other for those that attested. Where a half is
    full, the contract that has most sessions in it makes room with its oldest one. So whoever knocks without end pushes
    out its own contract's knocks only, never another contract's that has less, and never a workload that attested.
    Stock guests that have not told their contract are told apart by where they come from.

    ``on_stolen`` is told of a session whose cookie came from another client; that one learns nothing from the answer.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._half = max(1, limits.sessions // 2)
        # Both in the order in which they began to wait, or attested.
        self._waiting: dict[str, Session] = {}
        self._attested: dict[str, Session] = {}
        self._lock = threading.Lock()
        self.on_stolen: Callable[[Session], None] = lambda _: None

    def open(self, session: Session, *, now: int) -> str:
        """A new session begins to wait for evidence. Its cookie."""
        with self._lock:
            self._drop_ended(now)
            self._drop_own(session.asked)
            if len(self._waiting) >= self._half:
                _make_room(self._waiting)
            self._waiting[session.cookie] = session
        return session.cookie

    def admit(self, session: Session, attested: Attested, *, now: int) -> None:
        """The session has attested. It counts from now on, also if knocks pushed it out while evidence was verified."""
        with self._lock:
            self._drop_ended(now)
            self._waiting.pop(session.cookie, None)
            if len(self._attested) >= self._half:
                _make_room(self._attested)
            session.attested = attested
            self._attested[session.cookie] = session

    def live(self, cookie: str | None, *, now: int) -> Session:
        """The session of a cookie, whatever became of its challenge. Raises Denied("session.absent")."""
        return self._live(cookie, now)

    def take_challenge(self, session: Session, nonce: str | None, *, now: int) -> str:
        """The session's own nonce, if it was challenged with ``nonce``. It is used up now, whatever comes of it.

        ``nonce`` is None in versions whose messages carry none. Raises Untrusted("nonce.*") for a nonce that is used
        up, too old, or another session's.
        """
        with self._lock:
            expected, session.nonce = session.nonce, None
        if expected is None:
            raise Untrusted("nonce.replayed", "This challenge was answered before; ask for a new one.")
        if now >= session.opened + self._limits.nonce_seconds:
            raise Untrusted("nonce.expired", "This challenge is too old; ask for a new one.")
        if nonce is not None and expected != nonce:
            raise Untrusted("nonce.other", "The evidence answers another challenge than this session's.")
        return expected

    def attested(self, cookie: str | None, *, now: int) -> tuple[Session, Attested]:
        """The session of a workload that has proved itself; Denied otherwise."""
        session = self._live(cookie, now)
        if session.attested is None:
            raise Denied("session.unattested", "This session has not attested; send evidence first.")
        return session, session.attested

    def _live(self, cookie: str | None, now: int) -> Session:
        # A lookup by hash of 256 random bits: timing tells nothing that helps to guess one.
        with self._lock:
            session = None
            if cookie is not None and len(cookie) == _COOKIE:
                session = self._attested.get(cookie) or self._waiting.get(cookie)
        if session is not None and cookie is not None and not session.reached_by(cookie):
            self.on_stolen(session)
            session = None
        if session is None or now >= session.opened + self._limits.session_seconds:
            raise Denied("session.absent", "There is no such session; begin with a new request.")
        return session

    def _drop_own(self, request: Request | None) -> None:
        """One workload needs few sessions at once. Its key is proved, so nobody else can use them up."""
        if request is None:
            return
        own = [c for c, s in self._waiting.items() if s.asked is not None and s.asked.signing == request.signing]
        for cookie in own[: max(0, len(own) - _WAITING_OF_ONE_KEY + 1)]:
            del self._waiting[cookie]

    def _drop_ended(self, now: int) -> None:
        """Without looking at all of them: both are in order, and evidence comes within ``nonce_seconds``. One that took
        longer may stay a moment behind those that have not ended; it takes room, and ``_live`` ends it all the same."""
        for sessions, life, later in (
            (self._waiting, self._limits.nonce_seconds, 0),
            (self._attested, self._limits.session_seconds, self._limits.nonce_seconds),
        ):
            ended = []
            for cookie, session in sessions.items():
                if now >= session.opened + life:
                    ended.append(cookie)
                elif now < session.opened + life - later:
                    break
            for cookie in ended:
                del sessions[cookie]


def _make_room(sessions: dict[str, Session]) -> None:
    """Of the contract that has most of them, the oldest that was given something ends, else the oldest. A workload asks
    for all it needs at once, and can attest again."""
    most, _ = Counter(session.group for session in sessions.values()).most_common(1)[0]
    mine = [cookie for cookie, session in sessions.items() if session.group == most]
    del sessions[next((cookie for cookie in mine if sessions[cookie].served), mine[0])]
