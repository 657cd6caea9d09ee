"""The manifest's strict form: every field, every limit, and one encoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto import canonical_json
from cloister.crypto.streaming import AES256_GCM_HKDF_1MB
from cloister.errors import Malformed
from cloister.sealed import FileEntry, Manifest, check_path
from cloister.sealed.models import LIMITS
from tests.sealing import identity

digests = st.binary(min_size=32, max_size=32)
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True).filter(lambda s: s not in {".", ".."})
paths = st.lists(st.lists(names, min_size=1, max_size=3).map("/".join), min_size=1, max_size=4, unique=True)


def entry(path: str = "a", size: int = 5) -> FileEntry:
    return FileEntry(path, size, AES256_GCM_HKDF_1MB.ciphertext_size(size), bytes(32))


def manifest(files: tuple[FileEntry, ...] = (), terms: Any = None, **changes: Any) -> Manifest:
    described = vars(identity(**changes))
    return Manifest(**described, dek_commit=bytes(32), files=files or (entry(),), terms={} if terms is None else terms)


def document(**changes: Any) -> dict[str, Any]:
    return {**json.loads(manifest().to_payload()), **changes}


def refused(payload: bytes) -> str:
    with pytest.raises(Malformed) as info:
        Manifest.from_payload(payload)
    return info.value.code


@given(
    found=paths,
    size=st.integers(0, 2**40),
    version=st.integers(2, 2**53 - 1),
    parents=st.lists(digests, max_size=3, unique=True),
    contract=digests,
    job=st.none() | digests,
    previous=st.none() | digests,
    terms=st.dictionaries(st.text(max_size=5), st.integers(0, 9) | st.text(max_size=5), max_size=3),
)
def test_what_is_written_is_what_is_read(found: list[str], size: int, terms: dict[str, Any], **fields: Any) -> None:
    fields["parents"] = tuple(fields["parents"])
    try:
        made = manifest(tuple(entry(path, size) for path in found), terms, **fields)
    except Malformed as error:
        assert error.code == "manifest.path_twice"  # noqa: PT017  a drawn path was another's folder
        return
    payload = made.to_payload()
    assert Manifest.from_payload(payload) == made
    assert Manifest.from_payload(payload).to_payload() == payload


@given(st.binary(max_size=100))
def test_any_bytes_are_refused_cleanly(data: bytes) -> None:
    with pytest.raises(Malformed):
        Manifest.from_payload(data)


@given(st.data())
def test_one_changed_value_is_another_manifest_or_none(data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(document())))
    value = data.draw(
        st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=4) | st.lists(st.integers(0, 3), max_size=2)
    )
    payload = canonical_json(document(**{field: value}))
    try:
        found = Manifest.from_payload(payload)
    except Malformed:
        return
    assert found.to_payload() == payload


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("schema", "cloister/manifest/v2", "manifest.schema"),
        ("suite", "AES128_GCM_HKDF_1MB", "manifest.schema"),
        ("owner", "bank", "manifest.name"),
        ("owner", "Hospital", "manifest.name"),
        ("name", "hospital", "manifest.name"),
        ("name", "hospital/", "manifest.name"),
        ("name", "hospital/a/b", "manifest.name"),
        ("name", "hospital/..", "manifest.name"),
        ("class", "weights", "manifest.class"),
        ("asset", "00" * 15, "manifest.digest"),
        ("asset", "AB" * 16, "manifest.form"),
        ("version", 0, "manifest.integer"),
        ("version", True, "manifest.integer"),
        ("version", "1", "manifest.integer"),
        ("created", -1, "manifest.integer"),
        ("contract", "00", "manifest.digest"),
        ("contract", "", "manifest.digest"),
        ("job", "00" * 32, "manifest.job"),
        ("previous", "00" * 32, "manifest.previous"),
        ("parents", ["00" * 32, "00" * 32], "manifest.parents"),
        ("parents", ["00" * 31], "manifest.digest"),
        ("parents", "", "manifest.form"),
        ("dek_commit", "00" * 33, "manifest.digest"),
        ("file_count", 2, "manifest.form"),
        ("files", [], "manifest.files"),
        ("files", {}, "manifest.files"),
        ("files", None, "manifest.form"),
        ("terms", [], "manifest.terms"),
        ("terms", None, "manifest.terms"),
        ("extra", 1, "manifest.form"),
    ],
)
def test_fields_out_of_form(field: str, value: Any, code: str) -> None:
    assert refused(canonical_json(document(**{field: value}))) == code


@pytest.mark.parametrize("field", sorted(document()))
def test_no_field_may_be_missing(field: str) -> None:
    left = {k: v for k, v in document().items() if k != field}
    assert refused(canonical_json(left)) in {"manifest.form", "manifest.schema"}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"plaintext_size": 6}, "manifest.size"),
        ({"ciphertext_size": 60}, "manifest.size"),
        ({"ciphertext_size": 3}, "stream.length"),
        ({"plaintext_size": -1}, "manifest.integer"),
        ({"root": "00"}, "manifest.digest"),
        ({"path": 7}, "manifest.form"),
        ({"path": "../a"}, "manifest.path"),
        ({"extra": 1}, "manifest.form"),
    ],
)
def test_file_entries_out_of_form(change: dict[str, Any], code: str) -> None:
    body = document()
    body["files"][0].update(change)
    assert refused(canonical_json(body)) == code


def test_other_spellings_of_the_same_document_are_refused() -> None:
    payload = manifest().to_payload()
    for other in (b" " + payload, payload + b"\n", json.dumps(document()).encode()):
        assert refused(other) == "json.canonical"


def test_limits() -> None:
    with pytest.raises(Malformed) as info:
        manifest(tuple(entry(f"f{i}") for i in range(LIMITS.files + 1)))
    assert info.value.code == "manifest.files"
    with pytest.raises(Malformed) as info:
        manifest(terms={"x": "y" * LIMITS.terms})
    assert info.value.code == "manifest.terms"
    with pytest.raises(Malformed) as info:
        manifest(parents=tuple(i.to_bytes(32, "big") for i in range(LIMITS.parents + 1)))
    assert info.value.code == "manifest.parents"
    long = "d" * 250 + "/" + "e" * 250
    with pytest.raises(Malformed) as info:
        manifest(tuple(entry(f"{long}{i}") for i in range(7000))).to_payload()
    assert info.value.code == "manifest.length"
    assert refused(canonical_json(document(files=[0] * (LIMITS.files + 1)))) == "manifest.files"


@pytest.mark.parametrize("path", ["a", "a/b", "é.txt", "a b", ".hidden", "a..b", "x" * 255, "/".join(["d" * 100] * 5)])
def test_good_paths(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize(
    "path",
    ["", "/", "/etc/passwd", "..", "a/../b", "a/..", ".", "./a", "a/", "a//b", "a\\b", "a\0b", "a\nb", "a\x7f",
     "e\u0301", "a\u202etxt.exe", "a\u2028b", "\ud800"],
)  # fmt: skip
def test_bad_paths(path: str) -> None:
    with pytest.raises(Malformed) as info:
        check_path(path)
    assert info.value.code == "manifest.path"


@pytest.mark.parametrize("path", ["x" * 256, "é" * 128, "/".join(["d" * 100] * 6)])
def test_too_long_paths(path: str) -> None:
    with pytest.raises(Malformed) as info:
        check_path(path)
    assert info.value.code == "manifest.path_length"


@given(st.text(max_size=12))
def test_an_accepted_path_stays_below_its_folder(path: str) -> None:
    try:
        check_path(path)
    except Malformed:
        return
    root = Path("/srv/object")
    assert (root / path).is_relative_to(root)
    assert ".." not in (root / path).parts
    assert (root / path).relative_to(root).as_posix() == path


@pytest.mark.parametrize("both", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a/b/c", "x", "a/b")])
def test_paths_that_collide(both: tuple[str, ...]) -> None:
    with pytest.raises(Malformed) as info:
        manifest(tuple(entry(path) for path in both))
    assert info.value.code == "manifest.path_twice"
