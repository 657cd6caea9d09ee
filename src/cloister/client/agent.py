"""A party's own broker, over its owner-only Unix socket. Whoever may open the socket acts for the party."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx

from ..contracts import Card, Recipe, read_card
from ..crypto import Envelope, canonical_json
from ..errors import Malformed
from ..fields import Fields
from .wire import Wire

__all__ = ["OwnerAgent"]


class OwnerAgent:
    """The broker's admin interface. Raises the broker's own errors, Unavailable when it does not run."""

    def __init__(self, socket: Path, *, name: str | None = None) -> None:
        transport = httpx.HTTPTransport(uds=str(socket), verify=False)  # a Unix socket has no TLS
        client = httpx.Client(transport=transport, base_url="http://broker", trust_env=False)
        mend = f"start it with 'cloister org unlock {name}'" if name else "start it first"
        self._wire = Wire(client, name=f"The broker of {name}" if name else "The broker", code="broker", mend=mend)
        self._card: Card | None = None

    def close(self) -> None:
        self._wire.close()

    def _get(self, path: str) -> Any:
        return self._wire.json("GET", path)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        return self._wire.json("POST", path, content=canonical_json(body), headers=headers)

    def _document(self, path: str, body: dict[str, Any], field: str) -> str:
        return Fields(self._post(path, body), "broker's answer").text(field, limit=1 << 24)

    # --- the party and those it knows ------------------------------------------------------------------------------

    @property
    def card(self) -> Card:
        if self._card is None:
            self._card = _read_card(Fields(self._get("/v1/card"), "broker's answer").text("card", limit=1 << 20))
        return self._card

    @property
    def party(self) -> str:
        return self.card.name

    def status(self) -> dict[str, Any]:
        return dict(self._get("/v1/status"))

    def pins(self) -> dict[str, tuple[Card, bool]]:
        """Name → (pinned card, whether it is declared compromised)."""
        return {n: (_read_card(p["card"]), bool(p["compromised"])) for n, p in dict(self._get("/v1/pins")).items()}

    def pinned_cards(self) -> dict[str, Card]:
        """The cards that this party trusts, its own among them; none that is declared compromised."""
        return {n: card for n, (card, bad) in self.pins().items() if not bad} | {self.party: self.card}

    def pin(self, card: Card, fingerprint: str | None) -> None:
        self._post("/v1/pins", {"card": card.envelope.to_bytes().decode(), "fingerprint": fingerprint})

    def set_peers(self, addresses: dict[str, str]) -> None:
        self._post("/v1/peers", dict(addresses))

    def rotate_signing(self) -> Card:
        self._post("/v1/keys/rotate-signing", {})
        self._card = None
        return self.card

    def compromised(self, party: str | None, statement: str | None) -> dict[str, Any]:
        return dict(self._post("/v1/compromised", {"party": party, "statement": statement}))

    # --- assets ----------------------------------------------------------------------------------------------------

    def next_version(self, name: str) -> tuple[bytes, int, bytes | None]:
        """(asset id, version, digest of the version before) for the next sealing of ``name``."""
        f = Fields(self._get(f"/v1/assets/next?name={name}"), "broker's answer")
        return f.hex("asset_id", 16), f.integer("version", low=1), f.optional_hex("previous", 32)

    def assets(self) -> list[dict[str, Any]]:
        answer = self._get("/v1/assets")
        return list(answer["assets"] if isinstance(answer, dict) else answer)

    def register_secret_dek(self, payload: bytes, dek: bytes | bytearray) -> Envelope:
        """Hand a new asset's data key to the vault; the broker signs the manifest only after its log has it."""
        body = {"dek": base64.b64encode(dek).decode(), "manifest": base64.b64encode(payload).decode()}
        return _envelope(self._document("/v1/assets", body, "manifest"))

    # --- keys ------------------------------------------------------------------------------------------------------

    def keys(self) -> dict[str, Any]:
        return dict(self._get("/v1/keys"))

    def key_usage(self) -> dict[str, Any]:
        return dict(self._get("/v1/keys/usage"))

    def rotation(self) -> dict[str, Any]:
        """How far a rotation of the KEK is, and when the next one is due."""
        return dict(self._get("/v1/keys/rotation"))

    def rotate(self) -> dict[str, Any]:
        """Begin a rotation, or join the one that is under way (``begun`` is false then)."""
        return dict(self._post("/v1/keys/rotate", {}))

    def schedule_rotation(self, every: int | None) -> dict[str, Any]:
        return dict(self._post("/v1/keys/schedule", {"every": every}))

    def shred(self, name: str, versions: list[int] | None, reason: str) -> dict[str, Any]:
        return dict(self._post("/v1/keys/shred", {"name": name, "reason": reason, "versions": versions}))

    def retain(self, name: str, version: int | None, until: int) -> list[dict[str, Any]]:
        body = {"name": name, "until": until, "version": version}
        return list(dict(self._post("/v1/keys/retain", body))["changed"])

    def hold(self, name: str, reason: str, *, lift: bool = False) -> dict[str, Any]:
        return dict(self._post("/v1/keys/unhold" if lift else "/v1/keys/hold", {"name": name, "reason": reason}))

    def open_reencryption_secrets(self, name: str, *, version: int | None, shred_old: bool) -> dict[str, Any]:
        """The keys of the newest version (or of ``version``) and of the one to come; the broker logs it first."""
        return dict(self._post("/v1/keys/reencrypt", {"name": name, "shred_old": shred_old, "version": version}))

    def reencryptions(self) -> list[dict[str, Any]]:
        return list(dict(self._get("/v1/keys/tasks"))["tasks"])

    def cancel_reencryption(self, name: str) -> dict[str, Any]:
        return dict(self._post("/v1/keys/reencrypt/cancel", {"name": name}))

    def signed_manifest(self, digest: bytes) -> Envelope:
        """Of an own asset, again. Raises Denied("asset.unknown")."""
        return _envelope(self._document("/v1/keys/manifest", {"digest": digest.hex()}, "manifest"))

    def open_secret_trustee_keys(self, contract: bytes) -> list[Any]:
        """What this party stores at its stock key broker under a contract. Logged first."""
        return list(dict(self._post("/v1/keys/trustee", {"contract": contract.hex()}))["keys"])

    def shred_checkpoints(self, reason: str) -> dict[str, Any]:
        return dict(self._post("/v1/keys/checkpoints/shred", {"reason": reason}))

    def rekey(self, credential: str | None) -> dict[str, Any]:
        """A new master key for the vault. ``credential``: the passphrase of one in a file; it is kept nowhere."""
        return dict(self._post("/v1/keys/rekey", {"credential": credential}))

    def orphans(self) -> dict[str, Any]:
        """What the device holds of this vault and its file does not name."""
        return dict(self._get("/v1/keys/orphans"))

    def sweep(self, which: str) -> dict[str, Any]:
        """Destroy exactly these; ``which`` comes from ``orphans``."""
        return dict(self._post("/v1/keys/sweep", {"which": which}))

    def split_secret_root(self, threshold: int, shares: int) -> list[str]:
        """Recovery shares of the vault's root. They are for people, one for each."""
        answer = dict(self._post("/v1/keys/recovery/split", {"shares": shares, "threshold": threshold}))
        return [str(share) for share in answer["shares"]]

    # --- privacy budgets -------------------------------------------------------------------------------------------

    def budget(self, name: str) -> dict[str, Any]:
        """A dataset's budget, what is left of it, and the runs that used the data."""
        return dict(self._get(f"/v1/budgets?name={name}"))

    def set_budget(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return dict(self._post("/v1/budgets", wanted))

    # --- contracts and jobs ----------------------------------------------------------------------------------------

    def sign_contract(self, contract: Envelope) -> Envelope:
        return _envelope(self._document("/v1/contracts/sign", {"contract": _text(contract)}, "contract"))

    def contracts(self) -> list[Any]:
        """Every contract that the broker knows; ``known`` reads them."""
        return list(dict(self._get("/v1/contracts"))["contracts"])

    def store_contract(self, contract: Envelope) -> None:
        self._post("/v1/contracts", {"contract": _text(contract)})

    def revoke(self, contract: bytes, reason: str) -> tuple[Envelope, dict[str, Any]]:
        """(the signed revocation, what the broker says of whom it reached)."""
        answer = dict(self._post("/v1/contracts/revoke", {"contract": contract.hex(), "reason": reason}))
        text = answer.pop("revocation", None)
        if not isinstance(text, str):
            raise Malformed("broker.answer", "The broker's answer lacks the revocation; update the client.")
        return _envelope(text), answer

    # --- policy and measurements -----------------------------------------------------------------------------------

    def policy(self) -> dict[str, Any]:
        """The party's appraisal policy and its digest."""
        return dict(self._get("/v1/policy"))

    def set_policy(self, policy: str) -> dict[str, Any]:
        return dict(self._post("/v1/policy", {"policy": policy}))

    def measurements(self) -> dict[str, Any]:
        """The release key and the newest release, approvals by contract, and what is revoked."""
        return dict(self._get("/v1/measurements"))

    def trust_release_key(self, key: str) -> dict[str, Any]:
        return dict(self._post("/v1/measurements/trust", {"key": key}))

    def approve_release(self, release: str, contracts: list[str]) -> dict[str, Any]:
        """All of these contracts or none; the answer says which other parties could be told."""
        return dict(self._post("/v1/measurements/approve", {"contracts": contracts, "release": release}))

    def revoke_measurement(self, measurement: str, reason: str) -> dict[str, Any]:
        return dict(self._post("/v1/measurements/revoke", {"measurement": measurement, "reason": reason}))

    # --- jobs ------------------------------------------------------------------------------------------------------

    def sign_job(self, contract: Envelope, recipe: Recipe, output: str) -> Envelope:
        body = {"contract": _text(contract), "output": output, "recipe": recipe.to_document()}
        return _envelope(self._document("/v1/jobs/sign", body, "job"))

    def authorize(self, method: str, path: str, body: str | None, audience: str) -> str:
        """An ``Authorization`` value for one request to a control plane."""
        request = {"audience": audience, "body_digest": body, "method": method, "path": path}
        return self._document("/v1/requests/sign", request, "authorization")

    def open_secret_output(self, record: dict[str, Any]) -> bytes:
        """The data key of an output that this party receives; the broker checks every owner's permit and logs first."""
        f = Fields(self._post("/v1/outputs/open", record), "broker's answer")
        return f.base64("dek", limit=64)

    # --- the TPMs of nodes -----------------------------------------------------------------------------------------

    def attesters(self) -> list[dict[str, Any]]:
        return list(self._get("/v1/attesters")["attesters"])

    def enrol_attester(self, request: dict[str, Any]) -> dict[str, Any]:
        return dict(self._post("/v1/attesters/enrol", {"request": request}))

    def admit_attester(self, handle: str, proof: str) -> dict[str, Any]:
        return dict(self._post("/v1/attesters/admit", {"id": handle, "proof": proof}))

    def remove_attester(self, ak_name: str) -> dict[str, Any]:
        return dict(self._post("/v1/attesters/remove", {"ak_name": ak_name}))

    # --- the audit log ---------------------------------------------------------------------------------------------

    def audit_head(self) -> dict[str, Any]:
        return dict(self._get("/v1/audit/head"))

    def audit_entries(self, start: int, count: int) -> Any:
        return self._get(f"/v1/audit/entries?start={start}&count={count}")

    def audit_receipt(self, index: int) -> Any:
        return self._get(f"/v1/audit/receipt/{index}")

    def audit_proof(self, old: int, new: int) -> Any:
        return self._get(f"/v1/audit/proof?old={old}&new={new}")


def _text(envelope: Envelope) -> str:
    return envelope.to_bytes().decode()


def _envelope(text: str) -> Envelope:
    return Envelope.from_bytes(text.encode())


def _read_card(text: str) -> Card:
    return read_card(_envelope(text))
