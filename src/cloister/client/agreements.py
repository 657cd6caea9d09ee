"""Contracts from the parties' side: propose, look at, sign, revoke."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contracts import CONTRACT_TYPE, Card, Contract, Terms, contract_document, read_contract
from ..crypto import Envelope, canonical_json
from ..errors import CloisterError, Misuse, Untrusted
from ..sealed import Manifest, verify_manifest
from .control import ControlClient
from .describe import describe
from .proposal import read_draft
from .supervisor import Home

__all__ = [
    "Agreement",
    "find_contract",
    "list_contracts",
    "new_contract",
    "revoke_contract",
    "show_contract",
    "sign_contract",
]

_USES = {"dataset": "data", "model": "base"}
_PREFIX = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True)
class Agreement:
    """A contract as the control plane has it now. ``stored_with``: local parties whose brokers got the signed whole."""

    contract: Contract
    state: str
    reason: str | None
    signed: tuple[str, ...]
    missing: tuple[str, ...]
    stored_with: tuple[str, ...] = ()

    @property
    def summary(self) -> list[tuple[str, str]]:
        return describe(self.contract)

    def document(self) -> dict[str, Any]:
        return {
            "digest": self.contract.digest.hex(),
            "missing": list(self.missing),
            "name": self.contract.name,
            "reason": self.reason,
            "serial": self.contract.serial,
            "signed": list(self.signed),
            "state": self.state,
            "stored_with": list(self.stored_with),
            "summary": [{"what": what, "value": value} for what, value in self.summary],
        }


def _agreement(answer: dict[str, Any], stored_with: tuple[str, ...] = ()) -> Agreement:
    contract = read_contract(Envelope.from_bytes(str(answer["contract"]).encode()))
    if contract.digest.hex() != answer["digest"]:
        raise Untrusted("contract.answer", "The control plane answered with another contract than it says.")
    parts = tuple(answer["signed"]), tuple(answer["missing"])
    return Agreement(contract, str(answer["state"]), answer["reason"], *parts, stored_with)


def find_contract(client: ControlClient, reference: str) -> Agreement:
    """By name (the highest serial), digest or a digest's unique beginning. Raises Misuse."""
    try:
        return _agreement(client.contract(reference))
    except Misuse as error:
        if error.code != "contract.unknown" or not _PREFIX.fullmatch(reference):
            raise
    found = [c["digest"] for c in client.contracts() if c["digest"].startswith(reference)]
    if len(found) != 1:
        what = "No contract's" if not found else "More than one contract's"
        raise Misuse("contract.unknown", f"{what} digest begins so; 'cloister contract list' shows them.")
    return _agreement(client.contract(found[0]))


def new_contract(home: Home, text: str | bytes, *, folder: Path, party: str | None = None) -> Agreement:
    """Turn ``contract.yaml`` into a proposal that every party can look at and sign.

    ``folder`` is where manifest files that it names are looked for. Raises Misuse for what is missing or misspelt.
    """
    now = int(time.time())
    draft = read_draft(text, now=now)
    here = home.parties()
    proposer = home.choose(party or next((p for p in draft.parties if p in here), None))
    client, agent = home.control(proposer), home.agent(proposer)
    pinned = agent.pinned_cards()
    for name in draft.parties:
        if name not in pinned:
            raise Misuse(
                "contract.unpinned", f"{proposer} has not pinned the card of {name}; use 'cloister org trust'."
            )
    cards = {name: pinned[name] for name in draft.parties}
    assets = [_asset(home, client, cards, entry, folder) for entry in draft.assets]
    platform = draft.platform_document(client.info()["node"])
    serial = 1 + max((int(c["serial"]) for c in client.contracts() if c["name"] == draft.name), default=0)
    fields = {**draft.fields, "assets": assets, "platform": platform, "serial": serial}
    envelope = Envelope(CONTRACT_TYPE, canonical_json(contract_document(fields, cards)))
    read_contract(envelope)  # what no reader takes is not proposed
    return _agreement(client.offer(envelope))


def _asset(home: Home, client: ControlClient, cards: dict[str, Card], entry: str, folder: Path) -> dict[str, Any]:
    """The contract's entry of an asset: the newest version of a name, or the manifest file that its owner sent."""
    manifest, envelope = (
        _from_file(cards, folder / entry) if entry.endswith(".json") else _newest(home, client, cards, entry)
    )
    use = _USES.get(manifest.asset_class)
    if use is None:
        raise Misuse("contract.asset", f"{manifest.name} is neither a dataset nor a model.")
    terms = Terms.read(manifest.terms.get("terms"))
    return {
        "digest": envelope.digest.hex(),
        "name": manifest.name,
        "owner": manifest.owner,
        "terms": terms.document(),
        "use": use,
    }


def _newest(home: Home, client: ControlClient, cards: dict[str, Card], name: str) -> tuple[Manifest, Envelope]:
    owner = name.partition("/")[0]
    if owner not in cards:
        raise Misuse("contract.asset", f"The asset {name} belongs to none of the contract's parties.")
    agents = home.running_agents()
    if owner in agents:
        client = home.control(owner)
        known = [a for a in agents[owner].assets() if a["name"] == name]
    else:
        known = client.assets(name)
    if not known:
        away = "" if owner in agents else " that you may see; ask its owner for the manifest file and name that"
        raise Misuse("contract.asset", f"There is no asset {name}{away or '; seal it first'}.")
    digest = str(max(known, key=lambda a: int(a["version"]))["digest"])
    envelope = client.manifest(digest)
    return _verified(envelope, cards[owner], bytes.fromhex(digest)), envelope


def _from_file(cards: dict[str, Card], path: Path) -> tuple[Manifest, Envelope]:
    try:
        envelope = Envelope.from_bytes(path.read_bytes())
    except OSError:
        raise Misuse("contract.manifest", f"The manifest file {path.name} can't be read.") from None
    owner = Manifest.from_payload(envelope.payload).owner
    if owner not in cards:
        raise Misuse("contract.asset", f"The manifest {path.name} belongs to none of the contract's parties.")
    return _verified(envelope, cards[owner], envelope.digest), envelope


def _verified(envelope: Envelope, card: Card, digest: bytes) -> Manifest:
    return verify_manifest(envelope, expected_digest=digest, signer_keys=[card.keys.signing], owner=card.name)


def show_contract(home: Home, reference: str, party: str | None = None) -> Agreement:
    return find_contract(home.control(home.choose(party)), reference)


def list_contracts(home: Home, party: str | None = None) -> list[dict[str, Any]]:
    return home.control(home.choose(party)).contracts()


def sign_contract(home: Home, agreement: Agreement, party: str) -> Agreement:
    """Have the party's broker sign exactly the contract that was shown, and share the signature.

    Once it is whole, it is stored with every party's broker that lives here. Signing twice changes nothing.
    """
    contract = agreement.contract
    if party not in contract.parties:
        raise Misuse("contract.party", f"{party} is no party to this contract.")
    signed = home.agent(party).sign_contract(contract.envelope)
    if signed.payload != contract.envelope.payload:
        raise Untrusted("contract.signed", "The broker signed another document than the one that was shown.")
    answer = home.control(party).offer(signed)
    result = _agreement(answer)
    return _agreement(answer, _store_everywhere(home, result.contract)) if not result.missing else result


def _store_everywhere(home: Home, contract: Contract) -> tuple[str, ...]:
    stored = []
    for name, agent in home.running_agents().items():
        if name in contract.parties:
            agent.store_contract(contract.envelope)
            stored.append(name)
    return tuple(stored)


def revoke_contract(home: Home, agreement: Agreement, party: str, reason: str) -> dict[str, Any]:
    """End a contract, alone and at once. The party's own broker is what counts; telling the others is best effort."""
    digest = agreement.contract.digest
    revocation, reached = home.agent(party).revoke(digest, reason)
    result = {"contract": digest.hex(), "name": agreement.contract.name, "party": party, **reached}
    try:
        home.control(party).report_revocation(digest.hex(), revocation)
    except CloisterError as error:
        return {**result, "control": error.message}
    return {**result, "control": "told"}
