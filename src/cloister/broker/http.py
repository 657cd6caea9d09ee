"""From Starlette's requests to plain calls: bounded bodies, strict JSON, work in threads, errors mapped once."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from ..crypto import parse_json
from ..errors import CloisterError, Malformed, Misuse
from .config import Limits
from .errors_http import json_response, unforeseen
from .sessions import Channel, Cookie

__all__ = ["CHANNEL", "Call", "Endpoint", "application", "route"]

CHANNEL = "channel"  # in the state of a request: what its connection's client proved

Endpoint = Callable[["Call"], Response]
Refuse = Callable[[CloisterError], Response]


@dataclass(frozen=True)
class Call:
    """One request, read completely: ``params`` from the path, ``query`` from the URL, ``cookie`` with the connection
    over which it came. ``token``: whether it carries an Authorization header."""

    data: bytes
    params: dict[str, str]
    query: dict[str, str]
    cookie: Cookie | None
    channel: Channel
    token: bool

    def body(self) -> Any:
        """The body as strict JSON; Malformed otherwise."""
        return parse_json(self.data)

    def number(self, name: str, *, high: int) -> int:
        """A query parameter from 0 to ``high``; Misuse otherwise."""
        text = self.query.get(name, "")
        if not text.isascii() or not text.isdigit() or len(text) > 16 or int(text) > high:
            raise Misuse("query.number", f"Give '{name}' as a whole number from 0 to {high}.")
        return int(text)


def route(method: str, path: str, endpoint: Endpoint, refuse: Refuse, limits: Limits, cookie: str = "") -> Route:
    """An endpoint that may block: it runs in a thread, so that many may wait for one commit of the log."""

    def work(call: Call) -> Response:
        try:
            return endpoint(call)
        except CloisterError as error:
            return refuse(error)
        except Exception:  # noqa: BLE001 - the last line: whatever it was, the answer is no
            print(_trace(), file=sys.stderr, flush=True)
            return refuse(unforeseen())

    async def handle(request: Request) -> Response:
        try:
            data = await _read(request, limits)
        except CloisterError as error:
            return refuse(error)
        return await run_in_threadpool(work, _call(request, data, cookie))

    handler: Callable[[Request], Awaitable[Response]] = handle
    return Route(path, handler, methods=[method])


def _call(request: Request, data: bytes, cookie: str) -> Call:
    # What the door found out about the connection. Without a door nothing is known of the client, so it proved nothing.
    found = request.scope.get("state", {}).get(CHANNEL)
    channel = found if isinstance(found, Channel) else Channel(None)
    sent = request.cookies.get(cookie)
    return Call(
        data,
        dict(request.path_params),
        dict(request.query_params),
        None if sent is None else Cookie(sent, channel),
        channel,
        "authorization" in request.headers,
    )


def _trace() -> str:
    """Where it happened, without the exception's text or any value: both may quote secrets."""
    kind, _, at = sys.exc_info()
    frames = "".join(f"  {f.filename}:{f.lineno} in {f.name}\n" for f in traceback.extract_tb(at))
    return f"unforeseen {kind.__name__ if kind else 'error'}\n{frames}"


async def _read(request: Request, limits: Limits) -> bytes:
    """The body, within its size and time. A sender that goes away or dawdles is refused like one that sends rubbish."""
    data = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                data += chunk
                if len(data) > limits.body:
                    raise Malformed("request.size", f"A request's body has at most {limits.body} bytes.")
    except (TimeoutError, ClientDisconnect):
        raise Malformed("request.incomplete", "The request's body did not arrive in time.") from None
    return bytes(data)


def application(routes: list[Route]) -> Starlette:
    """Only these routes; everything else is one and the same 404."""

    async def unknown(_request: Request, _error: Exception) -> Response:
        error = {
            "code": "path.unknown",
            "details": {},
            "kind": "misuse",
            "message": "There is nothing at this address.",
        }
        return json_response({"error": error}, 404)

    return Starlette(routes=routes, exception_handlers={404: unknown, 405: unknown})
