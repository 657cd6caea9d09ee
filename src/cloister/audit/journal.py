"""The write-ahead journal: entries that no full bundle holds yet, the heads signed over them, and what is kept aside.

File ``journal``: ``"cloister/journal/v2\\n" ‖ base (8) ‖ checksum (16)``, then frames
``kind (1) ‖ length (4) ‖ body ‖ checksum (16)``, integers big-endian. A checksum is the first 16 bytes of
``SHA-256(frame("cloister/journal/v2", kind, index, body))``, where ``index`` counts the entries before the frame
(header: kind 0, index = base, empty body), so a frame can't count in another place. Checksums find torn writes; against
people, the Merkle tree and its signed head protect.

Kinds: 1, an entry; 2, the head that ends a commit, over all entries before it: ``index of the commit's first entry (8)
‖ signed note``; 3, bytes that the log's owner keeps aside for an entry: ``its index (8) ‖ bytes``. These stand before
the entry they belong to, so a torn write leaves no entry without them, and are no part of the log: nothing hashes or
signs them, and no reader of the log is shown them.

A commit is one write, and nothing follows a write that was not synced. So where bytes are damaged and a whole head
comes after them, that is the torn end of the journal only if this head's commit began where the last whole head before
the damage ends.

Version 1 held frames ``length (2) ‖ entry ‖ checksum (16)`` of entries alone. It is read, and never written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..crypto import frame, sha256
from ..errors import Untrusted
from .files import write_all, writing
from .limits import LIMITS

__all__ = ["Journal", "JournalContents", "encode_frames", "encode_journal", "parse_journal"]

_NAME = "cloister/journal/v2"
_OLD_NAME = "cloister/journal/v1"
_MAGIC = len(_NAME) + 1
_CHECK = 16
_HEADER = _MAGIC + 8 + _CHECK
_START, _ENTRY, _HEAD, _ASIDE = range(4)
# Kind, length (a note that the log writes has under 4 KiB), first entry, origin, size: looking for it stays cheap.
_HEAD_FRAME = re.compile(rb"(?=\x02(\0\0[\0-\x0f].)(.{8})[^\0-\x20]{1,1024}+\n([0-9]{1,16})\n)", re.DOTALL)
_LONGEST = {_ENTRY: LIMITS.entry, _HEAD: 8 + LIMITS.note, _ASIDE: 8 + LIMITS.aside}


def _checksum(kind: int, index: int, body: bytes) -> bytes:
    return sha256(frame(_NAME, kind, index, body))[:_CHECK]


def _old_checksum(index: int, entry: bytes) -> bytes:
    return sha256(frame(_OLD_NAME, index, entry))[:_CHECK]


def _frame(kind: int, index: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(4, "big") + body + _checksum(kind, index, body)


def encode_frames(first: int, entries: Sequence[bytes], note: str | None, asides: Mapping[int, bytes]) -> bytes:
    """Frames of entries from index ``first`` on, each after what is kept aside for it, and of the head over them.

    ``asides``: by an entry's index. What belongs to entries before ``first`` comes at the beginning.
    """
    frames = [_frame(_ASIDE, first, i.to_bytes(8, "big") + asides[i]) for i in sorted(asides) if i < first]
    for index, entry in enumerate(entries, first):
        if index in asides:
            frames.append(_frame(_ASIDE, index, index.to_bytes(8, "big") + asides[index]))
        frames.append(_frame(_ENTRY, index, entry))
    if note is not None:
        frames.append(_frame(_HEAD, first + len(entries), first.to_bytes(8, "big") + note.encode()))
    return b"".join(frames)


def encode_journal(
    base: int, entries: Sequence[bytes], note: str | None = None, asides: Mapping[int, bytes] | None = None
) -> bytes:
    """A whole journal whose first entry has index ``base`` (a multiple of 256)."""
    return _header(base) + encode_frames(base, entries, note, asides or {})


def _header(base: int) -> bytes:
    return f"{_NAME}\n".encode() + base.to_bytes(8, "big") + _checksum(_START, base, b"")


def _old_header(base: int) -> bytes:
    return f"{_OLD_NAME}\n".encode() + base.to_bytes(8, "big") + _old_checksum(base, b"")


@dataclass(frozen=True)
class JournalContents:
    """``entries`` are the intact frames' from ``base`` on; ``torn`` counts the bytes after the last intact frame.

    ``head``: the last signed note, and how many entries stood before it. ``asides``: by the entry's index. ``damaged``:
    what comes after the torn frame shows that it was whole once.
    """

    base: int
    entries: tuple[bytes, ...]
    torn: int
    head: tuple[int, bytes] | None
    asides: Mapping[int, bytes]
    damaged: bool


def parse_journal(data: bytes) -> JournalContents:
    """Read up to the first frame that is not whole. Raises Untrusted if the header itself is damaged.

    A header is never torn by a crash: journals are written whole, synced, and only then renamed into place.
    """
    base = int.from_bytes(data[_MAGIC : _MAGIC + 8], "big")
    old = data[:_HEADER] == _old_header(base)
    if base % 256 or not (old or data[:_HEADER] == _header(base)):
        raise Untrusted("log.journal", "The log's journal is damaged at its beginning; restore it from a copy.")
    entries: list[bytes] = []
    head: tuple[int, bytes] | None = None
    asides: dict[int, bytes] = {}
    at = _HEADER
    for kind, body, after in (_old_frames if old else _frames)(data, base):
        at = after
        if kind == _ENTRY:
            entries.append(body)
        elif kind == _HEAD:
            head = (base + len(entries), body[8:])
        else:
            asides[int.from_bytes(body[:8], "big")] = body[8:]
    end = base + len(entries)
    kept = {index: aside for index, aside in asides.items() if index < end}  # else the entry itself was torn off
    damaged = bool(_commits_after(data, at) - ({head[0]} if head else set()))
    return JournalContents(base, tuple(entries), len(data) - at, head, kept, damaged)


def _commits_after(data: bytes, at: int) -> set[int]:
    """Where the commits began whose heads are whole from ``at`` on. A note tells how many entries precede it."""
    found = set()
    for match in _HEAD_FRAME.finditer(data, at):
        start = match.start() + 5
        end = start + int.from_bytes(match[1], "big")
        if data[end : end + _CHECK] == _checksum(_HEAD, int(match[3]), data[start:end]):
            found.add(int.from_bytes(match[2], "big"))
    return found


def _frames(data: bytes, index: int) -> Iterator[tuple[int, bytes, int]]:
    """Kind, body and end of each frame up to the first that is not whole."""
    at = _HEADER
    while at < len(data):
        kind, length = data[at], int.from_bytes(data[at + 1 : at + 5], "big")
        after = at + 5 + length + _CHECK
        body = data[at + 5 : at + 5 + length]
        if not (1 if kind == _ENTRY else 8) <= length <= _LONGEST.get(kind, 0):
            return
        if data[after - _CHECK : after] != _checksum(kind, index, body):
            return
        yield kind, body, after
        index += kind == _ENTRY
        at = after


def _old_frames(data: bytes, index: int) -> Iterator[tuple[int, bytes, int]]:
    at = _HEADER
    while at < len(data):
        length = int.from_bytes(data[at : at + 2], "big")
        entry = data[at + 2 : at + 2 + length]
        after = at + 2 + length + _CHECK
        if not length or data[after - _CHECK : after] != _old_checksum(index, entry):
            return
        yield _ENTRY, entry, after
        index += 1
        at = after


class Journal:
    """The open journal: it counts what it holds, and an append returns when the disk has it."""

    def __init__(self, fd: int, base: int, count: int, aside: int) -> None:
        self._fd = fd
        self.base = base
        self.count = count
        self.aside = aside  # bytes

    def append(self, entries: Sequence[bytes], note: str, asides: Mapping[int, bytes]) -> None:
        """Write entries and the head over them, and sync once. Raises Unavailable; after that, this journal must not be
        used again."""
        with writing():
            write_all(self._fd, encode_frames(self.base + self.count, entries, note, asides))
            os.fsync(self._fd)
        self.count += len(entries)
        self.aside += sum(map(len, asides.values()))

    def close(self) -> None:
        os.close(self._fd)
