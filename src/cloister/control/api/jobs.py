"""Routes for jobs and outputs, as parties use them."""

from __future__ import annotations

from starlette.responses import Response

from ...crypto import Envelope
from ...errors import Malformed
from ...fields import Fields
from .changes import Changes
from .endpoint import Answer, Call

__all__ = ["JobRoutes"]


class JobRoutes:
    """Parties' routes; submitting and cancelling wake those who wait."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def submit(self, call: Call) -> Answer:
        (await call.signed()).only_party()
        f = Fields(call.json(), "request")
        envelope = Envelope.from_bytes(f.text("job", limit=call.plane.limits.body).encode())
        f.done()
        now = call.plane.now()
        answer = await call.run(lambda: call.plane.jobs.submit(envelope, call.party, now=now))
        self._changes.announce()
        return answer

    async def listing(self, call: Call) -> Answer:
        (await call.signed()).only_party()
        return {"jobs": await call.run(lambda: call.plane.jobs.listing(call.party))}

    async def get(self, call: Call) -> Answer:
        await call.signed()
        return await call.run(lambda: call.plane.jobs.get(call.path("digest"), call.party))

    async def events(self, call: Call) -> Answer:
        """Long poll: answers when there is something above ``after``, when the job ended, or after ``wait`` seconds."""
        await call.signed()
        digest, after = call.path("digest"), _number(call, "after", 0, 2**53 - 1)
        wait = _number(call, "wait", call.plane.limits.poll, call.plane.limits.poll)

        async def look() -> dict[str, object]:
            return await call.run(lambda: call.plane.jobs.events(digest, call.party, after))

        return await self._changes.wait(look, lambda found: bool(found["events"] or found["final"]), wait)

    async def cancel(self, call: Call) -> Answer:
        (await call.signed()).only_party()
        digest, now = call.path("digest"), call.plane.now()
        answer = await call.run(lambda: call.plane.jobs.cancel(digest, call.party, now=now))
        self._changes.announce()
        return answer

    async def release(self, call: Call) -> Answer:
        await call.signed()
        text = await call.run(lambda: call.plane.jobs.release(call.path("digest"), call.party))
        return Response(text, media_type="application/json")

    async def output(self, call: Call) -> Answer:
        (await call.signed()).only_party()
        name = f"{call.path('party')}/{call.path('name')}"
        return await call.run(lambda: call.plane.jobs.output(name, call.party))


def _number(call: Call, name: str, default: int, most: int) -> int:
    text = call.request.query_params.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 16:
        raise Malformed("request.query", f"The query's '{name}' is not a whole number.")
    return min(int(text), most)
