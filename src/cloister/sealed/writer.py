"""Sealing: files in, one folder of ciphertext and a signed manifest out; all of it or nothing."""

from __future__ import annotations

import errno
import fcntl
import glob
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from ..crypto import Envelope, random_bytes
from ..crypto.buffers import wipe
from ..crypto.merkle import RootHasher
from ..crypto.streaming import AES256_GCM_HKDF_1MB, StreamWriter
from ..errors import Internal, Misuse
from .binding import associated_data, dek_commitment, file_key
from .folder import MANIFEST_NAME, member_name, storage_errors, sync_folder
from .models import MANIFEST_TYPE, FileEntry, Manifest, SealIdentity
from .paths import PathSet

__all__ = ["Progress", "Sealed", "SignCallback", "seal_object"]

SignCallback = Callable[[str, bytes], Envelope]
Progress = Callable[[str, int], None]  # path, plaintext bytes of it so far
_CHUNK = 8 * AES256_GCM_HKDF_1MB.capacity


@dataclass(frozen=True)
class Sealed:
    """What was written: the manifest, its envelope, and the digest that names the asset (32 bytes)."""

    manifest: Manifest
    envelope: Envelope
    digest: bytes


def seal_object(
    files: Iterable[tuple[str, Path | BinaryIO]],
    dest: Path,
    *,
    dek: bytes,
    identity: SealIdentity,
    sign: SignCallback,
    terms: Mapping[str, Any],
    progress: Progress | None = None,
) -> Sealed:
    """Encrypt ``files`` under a fresh ``dek`` into the new folder ``dest``, in constant memory.

    ``sign`` gets (payload type, payload) and returns the envelope; the key may live in another process. ``dest``
    appears by one rename after everything is on disk: a crash at any moment leaves nothing under that name. A
    sealed object is never overwritten, since its digest names it: ``dest`` must not exist.

    A DEK must be fresh for every version: the associated data would keep files apart, but whoever was given the
    key of an old version must not be able to open a new one.

    Raises Misuse (``dest`` exists, a source can't be read), Malformed (paths, identity, terms), Unavailable
    (``storage.full``, ``storage.write``) or what ``sign`` raises; then the partial folder is removed.
    """
    if os.path.lexists(dest):
        raise Misuse(
            "sealed.exists", "The folder to write exists; a sealed object is never overwritten, so name another."
        )
    with _storage_errors():
        dest.parent.mkdir(parents=True, exist_ok=True)
    with _partial_folder(dest) as partial:
        commit = dek_commitment(dek, identity.asset_id, identity.version)
        entries = _write_files(files, partial, file_key(dek), identity, commit, progress)
        described = {f.name: getattr(identity, f.name) for f in fields(SealIdentity)}
        manifest = Manifest(**described, dek_commit=commit, files=tuple(entries), terms=dict(terms))
        payload = manifest.to_payload()
        Manifest.from_payload(payload)  # never sign what a reader would refuse
        envelope = sign(MANIFEST_TYPE, payload)
        if (envelope.payload_type, envelope.payload) != (MANIFEST_TYPE, payload) or not envelope.signatures:
            raise Internal("sealed.sign", "The signer returned another document than it was given; check the signer.")
        with _storage_errors():
            _write_durably(partial / MANIFEST_NAME, envelope.to_bytes())
            sync_folder(partial)
            _rename(partial, dest)
            sync_folder(dest.parent)
    return Sealed(manifest, envelope, envelope.digest)


def _write_files(
    files: Iterable[tuple[str, Path | BinaryIO]],
    folder: Path,
    key: bytes,
    identity: SealIdentity,
    commit: bytes,
    progress: Progress | None,
) -> list[FileEntry]:
    entries: list[FileEntry] = []
    paths = PathSet()
    buffer = memoryview(bytearray(_CHUNK))
    # Hashing takes longer than encrypting; on a thread of its own it costs no time.
    with ThreadPoolExecutor(max_workers=1) as lane:
        for index, (path, source) in enumerate(files):
            paths.add(path)  # before anything of it is read
            aad = associated_data(identity, commit, path, index)
            place = folder / member_name(index)
            entries.append(_write_file(path, source, place, key, aad, lane, buffer, progress))
    return entries


def _write_file(
    path: str,
    source: Path | BinaryIO,
    place: Path,
    key: bytes,
    aad: bytes,
    lane: ThreadPoolExecutor,
    buffer: memoryview,
    progress: Progress | None,
) -> FileEntry:
    root = RootHasher()
    with _storage_errors():
        file = place.open("xb", buffering=0)
    with file, StreamWriter(file, key, aad, observe=lambda _, block: lane.submit(root.add, block).result) as writer:
        written = 0
        for chunk in _chunks(source, buffer):
            with _storage_errors():
                writer.write(chunk)
                written = _start_writing_out(file.fileno(), written)
            if progress is not None:
                progress(path, writer.plaintext_size)
        with _storage_errors():
            writer.close()
            os.fsync(file.fileno())
            size = file.tell()
    return FileEntry(path, writer.plaintext_size, size, root.root())


def _start_writing_out(fd: int, start: int) -> int:
    """Have the kernel write to disk now what it would keep until ``fsync``, so that the disk works while the next
    blocks are encrypted. A hint only: what makes the file durable is ``fsync``. Returns how far the file goes."""
    end = os.lseek(fd, 0, os.SEEK_CUR)
    if end > start:
        os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)
    return end


def _chunks(source: Path | BinaryIO, buffer: memoryview) -> Iterator[memoryview]:
    """What is in a source, piece by piece in the one buffer. A source that the caller opened stays open."""
    if isinstance(source, io.BytesIO):  # it is in memory already
        with source.getbuffer() as whole:
            for start in range(source.tell(), len(whole), _CHUNK):
                yield whole[start : start + _CHUNK]
            source.seek(0, io.SEEK_END)
        return
    used = 0
    try:
        with open(source, "rb", buffering=0) if isinstance(source, Path) else nullcontext(source) as file:
            while n := _read_some(file, buffer):
                used = max(used, n)
                yield buffer[:n]
    except OSError:
        raise Misuse("sealed.source", "A file to seal can't be read; check that it exists and is readable.") from None
    finally:
        wipe(buffer[:used])


def _read_some(file: Any, buffer: memoryview) -> int:
    readinto = getattr(file, "readinto", None)
    if readinto is not None:
        return readinto(buffer) or 0
    data = file.read(len(buffer))
    buffer[: len(data)] = data
    return len(data)


@contextmanager
def _partial_folder(dest: Path) -> Iterator[Path]:
    """A new folder beside ``dest``; removed again unless it was renamed.

    It is locked while it lives, so that the next writer can tell what a killed one left behind, and remove it.
    """
    with _storage_errors():
        for old in dest.parent.glob(f".{glob.escape(dest.name)}.*.partial"):
            _remove_abandoned(old)
        partial, lock = _new_locked(dest)
    try:
        yield partial
    finally:
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)  # what can't be removed now, the next writer sweeps
        os.close(lock)


def _new_locked(dest: Path) -> tuple[Path, int]:
    while True:
        partial = dest.parent / f".{dest.name}.{random_bytes(8).hex()}.partial"
        partial.mkdir(mode=0o755)
        try:
            lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another writer swept it before it was locked
        fcntl.flock(lock, fcntl.LOCK_EX)
        if partial.exists():
            return partial, lock
        os.close(lock)


def _remove_abandoned(partial: Path) -> None:
    try:
        lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # its writer finished just now
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(partial, ignore_errors=True)
    except BlockingIOError:
        return  # its writer is alive
    finally:
        os.close(lock)


def _rename(partial: Path, dest: Path) -> None:
    try:
        os.rename(partial, dest)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise Misuse("sealed.exists", "The folder to write exists by now; name another.") from None
        raise


def _write_durably(place: Path, data: bytes) -> None:
    with place.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _storage_errors() -> AbstractContextManager[None]:
    return storage_errors("free space or choose another folder, then seal again.")
