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
from ..errors import CloisterError, Misuse, Unavailable, Untrusted
from ..fields import Fields
from ..sealed import (
    MANIFEST_TYPE,
    Manifest,
    SealIdentity,
    associated_data,
    check_dek,
    file_key,
    read_envelope,
    verify_manifest,
)
from ..sealed.resume import ResumableSeal, SourceFile
from .agent import OwnerAgent
from .control import ControlClient
from .keys import Shredded, shred
from .lineage import Lineage
from .progress import Progress, Step, silent
from .sealing import SealedAsset, upload_again
from .supervisor import Home

__all__ = ["Reencrypted", "reencrypt", "work_name"]

_BLOCK = 1 << 20
# The store's word and nothing more: its operator may have what it denies. So what is advised leaves the key alone.
_LOST = (
    "The store says that it does not have the ciphertext of this version: ask its operator, or upload the sealed "
    "folder with 'cloister seal' if it is kept; --version re-encrypts an older version, and this one's key stays."
)
_REASON = "Replaced by a version under a fresh key."


@dataclass(frozen=True)
class Reencrypted:
    """The new version, and what was shredded after it. ``source``: the version that it was made from; ``resumed``: an
    earlier attempt was gone on with; ``kept``: older versions that were passed over for a still older one, and were
    not shredded."""

    asset: SealedAsset
    source: int
    resumed: bool
    shredded: Shredded | None
    kept: tuple[int, ...] = ()

    def document(self) -> dict[str, Any]:
        shredded = None if self.shredded is None else self.shredded.document()
        made = {"kept": list(self.kept), "resumed": self.resumed, "shredded": shredded, "source": self.source}
        return {**self.asset.document(), **made}

    @property
    def from_older(self) -> bool:
        """Whether it was made from another version than the one before it."""
        return self.source != self.asset.version - 1


def reencrypt(
    home: Home, name: str, *, version: int | None = None, shred_old: bool = False, progress: Progress = silent
) -> Reencrypted:
    """A next version of ``name`` with the same files and terms under a fresh key, sealed and stored.

    ``version``: made from this one instead of the newest, for where the newest one's ciphertext is lost. ``shred_old``:
    afterwards destroy the keys of older versions, but of none that was passed over for an older one. Contracts that
    name an older version need a new serial. Raises Denied under a hold, Unavailable (disk, broker, store): the same
    command goes on then. Unavailable ``reencrypt.other``, ``older``, ``shredded``: a version was stored, but it is not
    what was asked for; nothing is shredded then.
    """
    party = Fields({"name": name}, "command").asset("name").partition("/")[0]
    agent = home.agent(party)
    _make_outbox(home.path / "outbox")
    stem = work_name(name)
    dest, work = home.path / "outbox" / stem, home.path / "outbox" / f".{stem}"
    resumed = _is_finished(agent, dest, work, name)
    if not resumed:
        with ResumableSeal(work) as seal:
            resumed = _sealed_already(agent, seal, dest, name) or _seal(
                agent, home.control(party), seal, dest, _Wish(name, version, shred_old), progress
            )
    asset = upload_again(home, dest, name, progress=progress)
    line = Lineage.of(agent, name)
    source = line.source(asset.version)
    line.check_newest(asset.version)
    _check_source(asset, source, wanted=asset.version - 1 if version is None else version)
    if not shred_old:
        return Reencrypted(asset, source, resumed, None)
    older, kept = line.older(asset.version)
    shredded = shred(home, name, older, reason=_REASON, progress=progress) if older else None
    return Reencrypted(asset, source, resumed, shredded, kept)


def _check_source(asset: SealedAsset, source: int, *, wanted: int) -> None:
    """What an earlier attempt left may be of another version than the one that is wanted now."""
    if source != wanted:
        raise Unavailable(
            "reencrypt.other",
            f"An earlier attempt was finished: {asset.name} version {asset.version} is stored, made from version "
            f"{source} and not from version {wanted}. Nothing was shredded; to re-encrypt version {wanted}, give the "
            f"command with --version {wanted}.",
        )


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


def _is_finished(agent: OwnerAgent, dest: Path, work: Path, name: str) -> bool:
    """Whether an earlier attempt left a signed folder to upload. One whose version was shredded since is removed."""
    if not dest.is_dir():
        return False
    shredded = _is_shredded(agent, read_envelope(dest).digest, name)
    if shredded is None:
        raise Misuse(
            "reencrypt.unknown",
            f"The folder {dest} is of a version that this broker does not know; move it away, then try again.",
        )
    if shredded:
        _discard(dest, work)
    return not shredded


def _sealed_already(agent: OwnerAgent, seal: ResumableSeal, dest: Path, name: str) -> bool:
    """Whether the broker took the manifest over before an earlier attempt could end, and still has its key."""
    payload = seal.draft()
    if payload is None:
        return False
    digest = Envelope(MANIFEST_TYPE, payload).digest
    shredded = _is_shredded(agent, digest, name)
    if shredded:
        seal.discard()
    if shredded is None or shredded:
        return False
    seal.publish(agent.signed_manifest(digest), dest)
    return True


def _is_shredded(agent: OwnerAgent, digest: bytes, name: str) -> bool | None:
    """By the broker's word; None where it has no such version of this asset."""
    found = (row["shredded"] for row in agent.assets() if (row["digest"], row["name"]) == (digest.hex(), name))
    return next((when is not None for when in found), None)


def _discard(dest: Path, work: Path) -> None:
    """Remove a folder that nobody can open any more. It loses its name first: half of it is never taken for a whole."""
    with ResumableSeal(work) as seal:
        seal.discard()
        try:
            dest.rename(work / "discarded")
        except OSError:
            raise Unavailable("seal.outbox", "The outbox can't be written; check its permissions.") from None
        seal.discard()


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
