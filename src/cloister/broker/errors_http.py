"""How an error leaves this process. The owner's log says everything; a stranger learns the kind and the code."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from ..crypto import canonical_json
from ..errors import CloisterError, Internal

__all__ = ["KBS_ERRORS", "admin_error", "json_response", "kbs_error", "public_error"]

KBS_ERRORS = "https://github.com/confidential-containers/kbs/errors/"
_GENERIC = {
    "denied": "The broker refused; its owner's log says why.",
    "internal": "The broker failed; its owner's log says how.",
    "malformed": "The request does not have the form that the broker reads.",
    "misuse": "The request can't be served as it is.",
    "unavailable": "The broker can't serve this right now; try again later.",
    "untrusted": "The broker refused: something that was presented does not hold.",
}
_UNAUTHORIZED = frozenset({"session.absent", "session.unattested"})
_NOT_FOUND = frozenset({"resource.unknown", "asset.unknown"})


def json_response(body: Any, status: int = 200) -> Response:
    return Response(canonical_json(body), status, {"cache-control": "no-store"}, "application/json")


def _wire(error: CloisterError, *, attested: bool) -> dict[str, object]:
    if attested:
        return error.to_wire()
    message = _GENERIC.get(error.kind, _GENERIC["internal"])
    return {"code": error.code, "details": {}, "kind": error.kind, "message": message}


def kbs_error(error: CloisterError, *, handshake: bool, attested: bool) -> Response:
    """KBS's ErrorInformation with our error object. ``handshake``: before attestation all refusals are 401 (KBS)."""
    status = error.http_status
    if error.code in _NOT_FOUND:
        status = 404
    elif error.code in _UNAUTHORIZED or (handshake and status < 500):
        status = 401
    wire = _wire(error, attested=attested)
    return json_response({"detail": wire["message"], "error": wire, "type": f"{KBS_ERRORS}{error.code}"}, status)


def public_error(error: CloisterError, *, attested: bool, **more: Any) -> Response:
    """For ``/cloister/v1``."""
    status = 401 if error.code in _UNAUTHORIZED else error.http_status
    return json_response({**more, "error": _wire(error, attested=attested)}, status)


def admin_error(error: CloisterError) -> Response:
    """For the owner: everything."""
    return json_response({"error": error.to_wire()}, error.http_status)


def unforeseen() -> Internal:
    """What an unexpected exception becomes. Its text stays inside: it may quote what it was working on."""
    return Internal("broker.internal", "The broker met an error that nobody foresaw; it granted nothing.")
