"""What runs in the sandbox, as one digest: the file tree of the image and how it is started.

    tree        = H(frame("cloister/tree/v1", one line for each entry, sorted by path))
    line        = frame(path, "d" | "l" | "f" | "x", H(content) | link target | "")      x: an executable file
    measurement = H(frame("cloister/workload/v1", tree, H(JCS(launch specification))))

Owner, times, link count and the other permission bits don't enter: they can't change what is executed inside a
read-only mount without privileges, and they differ from machine to machine.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..crypto import canonical_json, frame, sha256
from ..errors import Malformed, Misuse

__all__ = ["TreeEntry", "diff_trees", "measure_tree", "measurement", "tree_digest", "tree_manifest"]

_THREADS = 2
_BATCH = 64


@dataclass(frozen=True)
class TreeEntry:
    """One entry of a measured tree: ``content`` is a file's SHA-256 or a link's target, empty for a folder."""

    path: str
    kind: str
    content: bytes

    def line(self) -> bytes:
        return frame(self.path, self.kind, self.content)


def _hash_file(path: Path) -> bytes:
    # O_NOFOLLOW: a file that became a link since it was listed must not be measured as its target.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            path = f"{prefix}{entry.name}"
            yield path, entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{path}/")


def _check(path: str, mode: int) -> None:
    if mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISDIR(mode):
        raise Malformed("measure.setuid", f"The image holds a set-user-id or set-group-id file, {path!r}; rebuild it.")
    if mode & stat.S_IWOTH and not stat.S_ISLNK(mode):
        raise Malformed("measure.writable", f"Everybody may write {path!r} in the image; rebuild it.")


def _entry(path: str, item: os.DirEntry[str]) -> TreeEntry:
    mode = item.stat(follow_symlinks=False).st_mode
    _check(path, mode)
    if stat.S_ISLNK(mode):
        return TreeEntry(path, "l", os.fsencode(os.readlink(item.path)))
    if stat.S_ISDIR(mode):
        return TreeEntry(path, "d", b"")
    if stat.S_ISREG(mode):
        return TreeEntry(path, "x" if mode & 0o111 else "f", _hash_file(Path(item.path)))
    raise Malformed("measure.special", f"The image holds a device, pipe or socket, {path!r}; rebuild it.")


def _entries(batch: list[tuple[str, os.DirEntry[str]]]) -> list[TreeEntry]:
    return [_entry(path, item) for path, item in batch]


def tree_manifest(root: Path) -> tuple[TreeEntry, ...]:
    """Every entry below ``root``, sorted by path. Raises Malformed for what no image holds, Misuse if unreadable."""
    try:
        found = list(_walk(root, ""))
        batches = [found[i : i + _BATCH] for i in range(0, len(found), _BATCH)]
        # Hashing releases the interpreter's lock, so two threads use two cores for the large libraries.
        with ThreadPoolExecutor(_THREADS) as pool:
            entries = [entry for part in pool.map(_entries, batches) for entry in part]
    except OSError as error:
        raise Misuse("measure.read", f"The image can't be read ({error.strerror}); check its path and owner.") from None
    try:
        return tuple(sorted(entries, key=lambda e: e.path.encode()))
    except UnicodeEncodeError:
        raise Malformed("measure.name", "The image holds a file name that is not UTF-8; rebuild it.") from None


def tree_digest(manifest: tuple[TreeEntry, ...]) -> bytes:
    """The digest of a manifest, 32 bytes."""
    return sha256(frame("cloister/tree/v1", *(entry.line() for entry in manifest)))


def measure_tree(root: Path) -> bytes:
    """SHA-256 over the tree below ``root``, 32 bytes; errors as ``tree_manifest``."""
    return tree_digest(tree_manifest(root))


def measurement(tree: bytes, launch_spec: dict[str, object]) -> bytes:
    """The workload's measurement, 32 bytes: what a contract lists and evidence claims."""
    if len(tree) != 32:
        raise Misuse("measure.tree", "A tree digest has 32 bytes; pass what measure_tree returned.")
    return sha256(frame("cloister/workload/v1", tree, sha256(canonical_json(launch_spec))))


def diff_trees(old: tuple[TreeEntry, ...], new: tuple[TreeEntry, ...]) -> tuple[str, ...]:
    """What changed between two manifests, one line for each path: ``+ added``, ``- removed``, ``~ changed``."""
    before, after = {e.path: e for e in old}, {e.path: e for e in new}
    lines = []
    for path in sorted(before.keys() | after.keys()):
        if path not in before:
            lines.append(f"+ {path}")
        elif path not in after:
            lines.append(f"- {path}")
        elif before[path] != after[path]:
            lines.append(f"~ {path}")
    return tuple(lines)
