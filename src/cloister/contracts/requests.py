"""Signing HTTP requests to the control plane: who asks for what, of whom, when. ``control.requests`` checks them."""

from __future__ import annotations

from ..crypto import Signer, b64url, random_bytes, sign_document

__all__ = ["REQUEST_TYPE", "SCHEME", "authorization_header"]

REQUEST_TYPE = "application/vnd.cloister.request+json"
SCHEME = "Cloister "


def authorization_header(
    party: str, key: Signer, *, method: str, path: str, body: str | None, audience: str, now: int
) -> str:
    """The ``Authorization`` value.

    ``body`` is SHA-256 of the request's body in hex; None for no body, and for streamed uploads, whose bytes are
    checked against a signed manifest instead. ``audience`` is the control plane's id, so that one control plane
    can't replay a request to another. The salt makes two requests of one second two requests.
    """
    document = {
        "audience": audience,
        "body": body,
        "issued": now,
        "method": method,
        "party": party,
        "path": path,
        "salt": random_bytes(16).hex(),
        "type": "request/v1",
    }
    return SCHEME + b64url(sign_document(REQUEST_TYPE, document, key).to_bytes())
