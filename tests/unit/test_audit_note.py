"""Signed notes, checkpoints and cosignatures against published vectors, and their strict readers."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.audit import (
    Checkpoint,
    Note,
    check_advance,
    cosign,
    sign_checkpoint,
    sign_note,
    verify_checkpoint,
    verify_quorum,
)
from cloister.audit.checkpoint import parse_checkpoint_text
from cloister.audit.note import key_id, sign_cosignature
from cloister.crypto import SigningKey
from cloister.crypto.merkle import EMPTY_ROOT, consistency_proof, leaf_hash, root_of
from cloister.errors import Malformed, Misuse, Untrusted

ORIGIN = "hospital.example/audit"
KEY = SigningKey(b"\1" * 32)
WITNESS = SigningKey(b"\2" * 32)
LEAVES = [leaf_hash(bytes([i])) for i in range(20)]

# The example key and note of Go's golang.org/x/mod/sumdb/note documentation.
GO_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
GO_PUBLIC = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:]
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


def head(size: int, origin: str = ORIGIN, key: SigningKey = KEY) -> str:
    return sign_checkpoint(Checkpoint(origin, size, root_of(LEAVES[:size])), key)


def proof(old: int, new: int) -> list[bytes]:
    return consistency_proof(old, new, lambda start, end: root_of(LEAVES[start:end]))


def test_go_note_vector_both_ways() -> None:
    key = SigningKey(GO_SEED)
    assert key.public == GO_PUBLIC
    text = GO_NOTE.split("\n\n")[0] + "\n"
    assert sign_note(text, "PeterNeumann", key) == GO_NOTE
    Note.parse(GO_NOTE).verify("PeterNeumann", GO_PUBLIC)


def test_published_key_id() -> None:
    # sum.golang.org's verifier key, as published: name+id+base64(type ‖ key).
    name, number, encoded = ["sum.golang.org", "033de0ae", "Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"]
    raw = base64.b64decode(encoded)
    assert key_id(name, raw[0], raw[1:]).hex() == number


def test_checkpoint_example_of_the_specification_parses() -> None:
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    note = Note.parse(
        text
        + "\n— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo"
        "+zyWE+xeMcTOAYQ8=\n"
        "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZ"
        "qhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
    )
    assert note.text == text
    assert parse_checkpoint_text(note.text).size == 20852163
    assert [(s.name, len(s.blob)) for s in note.signatures] == [
        ("example.com/behind-the-sofa", 64),
        ("witness.example.com/w1", 72),
    ]
    assert int.from_bytes(note.signatures[1].blob[:8], "big") == 1679315147  # the time that the specification prints


def test_checkpoint_round_trip_with_extensions() -> None:
    checkpoint = Checkpoint(ORIGIN, 3, root_of(LEAVES[:3]), ("extra line",))
    assert verify_checkpoint(sign_checkpoint(checkpoint, KEY), ORIGIN, KEY.public) == checkpoint


@pytest.mark.parametrize(
    "bad",
    [
        Checkpoint(ORIGIN, -1, root_of(LEAVES[:3])),
        Checkpoint(ORIGIN, 2**53, root_of(LEAVES[:3])),
        Checkpoint(ORIGIN, 3, b"short"),
        Checkpoint(ORIGIN, 0, root_of(LEAVES[:3])),
        Checkpoint(ORIGIN, 3, root_of(LEAVES[:3]), ("",)),
        Checkpoint(ORIGIN, 3, root_of(LEAVES[:3]), ("two\nlines",)),
        Checkpoint(ORIGIN, 3, root_of(LEAVES[:3]), ("x",) * 17),
        Checkpoint("with space", 3, root_of(LEAVES[:3])),
        Checkpoint("with+plus", 3, root_of(LEAVES[:3])),
        Checkpoint("", 3, root_of(LEAVES[:3])),
    ],
)
def test_unwritable_checkpoints_are_not_signed(bad: Checkpoint) -> None:
    with pytest.raises(Misuse):
        sign_checkpoint(bad, KEY)


@pytest.mark.parametrize(
    "text",
    [
        f"{ORIGIN}\n03\n{base64.b64encode(LEAVES[0]).decode()}\n",
        f"{ORIGIN}\n+3\n{base64.b64encode(LEAVES[0]).decode()}\n",
        f"{ORIGIN}\n٣\n{base64.b64encode(LEAVES[0]).decode()}\n",
        f"{ORIGIN}\n3\n{base64.b64encode(LEAVES[0]).decode()[:-1]}\n",
        f"{ORIGIN}\n3\n{base64.b64encode(LEAVES[0] + b'x').decode()}\n",
        f"{ORIGIN}\n3\n{base64.b64encode(LEAVES[0]).decode()}",
        f"{ORIGIN}\n3\n",
        f"{ORIGIN}\n9007199254740992\n{base64.b64encode(LEAVES[0]).decode()}\n",
    ],
)
def test_malformed_checkpoint_texts(text: str) -> None:
    with pytest.raises(Malformed):
        parse_checkpoint_text(text)


@pytest.mark.parametrize(
    ("note", "code"),
    [
        ("no signatures\n", "note.form"),
        ("text\n\n", "note.form"),
        ("\n\n— name AAAAAAA=\n", "note.form"),
        ("text\n\n— name AAAAAAA=", "note.form"),
        ("text\n\n- name AAAAAAA=\n", "note.signature"),
        ("text\n\n— name\n", "note.signature"),
        ("text\n\n— na me AAAAAAA=\n", "note.signature"),
        ("text\n\n— na+me AAAAAAA=\n", "note.signature"),
        ("text\n\n—  AAAAAAA=\n", "note.signature"),
        ("text\n\n— name AAAA\n", "note.signature"),
        ("text\n\n— name AAAAAAA\n", "audit.base64"),
        ("text\n\n— name AAAAAAB=\n", "audit.base64"),
        ("text\n\n— name AAAAAA!=\n", "audit.base64"),
        ("te\txt\n\n— name AAAAAAA=\n", "note.text"),
        ("te\rxt\n\n— name AAAAAAA=\n", "note.text"),
        ("te\ud800xt\n\n— name AAAAAAA=\n", "note.text"),
        ("x" * 300_000 + "\n\n— name AAAAAAA=\n", "note.text"),
        ("text\n\n" + "— name AAAAAAA=\n" * 65, "note.form"),
        ("text\n\n— name " + base64.b64encode(bytes(9000)).decode() + "\n", "note.signature"),
    ],
)
def test_malformed_notes(note: str, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        Note.parse(note)
    assert caught.value.code == code


def test_a_note_keeps_empty_lines_of_its_text() -> None:
    note = sign_note("one\n\ntwo\n", "name", KEY)
    assert Note.parse(note).text == "one\n\ntwo\n"
    Note.parse(note).verify("name", KEY.public)


def test_signing_refuses_what_a_reader_would() -> None:
    with pytest.raises(Misuse, match="end in a newline"):
        sign_note("text", "name", KEY)
    with pytest.raises(Malformed, match="control characters"):
        sign_note("te\0xt\n", "name", KEY)


@given(st.text(max_size=200))
def test_the_reader_is_total_and_writes_back_what_it_read(text: str) -> None:
    for candidate in (text, "text\n\n— " + text + "\n", head(3) + text):
        try:
            note = Note.parse(candidate)
        except Malformed:
            continue
        assert note.render() == candidate


@given(st.integers(0, len(head(3).encode()) * 8 - 1))
def test_one_changed_bit_of_a_checkpoint_never_verifies(bit: int) -> None:
    raw = bytearray(head(3).encode())
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises((Untrusted, Malformed)):
        verify_checkpoint(raw.decode(errors="surrogateescape"), ORIGIN, KEY.public)


def test_other_key_other_name_other_origin() -> None:
    with pytest.raises(Untrusted, match="no signature by the expected name and key") as caught:
        verify_checkpoint(head(3), ORIGIN, WITNESS.public)
    assert caught.value.code == "note.unsigned"
    with pytest.raises(Untrusted, match="no signature by the expected name and key"):
        verify_checkpoint(head(3), "bank.example/audit", KEY.public)
    # Signed by the right key under the right name, yet the text is of another log.
    foreign = sign_note(Checkpoint("bank.example/audit", 3, root_of(LEAVES[:3])).text(), ORIGIN, KEY)
    with pytest.raises(Untrusted) as caught:
        verify_checkpoint(foreign, ORIGIN, KEY.public)
    assert caught.value.code == "checkpoint.origin"


def test_unknown_signatures_are_skipped_but_a_false_one_of_ours_rejects_the_note() -> None:
    note = Note.parse(head(3))
    other = Note.parse(sign_note(note.text, "other", WITNESS)).signatures[0]
    assert verify_checkpoint(note.with_signature(other).render(), ORIGIN, KEY.public).size == 3
    false = replace(note.signatures[0], blob=bytes(64))
    with pytest.raises(Untrusted) as caught:
        verify_checkpoint(note.with_signature(false).render(), ORIGIN, KEY.public)
    assert caught.value.code == "note.signature"


def test_cosignature_round_trip() -> None:
    accepted = check_advance(None, head(3), [], ORIGIN, KEY.public)
    cosigned = cosign(head(3), accepted, name="bank", key=WITNESS, now=1_700_000_000)
    note = Note.parse(cosigned)
    assert note.verify_cosignature("bank", WITNESS.public) == 1_700_000_000
    assert verify_checkpoint(cosigned, ORIGIN, KEY.public) == accepted
    assert verify_quorum(cosigned, {"bank": WITNESS.public}, 1, not_before=0) == {"bank": 1_700_000_000}
    # A cosignature is not a note signature by the same key, nor the other way round.
    with pytest.raises(Untrusted):
        note.verify("bank", WITNESS.public)
    with pytest.raises(Untrusted):
        note.verify_cosignature(ORIGIN, KEY.public)


def test_a_cosignature_binds_its_time() -> None:
    note = Note.parse(head(3))
    line = sign_cosignature(note, "bank", WITNESS, now=1_700_000_000)
    later = replace(line, blob=(1_800_000_000).to_bytes(8, "big") + line.blob[8:])
    with pytest.raises(Untrusted, match="does not verify"):
        note.with_signature(later).verify_cosignature("bank", WITNESS.public)
    for blob in (line.blob[:-1], b"\xff" * 8 + line.blob[8:]):
        with pytest.raises(Untrusted, match="72 bytes"):
            note.with_signature(replace(line, blob=blob)).verify_cosignature("bank", WITNESS.public)
    with pytest.raises(Misuse, match="POSIX seconds"):
        sign_cosignature(note, "bank", WITNESS, now=-1)


def test_the_latest_of_two_cosignatures_counts() -> None:
    note = Note.parse(head(3))
    for now in (20, 30, 10):
        note = note.with_signature(sign_cosignature(note, "bank", WITNESS, now=now))
    assert note.verify_cosignature("bank", WITNESS.public) == 30


def test_quorum_counts_keys_not_names() -> None:
    accepted = check_advance(None, head(3), [], ORIGIN, KEY.public)
    note = cosign(head(3), accepted, name="a", key=WITNESS, now=10)
    note = cosign(note, accepted, name="b", key=WITNESS, now=10)
    pinned = {"a": WITNESS.public, "b": WITNESS.public, "c": SigningKey(b"\3" * 32).public}
    with pytest.raises(Untrusted) as caught:
        verify_quorum(note, pinned, 2, not_before=0)
    assert caught.value.code == "witness.quorum"
    with pytest.raises(Untrusted, match="Too few witnesses"):
        verify_quorum(note, pinned, 1, not_before=11)  # too old
    assert verify_quorum(head(3), pinned, 0, not_before=0) == {}


def test_a_forged_line_in_a_witness_name_rejects_the_quorum() -> None:
    note = Note.parse(head(3))
    line = sign_cosignature(note, "bank", WITNESS, now=10)
    forged = note.with_signature(replace(line, blob=bytes(72))).render()
    with pytest.raises(Untrusted) as caught:
        verify_quorum(forged, {"bank": WITNESS.public}, 0, not_before=0)
    assert caught.value.code == "note.signature"


@given(st.integers(0, 20), st.integers(0, 20))
def test_a_witness_accepts_exactly_growth(old: int, new: int) -> None:
    known = Checkpoint(ORIGIN, old, root_of(LEAVES[:old]))
    if new < old:
        with pytest.raises(Untrusted, match="smaller tree"):
            check_advance(known, head(new), [], ORIGIN, KEY.public)
    else:
        assert check_advance(known, head(new), proof(old, new), ORIGIN, KEY.public).size == new


def test_a_witness_refuses_the_rest() -> None:
    known = Checkpoint(ORIGIN, 5, root_of(LEAVES[:5]))
    cases = [
        (replace(known, origin="bank.example"), head(7), proof(5, 7), "witness.origin"),
        (known, head(7), [], "witness.inconsistent"),
        (known, head(7), proof(4, 7), "witness.inconsistent"),
        (known, head(7), [LEAVES[0]] * 64, "witness.inconsistent"),
        (None, head(7), proof(5, 7), "witness.inconsistent"),
        (known, head(7, key=WITNESS), proof(5, 7), "note.unsigned"),
    ]
    for remembered, note, given_proof, code in cases:
        with pytest.raises(Untrusted) as caught:
            check_advance(remembered, note, given_proof, ORIGIN, KEY.public)
        assert caught.value.code == code
    with pytest.raises(Untrusted) as caught:
        cosign(head(7), known, name="bank", key=WITNESS, now=1)
    assert caught.value.code == "witness.mismatch"


def test_the_empty_log_has_the_empty_root() -> None:
    assert verify_checkpoint(head(0), ORIGIN, KEY.public).root == EMPTY_ROOT
