"""The journal is cut, damaged or forged where its signed heads stand: what was acknowledged stays or is missed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.audit import AuditLog, Checkpoint, check_log, sign_checkpoint, verify_checkpoint
from cloister.audit.journal import encode_frames, encode_journal, parse_journal
from cloister.crypto import SigningKey, frame, sha256
from cloister.crypto.merkle import leaf_hash, root_of
from cloister.errors import CloisterError, Untrusted

ORIGIN = "hospital.example/audit"
KEY = SigningKey(b"\1" * 32)
ENTRIES = [b"entry %d" % i for i in range(12)]


def opened(folder: Path) -> AuditLog:
    return AuditLog.open(folder, origin=ORIGIN, signer=KEY)


def head_of(entries: list[bytes], key: SigningKey = KEY, origin: str = ORIGIN) -> str:
    return sign_checkpoint(Checkpoint(origin, len(entries), root_of(map(leaf_hash, entries))), key)


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """As a crash leaves it: twelve commits of one entry, the last three with something aside. The stored checkpoint is
    the one of the empty log."""
    folder = tmp_path / "crashed"
    with AuditLog.create(tmp_path / "log", origin=ORIGIN, signer=KEY) as log:
        for number, entry in enumerate(ENTRIES):
            log.append(entry, aside=b"aside %d" % number if number > 8 else b"")
        shutil.copytree(tmp_path / "log", folder)
    assert verify_checkpoint((folder / "checkpoint").read_text(), ORIGIN, KEY.public).size == 0
    return folder


def commit_starts(data: bytes) -> list[int]:
    """Where each commit's frames begin, and the end."""
    starts = []
    for size in range(len(ENTRIES) + 1):
        note = head_of(ENTRIES[:size]).encode()
        starts.append(data.index(note) + len(note) + 16)
    return starts


def refused(folder: Path) -> str:
    """The code, at opening, which changes nothing, and the checker's verdict is no better."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}
    with pytest.raises(CloisterError) as caught:
        opened(folder)
    assert {path: path.read_bytes() for path in before} == before
    with pytest.raises(CloisterError):
        check_log(folder, ORIGIN, KEY.public)
    return caught.value.code


def test_a_commit_is_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AuditLog.create(tmp_path / "log", origin=ORIGIN, signer=KEY) as log:
        synced: list[str] = []
        real = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (real(fd), synced.append(os.readlink(f"/proc/self/fd/{fd}")))[0])
        log.append(b"one")
        log.append_many([b"two", b"three"])
        assert [Path(path).name for path in synced] == ["journal", "journal"]


def test_the_head_of_a_crashed_log_comes_from_its_journal(crashed: Path) -> None:
    head = head_of(ENTRIES)
    report = check_log(crashed, ORIGIN, KEY.public, older=head)
    assert (report.checkpoint.size, report.unacknowledged, report.torn_bytes) == (12, 0, 0)
    with opened(crashed) as log:
        assert log.head() == head
        assert log.asides == {number: b"aside %d" % number for number in (9, 10, 11)}
    assert (crashed / "checkpoint").read_text() == head


def test_torn_anywhere_in_the_last_commit(crashed: Path, tmp_path: Path) -> None:
    """Everything before stays, and the entry is there only with what is kept beside it."""
    data = (crashed / "journal").read_bytes()
    *_, start, end = commit_starts(data)
    assert end == len(data)
    for cut in range(start, end):
        folder = tmp_path / f"cut-{cut}"
        shutil.copytree(crashed, folder)
        (folder / "journal").write_bytes(data[:cut])
        report = check_log(folder, ORIGIN, KEY.public, older=head_of(ENTRIES[:11]))
        assert report.checkpoint.size == 11
        with opened(folder) as log:
            assert log.size in {11, 12}
            assert log.entries(0, log.size) == ENTRIES[: log.size]
            assert log.asides.keys() == set(range(9, log.size))
            assert log.head() == head_of(ENTRIES[: log.size])
        check_log(folder, ORIGIN, KEY.public, older=head_of(ENTRIES[:11]))


def test_a_hole_in_the_last_commit_is_torn_and_one_before_it_is_damage(crashed: Path, tmp_path: Path) -> None:
    """A disk may write the end of a write before its beginning, but nothing follows a write that was not synced."""
    data = (crashed / "journal").read_bytes()
    starts = commit_starts(data)
    for number, start in enumerate(starts[:-1]):
        folder = tmp_path / f"hole-{number}"
        shutil.copytree(crashed, folder)
        (folder / "journal").write_bytes(data[:start] + bytes(8) + data[start + 8 :])
        if number < len(starts) - 2:
            assert refused(folder) == "log.journal"
        else:
            assert check_log(folder, ORIGIN, KEY.public).torn_bytes > 0
            with opened(folder) as log:
                assert log.entries(0, log.size) == ENTRIES[:11]


def test_a_bit_flipped_before_the_last_commit(crashed: Path, tmp_path: Path) -> None:
    data = (crashed / "journal").read_bytes()
    starts = commit_starts(data)
    for at in sorted({*range(0, starts[-2], 11), *range(starts[-2] - 30, starts[-2])}):
        folder = tmp_path / f"bit-{at}"
        shutil.copytree(crashed, folder)
        (folder / "journal").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert refused(folder) == "log.journal"


FORGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "of another key": (lambda: encode_frames(12, [], head_of(ENTRIES, SigningKey(b"\2" * 32)), {}), "note.unsigned"),
    "of another log": (lambda: encode_frames(12, [], head_of(ENTRIES, origin="bank.example"), {}), "note.unsigned"),
    "of another place": (lambda: encode_frames(12, [], head_of(ENTRIES[:11]), {}), "log.head"),
    "without its entries": (lambda: encode_frames(12, [], head_of([*ENTRIES, b"gone"]), {}), "log.head"),
    "over other entries": (lambda: encode_frames(12, [b"mine"], head_of([*ENTRIES, b"yours"]), {}), "log.root"),
    "that is no note": (lambda: encode_frames(12, [], "no note", {}), "note.form"),
}


@pytest.mark.parametrize("forged", FORGED)
def test_a_head_put_into_the_journal(crashed: Path, forged: str) -> None:
    make, code = FORGED[forged]
    with open(crashed / "journal", "ab") as file:
        file.write(make())
    assert refused(crashed) == code


def test_an_older_head_does_not_hide_that_entries_were_exchanged(crashed: Path) -> None:
    """The last head covers all before it, so what comes before a true one is true."""
    journal = parse_journal((crashed / "journal").read_bytes())
    changed = [b"another", *journal.entries[1:]]
    (crashed / "journal").write_bytes(encode_journal(0, changed, head_of(ENTRIES)))
    assert refused(crashed) == "log.root"


def test_a_journal_of_the_first_version_is_read_and_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with AuditLog.create(folder, origin=ORIGIN, signer=KEY) as log:
        log.append_many(ENTRIES)
        head = log.head()

    def check(index: int, entry: bytes) -> bytes:
        return sha256(frame("cloister/journal/v1", index, entry))[:16]

    old = b"cloister/journal/v1\n" + bytes(8) + check(0, b"")
    for index, entry in enumerate([*ENTRIES, b"before its head"]):
        old += len(entry).to_bytes(2, "big") + entry + check(index, entry)
    (folder / "journal").write_bytes(old + b"\0\7torn")
    report = check_log(folder, ORIGIN, KEY.public)
    assert (report.checkpoint.size, report.unacknowledged, report.torn_bytes) == (12, 1, 6)
    with opened(folder) as log:
        assert log.entries(0, log.size) == [*ENTRIES, b"before its head"]
    assert (folder / "journal").read_bytes().startswith(b"cloister/journal/v2\n")
    check_log(folder, ORIGIN, KEY.public, older=head)


def test_the_folder_is_a_log_of_static_files_at_its_stored_checkpoint(tmp_path: Path) -> None:
    """Also while it is written and the journal is ahead: who serves the folder shows an older log, no broken one."""
    with AuditLog.create(tmp_path / "log", origin=ORIGIN, signer=KEY) as log:
        for number in range(40):
            log.append_many([b"entry %d" % number] * 33)
            shutil.copytree(tmp_path / "log", tmp_path / str(number))
    sizes = []
    for number in range(40):
        assert check_log(tmp_path / str(number), ORIGIN, KEY.public).checkpoint.size == 33 * (number + 1)
        (tmp_path / str(number) / "journal").unlink()
        report = tmp_path / str(number)
        for partial in _beyond(report):
            partial.unlink()
        sizes.append(check_log(report, ORIGIN, KEY.public).checkpoint.size)
    assert sizes == sorted(sizes)
    assert all(33 * (number + 1) - size <= 256 + 33 for number, size in enumerate(sizes))


def _beyond(folder: Path) -> list[Path]:
    """Full tiles of entries that the stored checkpoint does not cover yet: a reader of it does not ask for them."""
    size = verify_checkpoint((folder / "checkpoint").read_text(), ORIGIN, KEY.public).size
    return [path for kind in ("0", "entries") for path in (folder / "tile" / kind).glob("[0-9][0-9][0-9]")
            if int(path.name) >= size // 256]  # fmt: skip


def test_what_is_kept_aside_is_no_part_of_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with AuditLog.create(folder, origin=ORIGIN, signer=KEY) as log:
        log.append(b"entry", aside=b"private")
        assert verify_checkpoint(log.head(), ORIGIN, KEY.public).root == leaf_hash(b"entry")
        assert all(b"private" not in log.resource(path) for path in ("tile/entries/000.p/1", "tile/0/000.p/1"))
        log.forget_asides(1)
        assert log.asides == {}
    assert not any(b"private" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    with opened(folder) as log, pytest.raises(CloisterError) as caught:
        log.append(b"entry", aside=bytes(1024 * 1024 + 1))
    assert caught.value.code == "log.aside"


def test_what_is_kept_aside_outlives_the_journal_that_held_it(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with AuditLog.create(folder, origin=ORIGIN, signer=KEY) as log:
        log.append(b"first", aside=b"kept")
        for _ in range(5):
            log.append_many([b"more"] * 200)
        shutil.copytree(folder, tmp_path / "copy")
    for place in (tmp_path / "copy", folder):
        with opened(place) as log:
            assert log.asides == {0: b"kept"}
            log.append(b"then", aside=b"new")
            log.forget_asides(1)
            assert log.asides == {1001: b"new"}


@given(st.binary(max_size=200))
def test_any_bytes_are_a_journal_or_untrusted(noise: bytes) -> None:
    for data in (noise, encode_journal(256, [b"x"], "note", {256: b"aside"}) + noise):
        try:
            contents = parse_journal(data)
        except Untrusted:
            continue
        assert contents.entries[:1] == (b"x",)
        assert contents.head is not None
        assert contents.asides[256] == b"aside"
