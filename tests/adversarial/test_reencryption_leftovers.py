"""What a re-encryption left behind, or what the store says, makes ``--shred-old`` destroy the only key of something."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

import cloister.client.control
from cloister.client import operations
from cloister.client.reencrypt import work_name
from cloister.errors import Misuse, Unavailable
from cloister.sealed.resume import ResumableSeal
from tests.client_home import LocalHome, Run
from tests.unit.test_client_keys import Killed, content, die, seal_anew

pytest_plugins = ["tests.client_fixtures"]

Patch = pytest.MonkeyPatch
CONTROL = cloister.client.control.ControlClient


def dead(local: LocalHome, name: str) -> dict[int, bool]:
    """Version → whether its key is destroyed."""
    found = {a["version"]: a["shredded"] is not None for a in rows(local, name)}
    return dict(sorted(found.items()))


def rows(local: LocalHome, name: str) -> list[dict[str, Any]]:
    return [row for row in local.home.agent("hospital").assets() if row["name"] == name]


def broken_off(local: LocalHome, name: str, monkeypatch: Patch, moment: str, version: int | None = None) -> None:
    """An attempt that the broker has signed, and that was killed before its upload."""
    with monkeypatch.context() as patch:
        die(patch, moment)
        with pytest.raises(Killed):
            operations.reencrypt(local.home, name, version=version)


def deny(local: LocalHome, name: str, version: int, patch: Patch) -> None:
    """A store that says that it lacks a version, whatever it has."""
    (digest,) = (row["digest"] for row in rows(local, name) if row["version"] == version)
    real = CONTROL.file

    def file(self: Any, wanted: str, index: int) -> Iterator[bytes]:
        if wanted == digest:
            raise Misuse("object.unknown", "There is no such object.")
        return real(self, wanted, index)

    patch.setattr(CONTROL, "file", file)


def upload_then(patch: Patch, happens: Any) -> None:
    """Once, between the upload and what follows it."""
    real, left = CONTROL.upload, [happens]

    def upload(self: Any, *args: Any, **more: Any) -> Any:
        answer = real(self, *args, **more)
        if left:
            left.pop()()
        return answer

    patch.setattr(CONTROL, "upload", upload)


def test_a_leftover_from_an_older_version_passes_for_the_newest_which_is_shredded(
    agreed: LocalHome, run: Run, monkeypatch: Patch
) -> None:
    name = "hospital/passed-over"
    seal_anew(agreed, name, size=1000)
    seal_anew(agreed, name, size=2000)
    before = {version: content(agreed, name, version) for version in (1, 2)}
    broken_off(agreed, name, monkeypatch, "upload", version=1)
    other = run("key", "reencrypt", name, "--shred-old", "--json")
    error = other.document["error"]
    assert (other.code, error["kind"], error["code"]) == (1, "unavailable", "reencrypt.other")
    assert "version 3 is stored, made from version 1 and not from version 2" in error["message"]
    assert "--version 2" in error["message"]
    assert dead(agreed, name) == {1: False, 2: False, 3: False}
    assert content(agreed, name, 3) == before[1]

    blindly = run("key", "reencrypt", name, "--shred-old")  # the same command, without reading what was said
    assert (blindly.code, "VERSION 2 IS KEPT" in blindly.out) == (0, True)
    assert dead(agreed, name) == {1: True, 2: False, 3: True, 4: False}
    as_told = run("key", "reencrypt", name, "--version", "2", "--shred-old", "--json").document
    assert (as_told["version"], as_told["source"], as_told["kept"]) == (5, 2, [4])
    assert dead(agreed, name) == {1: True, 2: True, 3: True, 4: False, 5: False}
    assert content(agreed, name, 5) == before[2]


@pytest.mark.parametrize("moment", ["after signing", "upload"])
def test_a_leftover_that_was_shredded_is_finished_and_everything_else_destroyed(
    agreed: LocalHome, run: Run, monkeypatch: Patch, moment: str
) -> None:
    name = f"hospital/dead-{moment.replace(' ', '-')}"
    seal_anew(agreed, name, size=1000)
    before = content(agreed, name, 1)
    broken_off(agreed, name, monkeypatch, moment)
    assert run("key", "shred", name, "--version", "2", "--reason", "it broke off", "--yes").code == 0
    refused = run("key", "reencrypt", name, "--shred-old", "--json")
    assert (refused.code, refused.document["error"]["code"]) == (3, "asset.shredded")
    assert "--version" in refused.document["error"]["message"]
    assert dead(agreed, name) == {1: False, 2: True}
    done = run("key", "reencrypt", name, "--version", "1", "--shred-old", "--json").document
    assert (done["version"], done["source"], done["resumed"], done["kept"]) == (3, 1, False, [])
    assert dead(agreed, name) == {1: True, 2: True, 3: False}
    assert content(agreed, name, 3) == before
    assert not list((agreed.folder / "outbox").iterdir())


def test_half_of_a_shredded_leftover_is_taken_for_a_whole_one(agreed: LocalHome, run: Run, monkeypatch: Patch) -> None:
    name = "hospital/half-removed"
    seal_anew(agreed, name, size=1000)
    broken_off(agreed, name, monkeypatch, "upload")
    assert run("key", "shred", name, "--version", "2", "--reason", "it broke off", "--yes").code == 0
    real, calls = ResumableSeal.discard, [0]

    def discard(self: ResumableSeal) -> None:
        calls[0] += 1
        if calls[0] == 2:
            next(self.folder.glob("discarded/manifest*")).unlink()
            raise Killed
        real(self)

    with monkeypatch.context() as patch:
        patch.setattr(ResumableSeal, "discard", discard)
        with pytest.raises(Killed):
            operations.reencrypt(agreed.home, name, version=1)
    assert operations.reencrypt(agreed.home, name, version=1).asset.version == 3
    assert not list((agreed.folder / "outbox").iterdir())


def test_a_leftover_that_is_not_the_newest_any_more_passes_for_success(
    agreed: LocalHome, run: Run, monkeypatch: Patch
) -> None:
    name = "hospital/overtaken"
    seal_anew(agreed, name, size=1000)
    broken_off(agreed, name, monkeypatch, "upload")
    seal_anew(agreed, name, size=3000)
    late = run("key", "reencrypt", name, "--shred-old", "--json")
    assert (late.code, late.document["error"]["code"]) == (1, "reencrypt.older")
    assert "version 2 is stored, but version 3 was sealed meanwhile" in late.document["error"]["message"]
    assert dead(agreed, name) == {1: False, 2: False, 3: False}
    assert content(agreed, name, 2) == content(agreed, name, 1), "its upload is finished"
    again = run("key", "reencrypt", name, "--shred-old", "--json").document
    assert (again["version"], again["source"]) == (4, 3)
    assert dead(agreed, name) == {1: True, 2: True, 3: True, 4: False}


def test_the_new_version_is_shredded_just_before_the_old_ones_are(
    agreed: LocalHome, run: Run, monkeypatch: Patch
) -> None:
    name = "hospital/stillborn"
    seal_anew(agreed, name, size=1000)
    with monkeypatch.context() as patch:
        upload_then(patch, lambda: operations.shred(agreed.home, name, [2], reason="a mistake"))
        ran = run("key", "reencrypt", name, "--shred-old", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (1, "reencrypt.shredded")
    assert dead(agreed, name) == {1: False, 2: True}


def test_a_newer_version_is_sealed_just_before_the_old_ones_are_shredded(
    agreed: LocalHome, run: Run, monkeypatch: Patch
) -> None:
    name = "hospital/outrun"
    seal_anew(agreed, name, size=1000)
    with monkeypatch.context() as patch:
        upload_then(patch, lambda: seal_anew(agreed, name, size=3000))
        ran = run("key", "reencrypt", name, "--shred-old", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (1, "reencrypt.older")
    assert dead(agreed, name) == {1: False, 2: False, 3: False}


def test_a_leftover_of_a_version_that_this_broker_does_not_know_is_uploaded(
    agreed: LocalHome, run: Run, monkeypatch: Patch
) -> None:
    """The folder of another asset lies in the place of this one's leftover."""
    name, other = "hospital/swapped", "hospital/swapped-in"
    for asset in (name, other):
        seal_anew(agreed, asset, size=1000)
    broken_off(agreed, other, monkeypatch, "upload")
    outbox = agreed.folder / "outbox"
    (outbox / work_name(other)).rename(outbox / work_name(name))
    ran = run("key", "reencrypt", name, "--shred-old", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (2, "reencrypt.unknown")
    assert dead(agreed, name) == {1: False}
    assert (outbox / work_name(name)).is_dir(), "it is the owner's to move away"
    shutil.rmtree(outbox / work_name(name))
    assert run("key", "reencrypt", name).code == 0


def test_a_store_denies_the_newest_version_so_that_its_owner_destroys_it(
    agreed: LocalHome, run: Run, monkeypatch: Patch
) -> None:
    name = "hospital/denied"
    seal_anew(agreed, name, size=1000)
    seal_anew(agreed, name, size=2000)
    newest = content(agreed, name, 2)
    with monkeypatch.context() as patch:
        deny(agreed, name, 2, patch)
        stuck = run("key", "reencrypt", name, "--shred-old", "--json").document["error"]
        assert stuck["code"] == "object.unknown"
        assert stuck["message"].startswith("The store says that it does not have")
        assert "lost" not in stuck["message"], "nobody knows that"
        ran = run("key", "reencrypt", name, "--version", "1", "--shred-old")
    assert ran.code == 0
    assert "VERSION 2 IS KEPT" in ran.out
    assert f"'cloister key shred {name} --version 2'" in ran.out
    assert dead(agreed, name) == {1: True, 2: False, 3: False}
    assert content(agreed, name, 2) == newest
    later = run("key", "reencrypt", name, "--shred-old", "--json").document
    assert (later["kept"], dead(agreed, name)) == ([2], {1: True, 2: False, 3: True, 4: False})
    assert run("key", "shred", name, "--version", "2", "--reason", "never found", "--yes").code == 0
    assert dead(agreed, name)[2], "by its owner's own word"


def test_a_control_plane_that_is_away_leaves_the_leftover(agreed: LocalHome, run: Run, monkeypatch: Patch) -> None:
    name = "hospital/away"
    seal_anew(agreed, name, size=1000)

    def gone(*_: Any, **__: Any) -> str:
        raise Unavailable("control.down", "The control plane can't be reached.")

    with monkeypatch.context() as patch:
        patch.setattr(CONTROL, "upload", gone)
        for _ in range(2):
            ran = run("key", "reencrypt", name, "--shred-old", "--json")
            assert (ran.code, ran.document["error"]["code"]) == (1, "control.down")
            assert dead(agreed, name) == {1: False, 2: False}
    done = run("key", "reencrypt", name, "--shred-old", "--json").document
    assert (done["version"], done["resumed"]) == (2, True)
    assert dead(agreed, name) == {1: True, 2: False}
