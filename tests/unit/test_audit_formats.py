"""The log's formats by themselves: paths, bundles, the journal's frames, and receipts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.audit import AuditLog, Receipt
from cloister.audit.journal import encode_journal, parse_journal
from cloister.audit.tiles import (
    Edge,
    TreeReader,
    decode_bundle,
    decode_hashes,
    encode_bundle,
    parse_resource,
    resource_path,
)
from cloister.crypto import SigningKey
from cloister.errors import CloisterError, Malformed, Untrusted

ORIGIN = "hospital.example/audit"
KEY = SigningKey(b"\1" * 32)


def create(folder: Path) -> AuditLog:
    return AuditLog.create(folder, origin=ORIGIN, signer=KEY)


def numbered(start: int, end: int) -> list[bytes]:
    return [b"entry %d" % i for i in range(start, end)]


def code_of(call: Any) -> str:
    with pytest.raises(CloisterError) as caught:
        call()
    return caught.value.code


@given(st.one_of(st.none(), st.integers(0, 63)), st.integers(0, 2**45), st.integers(1, 256))
def test_resource_paths_round_trip(level: int | None, index: int, width: int) -> None:
    assert parse_resource(resource_path(level, index, width)) == (level, index, width)


def test_the_path_example_of_the_specification() -> None:
    assert resource_path(0, 1234067) == "tile/0/x001/x234/067"


@pytest.mark.parametrize(
    "path",
    ["tile/0/1", "tile/00/001", "tile/64/001", "tile/0/x000/001", "tile/0/001.p/0", "tile/0/001.p/256",
     "tile/0/001.p/01", "tile/0/../../etc", "tile/entries/001\n", "tile/0/٠٠١", ""],
)  # fmt: skip
def test_other_paths_are_malformed(path: str) -> None:
    with pytest.raises(Malformed, match="neither a tile nor an entry bundle"):
        parse_resource(path)


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=20), st.binary(max_size=60))
def test_bundles_and_journals_round_trip_and_are_total(entries: list[bytes], noise: bytes) -> None:
    data = encode_bundle(entries)
    assert decode_bundle(data, len(entries)) == tuple(entries)
    for wrong in (data + noise, data[: len(noise)], noise):
        try:
            read = decode_bundle(wrong, len(entries))
        except Malformed:
            continue
        assert encode_bundle(read) == wrong
    journal = encode_journal(512, entries)
    contents = parse_journal(journal + noise)
    assert contents.entries[: len(entries)] == tuple(entries)
    assert encode_journal(512, contents.entries) == (journal + noise)[: len(journal) + len(noise) - contents.torn]
    cut = parse_journal(journal[:-1])
    assert (cut.entries, cut.torn > 0) == (tuple(entries[:-1]), True)


def test_hashes_of_the_wrong_length_are_malformed() -> None:
    with pytest.raises(Malformed, match="hashes that its name says"):
        decode_hashes(bytes(33), 1)


def test_a_reader_refuses_tiles_beyond_the_tree() -> None:
    reader = TreeReader(Edge(1, ((bytes(32),),)), lambda level, index: ())
    assert reader.tile(0, 0) == (bytes(32),)
    for level, index in ((0, 1), (1, 0)):
        assert code_of(lambda level=level, index=index: reader.tile(level, index)) == "log.tile"


def test_receipts_cross_the_wire_and_back(tmp_path: Path) -> None:
    with create(tmp_path / "log") as log:
        log.append_many(numbered(0, 5))
        receipt = log.receipt(3)
    assert Receipt.from_wire(receipt.to_wire()) == receipt


@pytest.mark.parametrize(
    "change",
    [{"index": -1}, {"index": True}, {"index": "1"}, {"index": 2**53}, {"proof": "x"}, {"proof": ["x"]}, {"proof": [5]},
     {"proof": ["AAAA"]}, {"proof": ["A" * 43 + "="] * 64}, {"leaf": 5}, {"leaf": "AB=="}, {"leaf": "A" * 90_000},
     {"checkpoint": 5}, {"checkpoint": "x" * 300_000}, {"extra": 1}],
)  # fmt: skip
def test_receipts_are_read_strictly(change: dict[str, object]) -> None:
    good: dict[str, object] = {"leaf": "AAAA", "index": 0, "proof": [], "checkpoint": ""}
    assert Receipt.from_wire(good).leaf == bytes(3)
    with pytest.raises(Malformed):
        Receipt.from_wire(good | change)
    with pytest.raises(Malformed):
        Receipt.from_wire([good])


def test_a_receipt_takes_a_cosigned_copy_of_its_own_checkpoint_only(tmp_path: Path) -> None:
    from cloister.audit import check_advance, cosign

    with create(tmp_path / "log") as log:
        first, second = log.append(b"a"), log.append(b"b")
    accepted = check_advance(None, first.checkpoint, [], ORIGIN, KEY.public)
    note = cosign(first.checkpoint, accepted, name="bank", key=SigningKey(b"\2" * 32), now=5)
    assert first.with_cosigned(note).verify(ORIGIN, KEY.public) == accepted
    with pytest.raises(Untrusted, match="not the checkpoint of this receipt"):
        second.with_cosigned(note)


@given(st.sampled_from(["leaf", "index", "proof", "checkpoint"]), st.integers(0, 255))
def test_a_changed_receipt_never_verifies(field: str, bit: int) -> None:
    receipt = _RECEIPT
    if field == "index":
        changed = replace(receipt, index=receipt.index ^ (1 << bit % 50))
    elif field == "leaf":
        changed = replace(receipt, leaf=_flip(receipt.leaf, bit))
    elif field == "checkpoint":
        text = bytearray(receipt.checkpoint.encode())
        text[bit % len(text)] ^= 1 << bit % 7
        changed = replace(receipt, checkpoint=text.decode(errors="surrogateescape"))
    else:
        place = bit % len(receipt.proof)
        proof = list(receipt.proof)
        proof[place] = _flip(proof[place], bit)
        changed = replace(receipt, proof=tuple(proof))
    with pytest.raises((Untrusted, Malformed)):
        changed.verify(ORIGIN, KEY.public)


def _flip(data: bytes, bit: int) -> bytes:
    place = bit // 8 % len(data)
    return data[:place] + bytes([data[place] ^ (1 << bit % 8)]) + data[place + 1 :]


@pytest.fixture(scope="module", autouse=True)
def _receipt(tmp_path_factory: pytest.TempPathFactory) -> None:
    global _RECEIPT
    with create(tmp_path_factory.mktemp("receipt") / "log") as log:
        log.append_many(numbered(0, 100))
        _RECEIPT = log.receipt(37)


_RECEIPT: Receipt
