"""Somebody with the disk edits, removes, truncates or forks a log. Opening, checking and witnesses notice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.audit import AuditLog, Checkpoint, check_advance, check_log, sign_checkpoint, verify_checkpoint
from cloister.audit.journal import encode_journal, parse_journal
from cloister.audit.tiles import encode_bundle
from cloister.crypto import SigningKey
from cloister.crypto.merkle import leaf_hash, root_of
from cloister.errors import CloisterError, Untrusted

ORIGIN = "hospital.example/audit"
KEY = SigningKey(b"\1" * 32)
SIZE = 700


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A closed log of 700 entries: two full bundles, and 188 entries in the journal."""
    folder = tmp_path / "log"
    with AuditLog.create(folder, origin=ORIGIN, signer=KEY) as log:
        log.append_many([b"entry %d" % i for i in range(SIZE - 1)])
        log.append(b"last")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused_by_checker(folder: Path, older: str | None = None) -> CloisterError:
    with pytest.raises(Untrusted) as caught:
        check_log(folder, ORIGIN, KEY.public, older=older)
    return caught.value


def refused_at_open(folder: Path) -> CloisterError:
    """The error, after making sure that opening changed nothing: what was found stays as evidence."""
    before = contents(folder)
    with pytest.raises(Untrusted) as caught:
        AuditLog.open(folder, origin=ORIGIN, signer=KEY)
    assert contents(folder) == before
    return caught.value


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    data = path.read_bytes()
    changed = change(data)
    assert changed != data
    path.write_bytes(changed)


def rewrite_journal(folder: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """With the right checksums, as somebody would who knows the format."""
    journal = parse_journal((folder / "journal").read_bytes())
    (folder / "journal").write_bytes(encode_journal(journal.base, change(list(journal.entries))))


def test_untouched_log_passes(log: Path) -> None:
    assert check_log(log, ORIGIN, KEY.public).kinds == {"other": SIZE}


def test_entry_edited_in_a_bundle(log: Path) -> None:
    rewrite(log / "tile/entries/001", lambda data: data.replace(b"entry 300", b"entry 999"))
    error = refused_by_checker(log)
    assert error.code == "log.tile"
    assert error.details["where"] == "tile/0/001"
    with AuditLog.open(log, origin=ORIGIN, signer=KEY) as opened:
        with pytest.raises(Untrusted, match="not the one that was logged") as caught:
            opened.entry(300)
        assert caught.value.details == {"index": 300}
        with pytest.raises(Untrusted, match="not the one that was logged"):
            opened.receipt(300)
        assert opened.entry(299) == b"entry 299"
        assert opened.size == SIZE


def test_entry_edited_together_with_its_tile(log: Path) -> None:
    rewrite(log / "tile/entries/001", lambda data: data.replace(b"entry 300", b"entry 999"))
    old, new = leaf_hash(b"entry 300"), leaf_hash(b"entry 999")
    rewrite(log / "tile/0/001", lambda data: data.replace(old, new))
    error = refused_by_checker(log)
    # The smaller of the two heads that the folder holds, in its journal, tells already.
    assert (error.code, error.details["where"]) == ("log.root", "the first 699 entries")
    with AuditLog.open(log, origin=ORIGIN, signer=KEY) as opened, pytest.raises(Untrusted, match="proof does not hold"):
        opened.receipt(300).verify(ORIGIN, KEY.public)


def test_entry_edited_together_with_every_hash_above_it(log: Path) -> None:
    """Without the signing key, a wholly consistent rewriting still contradicts the signed head."""
    with AuditLog.create(log.parent / "forged", origin=ORIGIN, signer=KEY) as forged:
        forged.append_many([b"forged" if i == 300 else b"entry %d" % i for i in range(SIZE - 1)])
        forged.append(b"last")
    shutil.copy(log / "checkpoint", log.parent / "forged" / "checkpoint")
    assert refused_by_checker(log.parent / "forged").code == "log.root"
    error = refused_at_open(log.parent / "forged")
    assert error.code == "log.root"
    assert "was changed" in error.message


@pytest.mark.parametrize("place", [0, 100, 187])
def test_entry_edited_in_the_journal(log: Path, place: int) -> None:
    def edit(entries: list[bytes]) -> list[bytes]:
        entries[place] = b"x" * len(entries[place])
        return entries

    rewrite_journal(log, edit)
    assert refused_at_open(log).code == "log.root"
    assert refused_by_checker(log).code in {"log.root", "log.tile"}


def test_bit_flipped_in_the_journal(log: Path) -> None:
    rewrite(log / "journal", lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
    error = refused_by_checker(log)
    assert error.code == "log.journal"
    assert str(error.details["where"]).startswith("entry 5")
    assert refused_at_open(log).code == "log.truncated"


def test_journal_header_damaged(log: Path) -> None:
    rewrite(log / "journal", lambda data: data[:27] + b"\xff" + data[28:])
    assert refused_by_checker(log).code == "log.journal"
    assert refused_at_open(log).code == "log.journal"


def test_entry_removed_from_a_bundle(log: Path) -> None:
    entries = [b"entry %d" % i for i in range(256, 512) if i != 300]
    (log / "tile/entries/001").write_bytes(encode_bundle(entries))
    assert refused_by_checker(log).code == "log.bundle"
    with AuditLog.open(log, origin=ORIGIN, signer=KEY) as opened, pytest.raises(Untrusted) as caught:
        opened.entry(301)
    assert caught.value.code == "log.bundle"


def test_entry_removed_from_the_journal(log: Path) -> None:
    rewrite_journal(log, lambda entries: entries[:50] + entries[51:])
    assert refused_at_open(log).code == "log.truncated"
    assert refused_by_checker(log).code == "log.truncated"


def test_entries_swapped_in_the_journal(log: Path) -> None:
    rewrite_journal(log, lambda entries: [entries[1], entries[0], *entries[2:]])
    assert refused_at_open(log).code == "log.root"


@pytest.mark.parametrize("name", ["tile/entries/000", "tile/0/001", "checkpoint"])
def test_file_removed(log: Path, name: str) -> None:
    (log / name).unlink()
    error = refused_by_checker(log)
    assert error.code == "log.missing_file"
    if name == "checkpoint":
        assert refused_at_open(log).code == "log.missing_file"


def test_file_grown_beyond_any_limit(log: Path) -> None:
    with open(log / "checkpoint", "ab") as file:
        file.write(b"x" * 300_000)
    with pytest.raises(CloisterError):
        check_log(log, ORIGIN, KEY.public)
    assert refused_at_open(log).code == "log.oversize"


@pytest.mark.parametrize("cut", ["frame", "within", "all"])
def test_tail_truncated_after_it_was_acknowledged(log: Path, cut: str) -> None:
    journal = parse_journal((log / "journal").read_bytes())
    kept = {"frame": journal.entries[:-1], "within": journal.entries, "all": ()}[cut]
    data = encode_journal(journal.base, kept)
    (log / "journal").write_bytes(data[:-1] if cut == "within" else data)
    error = refused_at_open(log)
    assert error.code == "log.truncated"
    assert error.details["signed"] == SIZE
    assert "entries were removed" in error.message
    assert refused_by_checker(log).code in {"log.truncated", "log.journal"}


def test_torn_tail_that_was_never_acknowledged_is_dropped(log: Path) -> None:
    head = (log / "checkpoint").read_text()
    with open(log / "journal", "ab") as file:
        file.write(b"\x00\x20half an entry")
    report = check_log(log, ORIGIN, KEY.public)
    assert (report.torn_bytes, report.unacknowledged) == (15, 0)
    with AuditLog.open(log, origin=ORIGIN, signer=KEY) as opened:
        assert (opened.size, opened.head()) == (SIZE, head)
    assert check_log(log, ORIGIN, KEY.public, older=head).torn_bytes == 0


def test_whole_unacknowledged_entries_are_kept_so_that_no_size_is_signed_twice(log: Path) -> None:
    head = (log / "checkpoint").read_text()
    rewrite_journal(log, lambda entries: [*entries, b"written, but the crash came before its head"])
    assert check_log(log, ORIGIN, KEY.public).unacknowledged == 1
    with AuditLog.open(log, origin=ORIGIN, signer=KEY) as opened:
        assert opened.size == SIZE + 1
    check_log(log, ORIGIN, KEY.public, older=head)


@pytest.mark.parametrize("name", ["tile/0/005", "tile/0/002.p/250", "tile/7/000", "tile/0/001.p/x", "tile/note.txt"])
def test_tile_planted_beside_the_real_ones(log: Path, name: str) -> None:
    (log / name).parent.mkdir(exist_ok=True, parents=True)
    (log / name).write_bytes(bytes(32 * 250))
    assert refused_by_checker(log).code in {"log.stray", "log.tile"}


def test_fork_of_the_same_size_signed_by_the_log_itself(log: Path) -> None:
    """The owner's key can sign two histories. Whoever kept the first head, and any witness, notices the second."""
    kept = (log / "checkpoint").read_text()
    fork = log.parent / "fork"
    with AuditLog.create(fork, origin=ORIGIN, signer=KEY) as forked:
        forked.append_many([b"another story %d" % i for i in range(SIZE)])
        head = forked.head()
    check_log(fork, ORIGIN, KEY.public)  # in itself it is whole
    error = refused_by_checker(fork, older=kept)
    assert error.code == "log.inconsistent"
    assert "rewritten after a head that somebody kept" in error.message
    known = verify_checkpoint(kept, ORIGIN, KEY.public)
    with pytest.raises(Untrusted) as caught:
        check_advance(known, head, [], ORIGIN, KEY.public)
    assert caught.value.code == "witness.split_view"


def test_split_view_noticed_through_the_consistency_proof(log: Path) -> None:
    """Two parties are shown different logs that later have different sizes: no proof joins them."""
    known = verify_checkpoint((log / "checkpoint").read_text(), ORIGIN, KEY.public)
    with AuditLog.create(log.parent / "other", origin=ORIGIN, signer=KEY) as other:
        other.append_many([b"another story %d" % i for i in range(SIZE + 50)])
        proof = other.prove_consistency(SIZE, SIZE + 50)
        for attempt in (proof, proof[1:], (), (known.root, *proof)):
            with pytest.raises(Untrusted, match="rewritten or forked") as caught:
                check_advance(known, other.head(), attempt, ORIGIN, KEY.public)
            assert caught.value.code == "witness.inconsistent"


def test_head_signed_for_a_tree_that_the_entries_do_not_give(log: Path) -> None:
    wrong = sign_checkpoint(Checkpoint(ORIGIN, SIZE, root_of([leaf_hash(b"x")] * SIZE)), KEY)
    (log / "checkpoint").write_text(wrong)
    assert refused_by_checker(log).code == "log.root"
    assert refused_at_open(log).code == "log.root"


def test_an_export_without_a_journal_is_checked_too(log: Path) -> None:
    for name in ("journal", "lock"):
        (log / name).unlink()
    assert check_log(log, ORIGIN, KEY.public).kinds == {"other": SIZE}
    rewrite(log / "tile/entries/002.p/188", lambda data: data.replace(b"entry 600", b"entry 999"))
    assert refused_by_checker(log).code == "log.root"
    (log / "tile/entries/002.p/188").unlink()
    assert refused_by_checker(log).code == "log.missing_file"
