"""Which names a file inside a sealed object may have, and how a folder becomes a list of such files."""

from __future__ import annotations

import os
import stat
import unicodedata
from pathlib import Path

from ..errors import Malformed, Misuse

__all__ = ["MAX_COMPONENT", "MAX_PATH", "PathSet", "check_path", "folder_files"]

MAX_PATH = 512  # UTF-8 bytes
MAX_COMPONENT = 255  # what Linux file systems take


def check_path(path: str) -> None:
    """Raise Malformed unless ``path`` is relative, normal, and means the same to every reader.

    Whoever unpacks or mounts an object joins this name to a folder of its own, so a name that climbs out, is
    absolute, or is spelled in two ways (Unicode NFC, a second slash) would be an attack.
    """
    bad = Malformed(
        "manifest.path",
        "A file's path must be relative, with '/' between names, without '..', backslash or control characters, "
        "and in Unicode form NFC.",
    )
    parts = path.split("/")
    try:
        sizes = [len(part.encode()) for part in parts]
    except UnicodeEncodeError:
        raise bad from None
    if sum(sizes) + len(parts) - 1 > MAX_PATH or max(sizes) > MAX_COMPONENT:
        raise Malformed("manifest.path_length", f"A file's path is longer than {MAX_PATH} bytes; shorten it.")
    if any(part in {"", ".", ".."} for part in parts):
        raise bad
    if "\\" in path or not unicodedata.is_normalized("NFC", path):
        raise bad
    # Cc control, Cf format (bidirectional overrides hide what a name says), Zl/Zp line and paragraph separators.
    if any(unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"} for c in path):
        raise bad


class PathSet:
    """The paths of one object: none twice, and none a folder of another."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def add(self, path: str) -> None:
        """Check ``path`` by itself and against those added before. Raises Malformed."""
        check_path(path)
        parts = path.split("/")
        above = {"/".join(parts[:i]) for i in range(1, len(parts))}
        if path in self._files or path in self._folders or above & self._files:
            raise Malformed("manifest.path_twice", "A path of the object stands twice or is also a folder; rename one.")
        self._files.add(path)
        self._folders |= above


def folder_files(root: Path) -> list[tuple[str, Path]]:
    """Every regular file under ``root`` as (path in the object, place on disk), sorted by path.

    Raises Misuse for links and special files: what a link points at may be outside of what the owner meant to seal.
    """
    found: list[tuple[str, Path]] = []
    try:
        for folder, names, files in os.walk(root, onerror=_raise):
            for name in (*names, *files):
                place = Path(folder, name)
                mode = place.lstat().st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise Misuse("sealed.special", "The folder holds a link or a special file; copy in the real file.")
                if stat.S_ISREG(mode):
                    found.append((place.relative_to(root).as_posix(), place))
    except OSError:
        raise Misuse(
            "sealed.source", "The folder to seal can't be read; check that it exists and is readable."
        ) from None
    if not found:
        raise Misuse("sealed.empty", "The folder to seal holds no files.")
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error
