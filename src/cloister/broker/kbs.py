"""HTTP for the Confidential Containers KBS protocol: ``/kbs/v0``. It parses, calls one service and maps errors."""

from __future__ import annotations

from functools import partial

from starlette.responses import Response
from starlette.routing import Route

from .config import Limits
from .errors_http import json_response, kbs_error
from .http import Call, route
from .release import KeyReleases

__all__ = ["COOKIE", "kbs_routes"]

COOKIE = "kbs-session-id"


def kbs_routes(releases: KeyReleases, limits: Limits) -> list[Route]:
    def auth(call: Call) -> Response:
        cookie, challenge = releases.challenge(call.body())
        response = json_response(challenge)
        response.headers["set-cookie"] = f"{COOKIE}={cookie}; Path=/; HttpOnly; Secure; SameSite=Strict"
        return response

    def attest(call: Call) -> Response:
        return json_response({"token": releases.attest(call.cookie, call.body())})

    def resource(call: Call) -> Response:
        jwe = releases.resource(call.cookie, call.params["party"], call.params["type"], call.params["tag"])
        return Response(jwe, 200, {"cache-control": "no-store"}, "application/json")

    before = partial(kbs_error, handshake=True, attested=False)
    # Whoever gets here with a session has attested; without one, the error says no more than that.
    after = partial(kbs_error, handshake=False, attested=True)
    return [
        route("POST", "/kbs/v0/auth", auth, before, limits, COOKIE),
        route("POST", "/kbs/v0/attest", attest, before, limits, COOKIE),
        route("GET", "/kbs/v0/resource/{party}/{type}/{tag}", resource, after, limits, COOKIE),
    ]
