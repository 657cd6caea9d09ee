"""Sealed objects: uploads that are checked before they count, and who may see which.

An upload lands in a folder of its own. To be checked it moves to a name that no request writes to, and from there to
the store, once the manifest's signature and every file's root hold. What fails is removed: nothing unchecked is kept.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, or_, select
from sqlalchemy.dialects.sqlite import insert as upsert

from ..crypto import Envelope
from ..crypto.streaming import ReadableFile
from ..errors import CloisterError, Denied, Malformed, Misuse, Unavailable
from ..sealed import MANIFEST_NAME, Manifest, check_ciphertext, member_name, verify_manifest
from ..sealed.ports import ObjectSource
from ..sealed.stores import LocalStore, Store
from .database import Database
from .directory import NODE, Directory
from .errors import NotFound
from .limits import Limits
from .sink import FileSink, storage_errors
from .tables import contract_assets, contract_parties, jobs, objects, uploads
from .unknown import adopt, move_aside, report

__all__ = ["ObjectStore", "StoredFile"]

_DIGEST = re.compile(r"[0-9a-f]{64}")
_INDEX = re.compile(r"0|[1-9][0-9]{0,3}")


def check_digest(text: str) -> str:
    """``text`` if it is a digest. It becomes a folder's name, so nothing else may pass."""
    if not _DIGEST.fullmatch(text):
        raise Malformed("object.digest", "A digest is 64 lower-case hex digits.")
    return text


@dataclass(frozen=True)
class StoredFile:
    """One file of an object in a store elsewhere: ``size`` bytes of ciphertext."""

    source: ObjectSource
    name: str
    size: int

    def open(self) -> ReadableFile:
        """Raises Untrusted or Unavailable."""
        return self.source.open(self.name, self.size)


class ObjectStore:
    """``home``/objects, or ``store``, holds what was checked, ``home``/uploads what is arriving."""

    def __init__(
        self, home: Path, database: Database, directory: Directory, limits: Limits, store: Store | None = None
    ) -> None:
        self._objects, self._uploads, self._aside = home / "objects", home / "uploads", home / "unknown"
        self._moving = threading.Lock()  # between a look at an upload's folders and what follows from it
        self._database, self._directory, self._limits = database, directory, limits
        for folder in (self._objects, self._uploads):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._local = LocalStore(self._objects) if store is None else None
        self._store: Store = self._local or store  # type: ignore[assignment]  # one of them is there

    # --- uploading -------------------------------------------------------------------------------------------------

    def begin(self, digest: str, data: bytes, party: str, *, now: int) -> dict[str, Any]:
        """Take a signed manifest; the answer says which files are here already. Raises Denied, Untrusted, Malformed."""
        manifest = self._judge(check_digest(digest), Envelope.from_bytes(data), party)
        if sum(entry.ciphertext_size for entry in manifest.files) > self._limits.object_bytes:
            raise Denied("object.size", "The object is larger than this store takes; ask the operator.")
        if self._stored(digest):
            return {"have": list(range(len(manifest.files))), "state": "stored"}
        folder = self._folder(digest, party)
        with self._moving:
            self._refuse_while_checked(digest, party)
            self._register(digest, party, now)
            with storage_errors():
                folder.mkdir(mode=0o700, exist_ok=True)
                (folder / MANIFEST_NAME).write_bytes(data)
        return {"have": self._have(folder, manifest), "state": "open"}

    def _judge(self, digest: str, envelope: Envelope, party: str) -> Manifest:
        """The manifest, if ``party`` may store it: a party its own, signed by its key; the node a run's output.

        An output is signed by the run's attested key, which only brokers can judge: they do so before they permit
        its release, and recipients check those permits. Here it only has to belong to a run that is going on.
        """
        if party != NODE:
            key = self._directory.key_of(party)
            keys = [] if key is None else [key]
            return verify_manifest(envelope, expected_digest=bytes.fromhex(digest), signer_keys=keys, owner=party)
        manifest, state = self._output(digest, envelope)
        if manifest.asset_class != "artifact" or manifest.job is None or manifest.contract is None:
            raise Denied("object.node", "The node stores outputs of runs only.")
        if state != "running":
            raise Denied("object.node", "The output belongs to no run that is going on.")
        return manifest

    def _output(self, digest: str, envelope: Envelope) -> tuple[Manifest, str | None]:
        """A manifest that some key signed, and the state of the run that it names, if there is such a run."""
        keys = [bytes.fromhex(k) for k, _ in envelope.signatures if _DIGEST.fullmatch(k)]
        manifest = verify_manifest(envelope, expected_digest=bytes.fromhex(digest), signer_keys=keys)
        job, contract = (part and part.hex() for part in (manifest.job, manifest.contract))
        ours = (jobs.c.digest == job) & (jobs.c.contract == contract)
        with self._database.read() as connection:
            return manifest, connection.execute(select(jobs.c.state).where(ours)).scalar()

    def _register(self, digest: str, party: str, now: int) -> None:
        with self._database.write() as connection:
            mine = select(func.count()).select_from(uploads).where(uploads.c.party == party, uploads.c.digest != digest)
            if connection.execute(mine).scalar_one() >= self._limits.open_uploads:
                raise Denied("object.uploads", "Too many of your uploads are unfinished; finish or wait for some.")
            row = upsert(uploads).values(digest=digest, party=party, started=now)
            connection.execute(row.on_conflict_do_nothing())

    def receive(self, digest: str, index: str, party: str) -> FileSink:
        """A sink for one file's bytes. Raises NotFound before its manifest, Malformed for an index out of form."""
        self._refuse_while_checked(check_digest(digest), party)
        manifest, folder = self._open_upload(digest, party)
        entry = manifest.files[self._number(index, manifest)]
        free = shutil.disk_usage(self._uploads).free
        if free < entry.ciphertext_size + self._limits.free_bytes:
            raise Unavailable(
                "store.full", "The store's disk is full; the operator must free space, then upload again."
            )
        return FileSink(folder / member_name(int(index)), entry.ciphertext_size)

    def commit(self, digest: str, party: str, *, now: int) -> dict[str, Any]:
        """Check every root and keep the object. Raises Misuse if files lack; Untrusted, after which nothing is left."""
        if self._stored(check_digest(digest)):
            return {"digest": digest, "state": "stored"}
        manifest, checked = self._set_aside(digest, party)
        try:
            # Judged again, and the bytes read from the disk: what is kept is what was checked.
            self._judge(digest, _manifest_envelope(checked), party)
            for draft in checked.glob(".*"):  # of senders that broke off
                draft.unlink()
            check_ciphertext(checked)
            self._store.take(checked, bytes.fromhex(digest))
            self._keep(digest, manifest, party, now)
        except BaseException as error:
            if isinstance(error, CloisterError) and not isinstance(error, Unavailable):
                self._discard(digest, party)
            else:
                self._put_back(digest, party)
            raise
        return {"digest": digest, "state": "stored"}

    def _set_aside(self, digest: str, party: str) -> tuple[Manifest, Path]:
        """The upload under a name that no request writes to: nothing changes between the check and the store."""
        with self._moving:
            checked = self._checked(digest, party)
            if checked.exists():
                raise Unavailable("object.busy", "The upload is being checked already; ask again in a moment.")
            manifest, folder = self._open_upload(digest, party)
            missing = sorted(set(range(len(manifest.files))) - set(self._have(folder, manifest)))
            if missing:
                raise Misuse(
                    "object.incomplete", f"File {missing[0]} of the object is not uploaded yet.", index=missing[0]
                )
            with storage_errors():
                os.rename(folder, checked)
            return manifest, checked

    def _put_back(self, digest: str, party: str) -> None:
        """What could not be checked, or not be stored, can be committed again."""
        with self._moving, storage_errors():
            if self._checked(digest, party).exists():
                os.rename(self._checked(digest, party), self._folder(digest, party))

    def _checked(self, digest: str, party: str) -> Path:
        return self._uploads / f".{digest}.{party}"

    def _refuse_while_checked(self, digest: str, party: str) -> None:
        if self._checked(digest, party).exists():
            raise Misuse("object.checking", "The upload is being checked and takes no more; wait for its end.")

    def _keep(self, digest: str, manifest: Manifest, party: str, now: int) -> None:
        row = {
            "class": manifest.asset_class,
            "contract": manifest.contract and manifest.contract.hex(),
            "digest": digest,
            "files": len(manifest.files),
            "job": manifest.job and manifest.job.hex(),
            "name": manifest.name,
            "owner": manifest.owner,
            "size": sum(entry.ciphertext_size for entry in manifest.files),
            "stored": now,
            "version": manifest.version,
        }
        with self._database.write() as connection:
            # Who commits twice at once is answered twice.
            connection.execute(upsert(objects).values(row).on_conflict_do_nothing())
            connection.execute(delete(uploads).where(uploads.c.digest == digest, uploads.c.party == party))

    def _discard(self, digest: str, party: str) -> None:
        for folder in (self._folder(digest, party), self._checked(digest, party)):
            shutil.rmtree(folder, ignore_errors=True)
        with self._database.write() as connection:
            connection.execute(delete(uploads).where(uploads.c.digest == digest, uploads.c.party == party))

    def sweep(self, *, now: int) -> None:
        """At start: forget uploads that nobody finished in time, and see to objects that no row knows.

        A store elsewhere may hold what others put there: of it only the rest of broken uploads goes.
        """
        with self._database.read() as connection:
            rows = connection.execute(select(uploads)).all()
            known = set(connection.execute(select(objects.c.digest)).scalars())
        for row in rows:
            if row.digest not in known and self._checked(row.digest, row.party).exists():
                self._put_back(row.digest, row.party)  # the machine stopped while it was checked
            if row.digest in known or row.started < now - self._limits.upload_seconds:
                self._discard(row.digest, row.party)
        ours = {f"{row.digest}.{row.party}" for row in rows}
        for folder in self._uploads.iterdir():
            if folder.name not in ours and folder.name.lstrip(".").partition(".")[0] in known:
                shutil.rmtree(folder, ignore_errors=True)  # a second upload of what is stored
        if self._local is None:
            self._store.sweep(before=now - self._limits.upload_seconds)
        for folder in self._objects.iterdir():
            if folder.name.startswith("."):  # staged, or on its way out
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.name not in known:
                self._see_to_unknown(folder, now)

    def _see_to_unknown(self, folder: Path, now: int) -> None:
        """Enter a whole object whose signature holds, as its upload would; keep anything else, but out of the way."""
        try:
            manifest = adopt(folder, self._judge_unknown) if _DIGEST.fullmatch(folder.name) else None
        except Unavailable as error:
            report(error.code, error.message, folder.name)
            return
        with storage_errors():
            if manifest is None:
                move_aside(folder, self._aside)
                return
        self._keep(folder.name, manifest, manifest.owner, now)
        report("object.adopted", "No row knew this object; it is whole and signed, so it was entered.", folder.name)

    def _judge_unknown(self, digest: str, envelope: Envelope) -> Manifest:
        """By its owner's key; an output also by the key of a run that the catalogue knows, as in ``_judge``."""
        manifest, state = self._output(digest, envelope)
        known_output = manifest.asset_class == "artifact" and state is not None
        return manifest if known_output else self._judge(digest, envelope, manifest.owner)

    def _folder(self, digest: str, party: str) -> Path:
        return self._uploads / f"{digest}.{party}"

    def _open_upload(self, digest: str, party: str) -> tuple[Manifest, Path]:
        folder = self._folder(check_digest(digest), party)
        if not (folder / MANIFEST_NAME).is_file():
            raise NotFound("object.unknown", "There is no such upload; send the manifest first.")
        return Manifest.from_payload(_manifest_envelope(folder).payload), folder

    @staticmethod
    def _have(folder: Path, manifest: Manifest) -> list[int]:
        return [i for i in range(len(manifest.files)) if (folder / member_name(i)).is_file()]

    @staticmethod
    def _number(index: str, manifest: Manifest) -> int:
        if not _INDEX.fullmatch(index) or int(index) >= len(manifest.files):
            raise Malformed("object.index", "A file's index is a number below the manifest's count of files.")
        return int(index)

    # --- reading ---------------------------------------------------------------------------------------------------

    def _stored(self, digest: str) -> bool:
        with self._database.read() as connection:
            return connection.execute(select(objects.c.stored).where(objects.c.digest == digest)).first() is not None

    def manifest(self, digest: str, party: str) -> bytes:
        """The signed manifest as it was stored. Raises NotFound, Untrusted or Unavailable."""
        self._check_visible(check_digest(digest), party)
        return self._store.source(bytes.fromhex(digest)).envelope()

    def file(self, digest: str, index: str, party: str) -> Path | StoredFile:
        """Where one file's ciphertext is: a path on this disk, or a file elsewhere. Raises as ``manifest``."""
        self._check_visible(check_digest(digest), party)
        source = self._store.source(bytes.fromhex(digest))
        manifest = Manifest.from_payload(Envelope.from_bytes(source.envelope()).payload)
        number = self._number(index, manifest)
        if self._local is not None:
            return self._local.path(bytes.fromhex(digest)) / member_name(number)
        return StoredFile(source, member_name(number), manifest.files[number].ciphertext_size)

    def _check_visible(self, digest: str, party: str) -> None:
        query = select(objects.c.digest).where(objects.c.digest == digest, visible_to(party))
        with self._database.read() as connection:
            if connection.execute(query).first() is None:
                raise NotFound("object.unknown", "There is no such object here, or it is not shared with you.")

    def listing(self, party: str, name: str | None) -> list[dict[str, Any]]:
        """Metadata of what ``party`` may see, newest versions first."""
        query = select(objects).where(visible_to(party))
        if name is not None:
            query = query.where(objects.c.name == name)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(objects.c.name, objects.c.version.desc())).all()
        return [_metadata(row) for row in rows]

    def missing(self, connection: Connection, digests: list[str]) -> list[str]:
        """Which of ``digests`` are not stored."""
        found = connection.execute(select(objects.c.digest).where(objects.c.digest.in_(digests))).scalars()
        return sorted(set(digests) - set(found))


def visible_to(party: str) -> Any:
    """The SQL condition on ``objects``: the owner, the node, and parties of a contract that names the object.

    An asset counts as named only in a contract that its owner signed: nobody gains sight of it by a mere proposal.
    """
    if party == NODE:
        return objects.c.digest.is_not(None)
    mine = select(contract_parties.c.contract).where(contract_parties.c.party == party)
    agreed = (
        select(contract_assets.c.asset)
        .join(contract_parties, contract_parties.c.contract == contract_assets.c.contract)
        .where(contract_parties.c.signed == 1, contract_parties.c.party == objects.c.owner)
        .where(contract_assets.c.contract.in_(mine))
    )
    output_of_mine = and_(objects.c["class"] == "artifact", objects.c.contract.in_(mine))
    return or_(objects.c.owner == party, objects.c.digest.in_(agreed), output_of_mine)


def _metadata(row: Row[Any]) -> dict[str, Any]:
    return {key: value for key, value in row._mapping.items() if value is not None}


def _manifest_envelope(folder: Path) -> Envelope:
    return Envelope.from_bytes((folder / MANIFEST_NAME).read_bytes())
