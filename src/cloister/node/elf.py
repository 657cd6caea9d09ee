"""Which shared libraries an ELF file needs, read from its dynamic section.

Nothing is executed: ``ldd`` would run the loader on files that have not been measured yet.
Source of the layout: System V ABI, chapters 4 and 5 (64-bit, little-endian).
"""

from __future__ import annotations

import mmap
import struct
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import Misuse

__all__ = ["ElfInfo", "read_elf", "system_libraries"]

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB = 1, 5
_MAX_HEADERS, _MAX_DYNAMIC = 128, 1024
# Loaded by libc itself when a thread is cancelled or a C++ exception unwinds, so no file names it as needed.
_IMPLICIT = ("libgcc_s.so.1",)


@dataclass(frozen=True)
class ElfInfo:
    """``needed``: names of shared libraries. ``interpreter``: the loader's path, of programs only."""

    needed: tuple[str, ...] = ()
    interpreter: str | None = None


def _text(data: mmap.mmap, start: int) -> str:
    end = data.find(b"\0", start)
    if end < 0:
        raise ValueError("text without an end")
    return data[start:end].decode()


def _segments(data: mmap.mmap) -> list[tuple[int, int, int, int]]:
    """(type, offset, virtual address, size in file) of each program header."""
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    found = []
    for i in range(min(count, _MAX_HEADERS)):
        kind, _, start, address, _, length = struct.unpack_from("<IIQQQQ", data, offset + i * size)
        found.append((kind, start, address, length))
    return found


def _needed(data: mmap.mmap, segments: list[tuple[int, int, int, int]]) -> tuple[str, ...]:
    names: list[int] = []
    table = None
    for start in (s for kind, s, _, _ in segments if kind == _PT_DYNAMIC):
        for i in range(_MAX_DYNAMIC):
            tag, value = struct.unpack_from("<qQ", data, start + 16 * i)
            if tag == 0:
                break
            if tag == _DT_NEEDED:
                names.append(value)
            elif tag == _DT_STRTAB:
                table = next(s + value - a for kind, s, a, n in segments if kind == _PT_LOAD and a <= value < a + n)
    return tuple(_text(data, table + name) for name in names) if table is not None else ()


def read_elf(path: Path) -> ElfInfo | None:
    """What ``path`` needs, or None if it is not a 64-bit little-endian ELF file. Raises Misuse if it is damaged."""
    with path.open("rb") as file:
        if file.read(6) != b"\x7fELF\x02\x01":
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                segments = _segments(data)
                interpreter = next((_text(data, s) for kind, s, _, _ in segments if kind == _PT_INTERP), None)
                return ElfInfo(_needed(data, segments), interpreter)
            except (struct.error, ValueError, StopIteration):
                raise Misuse(
                    "image.elf", f"{path} is a damaged ELF file; reinstall the package that owns it."
                ) from None


def _folders(prefix: Path) -> list[Path]:
    arch = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    names = (f"/lib/{arch}", f"/usr/lib/{arch}", "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
    return [Path(n) for n in names] + [prefix / "lib"]


def system_libraries(files: Iterable[Path], bundled: frozenset[str], prefix: Path) -> dict[str, Path]:
    """The libraries of the host, by name, that ``files`` need, and what those need in turn.

    ``bundled``: names of libraries that packages carry themselves. ``prefix``: where the interpreter is installed. A
    name that is nowhere is left out: it belongs to an optional module (CUDA), whose import then says so.
    """
    folders, found = _folders(prefix), dict[str, Path]()
    queue = [name for file in files if (info := read_elf(file)) for name in info.needed] + list(_IMPLICIT)
    while queue:
        name = queue.pop()
        if name in found or name in bundled:
            continue
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is not None:
            found[name] = path.resolve()
            info = read_elf(found[name])
            queue += info.needed if info else ()
    return found
