"""HTTP for what KBS has no word for: ``/cloister/v1``. Leases, checkpoints, permits, statements, revocations, heads."""

from __future__ import annotations

from functools import partial

from starlette.responses import Response
from starlette.routing import Route

from ..crypto import Envelope
from ..errors import CloisterError, Denied, Untrusted
from ..fields import Fields, party_name
from .agreements import Agreements
from .config import Limits
from .errors_http import json_response, public_error
from .http import Call, route
from .kbs import COOKIE
from .leases import Leases
from .permits import Permits
from .sessions import Channel
from .witness import Heads

__all__ = ["cloister_routes"]


def _envelope(f: Fields, key: str, limits: Limits) -> Envelope:
    return Envelope.from_bytes(f.text(key, limit=limits.body).encode())


def _check_sender(heads: Heads, party: str, channel: Channel) -> None:
    """Whom this party has pinned is nobody else's business: a stranger hears the same of every name."""
    try:
        heads.check_sender(party, channel)
    except CloisterError:
        raise Untrusted("channel.peer", "Heads are exchanged with the broker of a pinned party only.") from None


def cloister_routes(
    leases: Leases, permits: Permits, agreements: Agreements, heads: Heads, limits: Limits
) -> list[Route]:
    return [*_run_routes(leases, permits, limits), *_peer_routes(agreements, heads, limits)]


def _run_routes(leases: Leases, permits: Permits, limits: Limits) -> list[Route]:
    """For an attested workload: by its session, or by the signing key that it attested."""

    def lease(call: Call) -> Response:
        return Response(leases.renew(call.cookie), 200, {"cache-control": "no-store"}, "application/json")

    def checkpoint(call: Call) -> Response:
        f = Fields(call.body(), "checkpoint request")
        record = _envelope(f, "record", limits)
        f.done()
        return json_response({"receipt": leases.checkpoint(record).to_wire()})

    def permit(call: Call) -> Response:
        f = Fields(call.body(), "permit request")
        manifest = _envelope(f, "manifest", limits)
        f.done()
        envelope, receipt = permits.permit(manifest)
        return json_response({"permit": envelope.to_bytes().decode(), "receipt": receipt.to_wire()})

    known, stranger = partial(public_error, attested=True), partial(public_error, attested=False)
    return [
        route("POST", "/cloister/v1/lease", lease, known, limits, COOKIE),
        route("POST", "/cloister/v1/checkpoint", checkpoint, stranger, limits),
        route("POST", "/cloister/v1/permit", permit, stranger, limits),
    ]


def _peer_routes(agreements: Agreements, heads: Heads, limits: Limits) -> list[Route]:
    """For anybody: what is signed speaks for itself, and a status names a digest that only parties know.
    Heads are for the party alone whose log they are of."""
    stranger = partial(public_error, attested=False)

    def status(call: Call) -> Response:
        f = Fields(call.params, "path")
        answer = agreements.status(f.hex("contract", 32))
        if answer.statement is not None:
            return json_response({"statement": answer.statement.to_bytes().decode()})
        refusal = answer.refusal or Denied("status.none", "This broker makes no statement about the contract.")
        more = {} if answer.revocation is None else {"revocation": answer.revocation}
        return public_error(refusal, attested=False, **more)

    def revocation(call: Call) -> Response:
        f = Fields(call.body(), "revocation request")
        contract, envelope = _envelope(f, "contract", limits), _envelope(f, "revocation", limits)
        f.done()
        agreements.accept_revocation(contract, envelope)
        return json_response({"stored": True})

    def show_head(call: Call) -> Response:
        f = Fields(call.body(), "head")
        proof = [bytes.fromhex(digest) for digest in f.hexes("proof", 32, limit=64)]
        party, note = f.party("party"), f.text("note", limit=limits.body)
        f.done()
        _check_sender(heads, party, call.channel)
        return json_response({"cosigned": heads.accept(party, note, proof)})

    def head(call: Call) -> Response:
        party = party_name(call.params["party"])
        _check_sender(heads, party, call.channel)
        return json_response({"note": heads.known(party)})

    return [
        route("GET", "/cloister/v1/status/{contract}", status, stranger, limits),
        route("POST", "/cloister/v1/revocations", revocation, stranger, limits),
        route("POST", "/cloister/v1/heads", show_head, stranger, limits),
        route("GET", "/cloister/v1/heads/{party}", head, stranger, limits),
    ]
