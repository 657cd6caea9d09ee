"""HTTP for the owner: enrolling the TPMs of nodes. The messages come and go as files, by whatever way people have."""

from __future__ import annotations

from functools import partial
from typing import Any

from starlette.routing import Route

from ..fields import Fields
from .admin import json_route
from .config import Limits
from .enrolling import Enrolments
from .http import Call

__all__ = ["enrolment_routes"]


def enrolment_routes(enrolments: Enrolments, limits: Limits) -> list[Route]:
    """``/v1/attesters``."""
    get, post = partial(json_route, "GET", limits=limits), partial(json_route, "POST", limits=limits)

    def listing(_: Call) -> Any:
        return {"attesters": enrolments.listing()}

    def begin(call: Call) -> Any:
        f = Fields(call.body(), "enrolment")
        request = f.raw("request")
        f.done()
        return enrolments.begin(request)

    def finish(call: Call) -> Any:
        f = Fields(call.body(), "enrolment proof")
        handle, proof = f.hex("id", 16), f.hex("proof", 32)
        f.done()
        return enrolments.finish(handle.hex(), proof).to_wire()

    def remove(call: Call) -> Any:
        f = Fields(call.body(), "attester")
        name = f.hex("ak_name", 34)
        f.done()
        return enrolments.remove(name.hex()).to_wire()

    return [
        get("/v1/attesters", listing),
        post("/v1/attesters/enrol", begin),
        post("/v1/attesters/admit", finish),
        post("/v1/attesters/remove", remove),
    ]
