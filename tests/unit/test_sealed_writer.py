"""Sealing is all or nothing: a full disk, a failing signer, a kill, a folder that exists."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto import Envelope
from cloister.errors import Internal, Malformed, Misuse, Unavailable
from cloister.sealed import check_ciphertext, folder_files, seal_object
from cloister.sealed import writer as writer_module
from tests.sealing import DEK, MIB, OWNER_KEY, identity, make, signer


def seal(dest: Path, items: Any = None, **changes: Any) -> None:
    arguments: dict[str, Any] = {"dek": DEK, "identity": identity(), "sign": signer(), "terms": {}}
    seal_object(items or [("a", io.BytesIO(b"x" * 1000))], dest, **{**arguments, **changes})


def test_an_existing_folder_is_never_touched(tmp_path: Path) -> None:
    made = make(tmp_path / "o", {"a": b"old"})
    before = {p.name: p.read_bytes() for p in made.folder.iterdir()}
    with pytest.raises(Misuse) as info:
        seal(made.folder)
    assert info.value.code == "sealed.exists"
    assert {p.name: p.read_bytes() for p in made.folder.iterdir()} == before
    assert os.listdir(tmp_path) == ["o"]


def test_a_folder_that_appears_meanwhile_wins(tmp_path: Path) -> None:
    dest = tmp_path / "o"

    def sign(kind: str, payload: bytes) -> Envelope:
        dest.mkdir()
        (dest / "theirs").write_text("x")
        return Envelope(kind, payload).signed_by(OWNER_KEY)

    with pytest.raises(Misuse) as info:
        seal(dest, sign=sign)
    assert info.value.code == "sealed.exists"
    assert os.listdir(tmp_path) == ["o"]
    assert os.listdir(dest) == ["theirs"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    real, written = writer_module.StreamWriter, []

    class Full(io.RawIOBase):
        """Takes two blocks, then the disk is full."""

        def write(self, data: Any) -> int:
            written.append(len(data))
            if len(written) > 2:
                raise OSError(code, os.strerror(code))
            return len(data)

    monkeypatch.setattr(writer_module, "StreamWriter", lambda file, *a, **k: real(Full(), *a, **k))
    with pytest.raises(Unavailable) as info:
        seal(tmp_path / "o", [("a", io.BytesIO(bytes(4 * MIB)))])
    assert info.value.code == "storage.full"
    assert len(written) == 3
    assert os.listdir(tmp_path) == []


def test_a_really_limited_file_size_leaves_nothing(tmp_path: Path) -> None:
    """The kernel refuses the write, not a double."""
    code = (
        "import resource, signal, sys, pathlib; sys.path.insert(0, sys.argv[2])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from tests.sealing import make\n"
        "from cloister.errors import Unavailable\n"
        "try: make(pathlib.Path(sys.argv[1]))\n"
        "except Unavailable as error: print(error.code)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "o"), str(root)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "storage.full\n"
    assert os.listdir(tmp_path) == []


def test_storage_that_can_not_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(Unavailable) as info:
        seal(tmp_path / "file" / "o")
    assert info.value.code == "storage.write"


def test_a_signer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def refuse(kind: str, payload: bytes) -> Envelope:
        raise Unavailable("signer.gone", "no")

    with pytest.raises(Unavailable) as info:
        seal(tmp_path / "o", sign=refuse)
    assert info.value.code == "signer.gone"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda e: Envelope(e.payload_type, b"{}", e.signatures),
        lambda e: Envelope("x", e.payload, e.signatures),
        lambda e: Envelope(e.payload_type, e.payload),
    ],
)
def test_a_signer_that_signs_something_else_is_caught(tmp_path: Path, change: Any) -> None:
    with pytest.raises(Internal) as info:
        seal(tmp_path / "o", sign=lambda kind, payload: change(Envelope(kind, payload).signed_by(OWNER_KEY)))
    assert info.value.code == "sealed.sign"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["../a", "/a", "a//b", "a\\b", "", "a/./b"])
def test_a_bad_path_is_refused_before_its_data_is_read(tmp_path: Path, path: str) -> None:
    source = io.BytesIO(b"data")
    with pytest.raises(Malformed) as info:
        seal(tmp_path / "o", [(path, source)])
    assert info.value.code == "manifest.path"
    assert source.tell() == 0
    assert os.listdir(tmp_path) == []


def test_nothing_to_seal_and_unreadable_sources(tmp_path: Path) -> None:
    with pytest.raises(Malformed) as malformed:
        seal(tmp_path / "o", iter(()))
    assert malformed.value.code == "manifest.files"
    for source in (tmp_path / "missing", tmp_path):
        with pytest.raises(Misuse) as info:
            seal(tmp_path / "o", [("a", source)])
        assert info.value.code == "sealed.source"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_the_data_key_has_32_bytes(tmp_path: Path, size: int) -> None:
    with pytest.raises(Misuse) as info:
        seal(tmp_path / "o", dek=bytes(size))
    assert info.value.code == "sealed.dek"


def test_floats_in_terms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Malformed) as info:
        seal(tmp_path / "o", terms={"epsilon": 0.5})
    assert info.value.code == "json.type"
    assert os.listdir(tmp_path) == []


KILLED = """
import sys, pathlib, time
sys.path.insert(0, sys.argv[2])
from tests.sealing import DEK, identity, signer
from cloister.sealed import seal_object
class Endless:
    def read(self, n): return bytes(100_000)
seal_object([("a", Endless())], pathlib.Path(sys.argv[1]), dek=DEK, identity=identity(), sign=signer(), terms={},
            progress=lambda path, done: print(done, flush=True) if done > 3_000_000 else None)
"""


def test_a_kill_leaves_nothing_under_the_name_and_the_next_run_sweeps(tmp_path: Path) -> None:
    dest, root = tmp_path / "o[1]", Path(__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(dest), str(root)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline()
        (partial,) = os.listdir(tmp_path)
        seal(tmp_path / "o[1]x")  # another object's writer leaves the living partial folder alone
        make_beside = tmp_path / "o[1]"
        seal(make_beside)  # so does one of the same name: it is locked
        assert partial in os.listdir(tmp_path)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert check_ciphertext(dest).files[0].plaintext_size == 1000
    (dest / "manifest.json").rename(tmp_path / "m")
    for place in [*dest.iterdir(), tmp_path / "m"]:
        place.unlink()
    dest.rmdir()
    seal(dest)
    assert sorted(os.listdir(tmp_path)) == ["o[1]", "o[1]x"]
    check_ciphertext(dest)


def test_folder_files_refuses_links_and_special_files(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    assert folder_files(tmp_path) == [("real", tmp_path / "real")]
    (tmp_path / "link").symlink_to("/etc/hostname")
    for make_special in (lambda: None, lambda: ((tmp_path / "link").unlink(), os.mkfifo(tmp_path / "link"))):
        make_special()
        with pytest.raises(Misuse) as info:
            folder_files(tmp_path)
        assert info.value.code == "sealed.special"
    (tmp_path / "void").mkdir()
    for folder, code in ((tmp_path / "void", "sealed.empty"), (tmp_path / "nowhere", "sealed.source")):
        with pytest.raises(Misuse) as info:
            folder_files(folder)
        assert info.value.code == code
