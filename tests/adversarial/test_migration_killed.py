"""A move to a database is killed at any step, or loses power, or its old files come back: one party, one history."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.broker import Settings
from cloister.broker.migration import migrate
from cloister.errors import CloisterError, Misuse, Unavailable, Untrusted
from tests.broker_party import PASSPHRASE, FakeClock, Party, insecure_judges
from tests.postgres import Postgres, address
from tests.replicas import QUICK, SharedParty

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]

OWN = ("state.db", "log")


class Killed(BaseException):
    """The process ends here."""


Moving = tuple[Party, SharedParty, Settings]


@pytest.fixture
def moving(folder: Path, postgres: Postgres, empty: str) -> Moving:
    own = Party("hospital", folder / "hospital", FakeClock(), insecure_judges())
    own.broker.close()
    address(folder / "hospital.url", postgres.url(empty))
    later = SharedParty.__new__(SharedParty)
    later.name, later.home, later.clock, later.judges, later.limits = (
        own.name, own.home, own.clock, own.judges, QUICK,
    )  # fmt: skip
    return own, later, Settings(own.home, limits=QUICK, database=folder / "hospital.url")


def code(call: Callable[[], Any]) -> str:
    with pytest.raises(CloisterError) as caught:
        call()
    return caught.value.code


def ended(call: Callable[[], Any]) -> str | None:
    """The code of a refusal, if it was one."""
    try:
        call()
    except CloisterError as refusal:
        return refusal.code
    return None


def killed_at(monkeypatch: pytest.MonkeyPatch, moving: Moving, step: int) -> bool:
    """Whether a move was killed at a step of those that change or sync the home after its record was copied."""
    own, _, settings = moving
    left = [step]

    def counted(what: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if copied:
                left[0] -= 1
                if left[0] == 0:
                    raise Killed
            return what(*arguments, **named)

        return call

    copied: list[bool] = []
    from cloister.broker import migration

    def noted(settings: Settings) -> Any:
        copied.append(True)
        return set_aside(settings)

    set_aside = migration._set_aside
    with monkeypatch.context() as patch:
        patch.setattr(migration, "_set_aside", noted)
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(os, "fsync", counted(os.fsync))
        try:
            migrate(settings, PASSPHRASE, clock=own.clock)
        except Killed:
            return True
    return False


def test_a_move_that_is_killed_at_any_step_is_gone_on_with(
    moving: Moving, monkeypatch: pytest.MonkeyPatch, folder: Path, postgres: Postgres, empty: str
) -> None:
    own, _, settings = moving
    home, kept = own.home, folder / "kept"
    shutil.copytree(home, kept)
    step, seen = 0, set()
    while True:
        step += 1
        shutil.rmtree(home)
        shutil.copytree(kept, home)
        database = postgres.database()
        (folder / "hospital.url").write_text(postgres.url(database) + "\n")
        if not killed_at(monkeypatch, moving, step):
            break
        here = tuple((home / name).exists() for name in OWN)
        seen.add(here)
        if here == (False, True):
            assert code(own.start) == "migration.unfinished"
            assert code(moving[1].start) == "migration.unfinished"
        if here == (False, False) and step % 2:
            moving[1].start()  # whoever never heard of the end
            moving[1].broker.close()
            with pytest.raises(Misuse):
                migrate(settings, PASSPHRASE, clock=own.clock)
        else:
            assert ended(lambda: migrate(settings, PASSPHRASE, clock=own.clock)) in (None, "migration.done")
        assert not any((home / name).exists() for name in OWN)
        moving[1].start()
        assert moving[1].kinds()[0] == "org.created"
        moving[1].broker.close()
        assert code(own.start) == "state.file"
        postgres.drop(database)
    assert seen == {(True, True), (False, True), (False, False)}
    assert step > 5
    postgres.drop(database)


def test_renames_that_a_loss_of_power_made_durable_in_another_order(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, later, settings = moving
    assert killed_at(monkeypatch, moving, 1)
    (own.home / "log").rename(own.home / "log.migrated")
    assert code(own.start) == "migration.unfinished"
    assert code(later.start) == "migration.unfinished"
    moved = migrate(settings, PASSPHRASE, clock=own.clock)
    assert {path.name for path in moved.aside} == {"state.db.migrated", "log.migrated"}
    later.start()
    assert later.kinds().count("state.migrated") == 1
    later.broker.close()


def test_a_half_moved_home_is_not_set_aside_for_a_database_that_lacks_its_log(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _, settings = moving
    assert killed_at(monkeypatch, moving, 1)  # copied
    own.start()
    own.broker.close()  # and gone on with
    (own.home / "state.db").rename(own.home / "state.db.migrated")
    with pytest.raises(Untrusted) as caught:
        migrate(settings, PASSPHRASE, clock=own.clock)
    assert caught.value.code == "audit.rollback"
    assert (own.home / "log").exists()


def test_a_home_whose_old_files_came_back_is_no_second_history(moving: Moving, folder: Path) -> None:
    own, later, settings = moving
    for name in OWN:
        (shutil.copytree if name == "log" else shutil.copy)(own.home / name, folder / name)
    migrate(settings, PASSPHRASE, clock=own.clock)  # nothing was served from the database yet
    for name in OWN:
        (folder / name).rename(own.home / name)
    with pytest.raises(Untrusted) as caught:
        own.start()
    assert caught.value.code == "state.moved"
    assert code(lambda: migrate(settings, PASSPHRASE, clock=own.clock)) == "migration.leftovers"
    assert code(later.start) == "state.two_places"


def test_nothing_is_served_from_a_database_before_the_renames_are_durable(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, later, settings = moving
    migrate(settings, PASSPHRASE, clock=own.clock)

    def broken(_: int) -> None:
        raise OSError(5, "the disk")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(Unavailable) as caught:
            later.start()
    assert caught.value.code == "replica.home"


def test_a_move_whose_end_the_home_can_not_remember_says_so(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    own, later, settings = moving

    def full(_path: Path, _to: Path) -> None:
        raise OSError(28, "full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        assert code(lambda: migrate(settings, PASSPHRASE, clock=own.clock)) == "replica.seen"
    later.start()
    later.broker.close()


def test_a_broker_can_not_start_in_a_home_that_is_being_set_aside(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _, settings = moving
    held: list[bool] = []
    rename = Path.rename

    def looked(path: Path, to: Path) -> Path:
        if path.parent == own.home:
            with (own.home / "lock").open("ab") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held.append(False)
                except BlockingIOError:
                    held.append(True)
        return rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", looked)
        migrate(settings, PASSPHRASE, clock=own.clock)
    assert held == [True, True]
