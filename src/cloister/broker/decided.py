"""Steps 1 to 5 in one session, at every stage, and nothing decided twice.

The decisions are pure, so what passed once passes again while everything they go by is the same: the very request, the
very claims, the very standing, the very second. ``Knowledge`` makes a new standing after any change of the state, and
another second is another question. A refusal is never remembered.
"""

from __future__ import annotations

from ..attestation import Claims
from .decision import (
    Lease,
    Request,
    Resource,
    Standing,
    check_gives_keys,
    decide_evidence,
    decide_key,
    decide_knock,
)

__all__ = ["Decided"]


class Decided:
    """What passed last in a session. Any thread may ask: at worst two decide the same."""

    def __init__(self) -> None:
        self._knock: tuple[Request, Standing, int] | None = None
        self._admission: tuple[Request, Claims, Standing, int] | None = None

    def knock(self, request: Request, standing: Standing, *, now: int) -> None:
        """See ``decide_knock``."""
        asked = (request, standing, now)
        if not _same(self._knock, asked):
            decide_knock(request, standing, now=now)
            self._knock = asked

    def admission(self, request: Request, claims: Claims, standing: Standing, *, now: int) -> None:
        """See ``decide_admission``."""
        self.knock(request, standing, now=now)
        asked = (request, claims, standing, now)
        if not _same(self._admission, asked):
            decide_evidence(request, claims, standing)
            self._admission = asked

    def release(self, request: Request, claims: Claims, standing: Standing, resource: Resource, *, now: int) -> Lease:
        """See ``decide_release``."""
        check_gives_keys(request)
        self.admission(request, claims, standing, now=now)
        return decide_key(request, standing, resource, now=now)


def _same(before: tuple[object, ...] | None, asked: tuple[object, ...]) -> bool:
    """The same objects, not equal ones: comparing would take longer than deciding. The last is the second."""
    if before is None or before[-1] != asked[-1]:
        return False
    return all(one is other for one, other in zip(before[:-1], asked[:-1], strict=True))
