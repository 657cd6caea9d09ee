"""The disk is full, fails, or loses power. What was acknowledged stays, and nothing is acknowledged that may not."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.audit import AuditLog, check_log, verify_checkpoint
from cloister.crypto import SigningKey
from cloister.errors import Misuse, Unavailable

ORIGIN = "hospital.example/audit"
KEY = SigningKey(b"\1" * 32)


def opened(folder: Path) -> AuditLog:
    return AuditLog.open(folder, origin=ORIGIN, signer=KEY)


class FailingCalls:
    """The ``nth`` call of one of the operating system's functions fails, from then on all of them do."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str, nth: int, error: int) -> None:
        self.calls = 0
        real: Callable[..., object] = getattr(os, name)

        def failing(*args: object, **named: object) -> object:
            self.calls += 1
            if self.calls >= nth:
                raise OSError(error, os.strerror(error))
            return real(*args, **named)

        patch.setattr(os, name, failing)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", ["write", "fsync", "rename", "open"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4, 6])
def test_failed_write_or_sync_refuses_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, nth: int, error: int
) -> None:
    folder = tmp_path / "log"
    log = AuditLog.create(folder, origin=ORIGIN, signer=KEY)
    log.append_many([b"acknowledged %d" % i for i in range(254)])
    size, head = log.size, log.head()
    with monkeypatch.context() as patch:
        failing = FailingCalls(patch, name, nth, error)
        acknowledged: list[str] = []
        with pytest.raises(Unavailable, match="nothing may be released") as caught:
            _append_until_refused(log, acknowledged)
        head = [head, *acknowledged][-1]
        size = verify_checkpoint(head, ORIGIN, KEY.public).size
        assert caught.value.code == "audit.unwritable"
        assert caught.value.details == {"errno": errno.errorcode[error]}
    assert failing.calls >= nth
    # The disk works again, but this log does not go on as if all were well.
    with pytest.raises(Unavailable, match="accepts nothing more") as caught:
        log.append(b"after")
    assert caught.value.code == "audit.unwritable"
    assert (log.size, log.head()) == (size, head)
    assert log.entry(size - 1) == log.receipt(size - 1).leaf
    log.close()
    check_log(folder, ORIGIN, KEY.public, older=head)
    with opened(folder) as again:
        assert again.size >= size
        assert again.entries(0, 254) == [b"acknowledged %d" % i for i in range(254)]
        again.append(b"after").verify(ORIGIN, KEY.public)
    check_log(folder, ORIGIN, KEY.public, older=head)


def _append_until_refused(log: AuditLog, heads: list[str]) -> None:
    for i in range(8):  # crosses the end of a bundle
        heads.append(log.append(b"in doubt %d" % i).checkpoint)
    for i in range(2):  # and of one more, after which the journal is made anew
        log.append_many([b"in doubt, %d" % i] * 250)
        heads.append(log.head())


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:7]))
    with AuditLog.create(tmp_path / "log", origin=ORIGIN, signer=KEY) as log:
        log.append(b"a longer entry than seven bytes").verify(ORIGIN, KEY.public)
    check_log(tmp_path / "log", ORIGIN, KEY.public)


def test_everybody_who_waits_is_refused_when_the_shared_commit_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog.create(tmp_path / "log", origin=ORIGIN, signer=KEY)
    gate, refused = threading.Event(), []

    def slow_failure(fd: int) -> None:
        gate.wait(10)
        raise OSError(errno.EIO, "injected")

    def work() -> None:
        try:
            log.append(b"x")
        except Unavailable as error:
            refused.append(error.code)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", slow_failure)
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        gate.set()
        for thread in threads:
            thread.join()
    assert refused == ["audit.unwritable"] * 6
    assert log.size == 0
    log.close()
    with pytest.raises(Misuse, match="was closed"):
        log.append(b"y")


def test_opening_on_an_unwritable_disk_is_refused_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "log"
    with AuditLog.create(folder, origin=ORIGIN, signer=KEY) as log:
        head = log.append(b"x").checkpoint
    with monkeypatch.context() as patch:
        FailingCalls(patch, "fsync", 1, errno.EIO)
        with pytest.raises(Unavailable, match="can't be written"):
            opened(folder)
    with opened(folder) as log:
        assert log.head() == head


LIMITED = """
import resource, sys
from pathlib import Path
from cloister.audit import AuditLog
from cloister.crypto import SigningKey
from cloister.errors import Unavailable

log = AuditLog.create(Path(sys.argv[1]), origin=sys.argv[2], signer=SigningKey(b"\\1" * 32))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
acknowledged = 0
try:
    while True:
        acknowledged = log.append(b"x" * 700).index + 1
except Unavailable as error:
    print(acknowledged, error.code, error.details["errno"])
try:
    log.append(b"small")
except Unavailable as error:
    print(error.code)
"""


def test_a_real_limit_on_file_size_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), ORIGIN], capture_output=True, text=True, check=True, timeout=60
    )
    first, second = done.stdout.splitlines()
    acknowledged, code, name = first.split()
    assert (code, name, second) == ("audit.unwritable", "EFBIG", "audit.unwritable")
    assert int(acknowledged) > 10
    assert check_log(folder, ORIGIN, KEY.public).checkpoint.size == int(acknowledged)
    with opened(folder) as log:
        assert log.size >= int(acknowledged)


class Disk:
    """What a machine's disk surely holds: contents as of a file's last fsync, names as of a folder's last fsync."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self.root = root
        self.files: dict[int, bytes] = {}
        self.folders: dict[int, dict[str, tuple[int, bool]]] = {}
        self.held: list[int] = []
        self.after_sync: Callable[[], None] = lambda: None
        self._real = os.fsync
        patch.setattr(os, "fsync", self._fsync)

    def _fsync(self, fd: int) -> None:
        self._real(fd)
        status = os.fstat(fd)
        if status.st_ino not in self.files and status.st_ino not in self.folders:
            self.held.append(os.dup(fd))  # so that no later file gets the same number
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if stat.S_ISDIR(status.st_mode):
            self.folders[status.st_ino] = self._names(path)
        else:
            self.files[status.st_ino] = path.read_bytes()
        self.after_sync()

    def lose_power(self, to: Path, *, names_survive: bool) -> None:
        """Write what is left. ``names_survive``: unsynced names did reach the disk, their contents did not."""
        self._rebuild(self.root, self.root.stat().st_ino, to, names_survive)

    def _rebuild(self, source: Path, inode: int, to: Path, names_survive: bool) -> None:
        to.mkdir()
        names = self._names(source) if names_survive else self.folders.get(inode, {})
        for name, (number, is_folder) in names.items():
            if is_folder:
                self._rebuild(source / name, number, to / name, names_survive)
            else:
                (to / name).write_bytes(self.files.get(number, b""))

    @staticmethod
    def _names(folder: Path) -> dict[str, tuple[int, bool]]:
        return {child.name: (child.stat().st_ino, child.is_dir()) for child in folder.iterdir()}

    def close(self) -> None:
        for fd in self.held:
            os.close(fd)


@pytest.mark.parametrize("names_survive", [False, True])
def test_power_lost_after_any_sync_loses_nothing_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names_survive: bool
) -> None:
    log = AuditLog.create(tmp_path / "log", origin=ORIGIN, signer=KEY)
    log.close()
    acknowledged: list[bytes] = []
    kept = [log.head()]
    pictures: list[tuple[Path, int, str]] = []
    with monkeypatch.context() as patch:
        disk = Disk(patch, tmp_path / "log")
        log = opened(tmp_path / "log")
        count = 0

        def picture() -> None:
            nonlocal count
            count += 1
            near_a_boundary = len(acknowledged) % 256 in {0, 1, 255}
            if near_a_boundary or count % 20 == 0:
                to = tmp_path / f"after-{count}"
                disk.lose_power(to, names_survive=names_survive)
                pictures.append((to, len(acknowledged), kept[-1]))

        disk.after_sync = picture
        # The last ones fill whole bundles, so that nothing partial is written beside them.
        for step in [250, *[1] * 12, 240, *[1] * 16, 700, *[1] * 3, 59, 256, 512, 256]:
            new = [b"entry %d" % i for i in range(len(acknowledged), len(acknowledged) + step)]
            log.append_many(new)
            acknowledged += new
            kept.append(log.head())
        log.close()
        disk.close()
    assert len(pictures) > 40
    for folder, size, head in pictures:
        with opened(folder) as recovered:
            assert recovered.size >= size
            assert recovered.entries(0, size) == acknowledged[:size]
            recovered.append(b"life goes on").verify(ORIGIN, KEY.public)
        assert verify_checkpoint(head, ORIGIN, KEY.public).size == size
        check_log(folder, ORIGIN, KEY.public, older=head)
