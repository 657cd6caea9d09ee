"""RFC 6962 trees: published vectors, and every proof against a tree built by the definition."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.merkle import (
    EMPTY_ROOT,
    RootHasher,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from cloister.errors import Misuse, Untrusted

LEAVES = [leaf_hash(bytes([i])) for i in range(40)]


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1, word for word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return node_hash(mth(leaves[:k]), mth(leaves[k:]))


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962 §2.1.1, word for word."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """RFC 6962 §2.1.2, word for word."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def subtree(start: int, end: int) -> bytes:
    return mth(LEAVES[start:end])


def test_published_inclusion_vectors(shared: Path) -> None:
    cases = sorted((shared / "vectors" / "merkle" / "inclusion").rglob("*.json"))
    assert len(cases) > 50
    accepted = 0
    for case in cases:
        body = json.loads(case.read_text())
        proof = [base64.b64decode(item) for item in body["proof"] or []]
        root, leaf = (base64.b64decode(body[name] or "") for name in ("root", "leafHash"))
        if body["wantErr"]:
            with pytest.raises(Untrusted) as caught:
                verify_inclusion(leaf, body["leafIdx"], body["treeSize"], proof, root)
            assert caught.value.code == "merkle.inclusion", case
        else:
            verify_inclusion(leaf, body["leafIdx"], body["treeSize"], proof, root)
            accepted += 1
    assert accepted > 0


def test_roots_match_the_definition() -> None:
    for size in range(len(LEAVES) + 1):
        assert root_of(LEAVES[:size]) == mth(LEAVES[:size])


def test_root_hasher_takes_leaves_as_they_are() -> None:
    hasher = RootHasher()
    for i in range(5):
        hasher.add(bytes([i]))
    assert (hasher.size, hasher.root()) == (5, mth(LEAVES[:5]))


def test_every_inclusion_proof_matches_the_definition_and_verifies() -> None:
    for size in range(1, len(LEAVES) + 1):
        for index in range(size):
            proof = inclusion_proof(index, size, subtree)
            assert proof == path(index, LEAVES[:size])
            verify_inclusion(LEAVES[index], index, size, proof, mth(LEAVES[:size]))


def test_every_consistency_proof_matches_the_definition_and_verifies() -> None:
    for new in range(len(LEAVES) + 1):
        for old in range(new + 1):
            proof = consistency_proof(old, new, subtree)
            if old:
                assert proof == subproof(old, LEAVES[:new], True)
            verify_consistency(old, new, proof, mth(LEAVES[:old]), mth(LEAVES[:new]))


@given(st.data())
def test_a_changed_inclusion_proof_never_verifies(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(LEAVES)))
    index = data.draw(st.integers(0, size - 1))
    fields = [LEAVES[index], *inclusion_proof(index, size, subtree), mth(LEAVES[:size])]
    which, bit = data.draw(st.integers(0, len(fields) - 1)), data.draw(st.integers(0, 255))
    fields[which] = bytes(b ^ (1 << bit % 8) if i == bit // 8 else b for i, b in enumerate(fields[which]))
    with pytest.raises(Untrusted, match="inclusion proof does not hold"):
        verify_inclusion(fields[0], index, size, fields[1:-1], fields[-1])


@given(st.data())
def test_a_consistency_proof_holds_for_its_two_trees_only(data: st.DataObject) -> None:
    new = data.draw(st.integers(2, len(LEAVES)))
    old = data.draw(st.integers(1, new - 1))
    fields = [mth(LEAVES[:old]), *consistency_proof(old, new, subtree), mth(LEAVES[:new])]
    which, bit = data.draw(st.integers(0, len(fields) - 1)), data.draw(st.integers(0, 255))
    fields[which] = bytes(b ^ (1 << bit % 8) if i == bit // 8 else b for i, b in enumerate(fields[which]))
    with pytest.raises(Untrusted, match="rewritten or forked"):
        verify_consistency(old, new, fields[1:-1], fields[0], fields[-1])


@pytest.mark.parametrize(
    ("old", "new", "proof", "old_root", "new_root"),
    [
        (3, 2, [], mth(LEAVES[:3]), mth(LEAVES[:2])),  # shrinking
        (-1, 2, [], EMPTY_ROOT, mth(LEAVES[:2])),
        (2, 2, [], mth(LEAVES[:2]), mth(LEAVES[1:3])),  # same size, other root
        (2, 2, [LEAVES[0]], mth(LEAVES[:2]), mth(LEAVES[:2])),  # a proof where none belongs
        (0, 2, [], LEAVES[0], mth(LEAVES[:2])),  # not the empty tree
        (3, 5, [], mth(LEAVES[:3]), mth(LEAVES[:5])),  # no proof
        (2, 3, [LEAVES[2], LEAVES[3]], mth(LEAVES[:2]), mth(LEAVES[:3])),  # too long
        (2, 3, [LEAVES[2][:31]], mth(LEAVES[:2]), mth(LEAVES[:3])),  # not a hash
    ],
)
def test_consistency_refuses(old: int, new: int, proof: list[bytes], old_root: bytes, new_root: bytes) -> None:
    with pytest.raises(Untrusted) as caught:
        verify_consistency(old, new, proof, old_root, new_root)
    assert caught.value.code == "merkle.consistency"


def test_proofs_outside_the_tree_are_misuse() -> None:
    with pytest.raises(Misuse, match="outside the tree"):
        inclusion_proof(3, 3, subtree)
    with pytest.raises(Misuse, match="old <= new"):
        consistency_proof(4, 3, subtree)


def test_a_node_cannot_pass_as_a_leaf() -> None:
    assert leaf_hash(LEAVES[0] + LEAVES[1]) != node_hash(LEAVES[0], LEAVES[1])


@pytest.mark.parametrize("root", [b"", bytes(31), bytes(33)])
def test_roots_and_leaves_have_exact_lengths(root: bytes) -> None:
    with pytest.raises(Untrusted):
        verify_inclusion(root, 0, 1, [], root)
    with pytest.raises(Untrusted):
        verify_consistency(3, 3, [], root, root)
