"""Which installed packages, and which of their files, the workload needs: read from the packages' own metadata."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath

from ..errors import Misuse

__all__ = ["closure", "record_text", "train_requirements", "wheel_files"]

# What the trusted code outside training imports: cloister's crypto and sealed packages, and configuration.
BASE = ("cryptography", "fsspec", "pyyaml")
# Needed at installation, for building extensions, or for a network that the sandbox doesn't have.
_LEFT_OUT = frozenset({"pip", "setuptools", "wheel", "hf-xet", "cloister"})
_TEST_FOLDERS = frozenset({"test", "tests"})
_FOLDERS = ("torch/include/", "torch/share/", "torch/test/", "torchgen/packaged/", "pyarrow/include/")
_SUFFIXES = frozenset(
    ".a .c .cc .cmake .cpp .cu .cuh .f .f90 .h .hpp .hxx .map .pc .pxd .pxi .pyc .pyi .pyx .rst".split()  # noqa: SIM905
)
_METADATA = frozenset({"METADATA", "entry_points.txt", "top_level.txt"})
# torch looks for this program when it is imported; the rest of torch/bin are tests and compilers.
_TORCH_BIN = "torch/bin/torch_shm_manager"


def _normal(name: str) -> str:
    """A distribution's name in its normal form (PyPA: name normalization)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise Misuse(
            "image.package", f"The package {name} is not installed here; install cloister with its extra 'train'."
        ) from None


def _requirements(dist: metadata.Distribution, extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    from packaging.requirements import Requirement

    for text in dist.requires or []:
        need = Requirement(text)
        wanted = extras | {""}
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in wanted):
            yield _normal(need.name), frozenset(need.extras)


def train_requirements() -> tuple[str, ...]:
    """Names of the distributions that cloister's extra ``train`` lists."""
    dist, train = _distribution("cloister"), frozenset({"train"})
    plain = list(_requirements(dist, frozenset()))
    return tuple(sorted(name for name, extras in _requirements(dist, train) if (name, extras) not in plain))


def closure(roots: Iterable[str]) -> tuple[metadata.Distribution, ...]:
    """The distributions ``roots`` and everything that they require, sorted by name. Raises Misuse if one is missing."""
    queue: list[tuple[str, frozenset[str]]] = [(_normal(name), frozenset()) for name in roots]
    extras: dict[str, frozenset[str]] = {}
    dists: dict[str, metadata.Distribution] = {}
    while queue:
        name, wanted = queue.pop()
        if name in _LEFT_OUT or (name in dists and wanted <= extras[name]):
            continue
        dists.setdefault(name, _distribution(name))
        extras[name] = extras.get(name, frozenset()) | wanted
        queue += _requirements(dists[name], extras[name])
    return tuple(dists[name] for name in sorted(dists))


def _wanted(path: PurePosixPath) -> bool:
    text = str(path)
    if path.is_absolute() or ".." in path.parts:  # scripts and data outside site-packages
        return False
    if path.parts[0].endswith(".dist-info"):
        return len(path.parts) == 2 and path.name in _METADATA
    if path.parts[:2] == ("torch", "bin"):
        return text == _TORCH_BIN
    if _TEST_FOLDERS & set(path.parts[:-1]) or text.startswith(_FOLDERS):
        return False
    return path.suffix not in _SUFFIXES and path.suffix != ".pth"


def wheel_files(dist: metadata.Distribution) -> list[tuple[str, Path]]:
    """(path below site-packages, file) of what the image takes of one distribution, sorted."""
    if dist.files is None:
        raise Misuse("image.record", f"The package {dist.name} has no list of files; reinstall it with pip.")
    wanted = [f for f in dist.files if _wanted(f)]
    return sorted((str(f), Path(str(dist.locate_file(f)))) for f in wanted)


def record_text(folder: str, paths: Iterable[str]) -> str:
    """A RECORD for what was taken: libraries find their own version and import names through it."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows((p, "", "") for p in (*sorted(paths), f"{folder}/RECORD"))
    return out.getvalue()
