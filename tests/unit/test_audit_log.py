"""The log as its users see it: appending, reading, proofs, tiles, recovery, limits."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.audit import AuditLog, Receipt, check_log, encode_event, event, verify_checkpoint
from cloister.audit.tiles import (
    encode_bundle,
    tile_root,
)
from cloister.crypto import SigningKey
from cloister.crypto.merkle import leaf_hash, root_of, verify_consistency
from cloister.errors import CloisterError, Unavailable, Untrusted

ORIGIN = "hospital.example/audit"
KEY = SigningKey(b"\1" * 32)


def create(folder: Path) -> AuditLog:
    return AuditLog.create(folder, origin=ORIGIN, signer=KEY)


def reopen(folder: Path) -> AuditLog:
    return AuditLog.open(folder, origin=ORIGIN, signer=KEY)


def numbered(start: int, end: int) -> list[bytes]:
    return [b"entry %d" % i for i in range(start, end)]


def fill(log: AuditLog, end: int) -> None:
    while log.size < end:
        log.append_many(numbered(log.size, min(end, log.size + 4096)))


def code_of(call: Any) -> str:
    with pytest.raises(CloisterError) as caught:
        call()
    return caught.value.code


def test_append_returns_a_receipt_that_verifies_offline(tmp_path: Path) -> None:
    with create(tmp_path / "log") as log:
        entry = encode_event(event("key.released", actor="hospital", target="job", now=1_790_000_000))
        receipt = log.append(entry)
        assert receipt.verify(ORIGIN, KEY.public) == verify_checkpoint(log.head(), ORIGIN, KEY.public)
        assert (receipt.index, receipt.leaf, log.size, log.origin) == (0, entry, 1, ORIGIN)
        assert receipt.leaf_hash == leaf_hash(entry)
    report = check_log(tmp_path / "log", ORIGIN, KEY.public)
    assert report.kinds == {"key.released": 1}


def test_a_new_log_is_empty_and_signed(tmp_path: Path) -> None:
    with create(tmp_path / "deep" / "log") as log:
        assert (log.size, log.entries(0, 0)) == (0, [])
        assert verify_checkpoint(log.head(), ORIGIN, KEY.public).size == 0
    assert check_log(tmp_path / "deep" / "log", ORIGIN, KEY.public).kinds == {}
    with reopen(tmp_path / "deep" / "log") as log:
        log.append(b"first")


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 100, 255, 256, 257, 513, -1]), max_size=6))
def test_any_history_equals_a_plain_tree(tmp_path_factory: pytest.TempPathFactory, steps: list[int]) -> None:
    folder = tmp_path_factory.mktemp("history") / "log"
    log = create(folder)
    heads, entries = [log.head()], []
    for step in steps:
        if step < 0:
            log.close()
            log = reopen(folder)
        else:
            new = numbered(len(entries), len(entries) + step)
            assert log.append_many(new) == range(len(entries), len(entries) + step)
            entries += new
        heads.append(log.head())
        head = verify_checkpoint(log.head(), ORIGIN, KEY.public)
        assert (head.size, head.root) == (len(entries), root_of(map(leaf_hash, entries)))
    assert log.entries(0, log.size) == entries
    for index in {0, len(entries) // 2, len(entries) - 1} if entries else ():
        log.receipt(index).verify(ORIGIN, KEY.public)
    for old in heads:
        check_log(folder, ORIGIN, KEY.public, older=old)
        before, after = (verify_checkpoint(note, ORIGIN, KEY.public) for note in (old, log.head()))
        proof = log.prove_consistency(before.size, after.size)
        verify_consistency(before.size, after.size, proof, before.root, after.root)
    log.close()


def test_a_log_of_three_levels(tmp_path: Path) -> None:
    with create(tmp_path / "log") as log:
        fill(log, 65_700)
        receipts = [log.receipt(i) for i in (0, 255, 256, 65_279, 65_535, 65_536, 65_699)]
        kept = log.head()
    with reopen(tmp_path / "log") as log:
        assert log.head() == kept
        log.append(b"one more")
        for receipt in receipts:
            assert receipt.verify(ORIGIN, KEY.public).size == 65_700
            assert log.entry(receipt.index) == receipt.leaf
            log.receipt(receipt.index).verify(ORIGIN, KEY.public)
    report = check_log(tmp_path / "log", ORIGIN, KEY.public, older=kept)
    assert report.checkpoint.size == 65_701
    # 256 full level-0 tiles, one full level-1 tile, and the partial ones of levels 0 and 2.
    assert (report.tiles, report.bundles) == (256 + 1 + 2, 256 + 1)


def test_opening_and_appending_read_the_same_however_long_the_log_is(tmp_path: Path) -> None:
    read = {}
    for size in (600, 20_000):
        folder = tmp_path / str(size)
        with create(folder) as log:
            fill(log, size)
            log.append(b"the journal drops what full bundles hold")
        before = _bytes_read()
        log = reopen(folder)
        opened = _bytes_read()
        log.append(b"x")
        read[size] = (opened - before, _bytes_read() - opened)
        log.close()
    # 20,000 entries hold 340 kB; what is read is the edge: a checkpoint, one journal, one tile a level.
    assert read[20_000][0] < read[600][0] + 3 * 8192 + 4096
    assert read[20_000][1] < read[600][1] + 3 * 8192 + 4096


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_threads_share_commits_and_every_receipt_holds(tmp_path: Path) -> None:
    receipts: list[Receipt] = []
    with create(tmp_path / "log") as log:

        def work(name: int) -> None:
            for i in range(25):
                receipts.append(log.append(b"%d/%d" % (name, i)))

        syncs = _count_syncs(lambda: _run_threads(work, 12))
        assert log.size == 300
    assert sorted(r.index for r in receipts) == list(range(300))
    for receipt in receipts:
        receipt.verify(ORIGIN, KEY.public)
    assert syncs < 300 * 3, "appending threads should share the syncs of a commit"
    check_log(tmp_path / "log", ORIGIN, KEY.public)


def _run_threads(work: Any, count: int) -> None:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _count_syncs(call: Any) -> int:
    import os

    count, real = 0, os.fsync

    def counting(fd: int) -> None:
        nonlocal count
        count += 1
        real(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", counting)
        call()
    return count


def test_concurrent_batches_stay_contiguous(tmp_path: Path) -> None:
    ranges: list[range] = []
    with create(tmp_path / "log") as log:
        _run_threads(lambda name: ranges.append(log.append_many([b"%d" % name] * 1500)), 6)
        for found in ranges:
            assert len(set(log.entries(found.start, found.stop))) == 1
        assert log.size == 9000


def test_resources_follow_tlog_tiles(tmp_path: Path) -> None:
    with create(tmp_path / "log") as log:
        fill(log, 600)
        leaves = [leaf_hash(entry) for entry in log.entries(0, 600)]
        assert log.resource("checkpoint") == log.head().encode()
        assert log.resource("tile/0/001") == b"".join(leaves[256:512])
        assert log.resource("tile/0/002.p/88") == b"".join(leaves[512:600])
        assert log.resource("tile/0/002.p/7") == b"".join(leaves[512:519])
        assert log.resource("tile/1/000.p/2") == tile_root(tuple(leaves[:256])) + tile_root(tuple(leaves[256:512]))
        assert log.resource("tile/entries/001") == encode_bundle(log.entries(256, 512))
        assert log.resource("tile/entries/002.p/3") == encode_bundle(log.entries(512, 515))
        shown = {
            path: log.resource(path)
            for path in ("checkpoint", "tile/0/002.p/88", "tile/1/000.p/2", "tile/entries/000", "tile/entries/002.p/88")
        }
        for path in ("tile/0/002", "tile/0/002.p/89", "tile/0/003", "tile/2/000", "tile/entries/002", "tile/9/000.p/1"):
            assert code_of(lambda path=path: log.resource(path)) in {"log.tile", "log.range"}
        assert code_of(lambda: log.resource("journal")) == "log.resource"
    for path, data in shown.items():  # at rest the folder itself is a log of static files
        assert (tmp_path / "log" / path).read_bytes() == data


def test_limits_of_entries_and_batches(tmp_path: Path) -> None:
    with create(tmp_path / "log") as log:
        for bad in (b"", b"x" * 65_536):
            assert code_of(lambda bad=bad: log.append(bad)) == "log.entry"
        for batch in ([], [b"x"] * 4097, [b"x" * 65_000] * 300):
            assert code_of(lambda batch=batch: log.append_many(batch)) == "log.batch"
        assert log.size == 0
        log.append(b"x" * 65_535).verify(ORIGIN, KEY.public)
        log.append(b"y").verify(ORIGIN, KEY.public)
    check_log(tmp_path / "log", ORIGIN, KEY.public)


def test_reading_outside_the_log_is_misuse(tmp_path: Path) -> None:
    with create(tmp_path / "log") as log:
        log.append_many(numbered(0, 3))
        for call in (lambda: log.entry(3), lambda: log.entry(-1), lambda: log.entries(2, 1), lambda: log.receipt(3)):
            assert code_of(call) == "log.range"
        assert code_of(lambda: log.prove_consistency(0, 4)) == "log.size"
        assert code_of(lambda: log.prove_consistency(3, 2)) == "merkle.range"


def test_one_log_is_open_once(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with create(folder):
        assert code_of(lambda: reopen(folder)) == "audit.locked"
        assert code_of(lambda: create(folder)) == "audit.locked"
    assert code_of(lambda: create(folder)) == "log.exists"
    assert code_of(lambda: reopen(tmp_path / "none")) == "log.absent"
    reopen(folder).close()


def test_a_creation_that_a_crash_cut_short_can_be_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    create(folder).close()
    (folder / "checkpoint").unlink()
    assert code_of(lambda: reopen(folder)) == "log.missing_file"
    create(folder).close()


def test_creating_over_a_log_whose_head_is_gone_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with create(folder) as log:
        log.append(b"x")
    (folder / "checkpoint").unlink()
    assert code_of(lambda: create(folder)) == "log.exists"


def test_a_closed_log_refuses_appends(tmp_path: Path) -> None:
    log = create(tmp_path / "log")
    log.append(b"x")
    log.close()
    log.close()
    assert code_of(lambda: log.append(b"y")) == "audit.closed"
    assert log.entry(0) == b"x"


def test_opening_with_another_key_or_origin_is_refused(tmp_path: Path) -> None:
    create(tmp_path / "log").close()
    before = (tmp_path / "log" / "checkpoint").read_bytes()
    with pytest.raises(Untrusted):
        AuditLog.open(tmp_path / "log", origin=ORIGIN, signer=SigningKey(b"\2" * 32))
    with pytest.raises(Untrusted):
        AuditLog.open(tmp_path / "log", origin="bank.example", signer=KEY)
    assert (tmp_path / "log" / "checkpoint").read_bytes() == before


def test_lost_or_damaged_partial_tiles_are_worked_out_again(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with create(folder) as log:
        fill(log, 256 * 5 + 9)
        log.append(b"now the journal starts at 1280")
        head = log.head()
    partial = folder / "tile/1/000.p/5"
    right = partial.read_bytes()
    for damage in (lambda: partial.unlink(), lambda: partial.write_bytes(b""), lambda: partial.write_bytes(bytes(160))):
        damage()
        with reopen(folder) as log:
            assert log.head() == head
        assert partial.read_bytes() == right
        check_log(folder, ORIGIN, KEY.public)


def test_leftovers_of_a_crash_are_swept(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with create(folder) as log:
        fill(log, 300)
        older = log.resource("tile/0/001.p/44")
        log.append(b"x")
    (folder / "tile/0/001.p/44").write_bytes(older)
    (folder / "tmp/99").write_bytes(b"half a file")
    with reopen(folder) as log:
        log.append(b"y")
        log.append(b"z")
        assert not (folder / "tmp/99").exists()
        assert [p.name for p in (folder / "tile/0/001.p").iterdir() if p.name == "44"] == []
    check_log(folder, ORIGIN, KEY.public)


def test_an_unreadable_file_is_unavailable_not_untrusted(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    create(folder).close()
    (folder / "journal").unlink()
    (folder / "journal").mkdir()
    with pytest.raises(Unavailable) as caught:
        reopen(folder)
    assert caught.value.code == "audit.unreadable"
