"""What changed between two images of the workload: packages, files, and how it is started and confined.

So that people can decide about a new measurement. An image is a folder, or the manifest that was written of it: whoever
publishes a release sends the small file, and whoever has the image checks that it measures so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..crypto import canonical_json, parse_canonical
from ..errors import Malformed, Misuse
from ..fields import Fields
from ..node import TreeEntry, diff_trees, tree_digest, tree_manifest
from ..node.launcher import WORKLOAD_ARGV
from ..node.measure import measurement
from ..node.profile import SandboxSpec, launch_spec

__all__ = ["Changes", "image_manifest", "image_measurement", "show_changes"]

_LIMIT = 64 * 1024 * 1024
_MOST_ENTRIES = 500_000
_PACKAGE = re.compile(r"opt/cloister/lib/([A-Za-z0-9_.]+)-([^/]+)\.dist-info")
_OWN = "opt/cloister/lib/cloister/"
_KINDS = ("d", "f", "l", "x")
_HEX = re.compile(r"(?:[0-9a-f]{2})*")


@dataclass(frozen=True)
class _Image:
    """What is measured: the file tree, and the specification of the launch (which is code of the node's)."""

    tree: tuple[TreeEntry, ...]
    launch: dict[str, Any]

    @property
    def measured(self) -> str:
        return measurement(tree_digest(self.tree), self.launch).hex()

    def packages(self) -> dict[str, str]:
        found = (_PACKAGE.fullmatch(entry.path) for entry in self.tree if entry.kind == "d")
        return {match[1].replace("_", "-").lower(): match[2] for match in found if match}


@dataclass(frozen=True)
class Changes:
    """``packages``: (name, version before, version after), "" where it isn't there; ``launch``: what of the launch's
    specification differs; ``files``: one line each."""

    before: str
    after: str
    packages: tuple[tuple[str, str, str], ...]
    launch: tuple[str, ...]
    files: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        return {
            "after": self.after,
            "before": self.before,
            "files": list(self.files),
            "launch": list(self.launch),
            "packages": [{"after": b, "before": a, "name": name} for name, a, b in self.packages],
        }

    def lines(self, *, most: int) -> list[str]:
        """For people: measurements, packages, the launch, then our own code's files and the others, ``most`` in all."""
        own = [line for line in self.files if line[2:].startswith(_OWN)]
        shown = [*own, *(line for line in self.files if line not in set(own))][:most]
        head = [f"measurement before: {self.before}", f"measurement after:  {self.after}"]
        head += [f"package {name}: {a or 'not there'} -> {b or 'removed'}" for name, a, b in self.packages]
        head += [f"launch: {name} differs" for name in self.launch]
        rest = len(self.files) - len(shown)
        return [*head, *shown, *([f"and {rest} more files; --json lists all"] if rest else [])]


def image_measurement(image: Path) -> str:
    """What the workload of this image measures as, hex. Raises Misuse for what is no image."""
    return _read(image).measured


def image_manifest(image: Path) -> bytes:
    """Every entry of an image with its digest, and how it is launched, as canonical JSON: the same for the same image,
    wherever it was built."""
    found = _read(image)
    entries = [[entry.path, entry.kind, entry.content.hex()] for entry in found.tree]
    return canonical_json({"entries": entries, "launch": found.launch, "type": "image-manifest/v1"})


def show_changes(before: Path, after: Path) -> Changes:
    """Compare two images or manifests of them. Raises Misuse, Malformed."""
    old, new = _read(before), _read(after)
    was, now = old.packages(), new.packages()
    names = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    packages = tuple((name, was.get(name, ""), now.get(name, "")) for name in names)
    launch = tuple(k for k in sorted(old.launch.keys() | new.launch.keys()) if old.launch.get(k) != new.launch.get(k))
    return Changes(old.measured, new.measured, packages, launch, diff_trees(old.tree, new.tree))


def _read(path: Path) -> _Image:
    if path.is_dir():
        # As this version's node launches it.
        return _Image(tree_manifest(path), dict(launch_spec(SandboxSpec(path, WORKLOAD_ARGV))))
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError:
        raise Misuse("image.path", f"There is no image and no manifest at {path}.") from None
    f = Fields(parse_canonical(data, limit=_LIMIT), "image manifest")
    f.text("type", choices=("image-manifest/v1",))
    tree, launch = f.items("entries", _entry, limit=_MOST_ENTRIES), f.raw("launch")
    f.done()
    paths = [entry.path.encode() for entry in tree]
    if not isinstance(launch, dict) or paths != sorted(set(paths)):
        raise Malformed("image.manifest", "The image manifest's entries are not in order, or its launch is no object.")
    return _Image(tree, launch)


def _entry(value: Any) -> TreeEntry:
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(part, str) for part in value):
        raise Malformed("image.manifest", "The image manifest has an entry of another form.")
    path, kind, content = value
    if kind not in _KINDS or not _HEX.fullmatch(content):
        raise Malformed("image.manifest", "The image manifest has an entry of another form.")
    return TreeEntry(path, kind, bytes.fromhex(content))
