"""HTTP for the Confidential Containers KBS protocol: ``/kbs/v0``. It parses, calls one service and maps errors."""

from __future__ import annotations

from functools import partial

from starlette.responses import Response
from starlette.routing import Route

from ..errors import Denied
from .config import Limits
from .errors_http import json_response, kbs_error
from .http import Call, route
from .release import KeyReleases

__all__ = ["COOKIE", "kbs_routes"]

COOKIE = "kbs-session-id"
_DEFAULT_REPOSITORY = "default"
_METHODS = ("GET", "POST", "PUT", "DELETE")


def kbs_routes(releases: KeyReleases, limits: Limits) -> list[Route]:
    def auth(call: Call) -> Response:
        cookie, challenge = releases.challenge(call.body(), channel=call.channel)
        return _with_cookie(json_response(challenge), cookie)

    def attest(call: Call) -> Response:
        return _with_cookie(json_response({"token": releases.attest(call.cookie, call.body())}), call.cookie)

    def resource(call: Call) -> Response:
        if call.cookie is None and call.token:
            # A token is for the record. As a bearer's it would open keys on any connection, for as long as it lives.
            raise Denied("session.token", "A token opens nothing here; attest, and send the session's cookie.")
        repository = call.params.get("repository", _DEFAULT_REPOSITORY)
        party = None if repository == _DEFAULT_REPOSITORY else repository
        jwe = releases.resource(call.cookie, party, call.params["type"], call.params["tag"])
        answer = Response(jwe, 200, {"cache-control": "no-store"}, "application/json")
        return _with_cookie(answer, call.cookie)

    def unknown(_: Call) -> Response:
        raise Denied("path.unknown", "There is nothing at this address.")

    before = partial(kbs_error, handshake=True, attested=False)
    # Whoever gets here with a session has attested; without one, the error says no more than that.
    after = partial(kbs_error, handshake=False, attested=True)
    return [
        route("POST", "/kbs/v0/auth", auth, before, limits, COOKIE),
        route("POST", "/kbs/v0/attest", attest, before, limits, COOKIE),
        route("GET", "/kbs/v0/resource/{repository}/{type}/{tag}", resource, after, limits, COOKIE),
        route("GET", "/kbs/v0/resource/{type}/{tag}", resource, after, limits, COOKIE),
        # Plugins, and the paths by which others administer a key broker: this owner has an own socket.
        *(route(method, "/kbs/v0/{path:path}", unknown, before, limits) for method in _METHODS),
    ]


def _with_cookie(response: Response, cookie: str | None) -> Response:
    """The session's cookie, again with every answer as KBS shows it. Its life doesn't grow by that."""
    if cookie is not None:
        response.headers["set-cookie"] = f"{COOKIE}={cookie}; Path=/; HttpOnly; Secure; SameSite=Strict"
    return response
