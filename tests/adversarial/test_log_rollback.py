"""An old head, or a whole old copy of a log, is put in the place of the newest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cloister.audit import AuditLog, check_advance, check_log, verify_checkpoint
from cloister.crypto import SigningKey
from cloister.errors import Untrusted

ORIGIN = "hospital.example/audit"
KEY = SigningKey(b"\1" * 32)


def opened(folder: Path) -> AuditLog:
    return AuditLog.open(folder, origin=ORIGIN, signer=KEY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    with AuditLog.create(folder, origin=ORIGIN, signer=KEY) as log:
        log.append_many([b"entry %d" % i for i in range(200)])
    return folder


def test_older_checkpoint_presented_as_newest(folder: Path) -> None:
    older = (folder / "checkpoint").read_text()
    with opened(folder) as log:
        log.append_many([b"more %d" % i for i in range(100)])
        log.append(b"after the journal dropped the first bundle")
        newest = log.head()
    (folder / "checkpoint").write_text(older)
    before = (folder / "journal").read_bytes()
    with pytest.raises(Untrusted, match="an old head was put in its place") as caught:
        opened(folder)
    assert caught.value.code == "log.rollback"
    assert (folder / "journal").read_bytes() == before
    for kept in (None, newest):
        with pytest.raises(Untrusted) as caught:
            check_log(folder, ORIGIN, KEY.public, older=kept)
        assert caught.value.code == "log.rollback"


def test_older_checkpoint_beside_a_whole_journal_changes_nothing(folder: Path) -> None:
    """The same as a crash before the head was stored: the entries are there, and the same head is signed again."""
    older = (folder / "checkpoint").read_text()
    with opened(folder) as log:
        log.append(b"one more")
        newest = log.head()
    (folder / "checkpoint").write_text(older)
    with opened(folder) as log:
        assert log.head() == newest
    assert (folder / "checkpoint").read_text() == newest


def test_whole_folder_rolled_back_is_noticed_by_whoever_kept_a_head(folder: Path) -> None:
    """Nothing inside the folder can tell; that is why heads are kept by others (witnesses, receipts)."""
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    with opened(folder) as log:
        kept = log.append(b"released a key").checkpoint
    with pytest.raises(Untrusted) as caught:
        check_log(copy, ORIGIN, KEY.public, older=kept)
    assert caught.value.code == "log.rollback"
    assert "shorter than a head that it once signed" in caught.value.message
    known = verify_checkpoint(kept, ORIGIN, KEY.public)
    with pytest.raises(Untrusted) as caught:
        check_advance(known, (copy / "checkpoint").read_text(), (), ORIGIN, KEY.public)
    assert caught.value.code == "witness.rollback"


def test_rolled_back_log_that_grows_again_is_still_noticed(folder: Path) -> None:
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    with opened(folder) as log:
        kept = log.append(b"released a key").checkpoint
    with opened(copy) as log:
        log.append_many([b"never happened"] * 5)
        with pytest.raises(Untrusted) as caught:
            check_log(copy, ORIGIN, KEY.public, older=kept)
        assert caught.value.code == "log.inconsistent"
        known = verify_checkpoint(kept, ORIGIN, KEY.public)
        proof = log.prove_consistency(known.size, log.size)
        with pytest.raises(Untrusted) as caught:
            check_advance(known, log.head(), proof, ORIGIN, KEY.public)
        assert caught.value.code == "witness.inconsistent"


def test_checkpoint_of_another_log_put_in_its_place(folder: Path) -> None:
    with AuditLog.create(folder.parent / "bank", origin="bank.example/audit", signer=KEY) as bank:
        bank.append(b"x")
    shutil.copy(folder.parent / "bank" / "checkpoint", folder / "checkpoint")
    with pytest.raises(Untrusted) as caught:
        opened(folder)
    assert caught.value.code == "note.unsigned"
