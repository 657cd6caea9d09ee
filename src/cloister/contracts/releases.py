"""Releases of the workload, and a party's consent to run one under contracts that name an older one.

Every release changes the workload's measurement, and contracts name measurements. So whoever publishes the workload
signs a ``Release`` with a release key that owners pinned, and each party of a contract may sign an ``Approval``.
Loosening takes every party: a measurement that a contract does not name is accepted only with all of their approvals.
None of it replaces the contract: where one party has not approved, everything stays as it was signed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ..crypto import Envelope, Signer, sign_document
from ..errors import Denied, Malformed, Untrusted
from ..fields import Fields
from .contract import Contract

__all__ = [
    "APPROVAL_TYPE",
    "RELEASE_TYPE",
    "Approval",
    "Release",
    "approval_envelope",
    "approved_releases",
    "check_successor",
    "read_approval",
    "read_release",
    "release_envelope",
]

RELEASE_TYPE: Final = "application/vnd.cloister.release+json"
APPROVAL_TYPE: Final = "application/vnd.cloister.approval+json"
_MOST = 64  # measurements, agents or vulnerable measurements of one release
_MOST_FIXES = 256
_LARGEST_APPROVAL: Final = 16 * 1024
"""Bytes of an approval's envelope with its one signature: one that names all that a release may name has 12 KiB."""


@dataclass(frozen=True)
class Release:
    """One release of the workload. ``number`` grows by one; ``previous`` is the digest of the release before.

    ``measurements`` and ``agents``: what this release may be measured as (hex, 32 bytes). ``vulnerable``: measurements
    of older releases that nobody should run any more, for reasons that ``fixes`` gives in words.
    """

    version: str
    number: int
    previous: bytes | None
    measurements: tuple[str, ...]
    agents: tuple[str, ...]
    notes: str
    fixes: tuple[str, ...]
    vulnerable: tuple[str, ...]
    issued: int
    envelope: Envelope

    @property
    def digest(self) -> bytes:
        return self.envelope.digest


def release_envelope(
    *,
    version: str,
    number: int,
    previous: bytes | None,
    measurements: Sequence[str],
    agents: Sequence[str],
    notes: str,
    fixes: Sequence[str],
    vulnerable: Sequence[str],
    key: Signer,
    now: int,
) -> Envelope:
    """Sign a release; raises Malformed for one that no reader would take."""
    body: dict[str, Any] = {
        "agents": sorted(agents),
        "fixes": list(fixes),
        "issued": now,
        "measurements": sorted(measurements),
        "notes": notes,
        "number": number,
        "previous": None if previous is None else previous.hex(),
        "type": "release/v1",
        "version": version,
        "vulnerable": sorted(vulnerable),
    }
    envelope = sign_document(RELEASE_TYPE, body, key)
    read_release(envelope, key.public)
    return envelope


def read_release(envelope: Envelope, key: bytes) -> Release:
    """A release that ``key`` (Ed25519, 32 bytes, pinned by the reader) signed. Raises Untrusted or Malformed."""
    envelope.verify(RELEASE_TYPE, [key])
    f = Fields(envelope.document(), "release")
    f.text("type", choices=("release/v1",))
    release = Release(
        version=_line(f.text("version", limit=64)),
        number=f.integer("number", low=1),
        previous=f.optional_hex("previous", 32),
        measurements=f.hexes("measurements", 32, limit=_MOST),
        agents=f.hexes("agents", 32, limit=_MOST),
        notes=_line(f.text("notes")),
        fixes=tuple(_line(text) for text in f.texts("fixes", limit=_MOST_FIXES)),
        vulnerable=f.hexes("vulnerable", 32, limit=_MOST),
        issued=f.integer("issued"),
        envelope=envelope,
    )
    f.done()
    if not release.measurements or (release.previous is None) != (release.number == 1):
        raise Malformed("release.form", "A release names a measurement, and but for the first one its predecessor.")
    if set(release.vulnerable) & set(release.measurements):
        raise Malformed("release.form", "A release calls its own measurement vulnerable.")
    return release


def check_successor(release: Release, newest: Release | None) -> None:
    """Return if ``release`` is the newest that is known here, or follows it directly. Raises Denied, Untrusted.

    ``release.rollback``: it is older. ``release.gap``: releases between are missing here. ``release.fork``: it has the
    number of another one, or another predecessor.
    """
    if newest is None or release.digest == newest.digest:
        return
    if release.number < newest.number:
        raise Denied("release.rollback", f"Release {newest.version} is known here; {release.version} is older.")
    if release.number > newest.number + 1:
        raise Denied(
            "release.gap", f"Releases between {newest.version} and {release.version} are missing; add them first."
        )
    if release.number == newest.number or release.previous != newest.digest:
        raise Untrusted("release.fork", "The release does not follow the one that is known here; ask who publishes it.")


@dataclass(frozen=True)
class Approval:
    """One party's consent that a release runs under one contract. It carries what it consents to, not just a name."""

    contract: bytes
    party: str
    release: bytes
    version: str
    measurements: tuple[str, ...]
    agents: tuple[str, ...]
    issued: int
    envelope: Envelope

    @property
    def consents_to(self) -> tuple[bytes, tuple[str, ...], tuple[str, ...]]:
        """What must be the same in all parties' approvals."""
        return self.release, self.measurements, self.agents


def approval_envelope(contract: bytes, party: str, release: Release, key: Signer, *, now: int) -> Envelope:
    """Sign with the party's signing key: the one that signs contracts, because this changes what one lets run."""
    body = {
        "agents": sorted(release.agents),
        "contract": contract.hex(),
        "issued": now,
        "measurements": sorted(release.measurements),
        "party": party,
        "release": release.digest.hex(),
        "type": "approval/v1",
        "version": release.version,
    }
    return sign_document(APPROVAL_TYPE, body, key)


def read_approval(envelope: Envelope, contract: Contract) -> Approval:
    """A genuine approval by a party of ``contract``; raises Untrusted or Malformed otherwise.

    Its envelope holds the payload and that party's signature, nothing else: no signature covers the key ids, or what
    else somebody added, so none of that is kept or passed on.
    """
    if len(envelope.payload) > _LARGEST_APPROVAL:
        raise Malformed("approval.size", f"An approval has at most {_LARGEST_APPROVAL} bytes.")
    f = Fields(envelope.document(), "approval")
    f.text("type", choices=("approval/v1",))
    approval = Approval(
        contract=f.hex("contract", 32),
        party=f.party("party"),
        release=f.hex("release", 32),
        version=_line(f.text("version", limit=64)),
        measurements=f.hexes("measurements", 32, limit=_MOST),
        agents=f.hexes("agents", 32, limit=_MOST),
        issued=f.integer("issued"),
        envelope=envelope,
    )
    f.done()
    keys = contract.parties.get(approval.party)
    if keys is None or approval.contract != contract.digest:
        raise Untrusted("approval.other", "An approval speaks of another contract or party.")
    clean = _with_one_signature(envelope, keys.signing)
    if len(clean.to_bytes()) > _LARGEST_APPROVAL:
        raise Malformed("approval.size", f"An approval has at most {_LARGEST_APPROVAL} bytes.")
    return replace(approval, envelope=clean)


def _with_one_signature(envelope: Envelope, key: bytes) -> Envelope:
    """Payload and the signature by ``key`` that holds. Raises Untrusted where none does."""
    if envelope.payload_type != APPROVAL_TYPE:
        raise Untrusted("dsse.type", "The document is not an approval.")
    for _, signature in envelope.signatures:
        one = Envelope(envelope.payload_type, envelope.payload, ((key.hex(), signature),))
        try:
            one.verify(APPROVAL_TYPE, [key])
        except Untrusted:
            continue  # somebody else's signature, or none at all
        return one
    raise Untrusted("dsse.unsigned", "An approval carries no valid signature of the party that it names.")


def approved_releases(contract: Contract, envelopes: Iterable[Envelope]) -> list[Approval]:
    """One approval for each release that **every** party of the contract approved, with the same measurements.

    Signatures are checked against the keys in the contract, which ``check_signatures`` compared with the pins. Raises
    as ``read_approval``: whoever stores approvals stores genuine ones only.
    """
    by_release: dict[object, dict[str, Approval]] = {}
    for envelope in envelopes:
        approval = read_approval(envelope, contract)
        by_release.setdefault(approval.consents_to, {})[approval.party] = approval
    parties = set(contract.parties)
    return [found[min(found)] for found in by_release.values() if set(found) == parties]


def _line(text: str) -> str:
    """People approve what a terminal shows them."""
    if not text.isprintable():
        raise Malformed("release.text", "A text of the release is not one line of printable characters.")
    return text
