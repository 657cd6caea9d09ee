"""The two sides of ``sealed_io``: what Cloister does, and the least that anybody would have to do.

A limit shares no code with Cloister but the derivation of the key: the library's bare calls on a plainly mapped file,
one after the other, into one buffer that is used again.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import mmap
import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tink
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from tink import cleartext_keyset_handle, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, tink_pb2

from cloister.crypto import Envelope, SigningKey, hkdf
from cloister.crypto.segments import AES256_GCM_HKDF_1MB as FORM
from cloister.sealed import SealedObject, SealIdentity, associated_data, file_key, member_name, open_sealed, seal_object
from cloister.sealed.folder import FolderSource, OwnFolder

__all__ = ["Object", "Work", "in_threads", "random_plaintext", "write_limit"]

MIB = FORM.segment_size
Work = Callable[[], object]
_SIGNER = SigningKey(b"the benchmark's signing seed 32B")


def random_plaintext(size: int) -> io.BytesIO:
    """Bytes that don't compress, in memory. Repeating them every 32 MiB changes nothing for a cipher."""
    part = secrets.token_bytes(min(size, 32 * MIB))
    out = io.BytesIO()
    while out.tell() < size:
        out.write(part[: size - out.tell()])
    out.seek(0)
    return out


def in_threads(parts: Sequence[Work]) -> None:
    """Run each in a thread of its own; one alone runs here. Raises what one of them raised."""
    if len(parts) == 1:
        parts[0]()
        return
    with ThreadPoolExecutor(max_workers=len(parts)) as pool:
        for running in [pool.submit(part) for part in parts]:
            running.result()


@dataclass(frozen=True)
class Object:
    """A sealed object of the benchmark and all that is needed to read it, with and without Cloister."""

    folder: Path
    digest: bytes
    dek: bytes

    @classmethod
    def seal(cls, folder: Path, files: Sequence[tuple[str, Path | io.BytesIO]]) -> Object:
        dek = secrets.token_bytes(32)
        identity = SealIdentity(
            owner="bench", asset_id=bytes(16), name="bench/object", version=1, asset_class="dataset", created=1
        )
        sealed = seal_object(files, folder, dek=dek, identity=identity, sign=_sign, terms={})
        return cls(folder, sealed.digest, dek)

    def open(self, *, own: bool, threads: int = 1) -> SealedObject:
        """``own``: the folder is nobody else's, so blocks are decrypted from the map; else they are copied first."""
        source = OwnFolder(self.folder) if own else FolderSource(self.folder)
        return self.open_source(source, threads=threads)

    def open_source(self, source: FolderSource, *, threads: int = 1) -> SealedObject:
        return open_sealed(
            source, dek=self.dek, expected_digest=self.digest, signer_keys=[_SIGNER.public], threads=threads
        )

    def ciphertext(self) -> Path:
        return self.folder / member_name(0)

    # -- Cloister's side -------------------------------------------------------------------------------------------

    def stream(self, *, own: bool, threads: int, roots: bool = False) -> None:
        """All of the first file through each segment's buffer, by as many readers; ``roots``: then all is checked."""
        with self.open(own=own, threads=threads if roots else 1) as sealed:
            path = sealed.paths()[0]
            count = FORM.blocks(sealed.entry(path).ciphertext_size)
            in_threads([_part(sealed, path, first, last) for first, last in _shares(count, threads)])
            if roots:
                sealed.check_roots()
                sealed.require_complete()

    # -- the limits ------------------------------------------------------------------------------------------------

    def _bare(self) -> tuple[AESGCM, bytes]:
        with self.open(own=False) as sealed:
            manifest, path = sealed.manifest, sealed.paths()[0]
        with self.ciphertext().open("rb") as file:
            header = file.read(FORM.header_size)
        aad = associated_data(manifest, manifest.dek_commit, path, 0)
        return AESGCM(hkdf(file_key(self.dek), salt=header[1:33], info=aad, length=32)), header[33:]

    def bare_decrypt(self, threads: int, *, sha256: bool = False, touched: mmap.mmap | None = None) -> Work:
        """Bare ``decrypt_into`` of each segment of the file, newly mapped unless ``touched``, and nothing else."""
        aes, prefix = self._bare()

        def work(first: int, last: int, view: memoryview, count: int) -> None:
            out = bytearray(FORM.capacity)
            for n in range(first, last):
                block = view[n * MIB : (n + 1) * MIB]
                if sha256:
                    hashlib.sha256(block).digest()
                body = block if n else block[FORM.header_size :]
                nonce = prefix + n.to_bytes(4, "big") + bytes([n == count - 1])
                aes.decrypt_into(nonce, body, None, memoryview(out)[: len(body) - 16])

        def go() -> None:
            view = memoryview(touched if touched is not None else self.mapped())
            count = -(-len(view) // MIB)
            in_threads([partial(work, first, last, view, count) for first, last in _shares(count, threads)])

        return go

    def mapped(self, *, touched: bool = False) -> mmap.mmap:
        with self.ciphertext().open("rb") as file:
            flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if touched else 0)
            return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=flags)

    def tink_read(self, piece: int = -1) -> Work:
        """The same file through Tink's own Python library: all at once as in its guide, or in pieces."""
        with self.open(own=False) as sealed:
            aad = associated_data(sealed.manifest, sealed.manifest.dek_commit, sealed.paths()[0], 0)
        primitive = _tink_primitive(file_key(self.dek))

        def go() -> None:
            with self.ciphertext().open("rb") as file, primitive.new_decrypting_stream(file, aad) as stream:
                while stream.read(piece):
                    pass

        return go


def write_limit(folder: Path, plaintext: memoryview) -> None:
    """Bare ``encrypt_into``, plain writes, and the syncs that make a new folder durable: file, a small second file,
    folder, and the parent after the rename."""
    work = folder.with_name(folder.name + ".new")
    work.mkdir()
    aes, block = AESGCM(secrets.token_bytes(32)), memoryview(bytearray(MIB))
    with (work / "0").open("wb", buffering=0) as file:
        for n, start in enumerate(range(0, len(plaintext), FORM.capacity)):
            part = plaintext[start : start + FORM.capacity]
            out = block[: len(part) + 16]
            aes.encrypt_into(n.to_bytes(12, "big"), part, None, out)
            file.write(out)
        os.fsync(file.fileno())
    with (work / "manifest").open("wb") as file:
        file.write(b"{}")
        file.flush()
        os.fsync(file.fileno())
    _sync(work)
    work.rename(folder)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _sign(kind: str, payload: bytes) -> Envelope:
    return Envelope(kind, payload).signed_by(_SIGNER)


def _shares(count: int, threads: int) -> list[tuple[int, int]]:
    edges = [count * i // threads for i in range(threads + 1)]
    return list(itertools.pairwise(edges))


def _part(sealed: SealedObject, path: str, first: int, last: int) -> Work:
    def read() -> None:
        with sealed.open(path) as file:
            file.seek(FORM.start(first))
            left = min(FORM.start(last), file.size) - FORM.start(first)
            for piece in file.segments():
                left -= len(piece)
                if left <= 0:
                    break

    return read


def _tink_primitive(key: bytes) -> streaming_aead.StreamingAead:
    streaming_aead.register()
    params = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
        ciphertext_segment_size=MIB, derived_key_size=32, hkdf_hash_type=3
    )
    proto = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(version=0, params=params, key_value=key)
    data = tink_pb2.KeyData(
        type_url="type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
        value=proto.SerializeToString(),
        key_material_type=tink_pb2.KeyData.SYMMETRIC,
    )
    entry = tink_pb2.Keyset.Key(key_data=data, status=tink_pb2.ENABLED, key_id=1, output_prefix_type=tink_pb2.RAW)
    keyset = tink_pb2.Keyset(primary_key_id=1, key=[entry])
    return cleartext_keyset_handle.read(tink.BinaryKeysetReader(keyset.SerializeToString())).primitive(
        streaming_aead.StreamingAead
    )
