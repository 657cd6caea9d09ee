"""The writer is killed with SIGKILL again and again; the independent checker then looks for what was acknowledged."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cloister.audit import AuditLog, check_log
from cloister.audit.journal import parse_journal
from cloister.crypto import SigningKey

ORIGIN = "hospital.example/audit"
KEY = SigningKey(b"\1" * 32)

WRITER = """
import os, sys, threading
from pathlib import Path
from cloister.audit import AuditLog
from cloister.crypto import SigningKey

log = AuditLog.open(Path(sys.argv[1]), origin=sys.argv[2], signer=SigningKey(b"\\1" * 32))

def work(name):
    number = 0
    while True:
        number += 1
        entry = b"%d/%d/%d" % (os.getpid(), name, number)
        if name == 0:
            indexes = log.append_many([entry] * 90)
        elif name == 1:
            indexes = [log.append(entry, aside=entry).index]
            if len(log.asides) > 40:
                log.forget_asides(log.size)
        else:
            log.append_soon(entry + b"/before")
            indexes = [log.append(entry).index]
        # One write each: a line is either whole or not there.
        os.write(1, b"".join(b"%d %s\\n" % (index, entry) for index in indexes))

for name in range(4):
    threading.Thread(target=work, args=(name,)).start()
"""


def kill_once(folder: Path, delay: float) -> list[tuple[int, bytes]]:
    """What a writer acknowledged before it was killed ``delay`` seconds after its first acknowledgement."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), ORIGIN], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        os.set_blocking(writer.stdout.fileno(), False)
        heard, deadline = b"", time.monotonic() + 240
        killing: float | None = None
        while killing is None or time.monotonic() < killing:
            heard += writer.stdout.read() or b""
            assert writer.poll() is None, writer.stderr.read().decode()
            assert time.monotonic() < deadline
            if killing is None and heard:
                killing = time.monotonic() + delay
            time.sleep(0.001)
        writer.kill()
        writer.wait()
        os.set_blocking(writer.stdout.fileno(), True)
        heard += writer.stdout.read()
    lines = heard[: heard.rfind(b"\n")].split(b"\n")
    return [(int(index), entry) for index, entry in (line.split(b" ") for line in lines)]


def kill_repeatedly(folder: Path, times: int) -> None:
    AuditLog.create(folder, origin=ORIGIN, signer=KEY).close()
    delays = random.Random(7)  # the same delays in each run; where in a commit they hit is up to the machine
    acknowledged: dict[int, bytes] = {}
    head = (folder / "checkpoint").read_text()
    for _ in range(times):
        for index, entry in kill_once(folder, delays.uniform(0.0, 0.12)):
            assert acknowledged.setdefault(index, entry) == entry, "one index was acknowledged for two entries"
        # As the crash left it, before anything repairs it.
        report = check_log(folder, ORIGIN, KEY.public, older=head)
        assert report.checkpoint.size > max(acknowledged)
        head = (folder / "checkpoint").read_text()
        journal = parse_journal((folder / "journal").read_bytes())
        assert all(acknowledged.get(index, aside) == aside for index, aside in journal.asides.items())
    with AuditLog.open(folder, origin=ORIGIN, signer=KEY) as log:
        assert all(log.entry(index) == entry for index, entry in acknowledged.items())
        everything = {entry: index for index, entry in enumerate(log.entries(0, log.size))}
        assert all(log.entry(index).split(b"/")[1] == b"1" for index in log.asides)
    soon = [entry for entry in acknowledged.values() if entry.split(b"/")[1] in {b"2", b"3"}]
    assert len(soon) > times
    assert all(everything[entry + b"/before"] < everything[entry] for entry in soon), "lost, or behind what came later"
    check_log(folder, ORIGIN, KEY.public, older=head)


def test_killed_writer_loses_nothing_acknowledged(tmp_path: Path) -> None:
    kill_repeatedly(tmp_path / "log", 10)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_writer_killed_200_times_loses_nothing_acknowledged(tmp_path: Path) -> None:
    kill_repeatedly(tmp_path / "log", 200)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_entries_open_and_grow_like_a_thousand(tmp_path: Path) -> None:
    """Counted in bytes read, not in time."""
    read: dict[int, tuple[int, int]] = {}
    with AuditLog.create(tmp_path / "log", origin=ORIGIN, signer=KEY) as log:
        log.append_many([b"entry %d" % i for i in range(1000)])
        log.append(b"the journal drops what full bundles hold")
    read[1000] = _open_and_append(tmp_path / "log")
    with AuditLog.open(tmp_path / "log", origin=ORIGIN, signer=KEY) as log:
        while log.size < 1_000_000:
            log.append_many([b"entry %d, as long as a short event would be: %s" % (log.size, b"x" * 40)] * 4000)
        log.append(b"the journal drops what full bundles hold")
    read[1_000_000] = _open_and_append(tmp_path / "log")
    whole = sum(path.stat().st_size for path in (tmp_path / "log").rglob("*"))
    assert whole > 100_000_000
    for small, large in zip(read[1000], read[1_000_000], strict=True):
        # More by three partial or full tiles of the two levels that the small log lacks, and longer entries.
        assert large < small + 3 * 8192 + 256 * 90
    with AuditLog.open(tmp_path / "log", origin=ORIGIN, signer=KEY) as log:
        for index in (0, 65_535, 65_536, 999_999):
            log.receipt(index).verify(ORIGIN, KEY.public)
    assert check_log(tmp_path / "log", ORIGIN, KEY.public).checkpoint.size > 1_000_000


def _open_and_append(folder: Path) -> tuple[int, int]:
    before = _bytes_read()
    log = AuditLog.open(folder, origin=ORIGIN, signer=KEY)
    opened = _bytes_read()
    log.append(b"x")
    appended = _bytes_read()
    log.close()
    return opened - before, appended - opened


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
