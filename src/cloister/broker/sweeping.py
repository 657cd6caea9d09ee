"""Which of the keys that a device holds beside a vault's file may be destroyed. Pure: the doing is in ``rootkeys``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..crypto import frame, sha256
from .state import Row

__all__ = ["Doomed", "decide_sweep"]

_NAMED = 100  # versions in one answer


@dataclass(frozen=True)
class Doomed:
    """What a sweep destroys of the orphans, and how many it keeps for the sake of which versions."""

    roots: tuple[bytes, ...]
    keys: tuple[bytes, ...]
    kept: int
    needed_by: tuple[str, ...]

    @property
    def handles(self) -> tuple[bytes, ...]:
        return (*self.roots, *self.keys)

    @property
    def found(self) -> int:
        return len(self.handles) + self.kept

    @property
    def which(self) -> str:
        return sha256(frame("cloister/orphans/v1", *sorted(self.handles))).hex()

    def only(self, destroyed: Collection[bytes]) -> Doomed:
        """Counted are the keys that were destroyed, not those that were to be."""
        roots = tuple(handle for handle in self.roots if handle in destroyed)
        return replace(self, roots=roots, keys=tuple(handle for handle in self.keys if handle in destroyed))

    def document(self) -> dict[str, Any]:
        return {
            "assets": list(self.needed_by[:_NAMED]),
            "keys": len(self.keys),
            "kept": self.kept,
            "roots": len(self.roots),
        }


def decide_sweep(
    orphans: Sequence[bytes], roots: Collection[bytes], epochs: Collection[int], rows: Iterable[Row]
) -> Doomed:
    """Root keys (``roots``) go: no data key is under one, and a file whose root key is gone still opens with its
    recovery shares, if there are any.

    KEKs and signing keys go only if none of the ``rows`` that carry a wrapped key is under an epoch that the file lacks
    (``epochs`` are those it has). Such a row says that an older backup was restored: its KEK may be among the orphans,
    and opens again once a newer file is found.
    """
    known = set(epochs)
    carrying = [row for row in rows if row["wrapped"] is not None]
    stranded = sorted({f"{row['name']} version {row['version']}" for row in carrying if row["epoch"] not in known})
    others = tuple(handle for handle in orphans if handle not in roots)
    return Doomed(
        roots=tuple(handle for handle in orphans if handle in roots),
        keys=() if stranded else others,
        kept=len(others) if stranded else 0,
        needed_by=tuple(stranded) if others else (),
    )
