"""Unprivileged users: found again, not shared, and no way back from them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cloister
from cloister.errors import Misuse, Unavailable
from cloister.node import allocate_uid, drop_privileges, uids, who_can_traverse
from tests.sandbox_kit import workplace


def _home(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).mkdir(exist_ok=True)
    return tmp_path / name


def test_an_id_is_in_the_range_stays_the_same_and_differs_by_role_and_home(tmp_path: Path) -> None:
    claims = tmp_path / "claims"
    homes = [_home(tmp_path, "a"), _home(tmp_path, "b")]
    made = {(h, r): allocate_uid(h, r, claims=claims) for h in homes for r in ("broker", "node")}
    assert len(set(made.values())) == 4
    for (home, role), uid in made.items():
        assert uids.FIRST_UID <= uid <= uids.LAST_UID
        assert allocate_uid(home, role, claims=claims) == uid


def test_the_same_home_gets_the_same_id_after_a_reboot_cleared_the_claims(tmp_path: Path) -> None:
    home = _home(tmp_path, "a")
    assert allocate_uid(home, "x", claims=tmp_path / "one") == allocate_uid(home, "x", claims=tmp_path / "two")
    assert (tmp_path / "one").is_dir()


def test_ids_of_other_homes_of_passwd_and_of_processes_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, other, claims = _home(tmp_path, "a"), _home(tmp_path, "b"), tmp_path / "claims"
    monkeypatch.setattr(uids, "_in_passwd", lambda uid: False)
    monkeypatch.setattr(uids, "live_uids", frozenset)
    first = allocate_uid(home, "x", claims=tmp_path / "elsewhere")
    after = [uids.FIRST_UID + (first + step - uids.FIRST_UID) % 4336 for step in (1, 2, 3)]
    claims.mkdir()
    (claims / str(first)).write_text(f"{other}\nx\n")
    monkeypatch.setattr(uids, "_in_passwd", lambda uid: uid == after[0])
    monkeypatch.setattr(uids, "live_uids", lambda: frozenset({after[1]}))
    assert allocate_uid(home, "x", claims=claims) == after[2]
    assert (claims / str(first)).read_text() == f"{other}\nx\n"


def test_the_claim_of_a_home_that_is_gone_is_taken_over(tmp_path: Path) -> None:
    home, claims = _home(tmp_path, "a"), tmp_path / "claims"
    first = allocate_uid(home, "x", claims=tmp_path / "elsewhere")
    claims.mkdir()
    (claims / str(first)).write_text(f"{tmp_path}/gone\nx\n")
    assert allocate_uid(home, "x", claims=claims) == first


def test_no_free_id_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uids, "_in_passwd", lambda uid: True)
    with pytest.raises(Unavailable) as caught:
        allocate_uid(tmp_path, "x", claims=tmp_path / "claims")
    assert caught.value.code == "uid.none"


def test_claims_that_can_not_be_written_are_misuse(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Misuse, match="run this as root") as caught:
        allocate_uid(tmp_path, "x", claims=tmp_path / "file/claims")
    assert caught.value.code == "uid.claims"


def test_this_process_is_among_the_living() -> None:
    assert os.getuid() in uids.live_uids()


def test_dropping_to_root_is_misuse() -> None:
    for ids in ((0, 1), (1, 0)):
        with pytest.raises(Misuse) as caught:
            drop_privileges(*ids)
        assert caught.value.code == "uid.root"


_DROP = """
import os
from cloister.errors import CloisterError
from cloister.node import drop_privileges
try:
    drop_privileges(64901, 64902)
except CloisterError as error:
    print(error.code)
else:
    status = dict(l.split(":", 1) for l in open("/proc/self/status").read().splitlines())
    print(os.getresuid(), os.getresgid(), os.getgroups(), status["NoNewPrivs"].strip(), status["CapEff"].strip())
    print(oct(os.umask(0)))
"""


def test_privileges_are_gone_for_good() -> None:
    env = {"PYTHONPATH": str(Path(cloister.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", _DROP], env=env, capture_output=True, text=True, check=True)
    if os.geteuid() == 0:
        assert done.stdout.splitlines() == [
            "(64901, 64901, 64901) (64902, 64902, 64902) [] 1 0000000000000000",
            "0o77",
        ]
    else:
        assert done.stdout == "uid.change\n"


def test_the_folder_that_blocks_is_named() -> None:
    root = workplace()
    target = root / "open/closed/inner"
    target.mkdir(parents=True)
    for folder in (root / "open", target):
        folder.chmod(0o711)
    (root / "open/closed").chmod(0o700)
    with pytest.raises(Misuse, match="chmod o\\+x") as caught:
        who_can_traverse(target, 64901, 64901)
    assert caught.value.code == "path.traverse"
    assert str(root / "open/closed") in caught.value.message
    (root / "open/closed").chmod(0o711)
    who_can_traverse(target, 64901, 64901)
    who_can_traverse(target, os.geteuid(), os.getegid())


def test_the_first_class_of_permissions_decides(tmp_path: Path) -> None:
    info = tmp_path.stat()
    tmp_path.chmod(0o011)
    with pytest.raises(Misuse) as caught:
        who_can_traverse(tmp_path, info.st_uid, info.st_gid)
    assert caught.value.code == "path.traverse"
    tmp_path.chmod(0o700)


def test_a_path_that_is_not_there_is_misuse(tmp_path: Path) -> None:
    with pytest.raises(Misuse) as caught:
        who_can_traverse(tmp_path / "missing", os.geteuid(), os.getegid())
    assert caught.value.code == "path.missing"
