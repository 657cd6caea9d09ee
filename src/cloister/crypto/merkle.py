"""RFC 6962 Merkle trees: hashes, roots, inclusion and consistency proofs. Pure; no storage.

Leaf hash = SHA-256(0x00 ‖ leaf), node hash = SHA-256(0x01 ‖ left ‖ right) (RFC 6962 §2.1). The two prefixes
keep a node from being passed off as a leaf. Verification follows RFC 9162 §2.1.3.2 and §2.1.4.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from ..errors import Misuse, Untrusted
from .framing import sha256
from .kdf import constant_time_equal

__all__ = [
    "EMPTY_ROOT",
    "RootHasher",
    "consistency_proof",
    "inclusion_proof",
    "leaf_hash",
    "node_hash",
    "root_of",
    "verify_consistency",
    "verify_inclusion",
]

EMPTY_ROOT = sha256(b"")


def leaf_hash(leaf: bytes | bytearray | memoryview) -> bytes:
    digest = hashlib.sha256(b"\0")  # in two steps: joining would copy a leaf of a megabyte
    digest.update(leaf)
    return digest.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right)


class RootHasher:
    """The root over leaves that arrive in order, keeping one hash per level: constant memory."""

    def __init__(self) -> None:
        self.size = 0
        self._stack: list[bytes] = []

    def add_leaf_hash(self, digest: bytes) -> None:
        self.size += 1
        n = self.size
        while n % 2 == 0:  # each trailing zero bit of the size completes one subtree
            digest = node_hash(self._stack.pop(), digest)
            n //= 2
        self._stack.append(digest)

    def add(self, leaf: bytes | bytearray | memoryview) -> None:
        self.add_leaf_hash(leaf_hash(leaf))

    def root(self) -> bytes:
        if not self._stack:
            return EMPTY_ROOT
        digest = self._stack[-1]
        for left in reversed(self._stack[:-1]):
            digest = node_hash(left, digest)
        return digest


def root_of(leaf_hashes: Iterable[bytes]) -> bytes:
    hasher = RootHasher()
    for digest in leaf_hashes:
        hasher.add_leaf_hash(digest)
    return hasher.root()


Subtree = Callable[[int, int], bytes]  # root over leaves [start, end)


def _split(n: int) -> int:
    """The largest power of two smaller than ``n`` (n > 1)."""
    return 1 << ((n - 1).bit_length() - 1)


def inclusion_proof(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """Sibling hashes from leaf ``index`` to the root of the first ``size`` leaves, lowest first (RFC 6962 §2.1.1).

    ``subtree(start, end)`` returns the root over those leaves. Raises Misuse outside the tree.
    """
    if not 0 <= index < size:
        raise Misuse("merkle.range", "An inclusion proof was asked for an index outside the tree; ask within its size.")
    proof: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            proof.append(subtree(middle, end))
            end = middle
        else:
            proof.append(subtree(start, middle))
            start = middle
    return proof[::-1]


def consistency_proof(old: int, new: int, subtree: Subtree) -> list[bytes]:
    """RFC 6962 §2.1.2: hashes that show that the first ``old`` of ``new`` leaves are unchanged. Raises Misuse."""
    if not 0 <= old <= new:
        raise Misuse("merkle.range", "A consistency proof needs 0 <= old <= new; ask within the log's size.")
    if old in (0, new):
        return []
    proof: list[bytes] = []
    start, end, whole = 0, new, True
    while old != end:
        middle = start + _split(end - start)
        if old <= middle:
            proof.append(subtree(middle, end))
            end = middle
        else:
            proof.append(subtree(start, middle))
            start, whole = middle, False
    if not whole:
        proof.append(subtree(start, end))
    return proof[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """``leaf`` is a leaf hash. Raises Untrusted unless it stands at ``index`` in the tree of ``size`` with ``root``."""
    bad = Untrusted("merkle.inclusion", "A log entry's inclusion proof does not hold.")
    # Lengths are exact, or an empty "hash" would equal an empty "root" in a tree of one.
    if not 0 <= index < size or len(leaf) != 32 or len(root) != 32:
        raise bad
    fn, sn, digest = index, size - 1, leaf
    for sibling in proof:
        if sn == 0 or len(sibling) != 32:
            raise bad
        if fn & 1 or fn == sn:
            digest = node_hash(sibling, digest)
            while fn & 1 == 0 and fn != 0:
                fn, sn = fn >> 1, sn >> 1
        else:
            digest = node_hash(digest, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0 or not constant_time_equal(digest, root):
        raise bad


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Raises Untrusted unless the tree (new, new_root) extends the tree (old, old_root)."""
    bad = Untrusted("merkle.consistency", "Two log heads are not consistent: the log was rewritten or forked.")
    if not 0 <= old <= new or any(len(p) != 32 for p in (*proof, old_root, new_root)):
        raise bad
    if old == new or old == 0:
        same = old_root == new_root if old == new else old_root == EMPTY_ROOT
        if proof or not same:
            raise bad
        return
    path = list(proof)
    if old & (old - 1) == 0:  # a complete old tree is its own first node
        path.insert(0, old_root)
    if not path:
        raise bad
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for sibling in path[1:]:
        if sn == 0:
            raise bad
        if fn & 1 or fn == sn:
            fr, sr = node_hash(sibling, fr), node_hash(sibling, sr)
            while fn & 1 == 0 and fn != 0:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node_hash(sr, sibling)
        fn, sn = fn >> 1, sn >> 1
    if sn != 0 or not constant_time_equal(fr, old_root) or not constant_time_equal(sr, new_root):
        raise bad
