"""Opening a sealed object: verify what it claims to be, then read files at any position, every byte checked."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NoReturn

from ..crypto import Envelope
from ..crypto.helper import Helper
from ..crypto.stream_source import BlockSource
from ..crypto.streaming import AES256_GCM_HKDF_1MB, SegmentCipher, StreamReader
from ..errors import CloisterError, Internal, Misuse, Untrusted
from .binding import associated_data, check_dek, file_key, verify_manifest
from .folder import FolderSource, OwnFolder, member_name, parse_envelope
from .models import FileEntry, Manifest
from .ports import ObjectSource
from .roots import RootLedger

__all__ = ["SealedFile", "SealedObject", "open_sealed"]

_BUFFER = 16 * 1024  # for lines


def open_sealed(
    source: Path | ObjectSource,
    *,
    dek: bytes,
    expected_digest: bytes,
    signer_keys: Iterable[bytes],
    owner: str | None = None,
    threads: int | None = None,
) -> SealedObject:
    """Open the sealed object in a folder or a store. They may belong to a hostile host; nothing there is believed.

    ``threads`` (1 or 2; by default 2 where there are two processors) decrypt a read of several segments.

    Raises Untrusted (not the expected manifest, not signed by one of ``signer_keys``, not ``owner``'s, another
    key, sizes that differ, files missing), Malformed or Unavailable.
    """
    if isinstance(source, Path):
        source = FolderSource(source)
    envelope = parse_envelope(source.envelope())
    # 1.–4. Digest, signature, form and owner of the manifest.
    manifest = verify_manifest(envelope, expected_digest=expected_digest, signer_keys=signer_keys, owner=owner)
    # 5. The key is the one that the manifest commits to, so its ciphertext opens in one way only.
    check_dek(manifest, dek)
    # 6. Every file is there with the size that was signed.
    for index, entry in enumerate(manifest.files):
        source.open(member_name(index), entry.ciphertext_size).close()
    # 7. Segments are checked one by one when they are read, and roots by check_roots.
    helped = (threads if threads is not None else len(os.sched_getaffinity(0))) > 1
    return SealedObject(source, envelope, manifest, file_key(dek), helped=helped)


class SealedFile(io.BufferedReader):
    """Plaintext of one file: read-only, seekable, with its ``size`` in bytes as fsspec's files have.

    ``readinto`` of a large buffer decrypts right into it; that is the fastest way, and ``segments`` the next.
    """

    raw: StreamReader

    def __init__(self, reader: StreamReader) -> None:
        super().__init__(reader, _BUFFER)
        self.size = reader.size

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file. A large read takes just what was asked for: the base class would fill its buffer as well,
        from a segment that nobody may want, unless what was asked for is so many buffers."""
        wanted = self.size if size is None or size < 0 else size
        if wanted < _BUFFER or wanted % _BUFFER == 0:
            return super().read(size)
        out = io.BytesIO(bytes(min(wanted, max(0, self.size - self.tell()))))  # gives its only buffer out uncopied
        with out.getbuffer() as view:
            self.readinto(view)
        return out.getvalue()

    def read_buffer(self, size: int, /) -> memoryview:
        """``read`` for those who take any buffer, as pyarrow asks for it: in memory that nobody had to clear before.
        For that, whole buffers are read: some bytes more than were asked for are decrypted, and not given out."""
        if size < 0:
            return memoryview(self.read())
        at = self.tell()
        found = memoryview(super().read(-(-size // _BUFFER) * _BUFFER))[:size]
        self.seek(at + len(found))
        return found

    def segments(self) -> Iterator[memoryview]:
        """The rest of the file piece by piece, each up to the end of a segment and valid until the next is asked for.

        All pieces lie in one buffer: this is the fastest way to read a large file in little memory.
        """
        at = self.tell()
        try:
            for piece in self.raw.pieces(at) if at < self.size else ():
                at += len(piece)
                yield piece
        finally:
            if not self.closed:
                self.seek(at)


class SealedObject:
    """A verified object, from ``open_sealed``. Close it, or use it in ``with``: that drops the key.

    Files may be read by several threads, each through a file of its own. Not across ``fork``: open it anew there.
    """

    def __init__(
        self, source: ObjectSource, envelope: Envelope, manifest: Manifest, key: bytes, *, helped: bool = False
    ) -> None:
        self.envelope = envelope
        self.manifest = manifest
        self._source = source
        self._key: bytes | None = key
        self._index = {entry.path: i for i, entry in enumerate(manifest.files)}
        self._ciphers: dict[int, SegmentCipher] = {}
        self._ledger = RootLedger(manifest.files, stable=isinstance(source, OwnFolder))
        self._helper = Helper() if helped else None
        self._check: threading.Thread | None = None
        self._stop = threading.Event()

    @property
    def digest(self) -> bytes:
        """The asset's digest, 32 bytes."""
        return self.envelope.digest

    def paths(self) -> tuple[str, ...]:
        """In the manifest's order."""
        return tuple(self._index)

    def entry(self, path: str) -> FileEntry:
        return self.manifest.files[self._find(path)]

    def _find(self, path: str) -> int:
        if path not in self._index:
            raise Misuse("sealed.path", "The sealed object has no file of that path; list its paths.")
        return self._index[path]

    def open(self, path: str) -> SealedFile:
        """A seekable, read-only binary file of plaintext. Its last and first segments are checked before it is opened
        for the first time; that it is of its full length, each time.

        Raises Misuse (no such path, object closed), Untrusted or Unavailable; reading raises those two as well.
        """
        key = self._held_key()
        index = self._find(path)
        entry = self.manifest.files[index]
        file = self._source.open(member_name(index), entry.ciphertext_size)
        aad = associated_data(self.manifest, self.manifest.dek_commit, path, index)
        try:
            reader = StreamReader(
                file,
                key,
                aad,
                inspect=self._ledger.observer(index),
                helper=self._helper,
                cipher=self._ciphers.get(index),
            )
        except BaseException:
            file.close()
            raise
        if reader.size != entry.plaintext_size:  # it grew between two looks at it
            reader.close()
            raise Untrusted("sealed.size", "A file of the sealed object has not the size that its manifest names.")
        self._ciphers[index] = reader.cipher
        return SealedFile(reader)

    def read(self, path: str) -> bytes:
        """All of one file. Only for what is known to be small; sizes are in ``entry``."""
        with self.open(path) as file:
            return file.read()

    def check_roots(self, *, background: bool = False) -> None:
        """Hash every block that wasn't read yet and compare the roots with the manifest's.

        Raises Untrusted or Unavailable. In the background it returns at once, and ``require_complete`` waits for it
        and raises what it found.
        """
        self._held_key()
        if not background:
            self._check_all(self._helper)
        elif self._check is None:
            self._check = threading.Thread(target=self._check_quietly, name="cloister-check", daemon=True)
            self._check.start()

    def require_complete(self) -> None:
        """Call before anything is released. Returns only if all roots are right and all that was read, up to
        now, was that same ciphertext. Raises Untrusted otherwise, and then ever again."""
        self._held_key()
        if self._check is not None:
            self._check.join()
        self._ledger.require_complete()

    def _held_key(self) -> bytes:
        if self._key is None:
            raise Misuse("sealed.closed", "The sealed object is closed; open it again.")
        return self._key

    def _check_quietly(self) -> None:
        try:
            self._check_all()
        except CloisterError as error:
            self._ledger.fail(error)
        except Exception:  # noqa: BLE001  a thread has no caller; require_complete raises it instead
            self._ledger.fail(Internal("sealed.check", "The check of a sealed object broke off; report this."))

    def _check_all(self, helper: Helper | None = None) -> None:
        for index, entry in enumerate(self.manifest.files):
            missing = self._ledger.missing(index)
            if not missing:
                continue
            with closing(self._source.open(member_name(index), entry.ciphertext_size)) as file:
                source = BlockSource(file, AES256_GCM_HKDF_1MB)
                if source.size != entry.ciphertext_size:
                    raise Untrusted("sealed.size", "A file of the sealed object changed its size; fetch it again.")
                work, half = partial(self._check_blocks, index, source), len(missing) // 2
                if helper is not None and half and source.shared:
                    helper.both(partial(work, missing[half:]), partial(work, missing[:half]))
                else:
                    work(missing)
        self._ledger.require_intact()  # what readers saw counts as well

    def _check_blocks(self, index: int, source: BlockSource, numbers: Sequence[int]) -> None:
        for number in numbers:
            if self._stop.is_set():
                return
            with source.block(number) as block:
                self._ledger.check(index, number, block)

    def close(self) -> None:
        """Stop checking and drop the key. Files that are still open can be closed, but not read any further."""
        self._key = None
        self._ciphers.clear()
        self._stop.set()
        if self._check is not None:
            self._check.join()
        self._ledger.close()
        if self._helper is not None:
            self._helper.close()

    def __enter__(self) -> SealedObject:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SealedObject({self.manifest.name} version {self.manifest.version}, {self.digest.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open sealed object holds a key and is not pickled")
