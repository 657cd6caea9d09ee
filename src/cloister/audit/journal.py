"""The write-ahead journal: entries that no full bundle holds yet.

File ``journal``: ``"cloister/journal/v1\\n" ‖ base (8) ‖ checksum (16)``, then per entry
``length (2) ‖ entry ‖ checksum (16)``, integers big-endian. A checksum is the first 16 bytes of
``SHA-256(frame("cloister/journal/v1", index, entry))`` (header: index = base, entry empty), so a frame can't count
in another place. Checksums find torn writes; against people, the Merkle tree and its signed head protect.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..crypto import frame, sha256
from ..errors import Untrusted
from .files import write_all, writing

__all__ = ["Journal", "JournalContents", "encode_frames", "encode_journal", "parse_journal"]

_MAGIC = b"cloister/journal/v1\n"
_CHECK = 16
_HEADER = len(_MAGIC) + 8 + _CHECK


def _checksum(index: int, entry: bytes) -> bytes:
    return sha256(frame("cloister/journal/v1", index, entry))[:_CHECK]


def encode_frames(first: int, entries: Sequence[bytes]) -> bytes:
    return b"".join(
        len(entry).to_bytes(2, "big") + entry + _checksum(index, entry) for index, entry in enumerate(entries, first)
    )


def encode_journal(base: int, entries: Sequence[bytes]) -> bytes:
    """A whole journal whose first entry has index ``base`` (a multiple of 256)."""
    return _MAGIC + base.to_bytes(8, "big") + _checksum(base, b"") + encode_frames(base, entries)


@dataclass(frozen=True)
class JournalContents:
    """``entries`` are the intact frames from ``base`` on; ``torn`` counts the bytes after them."""

    base: int
    entries: tuple[bytes, ...]
    torn: int


def parse_journal(data: bytes) -> JournalContents:
    """Read up to the first frame that is not whole. Raises Untrusted if the header itself is damaged.

    A header is never torn by a crash: journals are written whole, synced, and only then renamed into place.
    """
    base = int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 8], "big")
    if data[:_HEADER] != encode_journal(base, ()) or base % 256:
        raise Untrusted("log.journal", "The log's journal is damaged at its beginning; restore it from a copy.")
    entries: list[bytes] = []
    at = _HEADER
    while at < len(data):
        length = int.from_bytes(data[at : at + 2], "big")
        entry = data[at + 2 : at + 2 + length]
        after = at + 2 + length + _CHECK
        if not length or data[after - _CHECK : after] != _checksum(base + len(entries), entry):
            break
        entries.append(entry)
        at = after
    return JournalContents(base, tuple(entries), len(data) - at)


class Journal:
    """The open journal: it counts what it holds, and an append returns when the disk has it."""

    def __init__(self, fd: int, base: int, count: int) -> None:
        self._fd = fd
        self.base = base
        self.count = count

    def append(self, entries: Sequence[bytes]) -> None:
        """Write and sync. Raises Unavailable; after that, this journal must not be used again."""
        with writing():
            write_all(self._fd, encode_frames(self.base + self.count, entries))
            os.fsync(self._fd)
        self.count += len(entries)

    def close(self) -> None:
        os.close(self._fd)
