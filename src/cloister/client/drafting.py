"""From ``contract.yaml`` to a proposal: pinned cards, verified manifests, the platform, the next serial."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..contracts import CONTRACT_TYPE, Card, Terms, contract_document, read_contract
from ..crypto import Envelope, canonical_json
from ..errors import Misuse, Untrusted
from ..sealed import Manifest, verify_manifest
from .agreements import Agreement, read_agreement
from .control import ControlClient
from .drafts import drafts, record_draft
from .known import known_contracts
from .proposal import read_draft
from .supervisor import Home

__all__ = ["new_contract"]

_USES = {"dataset": "data", "model": "base", "program": "program"}
_GENERAL = {"dataset": "general"}


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
    assets = [_asset(home, client, cards, entry, folder, _USES) for entry in draft.assets]
    assets += [_asset(home, client, cards, entry, folder, _GENERAL) for entry in draft.general]
    platform = draft.platform_document(client.info()["node"])
    serial = _next_serial(home, client, proposer, draft.name)
    fields = {**draft.fields, "assets": assets, "platform": platform, "serial": serial}
    envelope = Envelope(CONTRACT_TYPE, canonical_json(contract_document(fields, cards)))
    contract = read_contract(envelope)  # what no reader takes is not proposed
    made = read_agreement(client.offer(envelope), contract.digest.hex())
    record_draft(home.path, contract)
    return made


def _next_serial(home: Home, client: ControlClient, proposer: str, name: str) -> int:
    """After every serial of the name that anybody here has heard of."""
    serials = [int(c["serial"]) for c in client.contracts() if c["name"] == name]
    serials += [k.serial for k in known_contracts(home.agent(proposer)) if k.name == name]
    serials += [d.serial for d in drafts(home.path) if d.name == name]
    return 1 + max(serials, default=0)


def _asset(
    home: Home, client: ControlClient, cards: dict[str, Card], entry: str, folder: Path, uses: Mapping[str, str]
) -> dict[str, Any]:
    """The contract's entry of an asset: the newest version of a name, or the manifest file that its owner sent.
    ``uses``: what it is used for, by its class."""
    manifest, envelope = (
        _from_file(cards, folder / entry) if entry.endswith(".json") else _newest(home, client, cards, entry)
    )
    use = uses.get(manifest.asset_class)
    if use is None:
        raise Misuse("contract.asset", f"{manifest.name} is no dataset{' or model' if len(uses) > 1 else ''}.")
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
    manifest = _verified(envelope, cards[owner], bytes.fromhex(digest))
    if manifest.name != name:
        raise Untrusted("contract.answer", "The control plane answered with another asset than was asked for.")
    return manifest, envelope


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
