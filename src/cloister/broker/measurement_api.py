"""HTTP for policy and measurements: the owner's on its own socket, and for peers the approvals of releases."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from ..crypto import Envelope
from ..fields import Fields
from .admin import json_route
from .config import Limits
from .errors_http import json_response, public_error
from .http import Call, route
from .measurements import Measurements
from .policy_store import PolicyStore

__all__ = ["approval_routes", "measurement_routes"]

_REASON = 500
_MOST_CONTRACTS = 1000


def measurement_routes(store: PolicyStore, measurements: Measurements, limits: Limits) -> list[Route]:
    """For the owner: ``/v1/policy`` and ``/v1/measurements``."""
    get, post = partial(json_route, "GET", limits=limits), partial(json_route, "POST", limits=limits)

    def policy(_: Call) -> Any:
        current = store.current()
        return {"digest": current.digest, "policy": current.document()}

    def set_policy(call: Call) -> Any:
        f = Fields(call.body(), "policy request")
        text = f.text("policy", limit=limits.body)
        f.done()
        made = store.set(text.encode())
        return {"digest": made.digest, "policy": made.document()}

    def listing(_: Call) -> Any:
        return measurements.listing()

    def trust(call: Call) -> Any:
        f = Fields(call.body(), "release key")
        key = f.hex("key", 32)
        f.done()
        return {"fingerprint": measurements.trust(key)}

    def learn(call: Call) -> Any:
        f = Fields(call.body(), "release")
        text = f.text("release", limit=limits.body)
        f.done()
        release = measurements.learn_release(text)
        return {"release": release.digest.hex(), "version": release.version}

    def approve(call: Call) -> Any:
        f = Fields(call.body(), "approval request")
        text, digests = f.text("release", limit=limits.body), f.hexes("contracts", 32, limit=_MOST_CONTRACTS)
        f.done()
        return measurements.approve(text, [bytes.fromhex(digest) for digest in digests])

    def revoke(call: Call) -> Any:
        f = Fields(call.body(), "revocation request")
        measurement, reason = f.hex("measurement", 32), f.text("reason", limit=_REASON)
        f.done()
        return measurements.revoke(measurement.hex(), reason)

    return [
        get("/v1/policy", policy),
        post("/v1/policy", set_policy),
        get("/v1/measurements", listing),
        post("/v1/measurements/trust", trust),
        post("/v1/measurements/releases", learn),
        post("/v1/measurements/approve", approve),
        post("/v1/measurements/revoke", revoke),
    ]


def approval_routes(measurements: Measurements, limits: Limits) -> list[Route]:
    """For peers: what is signed speaks for itself, and what is asked names a digest that only parties know."""
    stranger = partial(public_error, attested=False)

    def accept(call: Call) -> Response:
        f = Fields(call.body(), "approval")
        contract, approval = (Envelope.from_bytes(f.text(key, limit=limits.body).encode()) for key in _DOCUMENTS)
        f.done()
        measurements.accept(contract, approval)
        return json_response({"stored": True})

    def show(call: Call) -> Response:
        held = measurements.shown(Fields(call.params, "path").hex("contract", 32))
        return json_response({"approvals": held})

    return [
        route("POST", "/cloister/v1/approvals", accept, stranger, limits),
        route("GET", "/cloister/v1/approvals/{contract}", show, stranger, limits),
    ]


_DOCUMENTS = ("contract", "approval")
