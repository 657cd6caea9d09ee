"""Every route, in one table."""

from __future__ import annotations

import sys
from typing import TextIO

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...errors import Misuse
from ..errors import NotFound
from ..service import ControlPlane
from . import objects, parties
from .changes import Changes
from .endpoint import Handler, endpoint, error_response
from .jobs import JobRoutes
from .node import NodeRoutes

__all__ = ["make_app"]


def _routes(changes: Changes) -> list[tuple[str, str, Handler]]:
    jobs, node = JobRoutes(changes), NodeRoutes(changes)
    return [
        ("GET", "/v1/info", parties.get_info),
        ("GET", "/v1/directory", parties.get_directory),
        ("POST", "/v1/directory", parties.publish_card),
        ("GET", "/v1/assets", objects.list_assets),
        ("PUT", "/v1/objects/{digest}/manifest", objects.put_manifest),
        ("PUT", "/v1/objects/{digest}/files/{index}", objects.put_file),
        ("POST", "/v1/objects/{digest}/commit", objects.commit),
        ("GET", "/v1/objects/{digest}/manifest", objects.get_manifest),
        ("GET", "/v1/objects/{digest}/files/{index}", objects.get_file),
        ("POST", "/v1/contracts", parties.add_contract),
        ("GET", "/v1/contracts", parties.list_contracts),
        ("GET", "/v1/contracts/{reference}", parties.get_contract),
        ("POST", "/v1/contracts/{reference}/revocations", parties.add_revocation),
        ("POST", "/v1/jobs", jobs.submit),
        ("GET", "/v1/jobs", jobs.listing),
        ("GET", "/v1/jobs/{digest}", jobs.get),
        ("GET", "/v1/jobs/{digest}/events", jobs.events),
        ("POST", "/v1/jobs/{digest}/cancel", jobs.cancel),
        ("GET", "/v1/jobs/{digest}/release", jobs.release),
        ("PUT", "/v1/jobs/{digest}/release", node.release),
        ("GET", "/v1/outputs/{party}/{name}", jobs.output),
        ("POST", "/v1/node/hello", node.hello),
        ("POST", "/v1/node/claim", node.claim),
        ("POST", "/v1/node/jobs/{digest}/events", node.events),
        ("POST", "/v1/node/jobs/{digest}/state", node.state),
    ]


def make_app(plane: ControlPlane, *, changes: Changes | None = None, log: TextIO | None = None) -> Starlette:
    """The ASGI application. ``log`` gets one JSON object a line; stderr unless given."""
    stream = sys.stderr if log is None else log
    table = _routes(changes or Changes())
    routes = [Route(path, endpoint(plane, handler, stream), methods=[method]) for method, path, handler in table]
    return Starlette(routes=routes, exception_handlers={HTTPException: _no_route})


async def _no_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_response(NotFound("route.unknown", "There is no such route; see docs/spec/api.md."))
    response = error_response(Misuse("route.method", "This route does not take that method; see docs/spec/api.md."))
    response.status_code = error.status_code
    return response
