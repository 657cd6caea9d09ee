"""What a virtual machine's firmware image (OVMF, TDVF) says of itself: the table of GUIDs at its end.

The source is OVMF's own (edk2, OvmfPkg/ResetVector): entries of data, then a length (2 bytes, of the whole entry) and a
GUID (16); the table's last entry is its footer, 32 bytes before the end of the image. It is read from the end on.
"""

from __future__ import annotations

import uuid
from typing import Final

from ..errors import Malformed

__all__ = ["MAX_FIRMWARE", "PAGE", "at_end", "guid_table"]

MAX_FIRMWARE: Final = 64 * 1024 * 1024
PAGE: Final = 4096
_FOOTER: Final = "96b582de-1fb2-45f7-baea-a366c55a082d"
_AFTER: Final = 32
_HEAD: Final = 2 + 16
_MOST_ENTRIES: Final = 64


def guid_table(image: bytes) -> dict[str, bytes]:
    """The entries' data by GUID. Raises Malformed for an image that has no such table, or isn't whole pages."""
    if not 0 < len(image) <= MAX_FIRMWARE or len(image) % PAGE:
        raise bad("is not whole pages of at most 64 MiB")
    end = len(image) - _AFTER
    size, guid = _head(image, end)
    if guid != _FOOTER or not _HEAD <= size <= end:
        raise bad("has no table that describes it")
    start, at = end - size, end - _HEAD
    found: dict[str, bytes] = {}
    while at > start:
        if at - start < _HEAD:
            raise bad("has a table of another form")
        size, guid = _head(image, at)
        if not _HEAD <= size <= at - start or guid in found or len(found) >= _MOST_ENTRIES:
            raise bad("has a table of another form")
        found[guid] = image[at - size : at - _HEAD]
        at -= size
    return found


def _head(image: bytes, end: int) -> tuple[int, str]:
    raw = image[end - _HEAD : end]
    return int.from_bytes(raw[:2], "little"), str(uuid.UUID(bytes_le=raw[2:]))


def at_end(image: bytes, entry: bytes, size: int) -> int:
    """The position of a structure of ``size`` bytes whose distance from the image's end stands in an entry."""
    if len(entry) < 4:
        raise bad("has a table of another form")
    position = len(image) - int.from_bytes(entry[:4], "little")
    if not 0 <= position <= len(image) - size:
        raise bad("points outside itself")
    return position


def bad(why: str) -> Malformed:
    """The error to raise, with a reason that completes the sentence."""
    return Malformed("firmware.form", f"The firmware image {why}; give the file that the machine is started with.")
