"""Re-encrypting an asset under a fresh key, at its owner's: from the store, file by file, back to the store.

The new key is made and kept by the broker, the ciphertext grows in the outbox (``sealed.resume``). So this may be
killed at any moment, and the same command goes on. The old version stays readable until it is shredded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..crypto import Envelope, sha256
from ..crypto.merkle import RootHasher
from ..crypto.streaming import StreamReader
from ..errors import CloisterError, Denied, Malformed, Misuse, Unavailable, Untrusted
from ..fields import Fields
from ..sealed import MANIFEST_TYPE, Manifest, SealIdentity, associated_data, check_dek, file_key, verify_manifest
from ..sealed.resume import ResumableSeal, SourceFile
from .agent import OwnerAgent
from .control import ControlClient
from .keys import Shredded, shred
from .progress import Progress, Step, silent
from .sealing import SealedAsset, upload_again
from .supervisor import Home

__all__ = ["Reencrypted", "reencrypt", "work_name"]

_BLOCK = 1 << 20
_LOST = (
    "The store does not have the ciphertext of this version: if its sealed folder is kept, upload that with 'cloister "
    "seal'; if it is lost, re-encrypt an older version with --version."
)
_REASON = "Replaced by a version under a fresh key."


@dataclass(frozen=True)
class Reencrypted:
    """The new version, and what was shredded after it. ``source``: the version that it was made from; ``resumed``: an
    earlier attempt was gone on with."""

    asset: SealedAsset
    source: int
    resumed: bool
    shredded: Shredded | None

    def document(self) -> dict[str, Any]:
        shredded = None if self.shredded is None else self.shredded.document()
        return {**self.asset.document(), "resumed": self.resumed, "shredded": shredded, "source": self.source}

    @property
    def from_older(self) -> bool:
        """Whether it was made from another version than the one before it."""
        return self.source != self.asset.version - 1


def reencrypt(
    home: Home, name: str, *, version: int | None = None, shred_old: bool = False, progress: Progress = silent
) -> Reencrypted:
    """A next version of ``name`` with the same files and terms under a fresh key, sealed and stored.

    ``version``: made from this one instead of the newest, for where the newest one's ciphertext is lost. ``shred_old``:
    afterwards destroy the keys of all older versions. Contracts that name an older version need a new serial. Raises
    Denied under a hold, Unavailable (disk, broker, store): the same command goes on then. Misuse("reencrypt.other")
    where an earlier attempt from another version was gone on with first.
    """
    party = Fields({"name": name}, "command").asset("name").partition("/")[0]
    agent = home.agent(party)
    _make_outbox(home.path / "outbox")
    stem = work_name(name)
    dest, work = home.path / "outbox" / stem, home.path / "outbox" / f".{stem}"
    resumed = dest.is_dir()
    if not resumed:
        with ResumableSeal(work) as seal:
            resumed = _sealed_already(agent, seal, dest) or _seal(
                agent, home.control(party), seal, dest, _Wish(name, version, shred_old), progress
            )
    asset = upload_again(home, dest, name, progress=progress)
    source = _source_of(agent, asset)
    if version not in (None, source):
        raise Misuse(
            "reencrypt.other",
            f"An earlier attempt was gone on with: {name} version {asset.version} is stored, made from version "
            f"{source}; for one from version {version} give the same command again.",
        )
    shredded = _shred_older(home, asset, progress) if shred_old else None
    return Reencrypted(asset, source, resumed, shredded)


def _source_of(agent: OwnerAgent, asset: SealedAsset) -> int:
    """The broker's word: a folder that an earlier attempt left says nothing of what it was made from."""
    made = (t["source"] for t in agent.reencryptions()
            if (t["name"], t["version"], t["state"]) == (asset.name, asset.version, "done"))  # fmt: skip
    digest = next(made, None)
    versions = [int(row["version"]) for row in agent.assets() if row["digest"] == digest]
    if not versions:
        raise Malformed("broker.answer", "The broker does not know this re-encryption; update the client.")
    return versions[0]


@dataclass(frozen=True)
class _Wish:
    """What is to be re-encrypted, and what then."""

    name: str
    version: int | None
    shred_old: bool


def work_name(name: str) -> str:
    """Of an asset's folder in the outbox. A hash of the whole name: no other asset gets the same."""
    return f"{sha256(name.encode()).hex()}-reencrypted"


def _make_outbox(outbox: Path) -> None:
    try:
        outbox.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        raise Unavailable("seal.outbox", "The home folder can't be written; check its permissions and space.") from None


def _sealed_already(agent: OwnerAgent, seal: ResumableSeal, dest: Path) -> bool:
    """Whether the broker took the manifest over before an earlier attempt could end."""
    payload = seal.draft()
    if payload is None:
        return False
    try:
        envelope = agent.signed_manifest(Envelope(MANIFEST_TYPE, payload).digest)
    except Denied as unknown:
        if unknown.code != "asset.unknown":
            raise
        return False
    seal.publish(envelope, dest)
    return True


def _seal(
    agent: OwnerAgent,
    client: ControlClient,
    seal: ResumableSeal,
    dest: Path,
    wish: _Wish,
    progress: Progress,
) -> bool:
    answer = agent.open_reencryption_secrets(wish.name, version=wish.version, shred_old=wish.shred_old)
    f = Fields(answer, "broker's answer")
    source = Envelope.from_bytes(f.text("source", limit=1 << 24).encode())
    # The broker is our own, but the store's bytes are checked against this manifest: it is verified like any other.
    keys = [agent.card.keys.signing]
    old = verify_manifest(source, expected_digest=source.digest, signer_keys=keys, owner=agent.party)
    old_dek, dek = f.base64("source_dek", limit=64), f.base64("dek", limit=64)
    check_dek(old, old_dek)
    identity = SealIdentity(
        owner=old.owner,
        asset_id=old.asset_id,
        name=old.name,
        version=f.integer("version", low=1),
        asset_class=old.asset_class,
        created=int(time.time()),
        parents=old.parents,
        previous=f.hex("previous", 32),
    )
    reader = _Old(client, source.digest.hex(), old, old_dek, seal.folder)
    total = sum(entry.plaintext_size for entry in old.files)
    payload = seal.write(
        [reader.file(index) for index in range(len(old.files))],
        dek=dek,
        identity=identity,
        terms=old.terms,
        progress=lambda done: progress(Step("re-encrypt", done, total, "bytes")),
    )
    seal.publish(agent.register_secret_dek(payload, dek), dest)
    return f.boolean("resumed")


class _Old:
    """The old version's files, fetched one at a time into the work folder and checked whole before they are opened."""

    def __init__(self, client: ControlClient, digest: str, manifest: Manifest, dek: bytes, folder: Path) -> None:
        self._client = client
        self._digest = digest
        self._manifest = manifest
        self._key = file_key(dek)
        self._place = folder / "source.part"

    def file(self, index: int) -> SourceFile:
        entry = self._manifest.files[index]
        return SourceFile(entry.path, entry.plaintext_size, lambda: self._open(index))

    @contextmanager
    def _open(self, index: int) -> Iterator[StreamReader]:
        self._fetch(index)
        manifest = self._manifest
        aad = associated_data(manifest, manifest.dek_commit, manifest.files[index].path, index)
        try:
            with self._place.open("rb", buffering=0) as file, StreamReader(file, self._key, aad) as reader:
                yield reader
        finally:
            self._place.unlink(missing_ok=True)

    def _fetch(self, index: int) -> None:
        entry, root, block, size = self._manifest.files[index], RootHasher(), bytearray(), 0
        try:
            with self._place.open("wb") as out:
                for chunk in self._client.file(self._digest, index):
                    size += len(chunk)
                    if size > entry.ciphertext_size:
                        raise _other()
                    out.write(chunk)
                    block += chunk
                    while len(block) >= _BLOCK:
                        root.add(memoryview(block)[:_BLOCK].tobytes())
                        del block[:_BLOCK]
        except CloisterError as error:
            if error.code != "object.unknown":
                raise
            raise type(error)(error.code, _LOST) from None
        except OSError:
            raise Unavailable(
                "storage.full", "The disk can't take a file of the old version; free space, then give the same command "
                "again: it goes on.",
            ) from None  # fmt: skip
        if block:
            root.add(bytes(block))
        if (size, root.root()) != (entry.ciphertext_size, entry.root):
            raise _other()


def _other() -> Untrusted:
    return Untrusted("sealed.root", "The store gave other ciphertext than the manifest names; seal the files anew.")


def _shred_older(home: Home, asset: SealedAsset, progress: Progress) -> Shredded | None:
    rows = home.agent(asset.name.partition("/")[0]).assets()
    older = [
        int(row["version"])
        for row in rows
        if row["name"] == asset.name and row["version"] < asset.version and row["shredded"] is None
    ]
    return shred(home, asset.name, older, reason=_REASON, progress=progress) if older else None
