"""A copy of a log that needs no server: its tiles, bundles and signed head as files, in the paths of C2SP tlog-tiles.

It is what ``check_log`` reads and what any server of static files can show, wherever the log itself lies.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import Misuse
from .checkpoint import parse_checkpoint_text
from .files import write_all, writing
from .log import AuditLog
from .note import Note
from .tiles import HEIGHT, WIDTH, resource_path

__all__ = ["export_log"]


def export_log(log: AuditLog, folder: Path) -> int:
    """Write the log as it is now; the number of its entries. Memory is bounded, however long the log is.

    Raises Misuse("export.exists") if ``folder`` is there, Untrusted where an entry is not what was logged,
    Unavailable("audit.unwritable").
    """
    note = log.head()
    size = parse_checkpoint_text(Note.parse(note).text).size
    if folder.exists():
        raise Misuse("export.exists", "There is something at that path already; name a new folder.")
    for path in _paths(size):
        _write(folder / path, log.resource(path))
    _write(folder / "checkpoint", note.encode())  # last: a copy that was broken off has none
    return size


def _paths(size: int) -> Iterator[str]:
    for level in (None, *range(-(-size.bit_length() // HEIGHT))):
        hashes = size >> HEIGHT * (level or 0)
        for index in range(hashes // WIDTH):
            yield resource_path(level, index)
        if hashes % WIDTH:
            yield resource_path(level, hashes // WIDTH, hashes % WIDTH)


def _write(path: Path, data: bytes) -> None:
    with writing():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("xb") as file:
            write_all(file.fileno(), data)
