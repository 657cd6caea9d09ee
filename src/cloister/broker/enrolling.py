"""Which TPMs an owner has enrolled: attestation keys that a manufacturer's chip was shown to hold.

Kept as a logged fact, one per owner; nobody's word but the chip's and its maker's enters it. See ``attestation.tpm``.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from ..attestation.tpm import Enrolment, EnrolmentRequest, Pending, begin, finish
from ..crypto import canonical_json, parse_canonical, random_bytes
from ..crypto.x509 import Certificate
from ..errors import CloisterError, Denied, Malformed, Unavailable, Untrusted
from .clock import Clock
from .ledger import Ledger
from .state import Change, State

__all__ = ["EnrolledKeys", "Enrolments"]

_FACT: Final = "enrolments"
_MOST: Final = 1000
_MOST_PENDING: Final = 16


class EnrolledKeys(Mapping[str, Enrolment]):
    """The enrolled attestation keys by name (hex), as they are in the state now: what a TPM verifier looks at."""

    def __init__(self, state: State) -> None:
        self._state = state

    def _now(self) -> Mapping[str, Enrolment]:
        row = self._state.row("facts", name=_FACT)
        return {} if row is None else _read(row["value"])

    def __getitem__(self, name: str) -> Enrolment:
        return self._now()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


@lru_cache(maxsize=4)
def _read(text: str) -> Mapping[str, Enrolment]:
    try:
        found = [Enrolment.from_wire(body) for body in parse_canonical(text.encode(), limit=1 << 20)]
    except (Malformed, TypeError):
        raise Untrusted("state.damaged", "The broker's state is damaged; restore it from a copy.") from None
    return {enrolment.ak_name: enrolment for enrolment in found}


class Enrolments:
    """Enrols, lists and removes. A challenge is kept in memory only, and gone after one answer, right or wrong."""

    def __init__(
        self, ledger: Ledger, clock: Clock, *, pool: Sequence[Certificate] = (), roots: Collection[str] = ()
    ) -> None:
        """``pool``, ``roots``: authorities beside the shipped ones; what is enrolled under them is level ``none``."""
        self._ledger = ledger
        self._clock = clock
        self._pool, self._roots = tuple(pool), frozenset(roots)
        self._pending: dict[str, Pending] = {}
        self._lock = threading.Lock()
        self.keys = EnrolledKeys(ledger.state)

    def begin(self, body: Any) -> dict[str, Any]:
        """``id`` and ``challenge`` for a node's request. Raises what its certificates and keys give; Unavailable where
        too many are open."""
        now = self._clock()
        request = EnrolmentRequest.from_wire(body)
        pending, challenge = begin(request, random_bytes(32), now=now, pool=self._pool, roots=self._roots)
        handle = random_bytes(16).hex()
        with self._lock:
            self._pending = {name: p for name, p in self._pending.items() if p.expires >= now}
            if len(self._pending) >= _MOST_PENDING:
                raise Unavailable("enrolment.full", "Too many enrolments are open; try again in five minutes.")
            self._pending[handle] = pending
        return {"challenge": challenge.to_wire(), "id": handle}

    def finish(self, handle: str, proof: bytes) -> Enrolment:
        """The record, logged and kept, if the TPM gave the secret. Raises Denied for a challenge that isn't open,
        Untrusted for a wrong or late proof, which the log then tells of."""
        with self._lock:
            pending = self._pending.pop(handle, None)
        if pending is None:
            raise Denied("enrolment.unknown", "There is no such challenge, or it was answered before; begin again.")
        try:
            record = finish(pending, proof, now=self._clock())
        except CloisterError as refusal:
            details = {"code": refusal.code, "ek": pending.record.ek, "reason": refusal.message}
            self._ledger.append("attester.refused", target=pending.record.ak_name, details=details, outcome="failure")
            raise
        with self._ledger.turn():
            known = dict(self.keys)
            if len(known) >= _MOST and record.ak_name not in known:
                raise Denied("enrolment.many", f"More than {_MOST} attesters are enrolled; remove some first.")
            known[record.ak_name] = record
            self._commit("attester.enrolled", record, known)
        return record

    def remove(self, ak_name: str) -> Enrolment:
        """Trust this key no more: its evidence is level ``none`` from now on, so runs above that end within a lease."""
        with self._ledger.turn():
            known = dict(self.keys)
            record = known.pop(ak_name, None)
            if record is None:
                raise Denied("enrolment.absent", "This attestation key is not enrolled here.")
            self._commit("attester.removed", record, known)
        return record

    def listing(self) -> list[dict[str, Any]]:
        """Every record, with what people call the chip."""
        return [{**record.to_wire(), "hardware": record.hardware} for record in self.keys.values()]

    def _commit(self, kind: str, record: Enrolment, known: Mapping[str, Enrolment]) -> None:
        details: dict[str, str | int] = {
            "ek": record.ek,
            "hardware": record.hardware,
            "level": record.level,
            "root": record.root,
        }
        value = canonical_json([known[name].to_wire() for name in sorted(known)]).decode()
        change = Change("facts", {"name": _FACT, "value": value})
        self._ledger.commit(kind, target=record.ak_name, details=details, changes=[change])
