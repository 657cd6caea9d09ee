"""What a sandbox left in its output folder, looked at after it ended: plain files and folders, or nothing is taken."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import Untrusted

__all__ = ["plain_tree", "read_plain"]


def plain_tree(folder: Path) -> list[Path]:
    """``folder`` and everything below it. Raises Untrusted for links, devices, pipes and second names of a file.

    The agent reads and changes these paths with its own rights, so a link made inside would act on the host. Call it
    only when the sandbox has ended: then nobody can exchange an entry between this look and the use.
    """
    found = [folder]
    for root, folders, files in os.walk(folder, onerror=_refuse):
        found += [Path(root, name) for name in (*folders, *files)]
    for path in found:
        info = path.lstat()
        plain = stat.S_ISDIR(info.st_mode) or (stat.S_ISREG(info.st_mode) and info.st_nlink == 1)
        if not plain:
            raise Untrusted("output.link", "The sandbox left something other than plain files in its output folder.")
    return found


def read_plain(path: Path, limit: int) -> bytes:
    """A plain file of at most ``limit`` bytes; Untrusted for anything else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        raise Untrusted("output.missing", "The workload ended well but left no release record.") from None
    with os.fdopen(fd, "rb") as file:
        data = file.read(limit + 1) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    if not 0 < len(data) <= limit:
        raise Untrusted("output.size", "The workload's release record is empty or too long.")
    return data


def _refuse(_: OSError) -> None:
    raise Untrusted("output.unreadable", "The sandbox left a folder that can't be listed in its output folder.")
