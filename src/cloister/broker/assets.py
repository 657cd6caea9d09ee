"""The party's own sealed assets: who may be the next version, and their data keys under the vault's KEK."""

from __future__ import annotations

from typing import Any

from ..crypto import Envelope, canonical_json, parse_canonical, random_bytes
from ..errors import Denied
from ..fields import Fields
from ..keys import WrappedKey
from ..sealed import MANIFEST_TYPE, Manifest, check_dek
from .ledger import Ledger
from .party import OwnKeys, Parties
from .state import Change, Row, State

__all__ = ["Assets"]


class Assets:
    """Everything about the assets that this broker's party owns. A data key is in memory only while it is used."""

    def __init__(self, keys: OwnKeys, parties: Parties, ledger: Ledger) -> None:
        self._keys = keys
        self._parties = parties
        self._ledger = ledger
        self._state: State = ledger.state

    def newest(self, name: str) -> Row | None:
        return max(self._state.rows("assets", name=name), key=lambda row: row["version"], default=None)

    def next(self, name: str) -> dict[str, Any]:
        """What the next version's manifest must say: asset_id (hex), version, previous (hex or null)."""
        self._check_name(name)
        newest = self.newest(name)
        if newest is None:
            return {"asset_id": random_bytes(16).hex(), "previous": None, "version": 1}
        return {"asset_id": newest["asset_id"], "previous": newest["digest"], "version": newest["version"] + 1}

    def list(self) -> list[dict[str, Any]]:
        return [
            {"class": self._manifest(row).asset_class, **{k: row[k] for k in ("name", "version", "digest", "asset_id")}}
            for row in self._state.rows("assets")
        ]

    def seal(self, payload: bytes, dek: bytes) -> Envelope:
        """Take over a data key and sign its manifest. The same manifest again gives the same envelope.

        Raises Denied for another owner's manifest or one that isn't the next version, Untrusted for another key than
        the manifest commits to.
        """
        manifest = Manifest.from_payload(payload)
        check_dek(manifest, dek)
        envelope = Envelope(MANIFEST_TYPE, payload)
        with self._ledger.turn():
            if self._state.row("assets", digest=envelope.digest.hex()) is None:
                self._check_next(manifest)
                self._take(manifest, envelope, dek)
            return envelope.signed_by(self._parties.signing)

    def manifest(self, digest: bytes) -> Manifest:
        """Of an own asset; Denied("asset.unknown") if this broker has no such asset."""
        return self._manifest(self._known(digest))

    def unwrap_secret_dek(self, digest: bytes) -> bytes:
        """The data key itself. Only step 7 of a release may call this, after the log has the release."""
        row = self._known(digest)
        return self._keys.vault.unwrap(WrappedKey.from_document(parse_canonical(row["wrapped"].encode())), digest)

    def rotate_kek(self) -> int:
        """A new KEK; every data key is wrapped anew, and the old KEKs are destroyed once that is durable."""
        vault = self._keys.vault
        with self._ledger.turn():
            epoch = vault.rotate_kek()
            changes = [self._rewrapped(row) for row in self._state.rows("assets")]
            older = [old for old in vault.epochs() if old != epoch]
            changes.append(Change("facts", {"name": "vault_revision", "value": str(vault.revision)}))
            details: dict[str, str | int] = {"epoch": epoch, "key": "kek", "rewrapped": len(changes) - 1}
            self._ledger.commit("party.key_rotated", target=vault.owner, details=details, changes=changes)
            for old in older:
                vault.destroy_epoch(old)
        return epoch

    def _rewrapped(self, row: Row) -> Change:
        wrapped = WrappedKey.from_document(parse_canonical(row["wrapped"].encode()))
        anew = self._keys.vault.rewrap(wrapped, bytes.fromhex(row["digest"]))
        return Change("assets", {**row, "wrapped": canonical_json(anew.to_document()).decode()})

    def _take(self, manifest: Manifest, envelope: Envelope, dek: bytes) -> None:
        wrapped = self._keys.vault.wrap(dek, envelope.digest)
        digest = envelope.digest.hex()
        row = {
            "digest": digest,
            "name": manifest.name,
            "asset_id": manifest.asset_id.hex(),
            "version": manifest.version,
            "manifest": envelope.payload.decode(),
            "wrapped": canonical_json(wrapped.to_document()).decode(),
        }
        details: dict[str, str | int] = {"name": manifest.name, "version": manifest.version}
        self._ledger.commit("asset.sealed", target=digest, details=details, changes=[Change("assets", row)])

    def _check_name(self, name: str) -> None:
        Fields({"name": name}, "request").asset("name")
        if name.partition("/")[0] != self._parties.card.name:
            raise Denied("asset.owner", "A party seals assets under its own name only.")

    def _check_next(self, manifest: Manifest) -> None:
        self._check_name(manifest.name)
        newest = self.newest(manifest.name)
        if manifest.contract is not None or manifest.asset_class not in ("dataset", "model"):
            raise Denied("asset.class", "An owner seals datasets and models; outputs are sealed by workloads.")
        expected = (1, None) if newest is None else (newest["version"] + 1, bytes.fromhex(newest["digest"]))
        if (manifest.version, manifest.previous) != expected:
            raise Denied("asset.version", "The manifest is not of the next version; ask for it again and reseal.")
        # An id belongs to one line of versions: to the newest's where there is one, to none where there is none.
        holders = {row["name"] for row in self._state.rows("assets", asset_id=manifest.asset_id.hex())}
        if holders != (set() if newest is None else {manifest.name}):
            raise Denied("asset.id", "The manifest carries another asset's id; ask for the next version again.")

    def _known(self, digest: bytes) -> Row:
        row = self._state.row("assets", digest=digest.hex())
        if row is None:
            raise Denied("asset.unknown", "This broker has no key for this asset.")
        return row

    @staticmethod
    def _manifest(row: Row) -> Manifest:
        return Manifest.from_payload(row["manifest"].encode())
