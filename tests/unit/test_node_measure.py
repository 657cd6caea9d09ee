"""Measuring a file tree: what counts, what doesn't, what is refused, and the exact construction."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.crypto import canonical_json
from cloister.errors import Malformed, Misuse
from cloister.node import diff_trees, measure_tree, measurement, tree_manifest


def _framed(*parts: bytes) -> bytes:
    """``frame`` of PROTOCOL, written again so that a change of the product's is noticed."""
    return b"".join(len(p).to_bytes(8, "big") + p for p in parts)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "bin").mkdir(parents=True)
    (root / "bin/run").write_bytes(b"program")
    (root / "bin/run").chmod(0o755)
    (root / "data").write_bytes(b"content")
    (root / "data").chmod(0o644)
    (root / "link").symlink_to("bin/run")
    return root


def test_the_digest_is_what_the_specification_says(tree: Path) -> None:
    lines = [
        _framed(b"bin", b"d", b""),
        _framed(b"bin/run", b"x", hashlib.sha256(b"program").digest()),
        _framed(b"data", b"f", hashlib.sha256(b"content").digest()),
        _framed(b"link", b"l", b"bin/run"),
    ]
    assert measure_tree(tree) == hashlib.sha256(_framed(b"cloister/tree/v1", *lines)).digest()


def test_the_measurement_is_what_the_specification_says() -> None:
    spec: dict[str, object] = {"argv": ["/usr/bin/python3"], "env": {}}
    inner = hashlib.sha256(canonical_json(spec)).digest()
    expected = hashlib.sha256(_framed(b"cloister/workload/v1", b"t" * 32, inner)).digest()
    assert measurement(b"t" * 32, spec) == expected
    assert measurement(b"t" * 32, {**spec, "env": {"A": "b"}}) != expected
    with pytest.raises(Misuse) as caught:
        measurement(b"t" * 31, spec)
    assert caught.value.code == "measure.tree"


def _swap(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("data")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "data").write_bytes(b"Content"),
        lambda root: (root / "data").rename(root / "Data"),
        lambda root: (root / "data").chmod(0o755),
        lambda root: (root / "bin/run").chmod(0o644),
        lambda root: (root / "empty").mkdir(),
        lambda root: (root / "more").write_bytes(b""),
        lambda root: (root / "data").unlink(),
        _swap,
    ],
)
def test_every_change_that_matters_changes_the_digest(tree: Path, change: Callable[[Path], object]) -> None:
    before = measure_tree(tree)
    change(tree)
    assert measure_tree(tree) != before


def test_times_and_who_may_read_do_not_matter(tree: Path) -> None:
    before = measure_tree(tree)
    os.utime(tree / "data", (1, 1))
    (tree / "data").chmod(0o600)
    (tree / "bin").chmod(0o700)
    assert measure_tree(tree) == before


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda p: os.mkfifo(p), "measure.special"),
        (_socket, "measure.special"),
        (lambda p: (p.write_bytes(b""), p.chmod(0o4755)), "measure.setuid"),
        (lambda p: (p.write_bytes(b""), p.chmod(0o2755)), "measure.setuid"),
        (lambda p: (p.write_bytes(b""), p.chmod(0o666)), "measure.writable"),
        (lambda p: (p.mkdir(), p.chmod(0o777)), "measure.writable"),
    ],
)
def test_what_no_image_holds_is_refused(tree: Path, make: Callable[[Path], object], code: str) -> None:
    make(tree / "bad")
    with pytest.raises(Malformed, match="'bad'") as caught:
        measure_tree(tree)
    assert caught.value.code == code


def test_a_name_that_is_not_text_is_refused(tree: Path) -> None:
    with open(os.fsencode(tree) + b"/\xff", "wb"):
        pass
    with pytest.raises(Malformed) as caught:
        measure_tree(tree)
    assert caught.value.code == "measure.name"


def test_a_missing_tree_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="can't be read") as caught:
        measure_tree(tmp_path / "missing")
    assert caught.value.code == "measure.read"


def test_the_difference_of_two_trees_names_the_paths(tree: Path) -> None:
    before = tree_manifest(tree)
    (tree / "data").write_bytes(b"other")
    (tree / "new").write_bytes(b"")
    (tree / "link").unlink()
    assert diff_trees(before, tree_manifest(tree)) == ("~ data", "- link", "+ new")
    assert diff_trees(before, before) == ()


_NAMES = st.text("ab/", min_size=1, max_size=4).filter(lambda t: all(t.split("/")))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(first=st.dictionaries(_NAMES, st.binary(max_size=3)), second=st.dictionaries(_NAMES, st.binary(max_size=3)))
def test_two_trees_have_one_digest_only_if_they_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, first: dict[str, bytes], second: dict[str, bytes]
) -> None:
    digests = []
    for files in (first, second):
        root = tmp_path_factory.mktemp("tree")
        kept = {}
        for name, content in sorted(files.items()):
            path = root / name
            if not any((root / parent).is_file() for parent in Path(name).parents) and not path.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                kept[name] = content
        digests.append((kept, measure_tree(root)))
    assert (digests[0][0] == digests[1][0]) == (digests[0][1] == digests[1][1])
