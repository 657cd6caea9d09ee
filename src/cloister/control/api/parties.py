"""Routes for the directory, contracts and their revocations."""

from __future__ import annotations

from ...contracts import read_card
from ...crypto import Envelope
from ...errors import Denied
from ...fields import Fields
from ..requests import Asked
from .endpoint import Answer, Call, asked_path

__all__ = [
    "add_contract",
    "add_revocation",
    "get_contract",
    "get_directory",
    "get_info",
    "list_contracts",
    "publish_card",
]


async def get_info(call: Call) -> Answer:
    """GET /v1/info: the one route that needs no signature."""
    from ... import __version__

    node = await call.run(call.plane.node_claim)
    return {"id": call.plane.id, "node": node, "version": __version__}


async def get_directory(call: Call) -> Answer:
    await call.signed()
    return {"parties": await call.run(call.plane.directory.listing)}


async def publish_card(call: Call) -> Answer:
    """Signed by the offered card's own key, so that nobody publishes a card that isn't theirs."""
    call.body = await call.read(call.plane.limits.body)
    f = Fields(call.json(), "directory entry")
    card = read_card(_envelope(f.text("card", limit=call.plane.limits.body)))
    address = f.text("address", limit=300)
    f.done()
    asked = Asked(call.request.method, asked_path(call.request), call.body)
    header = call.request.headers.get("authorization")
    key = (card.name, card.keys.signing)
    call.party = (await call.run(lambda: call.plane.authenticate(header, asked, key=key))).party
    if call.party != card.name:
        raise Denied("directory.other", "A party publishes its own card only.")
    await call.run(lambda: call.plane.directory.register(card, address, now=call.plane.now()))
    return {"fingerprint": card.fingerprint, "name": card.name}


async def add_contract(call: Call) -> Answer:
    (await call.signed(limit=call.plane.limits.contract_body)).only_party()
    f = Fields(call.json(), "request")
    envelope = _envelope(f.text("contract", limit=call.plane.limits.contract_body))
    f.done()
    now = call.plane.now()
    held = await call.run(lambda: call.plane.agreements.offer(envelope, call.party, now=now))
    return held.document(now=now)


async def list_contracts(call: Call) -> Answer:
    (await call.signed()).only_party()
    agreements, now = call.plane.agreements, call.plane.now()

    def documents() -> Answer:
        found = [agreements.get(digest, call.party).document(now=now) for digest in agreements.digests(call.party)]
        return {"contracts": [{k: v for k, v in d.items() if k not in ("contract", "revocations")} for d in found]}

    return await call.run(documents)


async def get_contract(call: Call) -> Answer:
    (await call.signed()).only_party()
    held = await call.run(lambda: call.plane.agreements.get(call.path("reference"), call.party))
    return held.document(now=call.plane.now())


async def add_revocation(call: Call) -> Answer:
    (await call.signed()).only_party()
    f = Fields(call.json(), "request")
    envelope = _envelope(f.text("revocation", limit=call.plane.limits.body))
    f.done()
    now, digest = call.plane.now(), call.path("reference")
    await call.run(lambda: call.plane.agreements.revoke(digest, envelope, call.party, now=now))
    return {"stored": True}


def _envelope(text: str) -> Envelope:
    return Envelope.from_bytes(text.encode())
