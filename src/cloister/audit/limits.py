"""Every limit of the log's formats, in one place. A reader refuses what is beyond them before it allocates."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "Limits"]


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes unless said otherwise."""

    entry: int = 65_535  # C2SP tlog-tiles: an entry's length is a uint16
    note: int = 256 * 1024
    note_signatures: int = 64  # signed-note asks verifiers to accept at least 16
    signature: int = 8 * 1024  # the longest post-quantum signatures have about 5 kB
    key_name: int = 256  # characters
    extensions: int = 16  # extension lines of a checkpoint
    proof: int = 63  # hashes; the most that a tree of 2**63 entries needs
    tree: int = 2**53 - 1  # entries; the largest integer that canonical JSON holds
    batch_entries: int = 4096  # entries that one commit takes
    batch_bytes: int = 16 * 1024 * 1024
    aside: int = 1024 * 1024  # what is kept in the journal beside one entry
    asides: int = 8 * 1024 * 1024  # of them all, once they aren't needed any more: then the journal is made anew
    journal: int = 128 * 1024 * 1024


LIMITS = Limits()
