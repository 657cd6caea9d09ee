"""The contract: who, which assets, for what, where, and what may leave. Its digest names it everywhere.

A contract is in force only when every party's signature verifies against keys that the checker pinned itself
(``check_signatures``). The document carries the parties' keys too, so that all of them agree on one set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from ..crypto import Envelope
from ..errors import Denied, Malformed, Untrusted
from ..fields import Fields, party_name
from .party import Card, PartyKeys, log_origin
from .rules import RecipeRule
from .terms import FORMS, Terms
from .trustees import TrusteeEntry, check_trustees

__all__ = [
    "CONTRACT_TYPE",
    "LEVELS",
    "Asset",
    "Contract",
    "Gate",
    "Output",
    "Platform",
    "check_signatures",
    "contract_document",
    "read_contract",
]

CONTRACT_TYPE = "application/vnd.cloister.contract+json"
LEVELS = ("none", "tpm", "cpu-tee", "gpu-tee")
TENANCIES = ("shared", "exclusive")
MIN_LEASE, MAX_LEASE = 5, 3600
_PCRS = frozenset(str(index) for index in range(16))
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
_DEVICE = re.compile(r"(?:[0-9a-f]{2}){1,128}")
_MAX_KINDS, _MAX_DEVICES = 16, 1000
_NAMELESS = 2  # signatures without a key id that are tried for a party; nothing of ours leaves it out


@dataclass(frozen=True)
class Asset:
    """One sealed object by digest. ``use``: data (rows), base (the model), general (text) or program (for a base)."""

    name: str
    digest: bytes
    owner: str
    use: str
    terms: Terms

    @classmethod
    def read(cls, value: Any) -> Asset:
        f = Fields(value, "contract's asset")
        asset = cls(
            name=f.asset("name"),
            digest=f.hex("digest", 32),
            owner=f.party("owner"),
            use=f.text("use", choices=("data", "base", "general", "program")),
            terms=Terms.read(f.raw("terms")),
        )
        f.done()
        if asset.name.partition("/")[0] != asset.owner:
            raise Malformed("contract.owner", "An asset's name does not begin with its owner.")
        return asset


@dataclass(frozen=True)
class Platform:
    """Where it may run: workload and agent measurements, attesters' ids, boot PCRs, least assurance, regions.

    Optional: ``tenancy``, whether others' work may run on the machine meanwhile (None: nothing is said); ``devices``,
    by platform the ids in hex of the chips, endorsement keys or GPUs that may run it (empty: any); ``stock_guests``,
    whether guests that speak KBS as published, without our launch log and lease, may have the keys.
    """

    measurements: tuple[str, ...]
    agents: tuple[str, ...]
    attesters: tuple[str, ...]
    pcrs: dict[str, str]
    assurance: str
    regions: tuple[str, ...]
    witness_quorum: int
    tenancy: str | None = None
    devices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    stock_guests: bool = False

    @classmethod
    def read(cls, value: Any) -> Platform:
        def pcr(key: str, item: Any) -> str:
            if key not in _PCRS:  # one spelling each: no leading zeros, no digits of other scripts
                raise Malformed("contract.pcr", "A contract pins PCRs 0 to 15 only.")
            return Fields({"v": item}, "contract's PCR").hex("v", 32).hex()

        f = Fields(value, "contract's platform")
        platform = cls(
            measurements=f.hexes("measurements", 32),
            agents=f.hexes("agents", 32),
            attesters=f.hexes("attesters", 32),
            pcrs=f.mapping("pcrs", pcr, limit=16),
            assurance=f.text("assurance", choices=LEVELS),
            regions=f.texts("regions"),
            witness_quorum=f.integer("witness_quorum", high=64),
            # Absent in contracts of before; what is there is never null, so that nothing has two spellings.
            tenancy=f.text("tenancy", choices=TENANCIES) if "tenancy" in value else None,
            devices=f.mapping("devices", _devices, limit=_MAX_KINDS) if "devices" in value else {},
            stock_guests=f.boolean("stock_guests") if "stock_guests" in value else False,
        )
        f.done()
        if "stock_guests" in value and not platform.stock_guests:
            raise Malformed("contract.stock-guests", "A contract that allows no stock guests leaves the word out.")
        if "devices" in value and not platform.devices:
            raise Malformed("contract.devices", "A contract that pins no device leaves 'devices' out.")
        if platform.witness_quorum == 0 and platform.assurance != "none":
            raise Malformed(
                "contract.witnesses", "Above assurance level none a contract names a witness quorum of at least 1."
            )
        return platform


def _devices(kind: str, ids: Any) -> tuple[str, ...]:
    found = Fields({"ids": ids}, "contract's devices").texts("ids", limit=_MAX_DEVICES)
    if not _KIND.fullmatch(kind) or not found or not all(_DEVICE.fullmatch(one) for one in found):
        raise Malformed("contract.devices", "A contract pins devices by platform, each with a list of ids in hex.")
    if len(set(found)) != len(found):
        raise Malformed("contract.devices", "A contract names one device twice.")
    return found


@dataclass(frozen=True)
class Gate:
    """``metric`` of the tuned model must exceed the base's by at least ``margin``."""

    metric: str
    margin: Decimal

    @classmethod
    def read(cls, value: Any) -> Gate:
        f = Fields(value, "contract's gate")
        metric, margin = f.text("metric", limit=64), f.text("better_than_base_by", limit=32)
        f.done()
        try:
            number = Decimal(margin)
        except InvalidOperation:
            raise Malformed("contract.margin", "A gate's margin is not a decimal number in quotes.") from None
        if not number.is_finite():
            raise Malformed("contract.margin", "A gate's margin is not finite.")
        return cls(metric, number)


@dataclass(frozen=True)
class Output:
    """What leaves: its name, its form and the parties that receive it."""

    name: str
    form: str
    recipients: tuple[str, ...]

    @classmethod
    def read(cls, value: Any) -> Output:
        f = Fields(value, "contract's output")
        output = cls(f.asset("name"), f.text("form", choices=FORMS), f.texts("recipients"))
        f.done()
        if not output.recipients:
            raise Malformed("contract.recipients", "An output names no recipient.")
        return output


@dataclass(frozen=True)
class Contract:
    """A parsed contract. ``parties`` maps names to the keys that all signers agreed on."""

    name: str
    serial: int
    parties: dict[str, PartyKeys]
    assets: tuple[Asset, ...]
    purpose: str
    recipes: RecipeRule
    runs: int
    platform: Platform
    telemetry: tuple[str, ...]
    gates: tuple[Gate, ...]
    outputs: tuple[Output, ...]
    unbounded_memorization: tuple[str, ...]
    lease_seconds: int
    not_before: int
    expires: int
    envelope: Envelope
    trustees: dict[str, TrusteeEntry] = field(default_factory=dict)

    @property
    def digest(self) -> bytes:
        return self.envelope.digest

    def asset(self, digest: bytes) -> Asset:
        """The contract's asset of this digest; Denied if there is none."""
        for asset in self.assets:
            if asset.digest == digest:
                return asset
        raise Denied("contract.asset", "The contract does not name this asset.")

    def owners(self) -> tuple[str, ...]:
        """Parties that own an asset, sorted."""
        return tuple(sorted({asset.owner for asset in self.assets}))

    def brokers(self) -> tuple[str, ...]:
        """Owners that run a broker of ours, sorted: each must agree to every run and release. See ``trustees``."""
        return tuple(owner for owner in self.owners() if owner not in self.trustees)

    def speaking(self) -> tuple[str, ...]:
        """Parties whose fresh in-force statement every run needs, sorted: a stock key broker can't give one."""
        return tuple(sorted(set(self.parties) - set(self.trustees)))

    def witnesses(self, owner: str) -> dict[str, bytes]:
        """Whose cosignatures count for ``owner``'s log: the other parties', by log name. Never the operator's."""
        others = (name for name in self.parties if name != owner and name not in self.trustees)
        return {log_origin(name): self.parties[name].receipt for name in others}


def read_contract(envelope: Envelope) -> Contract:
    """Parse strictly; raises Malformed. Says nothing about signatures: see ``check_signatures``."""
    if envelope.payload_type != CONTRACT_TYPE:
        raise Malformed("contract.type", "The file is not a contract.")
    document = envelope.document()
    _check_printable(document)
    f = Fields(document, "contract")
    f.text("type", choices=("contract/v1",))
    contract = Contract(
        name=f.party("name"),
        serial=f.integer("serial", low=1),
        parties=f.mapping("parties", _party, limit=64),
        assets=f.items("assets", Asset.read),
        purpose=f.text("purpose", limit=1000),
        recipes=RecipeRule.read(f.raw("recipes")),
        runs=f.integer("runs", low=1, high=1_000_000),
        platform=Platform.read(f.raw("platform")),
        telemetry=f.texts("telemetry", limit=64),
        gates=f.items("gates", Gate.read, limit=64),
        outputs=f.items("outputs", Output.read, limit=64),
        unbounded_memorization=f.texts("unbounded_memorization", limit=64),
        lease_seconds=f.integer("lease_seconds", low=MIN_LEASE, high=MAX_LEASE),
        not_before=f.integer("not_before"),
        expires=f.integer("expires"),
        envelope=envelope,
        # Absent in contracts of before, and where every owner runs a broker of ours.
        trustees=f.mapping("trustees", TrusteeEntry.read, limit=64) if "trustees" in document else {},
    )
    f.done()
    if "trustees" in document and not contract.trustees:
        raise Malformed("contract.trustee", "A contract without stock key brokers leaves 'trustees' out.")
    _check_whole(contract)
    return contract


def _party(name: str, keys: Any) -> PartyKeys:
    party_name(name)
    return PartyKeys.read(keys)


def _check_printable(value: Any) -> None:
    """Every text of the document is one printable line. People sign what a terminal shows them: a line break, a
    control or a direction character could show them another contract."""
    if isinstance(value, str) and not value.isprintable():
        raise Malformed("contract.text", "A text in the contract is not one line of printable characters.")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_printable(key)
            _check_printable(item)
    if isinstance(value, list):
        for item in value:
            _check_printable(item)


def _check_whole(contract: Contract) -> None:
    """What no single field shows."""
    parties = set(contract.parties)
    named = {a.owner for a in contract.assets} | {r for o in contract.outputs for r in o.recipients}
    if not named <= parties or not parties:
        raise Malformed("contract.parties", "The contract names an owner or recipient that is not one of its parties.")
    if len({a.digest for a in contract.assets}) != len(contract.assets):
        raise Malformed("contract.assets", "The contract names one asset twice.")
    if len({o.name for o in contract.outputs}) != len(contract.outputs):
        raise Malformed("contract.outputs", "The contract names one output twice.")
    if not {o.name.partition("/")[0] for o in contract.outputs} <= parties:
        raise Malformed("contract.outputs", "An output's name does not begin with a party of the contract.")
    if contract.not_before >= contract.expires:
        raise Malformed("contract.expiry", "The contract ends before it begins.")
    allowed = Terms.intersect([a.terms for a in contract.assets]).forms if contract.assets else ()
    if any(o.form not in allowed for o in contract.outputs):
        raise Malformed("contract.form", "An output leaves in a form that an asset's terms do not permit.")
    check_trustees(contract)
    # Weights can encode rows. Without a privacy bound, every data owner says knowingly that it accepts this.
    unbounded = ("data", "general") if contract.recipes.privacy is None else ("general",)
    data_owners = {a.owner for a in contract.assets if a.use in unbounded}
    if not data_owners <= set(contract.unbounded_memorization):
        raise Malformed(
            "contract.memorization",
            "Without differential privacy, every data owner must stand in 'unbounded_memorization': "
            "a trained model can contain rows.",
        )


def check_signatures(contract: Contract, pinned: dict[str, Card]) -> None:
    """Raises unless every party signed, each with the key that the checker itself pinned (never the document's).

    ``contract.unpinned`` (Denied): a party's card is not pinned here. ``contract.keys`` (Untrusted): the document
    carries other keys than the pinned ones. ``contract.unsigned`` (Denied): a signature is missing.

    A key id proves nothing (DSSE: a hint), but tells which signature to try for which key: the first that names it, and
    a few that name none. Whatever else somebody put into the envelope costs nothing.
    """
    envelope = contract.envelope
    named = {one[0]: one for one in reversed(envelope.signatures) if one[0]}
    nameless = [one for one in envelope.signatures if not one[0]][:_NAMELESS]
    for name, keys in contract.parties.items():
        card = pinned.get(name)
        if card is None:
            raise Denied("contract.unpinned", f"The card of {name} is not pinned here; compare and pin it first.")
        if card.keys != keys:
            raise Untrusted("contract.keys", f"The contract carries other keys of {name} than the pinned ones.")
        tried = [named[own]] if (own := keys.signing.hex()) in named else []
        try:
            Envelope(envelope.payload_type, envelope.payload, (*tried, *nameless)).verify(CONTRACT_TYPE, [keys.signing])
        except Untrusted:
            raise Denied("contract.unsigned", f"The contract lacks a valid signature of {name}.", party=name) from None


def contract_document(contract_fields: dict[str, Any], cards: dict[str, Card]) -> dict[str, Any]:
    """A contract's payload from its fields (see ``read_contract``) and the parties' cards."""
    parties = {name: card.keys.document() for name, card in cards.items()}
    return {**contract_fields, "parties": parties, "type": "contract/v1"}
