"""Reading what a workload asks for: KBS's Request with Cloister's extra parameters, and resource paths. Pure."""

from __future__ import annotations

from typing import Any

from ..contracts import read_contract, read_job
from ..crypto import Envelope, frame, sha256
from ..errors import Denied, Malformed
from ..fields import Fields
from .config import Limits
from .decision import Request, Resource

__all__ = ["read_request", "resource_named"]

_SHARE_TAGS = ("checkpoint",)
_VERSIONS = ((0, 1, 1), (0, 4))  # at least the first, and of at most the second's line


def read_request(body: Any, limits: Limits) -> Request:
    """A KBS Request with Cloister's extra parameters. Raises Malformed, or Denied for another protocol version."""
    f = Fields(body, "request")
    _check_version(f.text("version", limit=32))
    tee = f.text("tee", limit=32)
    extra = f.child("extra-params")
    f.done()
    c = extra.child("cloister")
    contract = read_contract(Envelope.from_bytes(c.text("contract", limit=limits.body).encode()))
    statements = c.items("statements", _envelope, limit=limits.statements)
    request = Request(
        purpose=c.text("purpose", choices=("release", "renew", "resume")),
        tee=tee,
        contract=contract,
        job=read_job(Envelope.from_bytes(c.text("job", limit=limits.body).encode()), contract),
        instance=c.hex("instance", 16),
        hpke=c.base64("hpke"),
        signing=c.hex("signing", 32),
        sequence=c.integer("sequence"),
        statements=statements,
    )
    c.done()
    return request


def _envelope(value: Any) -> Envelope:
    if not isinstance(value, str):
        raise Malformed("request.statement", "A status statement is not the text of an envelope.")
    return Envelope.from_bytes(value.encode())


def _check_version(text: str) -> None:
    parts = text.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 4 for part in parts):
        raise Malformed("kbs.version", "The protocol version is not three numbers.")
    version = tuple(int(part) for part in parts)
    if version < _VERSIONS[0] or version[:2] > _VERSIONS[1]:
        raise Denied("kbs.version", "This broker speaks the KBS protocol from 0.1.1 to 0.4.x.")


def resource_named(kind: str, tag: str) -> Resource:
    """What a resource path names; Denied("resource.unknown") for what this broker never has."""
    if kind == "asset-key":
        return Resource(kind, tag, Fields({"tag": tag}, "resource").hex("tag", 32))
    if kind == "state-share" and tag in _SHARE_TAGS:
        return Resource(kind, tag, sha256(frame("cloister/state-share/v1", tag)))
    raise Denied("resource.unknown", "There is no such resource.")
