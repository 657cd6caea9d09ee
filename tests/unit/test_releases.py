"""Releases and approvals as documents, what a release changed, and the commands for both."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.client import changes, publishing
from cloister.contracts.releases import (
    RELEASE_TYPE,
    approval_envelope,
    approved_releases,
    check_successor,
    read_approval,
    read_release,
    release_envelope,
)
from cloister.crypto import Envelope, SigningKey, sign_document
from cloister.errors import CloisterError, Denied, Malformed, Misuse, Untrusted
from tests.bundles import HOSPITAL, LAB, make_contract

KEY = SigningKey(b"release".ljust(32, b"."))
OTHER = SigningKey(b"other".ljust(32, b"."))
NOW = 1_790_000_000
CONTRACT = make_contract()


def envelope(number: int = 1, previous: bytes | None = None, **changes: Any) -> Envelope:
    fields: dict[str, Any] = {
        "version": f"1.{number}",
        "number": number,
        "previous": previous,
        "measurements": ["11" * 32],
        "agents": ["22" * 32],
        "notes": "faster",
        "fixes": ["a hole"],
        "vulnerable": ["33" * 32],
        "key": KEY,
        "now": NOW,
    }
    return release_envelope(**(fields | changes))


FIRST = read_release(envelope(), KEY.public)
SECOND = read_release(envelope(2, FIRST.digest), KEY.public)
GOOD = FIRST.envelope.to_bytes()


def test_a_release_is_read_back() -> None:
    again = read_release(Envelope.from_bytes(GOOD), KEY.public)
    assert again == FIRST
    assert (again.version, again.number, again.previous, again.fixes) == ("1.1", 1, None, ("a hole",))


def test_only_the_pinned_key_releases() -> None:
    for other in (OTHER, SigningKey.generate()):
        with pytest.raises(Untrusted):
            read_release(FIRST.envelope, other.public)


@pytest.mark.parametrize(
    "change",
    [
        {"measurements": []},
        {"measurements": ["11"]},
        {"measurements": ["AA" * 32]},
        {"measurements": [f"{i:064x}" for i in range(65)]},
        {"agents": ["22"]},
        {"vulnerable": ["11" * 32]},
        {"version": "1\n2"},
        {"version": "v" * 65},
        {"notes": "two\nlines"},
        {"fixes": ["\u202ehidden"]},
        {"fixes": ["x"] * 257},
        {"number": 0},
        {"number": 2},
        {"previous": bytes(32)},
    ],
)
def test_a_release_of_another_form_is_not_made(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        envelope(**change)


def test_a_signed_document_that_is_no_release() -> None:
    for body in ({}, {"type": "release/v2"}, [], {**FIRST.envelope.document(), "more": 1}):
        with pytest.raises(Malformed):
            read_release(sign_document(RELEASE_TYPE, body, KEY), KEY.public)


def test_releases_follow_each_other() -> None:
    check_successor(FIRST, None)
    check_successor(SECOND, None)  # the first that an owner hears of
    check_successor(SECOND, FIRST)
    check_successor(FIRST, FIRST)
    third = read_release(envelope(3, SECOND.digest), KEY.public)
    fork = read_release(envelope(2, FIRST.digest, version="x"), KEY.public)
    foreign = read_release(envelope(2, bytes(32)), KEY.public)
    for error, code, release, newest in (
        (Denied, "release.rollback", FIRST, SECOND),
        (Denied, "release.gap", third, FIRST),
        (Untrusted, "release.fork", fork, SECOND),
        (Untrusted, "release.fork", foreign, FIRST),
    ):
        with pytest.raises(error) as caught:
            check_successor(release, newest)
        assert caught.value.code == code


def approval(party: str = "hospital", key: SigningKey | None = None, **changes: Any) -> Envelope:
    release = type(FIRST)(**{**vars(FIRST), **changes})
    signer = key or {"hospital": HOSPITAL, "lab": LAB}[party].secret("signing")
    return approval_envelope(CONTRACT.digest, party, release, signer, now=NOW)


def test_every_party_or_nobody() -> None:
    both = [approval("hospital"), approval("lab")]
    (found,) = approved_releases(CONTRACT, both)
    assert (found.measurements, found.agents, found.version) == (FIRST.measurements, FIRST.agents, "1.1")
    for some in ([], both[:1], both[1:], [both[0], both[0]]):
        assert approved_releases(CONTRACT, some) == []
    assert approved_releases(CONTRACT, [both[0], approval("lab", measurements=("44" * 32,))]) == []
    assert len(approved_releases(CONTRACT, [*both, *both])) == 1


def test_approvals_that_are_none() -> None:
    with pytest.raises(Untrusted):
        read_approval(approval("lab", HOSPITAL.secret("signing")), CONTRACT)
    with pytest.raises(Untrusted):
        read_approval(approval(), make_contract(name="another"))
    stranger = approval_envelope(CONTRACT.digest, "bank", FIRST, HOSPITAL.secret("signing"), now=NOW)
    with pytest.raises(Untrusted):
        approved_releases(CONTRACT, [stranger])


@given(st.integers(0, 8 * len(GOOD) - 1))
@settings(max_examples=100, deadline=None)
def test_any_one_bit_change_of_a_release(bit: int) -> None:
    changed = bytearray(GOOD)
    changed[bit // 8] ^= 1 << (bit % 8)
    try:
        again = read_release(Envelope.from_bytes(bytes(changed)), KEY.public)
    except CloisterError:
        return
    assert again.envelope.payload == FIRST.envelope.payload  # the hint that names a key is not signed, nor believed


# What a publisher does.


def test_a_release_key_is_its_users_alone(tmp_path: Path) -> None:
    made = publishing.create_secret_key(tmp_path / "key")
    assert publishing.read_secret_key(tmp_path / "key").public.hex() == made["public"]
    assert os.stat(tmp_path / "key").st_mode & 0o777 == 0o600
    assert publishing.key_fingerprint(made["public"]) == made["fingerprint"]
    with pytest.raises(Misuse):
        publishing.create_secret_key(tmp_path / "key")
    os.chmod(tmp_path / "key", 0o640)
    with pytest.raises(Misuse) as caught:
        publishing.read_secret_key(tmp_path / "key")
    assert caught.value.code == "release.key-mode"


@pytest.mark.parametrize("content", [b"", b"zz" * 32, b"11" * 31, b"\xff" * 64, b"11" * 40])
def test_a_file_that_is_no_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    os.chmod(tmp_path / "key", 0o600)
    with pytest.raises(Misuse):
        publishing.read_secret_key(tmp_path / "key")
    for text in ("", "11" * 31, "x" * 64):
        with pytest.raises(Misuse):
            publishing.public_key(text)


def test_a_chain_of_releases() -> None:
    common: dict[str, Any] = {"agents": [], "notes": "", "fixes": [], "vulnerable": [], "key": KEY}
    first = publishing.make_release(version="1", measurements=["11" * 32], previous=None, **common)
    second = publishing.make_release(version="2", measurements=["12" * 32], previous=first, **common)
    shown = publishing.show_release(second, KEY.public)
    assert (shown["number"], shown["previous"]) == (2, publishing.show_release(first, KEY.public)["digest"])
    with pytest.raises(Untrusted):
        publishing.make_release(version="2", measurements=["12" * 32], previous=first, **{**common, "key": OTHER})


# What a release changed.


def image(folder: Path, version: str, *, code: str = "a", more: dict[str, str] | None = None) -> Path:
    library = folder / "opt/cloister/lib"
    files = {f"some_package-{version}.dist-info/METADATA": "x", "some_package/code.py": code, "cloister/job.py": code}
    for name, text in (files | (more or {})).items():
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(text)
        (library / name).chmod(0o644)
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    return folder


def test_what_changed_between_two_images(tmp_path: Path) -> None:
    old = image(tmp_path / "old", "1.0", more={"gone-3.dist-info/METADATA": "x"})
    new = image(tmp_path / "new", "1.1", code="b")
    found = changes.show_changes(old, new)
    assert found.packages == (("gone", "3", ""), ("some-package", "1.0", "1.1"))
    assert found.launch == ()
    assert "~ opt/cloister/lib/cloister/job.py" in found.files
    assert (found.before, found.after) == (changes.image_measurement(old), changes.image_measurement(new))
    lines = found.lines(most=1)
    assert lines[4] == "~ opt/cloister/lib/cloister/job.py"  # our own code first
    assert lines[5].startswith(f"and {len(found.files) - 1} more files")
    json.dumps(found.document())


def test_an_image_is_compared_by_its_manifest(tmp_path: Path) -> None:
    old, new = image(tmp_path / "old", "1.0"), image(tmp_path / "new", "1.1")
    for name, folder in (("o", old), ("n", new)):
        (tmp_path / name).write_bytes(changes.image_manifest(folder))
    assert changes.show_changes(tmp_path / "o", tmp_path / "n") == changes.show_changes(old, new)
    again = image(tmp_path / "again", "1.0")
    assert changes.image_manifest(again) == (tmp_path / "o").read_bytes()
    same = changes.show_changes(old, again)
    assert (same.packages, same.files, same.before) == ((), (), same.after)


def test_another_launch_is_another_measurement(tmp_path: Path) -> None:
    old = image(tmp_path / "old", "1.0")
    body = json.loads(changes.image_manifest(old))
    body["launch"]["uid"] = "0"
    from cloister.crypto import canonical_json

    (tmp_path / "m").write_bytes(canonical_json(body))
    found = changes.show_changes(old, tmp_path / "m")
    assert (found.launch, found.files) == (("uid",), ())
    assert found.before != found.after


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"entries":[],"launch":[],"type":"image-manifest/v1"}',
        b'{"entries":[["b","d",""],["a","d",""]],"launch":{},"type":"image-manifest/v1"}',
        b'{"entries":[["a","d",""],["a","d",""]],"launch":{},"type":"image-manifest/v1"}',
        b'{"entries":[["a","q",""]],"launch":{},"type":"image-manifest/v1"}',
        b'{"entries":[["a","f","xyz"]],"launch":{},"type":"image-manifest/v1"}',
        b'{"entries":["a"],"launch":{},"type":"image-manifest/v1"}',
    ],
)
def test_a_file_that_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(Malformed):
        changes.show_changes(tmp_path / "m", tmp_path / "m")
    with pytest.raises(Misuse):
        changes.show_changes(tmp_path / "absent", tmp_path / "m")
