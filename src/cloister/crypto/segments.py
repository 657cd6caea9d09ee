"""One segment of a stream at a time, and the arithmetic of lengths. ``streaming`` describes the format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..errors import Malformed, Misuse, Untrusted
from .framing import random_bytes
from .kdf import hkdf

__all__ = ["AES256_GCM_HKDF_1MB", "TAG_SIZE", "SegmentCipher", "StreamFormat"]

TAG_SIZE = 16
_PREFIX = 7
_Bytes = bytes | bytearray | memoryview
_MAX_SEGMENTS = 2**32


@dataclass(frozen=True)
class StreamFormat:
    """One member of Tink's family, and the arithmetic of lengths in it (all in bytes).

    ``capacity``: plaintext bytes in a full segment; the first holds ``header_size`` fewer.
    """

    key_size: int = 32
    segment_size: int = 1024 * 1024
    hash_name: str = "sha256"
    header_size: int = field(init=False)
    capacity: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "header_size", 1 + self.key_size + _PREFIX)
        object.__setattr__(self, "capacity", self.segment_size - TAG_SIZE)
        if self.key_size not in (16, 32) or self.hash_name not in ("sha1", "sha256", "sha512"):
            raise Misuse("stream.format", "A streaming format takes keys of 16 or 32 bytes and SHA-1, -256 or -512.")
        if self.segment_size <= self.header_size + TAG_SIZE:
            raise Misuse("stream.format", "A streaming format's segments must be longer than header and tag.")

    def segments(self, plaintext_size: int) -> int:
        """How many segments a plaintext takes: at least one, and the last is never empty unless it is the only one."""
        return max(1, -(-(plaintext_size + self.header_size) // self.capacity))

    def ciphertext_size(self, plaintext_size: int) -> int:
        return self.header_size + plaintext_size + TAG_SIZE * self.segments(plaintext_size)

    def blocks(self, ciphertext_size: int) -> int:
        return -(-ciphertext_size // self.segment_size)

    def plaintext_size(self, ciphertext_size: int) -> int:
        """The inverse of ``ciphertext_size``. Raises Malformed for a length that no plaintext has."""
        size = ciphertext_size - self.header_size - TAG_SIZE * self.blocks(ciphertext_size)
        if size < 0 or self.ciphertext_size(size) != ciphertext_size:
            raise Malformed("stream.length", "A sealed file has a length that no sealed file can have; fetch it again.")
        if self.blocks(ciphertext_size) > _MAX_SEGMENTS:
            raise Malformed("stream.length", "A sealed file is longer than its format allows; split it before sealing.")
        return size

    def room(self, segment: int) -> int:
        """Plaintext bytes that segment number ``segment`` can hold."""
        return self.capacity - (self.header_size if segment == 0 else 0)

    def start(self, segment: int) -> int:
        """Plaintext position of the first byte of a segment."""
        return segment * self.capacity - self.header_size if segment else 0

    def segment_at(self, position: int) -> int:
        """The segment that holds the plaintext byte at ``position``."""
        return (position + self.header_size) // self.capacity


AES256_GCM_HKDF_1MB = StreamFormat()


class SegmentCipher:
    """The derived key and nonce prefix of one stream. Works between the caller's buffers and releases the GIL.

    For writing, the header is always fresh and segments are accepted in order, each once: no nonce can repeat.
    """

    __slots__ = ("_aes", "_next", "_prefix", "format", "header")

    def __init__(self, key: bytes, header: bytes, aad: bytes, form: StreamFormat, *, writing: bool) -> None:
        if len(key) < form.key_size:
            raise Misuse("stream.key", f"A stream's key has at least {form.key_size} bytes.")
        if len(header) != form.header_size or header[0] != form.header_size:
            raise Malformed("stream.header", "A file does not start like a sealed file; fetch it again.")
        salt, self._prefix = header[1 : 1 + form.key_size], header[1 + form.key_size :]
        self._aes = AESGCM(hkdf(key, salt=salt, info=aad, length=form.key_size, hash_name=form.hash_name))
        self._next = 0 if writing else -1
        self.format = form
        self.header = header

    @classmethod
    def for_writing(cls, key: bytes, aad: bytes, form: StreamFormat = AES256_GCM_HKDF_1MB) -> SegmentCipher:
        header = bytes([form.header_size]) + random_bytes(form.key_size + _PREFIX)
        return cls(key, header, aad, form, writing=True)

    @classmethod
    def for_reading(
        cls, key: bytes, header: bytes, aad: bytes, form: StreamFormat = AES256_GCM_HKDF_1MB
    ) -> SegmentCipher:
        return cls(key, header, aad, form, writing=False)

    def _nonce(self, segment: int, last: bool) -> bytes:
        return self._prefix + segment.to_bytes(4, "big") + bytes([last])

    def encrypt_into(self, segment: int, last: bool, plaintext: _Bytes, out: bytearray | memoryview) -> int:
        """Fill ``out``, which must be exactly 16 bytes longer than ``plaintext``; returns its length."""
        if segment != self._next or segment >= _MAX_SEGMENTS:
            raise Misuse("stream.order", "Segments are written once each, in order; start a new stream.")
        written = self._aes.encrypt_into(self._nonce(segment, last), plaintext, None, out)
        self._next = -1 if last else segment + 1
        return written

    def decrypt_into(self, segment: int, last: bool, ciphertext: _Bytes, out: bytearray | memoryview) -> int:
        """Fill ``out``, exactly 16 bytes shorter than ``ciphertext``; returns its length.

        Raises Untrusted for anything but that segment of that stream, and then ``out`` holds zeros: the library
        decrypts before it knows the tag is wrong, and bytes that an attacker chose must not stay behind.
        """
        try:
            return self._aes.decrypt_into(self._nonce(segment, last), ciphertext, None, out)
        except InvalidTag:
            view = memoryview(out).cast("B")
            view[:] = bytes(len(view))
            raise Untrusted(
                "stream.segment",
                "A segment of a sealed file does not open: the file was changed, or this is another file's key.",
                segment=segment,
            ) from None

    def __repr__(self) -> str:
        return f"SegmentCipher({self.format})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a cipher is not pickled")
