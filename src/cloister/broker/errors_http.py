"""How an error leaves this process. The owner's log says everything; a stranger learns the kind and the code."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from ..crypto import canonical_json
from ..errors import CloisterError, Internal
from .rates import RATE_CODES

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
_UNAUTHORIZED = frozenset({"session.absent", "session.token", "session.unattested"})
_NOT_FOUND = frozenset({"path.unknown", "resource.unknown", "asset.unknown"})


def json_response(body: Any, status: int = 200) -> Response:
    return Response(canonical_json(body), status, {"cache-control": "no-store"}, "application/json")


def _response(error: CloisterError, status: int, body: Any) -> Response:
    if error.code not in RATE_CODES:
        return json_response(body, status)
    response = json_response(body, 429)
    response.headers["retry-after"] = str(error.details.get("seconds", 1))
    return response


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
    problem = f"{KBS_ERRORS}{_problem(error, status, handshake=handshake)}"
    return _response(error, status, {"detail": wire["message"], "error": wire, "type": problem})


def _problem(error: CloisterError, status: int, *, handshake: bool) -> str:
    """The problem type, one of those that KBS publishes ("Error information")."""
    if status == 404:
        return "PluginNotFound" if error.code == "path.unknown" else "InvalidRequestPath"
    if error.code in _UNAUTHORIZED:
        return "TokenNotFound"
    if status >= 500:
        return "PluginInternalError"
    if error.code.startswith("jwe."):
        return "JweError"
    if error.kind == "malformed":
        return "SerdeError"
    return "AttestationError" if handshake else "PolicyDeny"


def public_error(error: CloisterError, *, attested: bool, **more: Any) -> Response:
    """For ``/cloister/v1``."""
    status = 401 if error.code in _UNAUTHORIZED else error.http_status
    return _response(error, status, {**more, "error": _wire(error, attested=attested)})


def admin_error(error: CloisterError) -> Response:
    """For the owner: everything."""
    return json_response({"error": error.to_wire()}, error.http_status)


def unforeseen() -> Internal:
    """What an unexpected exception becomes. Its text stays inside: it may quote what it was working on."""
    return Internal("broker.internal", "The broker met an error that nobody foresaw; it granted nothing.")
