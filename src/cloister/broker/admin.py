"""HTTP for the owner, on the Unix socket ``run/admin.sock``. Who may open the socket acts for the party."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from ..audit import parse_event
from ..crypto import Envelope
from ..errors import Misuse
from ..fields import Fields
from .agreements import Agreements
from .config import Limits
from .core import Core
from .errors_http import admin_error, json_response
from .http import Call, route
from .notices import Notices
from .permits import Permits

__all__ = ["admin_routes", "json_route"]

_LIMIT = 4 * 1024 * 1024


def _text(envelope: Envelope) -> str:
    return envelope.to_bytes().decode()


def _envelope(f: Fields, key: str) -> Envelope:
    return Envelope.from_bytes(f.text(key, limit=_LIMIT).encode())


def admin_routes(
    core: Core,
    agreements: Agreements,
    permits: Permits,
    notices: Notices,
    notes: Callable[[], list[str]],
    limits: Limits,
) -> list[Route]:
    owner = _Owner(core, agreements, permits, notices, notes, limits)
    get, post = partial(json_route, "GET", limits=limits), partial(json_route, "POST", limits=limits)
    return [
        get("/v1/card", owner.card),
        get("/v1/status", owner.status),
        get("/v1/pins", owner.pins),
        post("/v1/pins", owner.pin),
        post("/v1/peers", owner.peers),
        post("/v1/compromised", owner.compromised),
        post("/v1/keys/rotate-signing", owner.rotate_signing),
        get("/v1/assets", owner.assets),
        post("/v1/assets", owner.seal),
        get("/v1/assets/next", owner.next_asset),
        get("/v1/contracts", owner.contracts),
        post("/v1/contracts", owner.store),
        post("/v1/contracts/sign", owner.sign),
        post("/v1/contracts/revoke", owner.revoke),
        post("/v1/jobs/sign", owner.sign_job),
        post("/v1/requests/sign", owner.sign_request),
        post("/v1/outputs/open", owner.open_output),
        get("/v1/audit/head", owner.head),
        get("/v1/audit/entries", owner.entries),
        get("/v1/audit/receipt/{index:int}", owner.receipt),
        get("/v1/audit/proof", owner.proof),
    ]


def json_route(method: str, path: str, answer: Callable[[Call], Any], *, limits: Limits) -> Route:
    """An endpoint for the owner that answers with JSON, and with the whole of an error."""

    def endpoint(call: Call) -> Response:
        return json_response(answer(call))

    return route(method, path, endpoint, admin_error, limits)


class _Owner:
    """One method an endpoint: parse, call, answer."""

    def __init__(
        self,
        core: Core,
        agreements: Agreements,
        permits: Permits,
        notices: Notices,
        notes: Callable[[], list[str]],
        limits: Limits,
    ) -> None:
        self._core = core
        self._agreements = agreements
        self._permits = permits
        self._notices = notices
        self._notes = notes
        self._limits = limits

    # The party and those it knows.

    def card(self, _: Call) -> Any:
        return {"card": _text(self._core.parties.card.envelope)}

    def status(self, _: Call) -> Any:
        card = self._core.parties.card
        return {
            "fingerprint": card.fingerprint,
            "log_size": self._core.ledger.log.size,
            "party": card.name,
            "revision": self._core.ledger.state.progress().revision,
            "warnings": self._notes(),
            "witnessed": self._core.knowledge.witnessed,
        }

    def pins(self, _: Call) -> Any:
        lost = self._core.parties.compromised()
        return {
            name: {"card": _text(card.envelope), "compromised": name in lost, "fingerprint": card.fingerprint}
            for name, card in self._core.parties.pinned().items()
            if name != self._core.parties.card.name
        }

    def pin(self, call: Call) -> Any:
        f = Fields(call.body(), "pin request")
        text, fingerprint = f.text("card", limit=_LIMIT), f.optional_text("fingerprint", limit=64)
        f.done()
        card = self._core.parties.pin(text, fingerprint)
        return {"fingerprint": card.fingerprint, "name": card.name}

    def peers(self, call: Call) -> Any:
        body = call.body()
        f = Fields({"peers": body}, "peers request")
        for name, address in f.mapping("peers", lambda _, value: value, limit=256).items():
            one = Fields({"party": name, "address": address}, "peer")
            self._core.peers.set_address(one.party("party"), one.text("address", limit=256))
        return {"peers": self._core.peers.addresses()}

    def compromised(self, call: Call) -> Any:
        f = Fields(call.body(), "compromise request")
        statement, name = f.optional_text("statement", limit=_LIMIT), f.optional_text("party", limit=63)
        f.done()
        if statement is not None:
            said = Fields(Envelope.from_bytes(statement.encode()).document(), "compromise statement").party("name")
            if name not in (None, said):
                raise Misuse("party.other", "The statement is of another party than the one that is named.")
            name = said
        if name in (None, self._core.parties.card.name):
            return {"statement": _text(self._core.parties.declare_compromised())}
        self._core.parties.distrust(name, statement)
        return {"party": name}

    def rotate_signing(self, _: Call) -> Any:
        return {"card": _text(self._core.parties.rotate_signing().envelope)}

    # Assets.

    def assets(self, _: Call) -> Any:
        return {"assets": self._core.assets.listing()}

    def next_asset(self, call: Call) -> Any:
        return self._core.assets.next(call.query.get("name", ""))

    def seal(self, call: Call) -> Any:
        f = Fields(call.body(), "asset request")
        payload, dek = f.base64("manifest", limit=_LIMIT), f.base64("dek", limit=64)
        f.done()
        return {"manifest": _text(self._core.assets.seal(payload, dek))}

    # Contracts, jobs, requests, outputs.

    def contracts(self, _: Call) -> Any:
        return {"contracts": self._agreements.known()}

    def sign(self, call: Call) -> Any:
        f = Fields(call.body(), "signing request")
        contract = _envelope(f, "contract")
        f.done()
        return {"contract": _text(self._agreements.sign(contract))}

    def store(self, call: Call) -> Any:
        f = Fields(call.body(), "contract request")
        envelope = _envelope(f, "contract")
        f.done()
        return {"contract": self._agreements.store(envelope).digest.hex()}

    def revoke(self, call: Call) -> Any:
        f = Fields(call.body(), "revocation request")
        digest, reason = f.hex("contract", 32), f.text("reason", limit=500)
        f.done()
        contract, revocation = self._agreements.revoke(digest, reason)
        reached, unreached = self._notices.revoked(contract, revocation)
        return {"reached": reached, "revocation": revocation, "unreached": unreached}

    def sign_job(self, call: Call) -> Any:
        f = Fields(call.body(), "job request")
        contract, recipe, output = _envelope(f, "contract"), f.raw("recipe"), f.asset("output")
        f.done()
        return {"job": _text(self._agreements.sign_job(contract, recipe, output))}

    def sign_request(self, call: Call) -> Any:
        f = Fields(call.body(), "request to sign")
        body = f.optional_hex("body_digest", 32)
        method, path, audience = f.text("method", limit=8), f.text("path"), f.text("audience", limit=128)
        f.done()
        digest = None if body is None else body.hex()
        return {"authorization": self._agreements.sign_request(method, path, digest, audience)}

    def open_output(self, call: Call) -> Any:
        f = Fields(call.body(), "output request")
        contract, job, manifest = _envelope(f, "contract"), _envelope(f, "job"), _envelope(f, "manifest")
        wrap = f.base64("wrap")
        permits = [Envelope.from_bytes(text.encode()) for text in f.items("permits", _plain_text, limit=64)]
        f.done()
        dek = self._permits.open_secret_output(contract, job, manifest, wrap, permits)
        return {"dek": base64.b64encode(dek).decode()}

    # The audit log.

    def head(self, _: Call) -> Any:
        log = self._core.ledger.log
        return {"note": log.head(), "origin": log.origin, "size": log.size}

    def entries(self, call: Call) -> Any:
        log = self._core.ledger.log
        start = call.number("start", high=log.size)
        count = call.number("count", high=self._limits.entries_page)
        found = log.entries(start, min(start + count, log.size))
        return {"entries": [_entry(start + i, leaf) for i, leaf in enumerate(found)], "size": log.size}

    def receipt(self, call: Call) -> Any:
        return {"receipt": self._core.ledger.log.receipt(int(call.params["index"])).to_wire()}

    def proof(self, call: Call) -> Any:
        log = self._core.ledger.log
        new = call.number("new", high=log.size)
        proof = log.prove_consistency(call.number("old", high=new), new)
        return {"proof": [digest.hex() for digest in proof]}


def _plain_text(value: Any) -> str:
    if not isinstance(value, str):
        raise Misuse("form.text", "A permit is given as the text of an envelope.")
    return value


def _entry(index: int, leaf: bytes) -> dict[str, Any]:
    facts = parse_event(leaf)
    return {
        "actor": facts.actor,
        "details": dict(facts.details),
        "index": index,
        "kind": facts.kind,
        "leaf": base64.b64encode(leaf).decode(),
        "outcome": facts.outcome,
        "target": facts.target,
        "time": facts.time,
    }
