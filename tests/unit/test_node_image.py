"""The image: what is in it, what is not, and that it comes out the same each time."""

from __future__ import annotations

import ast
import importlib.util
import os
import stat
from pathlib import Path

import pytest

import cloister
from cloister.errors import Misuse
from cloister.node import build_image, diff_trees, tree_manifest
from cloister.node.elf import read_elf, system_libraries
from cloister.node.image import LIBRARY, _Tree
from cloister.node.packages import closure, record_text, train_requirements, wheel_files
from tests.sandbox_kit import workplace


@pytest.fixture(scope="module")
def image() -> Path:
    return build_image(workplace() / "image", train=False)


def test_the_closure_of_training_has_its_requirements_and_no_tools() -> None:
    names = {dist.name.lower().replace("_", "-") for dist in closure(("cryptography", *train_requirements()))}
    assert {"torch", "transformers", "peft", "safetensors", "numpy", "cryptography", "cffi"} <= names
    assert not names & {"pip", "setuptools", "wheel", "pytest", "ruff", "mypy", "cloister", "hf-xet", "tink"}


def test_a_package_that_is_not_installed_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="no-such-package is not installed") as caught:
        build_image(tmp_path / "image", extra_packages=("no-such-package",), train=False)
    assert caught.value.code == "image.package"
    assert list(tmp_path.iterdir()) == []  # nothing half-built stays


def test_an_existing_folder_is_never_changed(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    with pytest.raises(Misuse, match="give a new folder") as caught:
        build_image(tmp_path / "image", train=False)
    assert caught.value.code == "image.exists"
    assert list((tmp_path / "image").iterdir()) == []


def test_an_unreadable_file_is_misuse_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: _Tree, path: str, source: Path, *, link: bool = True) -> None:
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(_Tree, "file", refuse)
    with pytest.raises(Misuse, match="build the image as root, or install") as caught:
        build_image(tmp_path / "image", train=False)
    assert caught.value.code == "image.unreadable"
    assert list(tmp_path.iterdir()) == []


def test_only_the_trusted_part_of_cloister_is_in_it(image: Path) -> None:
    package = image / LIBRARY[1:] / "cloister"
    folders = {p.name for p in package.iterdir() if p.is_dir()} - {"__pycache__"}
    assert {"crypto", "sealed", "audit", "contracts", "attestation", "workload"} == folders
    attestation = {p.name for p in (package / "attestation").iterdir()} - {"__pycache__"}
    judging = {"__init__.py", "appraisal.py", "models.py", "policy.py", "ports.py", "trust.py"}
    assert attestation == {"binding.py", *judging}, "no verifier, and no development double"
    assert not (package / "sealed/stores").exists()
    assert not (package / "crypto/x509.py").exists()
    assert (package / "errors.py").is_file()
    assert not (package / "__main__.py").exists()


def test_every_part_of_cloister_that_is_imported_in_it_is_in_it(image: Path) -> None:
    """Whatever runs only later, too: a module that is left out by mistake would end a run without a word."""
    package, whole = image / LIBRARY[1:] / "cloister", Path(cloister.__file__).parent
    missing = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            source = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for wanted in [source, *(source / alias.name for alias in node.names)]:
                module = wanted.relative_to(package)
                for file in (Path(f"{module}.py"), module / "__init__.py"):
                    if (whole / file).is_file() and not (package / file).is_file():
                        missing.add(f"{path.relative_to(package)}: {file}")
    assert missing == set()


def test_there_are_no_tools_tests_or_package_managers(image: Path) -> None:
    names = {p.name for p in image.rglob("*")}
    assert not names & {"pip", "ensurepip", "idlelib", "tkinter", "pytest", "sh", "bash", "gcc", "direct_url.json"}
    assert not [p for p in (image / LIBRARY[1:]).rglob("*") if p.is_dir() and p.name in ("tests", "test")]


def test_every_user_can_read_it_and_nobody_but_the_owner_can_write(image: Path) -> None:
    for path in [image, *image.rglob("*")]:
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            assert stat.S_IMODE(mode) == 0o755, path
        elif stat.S_ISREG(mode):
            assert stat.S_IMODE(mode) in (0o644, 0o755, 0o444, 0o555), path
        else:
            assert stat.S_ISLNK(mode), path
            assert path.resolve().is_relative_to(image), path


def test_all_bytecode_is_made_from_the_sources_beside_it(image: Path) -> None:
    compiled = list(image.rglob("*.pyc"))
    assert len(compiled) > 300
    for path in compiled:
        source = Path(importlib.util.source_from_cache(str(path)))
        header = path.read_bytes()[:16]
        assert header[:4] == importlib.util.MAGIC_NUMBER
        # PEP 552: 1 is "hash, unchecked"; so neither times nor machine decide what is loaded.
        assert int.from_bytes(header[4:8], "little") == 1
        assert header[8:] == importlib.util.source_hash(source.read_bytes())


def test_bytecode_names_no_path_of_the_host(image: Path) -> None:
    data = (image / LIBRARY[1:] / "cloister/__pycache__").glob("errors.*.pyc")
    content = next(data).read_bytes()
    assert b"/opt/cloister/lib/cloister/errors.py" in content
    assert str(image).encode() not in content


def test_a_second_build_is_the_same_to_the_byte(image: Path, tmp_path: Path) -> None:
    again = build_image(tmp_path / "again", train=False, hardlinks=False)
    changed = [
        line for line in diff_trees(tree_manifest(image), tree_manifest(again)) if "/cloister/lib/cloister/" not in line
    ]
    assert changed == []


def test_a_private_file_is_copied_and_its_mode_stays(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    for mode, expected in ((0o600, 0o644), (0o700, 0o755), (0o666, 0o644), (0o4755, 0o755)):
        source.chmod(mode)
        tree = _Tree(tmp_path / f"tree-{mode}", hardlinks=True)
        tree.file("folder/file", source)
        target = tree.root / "folder/file"
        assert stat.S_IMODE(target.stat().st_mode) == expected
        assert target.stat().st_ino != source.stat().st_ino
        assert stat.S_IMODE(source.stat().st_mode) == mode


def test_a_shareable_file_is_a_hard_link_unless_copies_are_wanted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x")
    source.chmod(0o644)
    for hardlinks, link, shared in ((True, True, True), (True, False, False), (False, True, False)):
        tree = _Tree(tmp_path / f"tree-{hardlinks}-{link}", hardlinks)
        tree.file("file", source, link=link)
        assert ((tree.root / "file").stat().st_ino == source.stat().st_ino) is shared


def test_modes_do_not_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        tree = _Tree(tmp_path / "tree", hardlinks=False)
        tree.root.mkdir()
        tree.text("a/b/file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tree.root / "a").stat().st_mode) == 0o755
    assert stat.S_IMODE((tree.root / "a/b").stat().st_mode) == 0o755
    assert stat.S_IMODE((tree.root / "a/b/file").stat().st_mode) == 0o644


def test_wheel_files_leave_out_scripts_tests_and_bytecode() -> None:
    (dist,) = [d for d in closure(("cryptography",)) if d.name == "cryptography"]
    paths = [path for path, _ in wheel_files(dist)]
    assert "cryptography/__init__.py" in paths
    assert any(path.endswith(".so") for path in paths)
    assert any(path.endswith(".dist-info/METADATA") for path in paths)
    assert not [p for p in paths if p.startswith("..") or p.endswith((".pyc", ".pyi", "/RECORD", "/direct_url.json"))]


def test_the_record_lists_what_was_taken() -> None:
    assert record_text("a-1.dist-info", ["b/x.py", "a,b.py"]) == '"a,b.py",,\nb/x.py,,\na-1.dist-info/RECORD,,\n'


def test_elf_files_are_read_without_running_them(image: Path, tmp_path: Path) -> None:
    info = read_elf(image / "usr/bin/python3")
    assert info is not None
    assert "libc.so.6" in info.needed
    assert info.interpreter is not None
    assert (image / info.interpreter.lstrip("/")).is_file()
    (tmp_path / "text").write_text("#!/bin/sh\n")
    assert read_elf(tmp_path / "text") is None


def test_a_damaged_elf_file_is_misuse(image: Path, tmp_path: Path) -> None:
    whole = (image / "usr/bin/python3").read_bytes()
    for size in (7, 60, 70, 200):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(Misuse, match="damaged ELF") as caught:
            read_elf(tmp_path / "cut")
        assert caught.value.code == "image.elf"


def test_every_needed_library_is_in_the_image(image: Path) -> None:
    present = {p.name for p in image.rglob("*.so*")}
    missing = {}
    for path in image.rglob("*.so*"):
        info = read_elf(path) if path.is_file() else None
        wanted = set(info.needed) - present if info else set()
        if wanted:
            missing[path.name] = wanted
    assert missing == {}


def test_bundled_libraries_are_not_taken_from_the_host(image: Path) -> None:
    files = [image / "usr/bin/python3"]
    found = system_libraries(files, frozenset({"libm.so.6"}), Path("/usr"))
    assert "libm.so.6" not in found
    assert "libc.so.6" in found
    assert "libgcc_s.so.1" in found
