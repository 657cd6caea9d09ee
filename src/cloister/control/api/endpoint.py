"""What every route shares: bounded bodies, signatures, errors in one form, and a log line without content."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TextIO, TypeVar

from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ...crypto import parse_json
from ...errors import CloisterError, Denied, Internal, Malformed
from ..directory import NODE
from ..requests import Asked
from ..service import ControlPlane

__all__ = ["Answer", "Call", "Handler", "asked_path", "endpoint"]

T = TypeVar("T")
Answer = Response | dict[str, Any]


class Call:
    """One request on its way: who asks, with which body."""

    def __init__(self, plane: ControlPlane, request: Request) -> None:
        self.plane = plane
        self.request = request
        self.party = ""
        self.body = b""

    async def signed(self, *, limit: int | None = None) -> Call:
        """Read the body, bounded, then check the signature over it. Raises Unauthenticated or Malformed."""
        self.body = await self.read(limit or self.plane.limits.body)
        return await self._authenticate(self.body)

    async def signed_stream(self) -> Call:
        """Check a signature that leaves the body out; the route itself must check the bytes."""
        return await self._authenticate(None)

    async def _authenticate(self, body: bytes | None) -> Call:
        asked = Asked(self.request.method, asked_path(self.request), body)
        header = self.request.headers.get("authorization")
        self.party = (await self.run(lambda: self.plane.authenticate(header, asked))).party
        return self

    def only_node(self) -> Call:
        if self.party != NODE:
            raise Denied("route.node", "This route is the node agent's.")
        return self

    def only_party(self) -> Call:
        if self.party == NODE:
            raise Denied("route.party", "This route is for parties; the node agent has routes of its own.")
        return self

    async def read(self, limit: int) -> bytes:
        """The whole body, at most ``limit`` bytes."""
        body = bytearray()
        async for chunk in self.request.stream():
            body += chunk
            if len(body) > limit:
                raise Malformed("request.length", f"The request's body is longer than {limit} bytes.")
        return bytes(body)

    def json(self) -> Any:
        return parse_json(self.body, limit=len(self.body))

    def path(self, name: str) -> str:
        return str(self.request.path_params[name])

    async def run(self, work: Callable[[], T]) -> T:
        """Disk and database work belongs on a thread, so that a slow disk doesn't stop every long poll."""
        return await run_sync(work)


Handler = Callable[[Call], Awaitable[Answer]]


def asked_path(request: Request) -> str:
    """Path and query exactly as they came: what is signed is what is routed."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    query: bytes = request.scope.get("query_string", b"")
    return (raw + (b"?" + query if query else b"")).decode("latin-1")


def endpoint(plane: ControlPlane, handler: Handler, log: TextIO) -> Callable[[Request], Awaitable[Response]]:
    """``handler`` as Starlette wants it. No exception passes: an unknown one might quote what it was working on."""

    async def respond(request: Request) -> Response:
        began = time.monotonic()
        call = Call(plane, request)
        try:
            answer = await handler(call)
            response = answer if isinstance(answer, Response) else JSONResponse(answer)
        except CloisterError as error:
            response = error_response(error)
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody is there to read it
        except Exception as bug:  # noqa: BLE001  the last line of defence of a server
            write_log(log, {"bug": type(bug).__name__, "where": _frames(bug)})
            response = error_response(Internal("control.bug", "The control plane failed; see its log."))
        route = request.scope.get("route")
        took = round((time.monotonic() - began) * 1000)
        line = {"ms": took, "party": call.party or None, "status": response.status_code}
        write_log(log, {**line, "method": request.method, "route": getattr(route, "path", "?")})
        return response

    return respond


def error_response(error: CloisterError) -> JSONResponse:
    return JSONResponse({"error": error.to_wire()}, status_code=error.http_status)


def write_log(log: TextIO, line: dict[str, Any]) -> None:
    """One JSON object a line: routes and names, never bodies, never an exception's own text."""
    print(json.dumps({"at": int(time.time()), **line}), file=log, flush=True)


def _frames(bug: BaseException) -> list[str]:
    return [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in traceback.extract_tb(bug.__traceback__)]
