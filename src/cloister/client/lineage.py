"""The versions of one asset, as its owner's broker tells them: which was made from which, and what may be shredded.

The folders that a re-encryption leaves say nothing of what became of their versions, nor of what they were made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import Malformed, Unavailable
from .agent import OwnerAgent

__all__ = ["Lineage"]


@dataclass(frozen=True)
class Lineage:
    """One answer of the broker. ``alive``: versions whose key exists, in order; ``newest``: with or without a key;
    ``sources``: re-encrypted version → the one that it was made from."""

    name: str
    alive: tuple[int, ...]
    newest: int
    sources: Mapping[int, int]

    @classmethod
    def of(cls, agent: OwnerAgent, name: str) -> Lineage:
        # Which keys exist is asked last: what was made from what does not change any more, that does.
        done = [t for t in agent.reencryptions() if t["name"] == name and t["state"] == "done"]
        rows = [row for row in agent.assets() if row["name"] == name]
        numbers = {str(row["digest"]): int(row["version"]) for row in rows}
        return cls(
            name=name,
            alive=tuple(sorted(int(row["version"]) for row in rows if row["shredded"] is None)),
            newest=max(numbers.values(), default=0),
            sources={int(t["version"]): numbers[t["source"]] for t in done if t["source"] in numbers},
        )

    def source(self, version: int) -> int:
        """What a re-encrypted version was made from."""
        if version not in self.sources:
            raise Malformed("broker.answer", "The broker does not know this re-encryption; update the client.")
        return self.sources[version]

    def check_newest(self, version: int) -> None:
        """That its key exists and it is the newest: on behalf of no other version may anything be destroyed.

        Raises Unavailable: it is stored, and yet what was asked for is not done.
        """
        what = f"{self.name} version {version} is stored, but"
        if version not in self.alive:
            raise Unavailable(
                "reencrypt.shredded",
                f"{what} its key was destroyed meanwhile. Nothing else was done; give the command again with --version "
                "and a version whose key exists.",
            )
        if version != self.newest:
            raise Unavailable(
                "reencrypt.older",
                f"{what} version {self.newest} was sealed meanwhile and is the newest. Nothing else was done; to "
                f"re-encrypt version {self.newest}, give the command again without --version.",
            )

    def older(self, version: int) -> tuple[list[int], tuple[int, ...]]:
        """(what may be shredded, what is kept) of those before a re-encrypted version.

        Kept is what a re-encryption passed over for an older one, now or before: the store said that it lacks it, and
        may have lied; it may be all that has its content. What the version descends from was not passed over.
        """
        passed = {n for made, source in self.sources.items() for n in range(source + 1, made)} - self._ancestors(
            version
        )
        before = [n for n in self.alive if n < version]
        return [n for n in before if n not in passed], tuple(n for n in before if n in passed)

    def _ancestors(self, version: int) -> set[int]:
        found: set[int] = set()
        while version in self.sources and version not in found:
            found.add(version)
            version = self.sources[version]
        return found | {version}
