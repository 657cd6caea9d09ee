"""Routes that only the node agent may use."""

from __future__ import annotations

from typing import Any

from ...fields import Fields
from ..states import FINAL, read_error, read_event, read_timings
from .changes import Changes
from .endpoint import Answer, Call

__all__ = ["NodeRoutes"]


class NodeRoutes:
    """Claims wait for work; reports wake those who follow a job."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def hello(self, call: Call) -> Answer:
        (await call.signed()).only_node()
        await call.run(lambda: call.plane.node_hello(call.json()))
        self._changes.announce()
        return {"ok": True}

    async def claim(self, call: Call) -> Answer:
        """Long poll for the next job; an empty object when there is none."""
        (await call.signed()).only_node()
        plane = call.plane

        async def look() -> dict[str, Any] | None:
            return await call.run(lambda: plane.runs.claim(now=plane.now()))

        found = await self._changes.wait(look, bool, plane.limits.poll)
        self._changes.announce()  # a claim changes a job's state
        return {**found, "directory": await call.run(plane.directory.listing)} if found else {}

    async def events(self, call: Call) -> Answer:
        (await call.signed()).only_node()
        f = Fields(call.json(), "report")
        batch = f.items("events", read_event, limit=call.plane.limits.event_batch)
        f.done()
        digest, now = call.path("digest"), call.plane.now()
        stop = await call.run(lambda: call.plane.runs.add_events(digest, batch, now=now))
        self._changes.announce()
        return {"ok": True, "stop": stop}

    async def state(self, call: Call) -> Answer:
        (await call.signed()).only_node()
        f = Fields(call.json(), "report")
        state = f.text("state", choices=tuple(sorted(FINAL)))
        given = f.raw("error", optional=True)
        error = None if given is None else read_error(given)
        timings = read_timings(f.raw("timings", optional=True))
        f.done()
        digest, now = call.path("digest"), call.plane.now()
        await call.run(lambda: call.plane.runs.set_state(digest, state, error, timings, now=now))
        self._changes.announce()
        return {"ok": True}

    async def release(self, call: Call) -> Answer:
        (await call.signed(limit=call.plane.limits.release_body)).only_node()
        digest, now = call.path("digest"), call.plane.now()
        await call.run(lambda: call.plane.runs.store_release(digest, call.body, now=now))
        return {"stored": True}
