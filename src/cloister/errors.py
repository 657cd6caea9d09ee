"""Every error that Cloister raises on purpose.

The tree (leaf codes are chosen by the raiser and are stable)::

    CloisterError
    ├── Misuse        the caller can mend it: a wrong flag, schema, file   exit 2, HTTP 400
    ├── Malformed     bytes that don't parse under the strict rules         exit 2, HTTP 400
    ├── Denied        a rule said no; carries the reason as an object       exit 3, HTTP 403
    ├── Untrusted     a signature, digest, proof or binding doesn't hold    exit 4, HTTP 403
    ├── Unavailable   something needed can't be reached right now           exit 1, HTTP 503
    └── Internal      a bug or a broken machine                             exit 1, HTTP 500

A message is one sentence that says what to do, and never contains data, keys or passphrases.
"""

from __future__ import annotations

__all__ = [
    "CloisterError",
    "Denied",
    "Internal",
    "Malformed",
    "Misuse",
    "Unavailable",
    "Untrusted",
    "error_from_wire",
]


class CloisterError(Exception):
    """Base of all. ``code`` is stable and machine-readable, ``message`` is for a person."""

    exit_code = 1
    http_status = 500
    kind = "internal"

    def __init__(self, code: str, message: str, **details: str | int | bool) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    def __str__(self) -> str:
        return self.message

    def to_wire(self) -> dict[str, object]:
        """The form in which this error crosses a socket."""
        return {"kind": self.kind, "code": self.code, "message": self.message, "details": dict(self.details)}


class Misuse(CloisterError):
    exit_code = 2
    http_status = 400
    kind = "misuse"


class Malformed(CloisterError):
    exit_code = 2
    http_status = 400
    kind = "malformed"


class Denied(CloisterError):
    exit_code = 3
    http_status = 403
    kind = "denied"


class Untrusted(CloisterError):
    exit_code = 4
    http_status = 403
    kind = "untrusted"


class Unavailable(CloisterError):
    exit_code = 1
    http_status = 503
    kind = "unavailable"


class Internal(CloisterError):
    exit_code = 1
    http_status = 500
    kind = "internal"


_KINDS: dict[str, type[CloisterError]] = {
    cls.kind: cls for cls in (Misuse, Malformed, Denied, Untrusted, Unavailable, Internal)
}


def error_from_wire(body: object) -> CloisterError:
    """Rebuild an error that a server sent. Whatever isn't of the expected form becomes ``Internal``."""
    if isinstance(body, dict):
        kind, code, message = body.get("kind"), body.get("code"), body.get("message")
        if isinstance(kind, str) and isinstance(code, str) and isinstance(message, str):
            details = body.get("details")
            known = {
                str(k): v
                for k, v in (details.items() if isinstance(details, dict) else ())
                if isinstance(v, str | int | bool)
            }
            known = {k: v for k, v in known.items() if k not in {"self", "code", "message"}}
            return _KINDS.get(kind, Internal)(code, message, **known)
    return Internal("wire.unreadable", "The server's error could not be read; look at its own log.")
