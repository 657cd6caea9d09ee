"""The two answers that HTTP distinguishes and the tree of errors doesn't: "not found" and "who are you?".

Both keep the kind of their parent on the wire, so a client rebuilds a plain ``Misuse`` or ``Untrusted``.
"""

from __future__ import annotations

from ..errors import Misuse, Untrusted

__all__ = ["NotFound", "Unauthenticated"]


class NotFound(Misuse):
    """There is no such thing, or the asker may not know that there is one: both look the same, on purpose."""

    http_status = 404


class Unauthenticated(Untrusted):
    """The request carries no signature that holds for it."""

    http_status = 401
