"""Sealing that survives a kill: an object grows file by file in one work folder, and goes on where it broke off.

A finished file is renamed to its name in the object, synced, and then entered in a record, so what the record names is
whole on disk; before it is kept it is hashed again. A file that broke off is written anew, under a fresh salt and so
under another AES key: no key ever encrypts twice. The last step is the same rename as the writer's.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..crypto import Envelope
from ..crypto.merkle import RootHasher
from ..crypto.streaming import ReadableFile, StreamWriter
from ..errors import CloisterError, Misuse
from .binding import associated_data, dek_commitment, file_key
from .folder import MANIFEST_NAME, member_name, storage_errors, sync_folder
from .models import MANIFEST_TYPE, FileEntry, Manifest, SealIdentity

__all__ = ["ResumableSeal", "SourceFile"]

_BLOCK = 1 << 20
_RECORD = "finished.jsonl"
_DRAFT = "manifest.draft"
_PART = "file.part"


@dataclass(frozen=True)
class SourceFile:
    """One file to seal: ``open`` gives its plaintext, and is called only if the file is not finished yet."""

    path: str
    size: int
    open: Callable[[], AbstractContextManager[ReadableFile]]


class ResumableSeal:
    """The work folder ``work``, locked while this is open (use it in ``with``). It stays there when something fails.

    Raises Misuse("sealed.busy") where another process works in it, Unavailable (``storage.full``, ``storage.write``).
    """

    def __init__(self, work: Path) -> None:
        self._work = work
        with _storage_errors():
            work.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                raise Misuse("sealed.busy", "Another process is writing this object; wait for it to end.") from None

    def __enter__(self) -> ResumableSeal:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    @property
    def folder(self) -> Path:
        return self._work

    def draft(self) -> bytes | None:
        """The manifest's payload, once every file is finished: perhaps it was signed already."""
        for name in (MANIFEST_NAME, _DRAFT):
            path = self._work / name
            with _storage_errors():
                data = path.read_bytes() if path.is_file() else None
            if data is not None:
                return Envelope.from_bytes(data, limit=1 << 24).payload if name == MANIFEST_NAME else data
        return None

    def write(
        self,
        files: list[SourceFile],
        *,
        dek: bytes,
        identity: SealIdentity,
        terms: Mapping[str, Any],
        progress: Callable[[int], None],
    ) -> bytes:
        """Finish every file, then the manifest's payload, which is returned. ``progress`` gets all plaintext bytes.

        What another key or identity left in the folder is removed first. Memory stays constant.
        """
        commit = dek_commitment(dek, identity.asset_id, identity.version)
        entries = self._finished(files, commit)
        done = sum(entry.plaintext_size for entry in entries)
        progress(done)
        for index in range(len(entries), len(files)):
            file = files[index]
            aad = associated_data(identity, commit, file.path, index)
            with file.open() as source:
                entry = self._write_file(file, source, file_key(dek), aad, _after(done, progress))
            self._keep(index, entry, commit)
            entries.append(entry)
            done += entry.plaintext_size
        described = {f.name: getattr(identity, f.name) for f in fields(SealIdentity)}
        payload = Manifest(**described, dek_commit=commit, files=tuple(entries), terms=dict(terms)).to_payload()
        Manifest.from_payload(payload)  # never sign what a reader would refuse
        with _storage_errors():
            _replace(self._work / _DRAFT, payload)
            sync_folder(self._work)
        return payload

    def publish(self, envelope: Envelope, dest: Path) -> None:
        """Put the signed manifest beside the files and give the folder its name. Raises Misuse if that is taken."""
        if os.path.lexists(dest):
            raise Misuse("sealed.exists", "The folder to write exists; a sealed object is never overwritten.")
        if envelope.payload_type != MANIFEST_TYPE or envelope.payload != self.draft():
            raise Misuse("sealed.draft", "The signed manifest is not the one of this folder.")
        with _storage_errors():
            _replace(self._work / MANIFEST_NAME, envelope.to_bytes())
            entries = Manifest.from_payload(envelope.payload).files
            kept = {MANIFEST_NAME, *(member_name(index) for index in range(len(entries)))}
            for path in self._work.iterdir():
                if path.name not in kept:  # record, draft, and what a kill left of a file on its way
                    path.unlink()
            sync_folder(self._work)
            os.rename(self._work, dest)
            sync_folder(dest.parent)

    def discard(self) -> None:
        """Remove all that was written; nothing of it can be gone on with."""
        with _storage_errors():
            for path in self._work.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _finished(self, files: list[SourceFile], commit: bytes) -> list[FileEntry]:
        """What is whole on disk, in order, as long as every file is what its record says."""
        entries: list[FileEntry] = []
        for line in self._record():
            entry = _read_record(line, commit)
            index = len(entries)
            if entry is None or index >= len(files) or (entry.path, entry.plaintext_size) != _expected(files[index]):
                break
            if not _is_whole(self._work / member_name(index), entry):
                break
            entries.append(entry)
        if not entries:
            self.discard()
        with _storage_errors():
            (self._work / _DRAFT).unlink(missing_ok=True)
            _replace(self._work / _RECORD, b"".join(_line(entry, commit) for entry in entries))
        return entries

    def _record(self) -> list[bytes]:
        path = self._work / _RECORD
        with _storage_errors():
            return path.read_bytes().splitlines() if path.is_file() else []

    def _write_file(
        self, file: SourceFile, source: ReadableFile, key: bytes, aad: bytes, progress: Callable[[int], None]
    ) -> FileEntry:
        part, root, buffer = self._work / _PART, RootHasher(), memoryview(bytearray(4 * _BLOCK))
        with _storage_errors():
            target = part.open("wb", buffering=0)
        with target, StreamWriter(target, key, aad, observe=lambda _, block: root.add(block)) as writer:
            while n := source.readinto(buffer):
                with _storage_errors():
                    writer.write(buffer[:n])
                progress(writer.plaintext_size)
            with _storage_errors():
                writer.close()
                os.fsync(target.fileno())
                size = target.tell()
        buffer[:] = bytes(len(buffer))
        if writer.plaintext_size != file.size:
            raise Misuse("sealed.source", "A file to seal is longer or shorter than it was said to be.")
        return FileEntry(file.path, writer.plaintext_size, size, root.root())

    def _keep(self, index: int, entry: FileEntry, commit: bytes) -> None:
        """Under its name first, then in the record: the record never names what is not there."""
        with _storage_errors():
            os.replace(self._work / _PART, self._work / member_name(index))
            sync_folder(self._work)
            with (self._work / _RECORD).open("ab") as record:
                record.write(_line(entry, commit))
                record.flush()
                os.fsync(record.fileno())


def _after(done: int, progress: Callable[[int], None]) -> Callable[[int], None]:
    return lambda n: progress(done + n)


def _expected(file: SourceFile) -> tuple[str, int]:
    return file.path, file.size


def _line(entry: FileEntry, commit: bytes) -> bytes:
    return (
        json.dumps({**asdict(entry), "root": entry.root.hex(), "commit": commit.hex()}, sort_keys=True).encode() + b"\n"
    )


def _read_record(line: bytes, commit: bytes) -> FileEntry | None:
    """None for a line that was torn, or that belongs to another key."""
    try:
        found = json.loads(line)
        if found.pop("commit") != commit.hex():
            return None
        return FileEntry(**{**found, "root": bytes.fromhex(found["root"])})
    except (ValueError, TypeError, KeyError, AttributeError, CloisterError):
        return None


def _is_whole(path: Path, entry: FileEntry) -> bool:
    """The very ciphertext that was finished: its length and its root."""
    try:
        if path.is_symlink() or path.stat().st_size != entry.ciphertext_size:
            return False
        root = RootHasher()
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                root.add(block)
    except OSError:
        return False  # it is written anew
    return root.root() == entry.root


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_name(f"{path.name}.tmp")
    with draft.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _storage_errors() -> AbstractContextManager[None]:
    return storage_errors("free space, then give the same command again: it goes on.")
