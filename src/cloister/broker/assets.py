"""The party's own sealed assets: who may be the next version, and their data keys under the vault's KEK."""

from __future__ import annotations

from typing import Any

from ..contracts import Terms
from ..crypto import Envelope, random_bytes
from ..errors import CloisterError, Denied
from ..fields import Fields
from ..sealed import MANIFEST_TYPE, Manifest, check_dek, dek_commitment
from .ledger import Ledger
from .party import OwnKeys, Parties
from .state import Change, Row, State
from .wrapped import is_gone, unwrap_secret, wrapped_columns

__all__ = ["FOREVER", "Assets"]

FOREVER = 2**53 - 1


class Assets:
    """Everything about the assets that this broker's party owns. A data key is in memory only while it is used."""

    def __init__(self, keys: OwnKeys, parties: Parties, ledger: Ledger) -> None:
        self._keys = keys
        self._parties = parties
        self._ledger = ledger
        self._state: State = ledger.state

    def versions(self, name: str) -> list[Row]:
        """Oldest first; also those that were shredded, so that an older one never becomes the newest again."""
        return sorted(self._state.rows("assets", name=name), key=lambda row: int(row["version"]))

    def newest(self, name: str) -> Row | None:
        return next(reversed(self.versions(name)), None)

    def next(self, name: str) -> dict[str, Any]:
        """What the next version's manifest must say: asset_id (hex), version, previous (hex or null)."""
        self._check_name(name)
        newest = self.newest(name)
        if newest is None:
            return {"asset_id": random_bytes(16).hex(), "previous": None, "version": 1}
        return {"asset_id": newest["asset_id"], "previous": newest["digest"], "version": newest["version"] + 1}

    def listing(self) -> list[dict[str, Any]]:
        held = {row["name"]: row["reason"] for row in self._state.rows("holds") if row["reason"] is not None}
        shown = ("name", "version", "digest", "asset_id", "class", "epoch", "keep_until", "shredded", "reason")
        return [
            {**{key: row[key] for key in shown}, "held": held.get(row["name"])} for row in self._state.rows("assets")
        ]

    def seal(self, payload: bytes, dek: bytes) -> Envelope:
        """Take over a data key and sign its manifest. The same manifest again gives the same envelope.

        Raises Denied for another owner's manifest, one that isn't the next version, one that was shredded, the key of a
        re-encryption that ended or of another version, Untrusted for another key than the manifest commits to.
        """
        manifest = Manifest.from_payload(payload)
        check_dek(manifest, dek)
        envelope = Envelope(MANIFEST_TYPE, payload)
        with self._ledger.turn():
            row = self._state.row("assets", digest=envelope.digest.hex())
            if row is None:
                self._check_next(manifest)
                self._check_task(dek)
                self._check_fresh(dek)
                self._take(manifest, envelope, dek)
            else:
                _check_unshredded(row)  # a key that was destroyed does not come back by being handed over again
            return envelope.signed_by(self._parties.signing)

    def signed(self, digest: bytes) -> Envelope:
        """The signed manifest of an own asset again, for a client that lost it; Denied("asset.unknown")."""
        payload = self.known(digest)["manifest"].encode()
        return Envelope(MANIFEST_TYPE, payload).signed_by(self._parties.signing)

    def manifest(self, digest: bytes) -> Manifest:
        """Of an own asset whose key exists; Denied("asset.unknown") or ("asset.shredded")."""
        row = self.known(digest)
        _check_unshredded(row)
        return self._manifest(row)

    def unwrap_secret_dek(self, digest: bytes) -> bytes:
        """The data key itself. Only what the log has may lead here: step 7 of a release, or ``asset.opened``."""
        row = self.known(digest)
        while True:
            _check_unshredded(row)
            try:
                return unwrap_secret(self._keys.vault, "assets", row)
            except Denied as refusal:
                # A rotation may have wrapped it anew, and destroyed the old KEK, since the row was read.
                newer = self.known(digest)
                if not is_gone(refusal) or newer["wrapped"] == row["wrapped"]:
                    raise
                row = newer

    def shredded_because(self, *digests: bytes) -> str:
        """The owner's reasons, for the owner's log."""
        rows = [self._state.row("assets", digest=digest.hex()) for digest in digests]
        return "; ".join(str(row["reason"]) for row in rows if row is not None and row["shredded"] is not None)

    def epoch(self, digest: bytes) -> int | None:
        """Of the KEK that an own asset's key is wrapped under; None where there is no such key."""
        row = self._state.row("assets", digest=digest.hex())
        return None if row is None else row["epoch"]

    def known(self, digest: bytes) -> Row:
        row = self._state.row("assets", digest=digest.hex())
        if row is None:
            raise Denied("asset.unknown", "This broker has no key for this asset.")
        return row

    def _take(self, manifest: Manifest, envelope: Envelope, dek: bytes) -> None:
        digest = envelope.digest.hex()
        row = {
            "digest": digest,
            "name": manifest.name,
            "asset_id": manifest.asset_id.hex(),
            "version": manifest.version,
            "manifest": envelope.payload.decode(),
            "class": manifest.asset_class,
            "keep_until": self._keep_until(manifest),
            "shredded": None,
            "reason": None,
            **wrapped_columns(self._keys.vault.wrap(dek, envelope.digest)),
        }
        details: dict[str, str | int] = {
            "class": manifest.asset_class,
            "keep_until": row["keep_until"],
            "name": manifest.name,
            "version": manifest.version,
        }
        for task in self._made_by(manifest):
            details["source"] = self.known(bytes.fromhex(task["source"]))["version"]  # that it was made from
        changes = [Change("assets", row), *self._ended_tasks(manifest)]
        self._ledger.commit("asset.sealed", target=digest, details=details, changes=changes)

    def _ended_tasks(self, manifest: Manifest) -> list[Change]:
        """A re-encryption whose version this is, is done; any other one of that name can't become the next any more."""
        running = self._state.rows("tasks", name=manifest.name, state="running")
        return [
            Change("tasks", {
                **row, "epoch": None, "wrapped": None,
                "state": "done" if row["commitment"] == manifest.dek_commit.hex() else "ended",
            })
            for row in running
        ]  # fmt: skip

    def _made_by(self, manifest: Manifest) -> list[Row]:
        """The re-encryption whose version this is; none for one that was sealed from plaintext."""
        return self._state.rows("tasks", name=manifest.name, commitment=manifest.dek_commit.hex())

    def _check_name(self, name: str) -> None:
        Fields({"name": name}, "request").asset("name")
        if name.partition("/")[0] != self._parties.card.name:
            raise Denied("asset.owner", "A party seals assets under its own name only.")

    def _check_next(self, manifest: Manifest) -> None:
        self._check_name(manifest.name)
        newest = self.newest(manifest.name)
        if manifest.contract is not None or manifest.asset_class not in ("dataset", "model", "program"):
            raise Denied("asset.class", "An owner seals datasets, models and programs; workloads seal outputs.")
        expected = (1, None) if newest is None else (newest["version"] + 1, bytes.fromhex(newest["digest"]))
        if (manifest.version, manifest.previous) != expected:
            raise Denied("asset.version", "The manifest is not of the next version; ask for it again and reseal.")
        # An id belongs to one line of versions: to the newest's where there is one, to none where there is none.
        holders = {row["name"] for row in self._state.rows("assets", asset_id=manifest.asset_id.hex())}
        if holders != (set() if newest is None else {manifest.name}):
            raise Denied("asset.id", "The manifest carries another asset's id; ask for the next version again.")

    def _check_task(self, dek: bytes) -> None:
        """The key of a re-encryption that ended is gone here, but a client may have kept it: it must not come back, as
        this version or another. Each task's commitment is computed from the key at hand, so both are found."""
        for task in self._state.rows("tasks"):
            if task["state"] != "running":
                commitment = dek_commitment(dek, bytes.fromhex(task["asset_id"]), task["version"])
                if commitment.hex() == task["commitment"]:
                    raise Denied("task.ended", "The re-encryption that made this key has ended; start it again.")

    def _check_fresh(self, dek: bytes) -> None:
        """A data key is for one version. Else one that was shredded would come back as the key of a next version: a
        re-encryption that was open before has handed it to the owner's client. A commitment depends on its version, so
        it is computed for each from the key at hand: one HKDF. Nothing but this key gives these 64 digits, so that they
        stand in a manifest is enough, and none has to be parsed."""
        for row in self._state.rows("assets"):
            if dek_commitment(dek, bytes.fromhex(row["asset_id"]), row["version"]).hex() in row["manifest"]:
                raise Denied(
                    "asset.dek", "This data key was used for a version before; seal it anew under a fresh one."
                )

    def _keep_until(self, manifest: Manifest) -> int:
        """What its terms say; a re-encrypted copy is never kept longer than the version that it was made from."""
        dates = [_terms_end(manifest)]
        for task in self._made_by(manifest):
            dates.append(int(self.known(bytes.fromhex(task["source"]))["keep_until"]))
        return min(dates)

    @staticmethod
    def _manifest(row: Row) -> Manifest:
        return Manifest.from_payload(row["manifest"].encode())


def _check_unshredded(row: Row) -> None:
    """The owner's reason stays in the owner's log: this sentence may go to a workload of somebody else's."""
    if row["shredded"] is not None:
        raise Denied("asset.shredded", "The key of this version was destroyed for good; its owner can seal a next one.")


def _terms_end(manifest: Manifest) -> int:
    """From the manifest's terms. One without terms that can be read is under no contract: nothing ends it."""
    terms = manifest.terms.get("terms")
    if terms is None:
        return FOREVER
    try:
        return Terms.read(terms).keep_until
    except CloisterError:
        raise Denied("asset.terms", "The manifest's terms can't be read; seal it with this version's client.") from None
