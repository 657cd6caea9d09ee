"""``cloister key``, in this process against real brokers and a real control plane."""

from __future__ import annotations

import errno
import io
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cloister.client.control
import cloister.sealed.resume
from cloister.broker import Broker, Limits, Settings
from cloister.client import OwnerAgent, operations
from cloister.client import keys as client_keys
from cloister.client.times import day, parse_day, parse_span
from cloister.errors import CloisterError, Misuse, Unavailable, Untrusted
from cloister.keys.orphans import Swept
from cloister.sealed import open_sealed
from tests.client_home import OPTIONS, PASSPHRASE, LocalHome, Run

pytest_plugins = ["tests.client_fixtures"]

NAME = "hospital/queries"


def seal_anew(local: LocalHome, name: str, size: int = 100) -> str:
    """Digest of a fresh asset of two files."""
    folder = local.folder.parent / f"sources-{name.replace('/', '-')}-{time.monotonic_ns()}"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"w" * size)
    (folder / "config.json").write_text("{}")
    return operations.seal(local.home, folder, name, OPTIONS.__class__(licences=("MIT",))).digest


# Words of a person.


@pytest.mark.parametrize(("text", "seconds"), [("1h", 3600), ("90d", 7_776_000), ("26w", 15_724_800)])
def test_spans(text: str, seconds: int) -> None:
    assert parse_span(text, "--every") == seconds
    assert parse_day(text, "--until", now=1000) == 1000 + seconds


@pytest.mark.parametrize("text", ["", "d", "0d", "-1d", "1.5d", "90", "90 d", "１d", "999999d"])
def test_spans_that_are_none(text: str) -> None:
    with pytest.raises(Misuse) as refused:
        parse_span(text, "--every")
    assert "--every" in refused.value.message
    with pytest.raises(Misuse) as refused:
        parse_day(text, "--until", now=0)
    assert refused.value.code == "form.day"


def test_days() -> None:
    assert parse_day("2027-11-20", "--until", now=0) == 1_826_668_800
    assert day(1_826_668_800) == "2027-11-20"
    assert day(2**53 - 1) == "never"


# Commands.


def test_rotating_and_its_schedule(agreed: LocalHome, run: Run) -> None:
    before = run("key", "list", "--as", "hospital", "--json").document
    ran = run("key", "rotate", "--as", "hospital", "--json", "--progress")
    assert ran.code == 0
    assert (ran.document["begun"], ran.document["epoch"]) == (True, before["epoch"] + 1)
    assert ran.document["epochs"] == [before["epoch"] + 1]
    assert "rewrap" in ran.err
    assert "by hand only" in run("key", "schedule", "--as", "hospital").out
    assert run("key", "schedule", "--every", "90d", "--as", "hospital", "--json").document["every"] == 90 * 86_400
    assert "every 90 days" in run("key", "status", "--as", "hospital").out
    assert run("key", "schedule", "--never", "--as", "hospital", "--json").document["every"] is None
    both = run("key", "schedule", "--never", "--every", "1d", "--as", "hospital", "--json")
    assert (both.code, both.document["error"]["code"]) == (2, "schedule.both")
    assert run("key", "schedule", "--every", "1h", "--as", "hospital").code == 2


def test_the_list_of_keys(agreed: LocalHome, run: Run) -> None:
    found = run("key", "list", "--as", "hospital", "--json").document
    assert {k["kind"] for k in found["keys"]} >= {"kek", "secret"}
    assert found["driver"] == "file"
    (asset,) = (a for a in found["assets"] if a["name"] == NAME)
    assert (asset["class"], asset["shredded"], asset["held"]) == ("dataset", None, None)
    shown = run("key", "list", "--as", "hospital").out
    assert "kept until never" in shown
    usage = run("key", "usage", "--as", "hospital", "--json").document
    assert [k["releases"] for k in usage["keys"] if k["kind"] == "asset"] == [0]
    assert "never" in run("key", "usage", "--as", "hospital").out


def test_shredding_asks_for_the_name(agreed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seal_anew(agreed, "hospital/doomed")
    words = ("key", "shred", "hospital/doomed", "--reason", "withdrawn")
    nobody = run(*words)
    assert (nobody.code, "add --yes" in nobody.err) == (2, True)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def types(text: str) -> int:
        with monkeypatch.context() as patch:
            patch.setattr("sys.stdin", Terminal(text))
            patch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
            return run(*words).code

    assert types("y\n") == 2, "a quick yes is not enough"
    assert types("hospital/other\n") == 2
    assert "shredded" not in run("key", "list", "--as", "hospital").out
    assert types("hospital/doomed\n") == 0
    assert "withdrawn" in run("key", "list", "--as", "hospital").out
    again = run(*words, "--yes", "--version", "1", "--json")
    assert again.document["versions"][0]["reason"] == "withdrawn"
    assert any("Copies of the vault file" in said for said in again.document["beyond_recall"])
    first, *rest = run(*words, "--yes", "--version", "1").out.splitlines()
    assert first == "hospital/doomed version 1 is shredded: its key is destroyed here."
    assert any("passphrase of that time" in line for line in rest), "what is out of reach is named"
    assert "cloister key rekey" in rest[-1]
    assert "can't close the copy itself" in rest[-1]


def test_which_versions(agreed: LocalHome, run: Run) -> None:
    for _ in range(3):
        seal_anew(agreed, "hospital/thrice")
    words = ("key", "shred", "hospital/thrice", "--reason", "x", "--yes", "--json")
    assert run(*words).document["error"]["code"] == "shred.versions"
    assert run(*words, "--version", "1", "--all-versions").document["error"]["code"] == "shred.versions"
    assert run(*words, "--version", "9").document["error"]["code"] == "asset.version"
    assert [v["version"] for v in run(*words, "--version", "1", "--version", "2").document["versions"]] == [1, 2]
    assert [v["version"] for v in run(*words).document["versions"]] == [3], "the only one that is left"
    assert len(run(*words, "--all-versions").document["versions"]) == 3
    unknown = run("key", "shred", "hospital/none", "--reason", "x", "--yes", "--json")
    assert (unknown.code, unknown.document["error"]["code"]) == (2, "asset.unknown")
    empty = run("key", "shred", "hospital/thrice", "--reason", "  ", "--yes", "--all-versions", "--json")
    assert empty.document["error"]["code"] == "form.reason"


def test_dates_and_holds(agreed: LocalHome, run: Run) -> None:
    seal_anew(agreed, "hospital/held")
    kept = run("key", "retain", "hospital/held", "--until", "2099-01-01", "--json").document
    assert kept["changed"][0]["keep_until"] == 4_070_908_800
    assert "2099-02-01" in run("key", "retain", "hospital/held", "--until", "2099-02-01").out
    assert run("key", "retain", "hospital/held", "--until", "2020-01-01").code == 2
    assert run("key", "retain", NAME, "--until", "2099-01-01").code == 0, "a contract says for ever: shorter is fine"
    assert run("key", "retain", NAME, "--until", "2099-01-02").code == 3
    assert (
        run("key", "hold", "hospital/held", "--reason", "litigation 7").out == "hospital/held is held: litigation 7\n"
    )
    denied = run("key", "shred", "hospital/held", "--reason", "x", "--yes")
    assert (denied.code, "litigation 7" in denied.err) == (3, True)
    assert "held: litigation 7" in run("key", "list", "--as", "hospital").out
    assert run("key", "unhold", "hospital/held", "--reason", "settled").code == 0
    assert run("key", "unhold", "hospital/held", "--reason", "settled").code == 2
    assert run("key", "shred", "hospital/held", "--reason", "x", "--yes").code == 0


def test_a_date_from_the_sealing_on(agreed: LocalHome, run: Run) -> None:
    words = ("seal", str(agreed.folder.parent / "rows.csv"), "--as", "hospital/dated", "--schema", "text,label")
    assert run(*words, "--keep-until", "yesterday").code == 2
    assert run(*words, "--keep-until", "2099-01-01").code == 0
    (asset,) = (a for a in agreed.home.agent("hospital").assets() if a["name"] == "hospital/dated")
    assert asset["keep_until"] == 4_070_908_800


def test_shredding_checkpoints(agreed: LocalHome, run: Run) -> None:
    words = ("key", "shred-checkpoints", "--reason", "a disk was stolen", "--as", "lab")
    assert run(*words).code == 2
    assert "0 running jobs end" in run(*words, "--yes").out


def test_shredding_checkpoints_under_a_hold(agreed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    core = agreed._brokers["lab"][0].broker.core
    monkeypatch.setattr(core.knowledge, "used_names", lambda names: set(names))
    assert run("key", "hold", "lab/minilm", "--reason", "litigation 7").code == 0
    words = ("key", "shred-checkpoints", "--reason", "a disk was stolen", "--as", "lab", "--yes", "--json")
    error = run(*words).document["error"]
    assert (error["code"], error["details"]) == ("asset.held", {"assets": "lab/minilm"})
    assert run("key", "unhold", "lab/minilm", "--reason", "settled").code == 0
    assert run(*words).code == 0


# The vault itself.


def test_rekeying(local: LocalHome, run: Run, tmp_path: Path) -> None:
    operations.create_party(local.home, "ward", PASSPHRASE)
    words, file = ("key", "rekey", "--as", "ward"), local.folder / "parties" / "ward" / "vault.json"
    before = file.read_bytes()
    nobody = run(*words)
    assert (nobody.code, "add --yes" in nobody.err) == (2, True)
    (tmp_path / "wrong").write_text("not the passphrase\n")
    (tmp_path / "wrong").chmod(0o600)
    wrong = run(*words, "--yes", "--passphrase-file", str(tmp_path / "wrong"))
    assert (wrong.code, wrong.out, len(wrong.err.splitlines())) == (3, "", 1)
    assert "passphrase is wrong" in wrong.err
    assert file.read_bytes() == before
    done = run(*words, "--yes")
    assert done.code == 0, done.err
    for part in ("a new master key, revision", "make a new one now", "with the passphrase of their time"):
        assert part in done.out
    assert "shares" not in done.out, "there were none"
    operations.split_secret_root(local.home, "ward", 2, 3)
    again = run(*words, "--yes")
    for part in ("but with recovery shares of their time", "of no use for it any more", "the recovery shares of their"):
        assert part in again.out
    assert file.read_bytes() != before
    assert run(*words, "--yes", "--json").document["party"] == "ward"
    log = run("audit", "show", "--as", "ward", "--kind", "vault.rekeyed", "--json").document["entries"]
    assert [e["details"].get("stage", e["details"].get("code")) for e in log] == [
        "vault.passphrase", "begun", "done", "begun", "done", "begun", "done",
    ]  # fmt: skip
    local.lock("ward")
    locked = run(*words, "--yes")
    assert (locked.code, "org unlock ward" in locked.err) == (1, True)
    assert run("org", "unlock", "ward").code == 0, "the passphrase stays the same"


def test_sweeping(agreed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("key", "sweep", "--as", "hospital")
    nothing = run(*words)
    assert (nothing.code, "nothing was done" in nothing.out) == (0, True), nothing.err
    vault = agreed._brokers["hospital"][0].broker.lifecycle.vault
    held = [b"one", b"two"]
    monkeypatch.setattr(vault, "orphans", lambda: tuple(held))
    monkeypatch.setattr(vault, "other_roots", lambda: (b"one",))

    def sweep(*, known_revision: int, among: tuple[bytes, ...]) -> Swept:
        assert (known_revision <= vault.revision, among) == (True, (b"one", b"two"))
        gone = tuple(held)
        held.clear()
        return Swept(gone, tuple(f"Backups still hold {name.decode()}." for name in gone))

    monkeypatch.setattr(vault, "sweep_orphans", sweep)
    nobody = run(*words)
    assert (nobody.code, "add --yes" in nobody.err) == (2, True)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with monkeypatch.context() as patch:
        patch.setattr("sys.stdin", Terminal("y\n"))
        patch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        asked = run(*words)
    assert asked.code == 2, "a quick yes is not enough"
    for part in (
        "destroys 1 root keys of other copies and 1 other keys",
        "stop its broker first",
        "another copy of the vault file",
        "lost for good",
    ):
        assert part in asked.err
    assert len(held) == 2
    done = run(*words, "--yes")
    assert (done.code, held) == (0, [])
    first = "1 root keys of other copies and 1 other keys of hospital are destroyed in the device."
    assert done.out.splitlines()[0] == first
    assert "Backups still hold one." in done.out


def test_sweeping_keeps_what_assets_may_need(agreed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = agreed._brokers["hospital"][0].broker.lifecycle.vault
    monkeypatch.setattr(vault, "orphans", lambda: (b"one",))
    with monkeypatch.context() as patch:
        patch.setattr(vault, "epochs", lambda: (99,))
        kept = run("key", "sweep", "--as", "hospital")
    assert kept.code == 0, kept.err
    assert kept.out.splitlines()[0] == "Nothing of hospital was destroyed in the device."
    assert "1 other keys are kept" in kept.out
    assert "hospital/" in kept.out


# Re-encryption.


def content(local: LocalHome, name: str, version: int) -> dict[str, bytes]:
    """What is stored as that version, opened with the broker's own key."""
    agent = local.home.agent("hospital")
    (row,) = (a for a in agent.assets() if a["name"] == name and a["version"] == version)
    folder = local.folder.parent / f"fetched-{time.monotonic_ns()}"
    local.home.control("hospital").download(row["digest"], folder)
    core = local._brokers["hospital"][0].broker.core
    dek = core.assets.unwrap_secret_dek(bytes.fromhex(row["digest"]))
    keys = [agent.card.keys.signing]
    with open_sealed(folder, dek=dek, expected_digest=bytes.fromhex(row["digest"]), signer_keys=keys) as sealed:
        found = {path: sealed.read(path) for path in sealed.paths()}
        sealed.check_roots()
        sealed.require_complete()
    shutil.rmtree(folder)
    return found


def test_re_encrypting(agreed: LocalHome, run: Run) -> None:
    first = seal_anew(agreed, "hospital/fresh", size=3_000_000)
    before = content(agreed, "hospital/fresh", 1)
    ran = run("key", "reencrypt", "hospital/fresh", "--json", "--progress")
    assert ran.code == 0
    assert (ran.document["version"], ran.document["resumed"], ran.document["shredded"]) == (2, False, None)
    assert ran.document["digest"] != first
    assert "re-encrypt" in ran.err
    assert content(agreed, "hospital/fresh", 2) == before == content(agreed, "hospital/fresh", 1)
    ran = run("key", "reencrypt", "hospital/fresh", "--shred-old", "--json")
    assert [v["version"] for v in ran.document["shredded"]["versions"]] == [1, 2]
    assert content(agreed, "hospital/fresh", 3) == before
    rows = {a["version"]: a for a in run("key", "list", "--as", "hospital", "--json").document["assets"]
            if a["name"] == "hospital/fresh"}  # fmt: skip
    assert [rows[n]["shredded"] is None for n in (1, 2, 3)] == [False, False, True]
    assert not list((agreed.folder / "outbox").iterdir()), "nothing is left behind"


def lose_newest(local: LocalHome, run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Version 2 is registered with the broker, and its folder is gone before its upload reached the store. Returns what
    version 1 holds."""
    seal_anew(local, name, size=2_000_000)
    before = content(local, name, 1)

    def gone(*_: Any, **__: Any) -> str:
        raise Unavailable("control.down", "The control plane can't be reached.")

    with monkeypatch.context() as patch:
        patch.setattr(cloister.client.control.ControlClient, "upload", gone)
        with pytest.raises(Unavailable):
            seal_anew(local, name, size=1000)
    for folder in (local.folder / "outbox").iterdir():
        shutil.rmtree(folder)
    return before


def test_a_version_that_was_lost_before_its_upload(
    agreed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "hospital/stranded"
    before = lose_newest(agreed, run, name, monkeypatch)
    stuck = run("key", "reencrypt", name, "--json")
    assert stuck.document["error"]["code"] == "object.unknown"
    assert "--version" in stuck.document["error"]["message"]
    ran = run("key", "reencrypt", name, "--version", "1")
    assert ran.code == 0, ran.err
    assert f"{name} version 3 is sealed" in ran.out
    assert "MADE FROM VERSION 1, not from version 2" in ran.out
    assert content(agreed, name, 3) == before
    log = run("audit", "show", "--as", "hospital", "--kind", "asset.reencrypting", "--json").document["entries"]
    found = [e["details"] for e in log if e["details"]["name"] == name]
    assert [(d["stage"], d["version"], d["source"]) for d in found] == [("started", 3, 2), ("started", 3, 1)]
    again = run("key", "reencrypt", name, "--json").document
    assert (again["version"], again["source"]) == (4, 3)
    assert "MADE FROM" not in run("key", "reencrypt", name).out
    assert not list((agreed.folder / "outbox").iterdir())


def test_versions_that_can_not_be_re_encrypted(agreed: LocalHome, run: Run) -> None:
    name = "hospital/numbered"
    for _ in range(2):
        seal_anew(agreed, name)
    assert run("key", "shred", name, "--version", "1", "--reason", "x", "--yes").code == 0
    shredded = run("key", "reencrypt", name, "--version", "1", "--json").document["error"]
    assert shredded["code"] == "asset.shredded"
    assert run("key", "reencrypt", name, "--version", "7", "--json").document["error"]["code"] == "asset.version"
    both = run("key", "reencrypt", name, "--version", "2", "--cancel", "--json")
    assert (both.code, both.document["error"]["code"]) == (2, "reencrypt.cancel")


def test_an_earlier_attempt_from_another_version_is_not_passed_off(
    agreed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt before was registered, and not uploaded yet: it is finished and named, not taken for another."""
    name = "hospital/twice-tried"
    before = lose_newest(agreed, run, name, monkeypatch)
    with monkeypatch.context() as patch:
        die(patch, "upload")
        with pytest.raises(Killed):
            operations.reencrypt(agreed.home, name, version=1)
    ran = run("key", "reencrypt", name, "--version", "2", "--shred-old", "--json")
    other = ran.document["error"]
    assert (ran.code, other["code"]) == (1, "reencrypt.other"), "a version was stored: that is no misuse"
    assert "version 3 is stored, made from version 1" in other["message"]
    rows = [a for a in agreed.home.agent("hospital").assets() if a["name"] == name]
    assert [row["shredded"] for row in rows] == [None, None, None], "nothing else was done"
    assert content(agreed, name, 3) == before


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["first file", "second file", "before signing", "after signing", "upload"])
def test_a_killed_re_encryption_goes_on(
    agreed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    name = f"hospital/killed-{moment.replace(' ', '-')}"
    seal_anew(agreed, name, size=2_000_000)
    before = content(agreed, name, 1)
    fetched: list[int] = []
    real_file = cloister.client.control.ControlClient.file

    def file(self: Any, digest: str, index: int) -> Any:
        fetched.append(index)
        return real_file(self, digest, index)

    monkeypatch.setattr(cloister.client.control.ControlClient, "file", file)
    with monkeypatch.context() as patch:
        die(patch, moment)
        with pytest.raises(Killed):
            operations.reencrypt(agreed.home, name)
    interrupted = list(fetched)
    fetched.clear()
    done = operations.reencrypt(agreed.home, name)
    assert (done.asset.version, done.resumed) == (2, True)
    assert content(agreed, name, 2) == before
    whole = {"first file": [], "second file": [0]}.get(moment, [0, 1])
    assert sorted(set(interrupted)) == sorted({*whole, *interrupted})
    assert not set(whole) & set(fetched[: 2 - len(whole)]), "what was finished is not fetched again"
    assert not list((agreed.folder / "outbox").iterdir())


def die(patch: pytest.MonkeyPatch, moment: str) -> None:
    def dead(*_: Any, **__: Any) -> Any:
        raise Killed

    files: list[str] = []
    real = cloister.sealed.resume.ResumableSeal._keep

    def keep(self: Any, index: int, *args: Any) -> None:
        files.append(str(index))
        if len(files) == {"first file": 1, "second file": 2}.get(moment):
            raise Killed
        real(self, index, *args)

    patch.setattr(cloister.sealed.resume.ResumableSeal, "_keep", keep)
    if moment == "before signing":
        patch.setattr(OwnerAgent, "register_secret_dek", dead)
    if moment == "after signing":
        patch.setattr(cloister.sealed.resume.ResumableSeal, "publish", dead)
    if moment == "upload":
        patch.setattr(cloister.client.control.ControlClient, "upload", dead)


def test_a_store_that_gives_other_ciphertext(agreed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "hospital/misled"
    seal_anew(agreed, name, size=2_000_000)
    real = cloister.client.control.ControlClient.file

    def lying(how: Callable[[bytes], bytes]) -> Callable[..., Any]:
        def file(self: Any, digest: str, index: int) -> Any:
            return iter([how(b"".join(real(self, digest, index)))])

        return file

    for how in (lambda d: d[:-1], lambda d: d + b"x", lambda d: bytes([d[0], d[1] ^ 1]) + d[2:], lambda d: b""):
        with monkeypatch.context() as patch:
            patch.setattr(cloister.client.control.ControlClient, "file", lying(how))
            with pytest.raises(Untrusted) as refused:
                operations.reencrypt(agreed.home, name)
        assert refused.value.code == "sealed.root"
    assert operations.reencrypt(agreed.home, name).asset.version == 2


def test_a_disk_that_fills_during_re_encryption(agreed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seal_anew(agreed, "hospital/large", size=2_000_000)
    real, calls = os.fsync, [0]

    def full(fd: int) -> None:
        calls[0] += 1
        if calls[0] > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    with monkeypatch.context() as patch:
        # Only the client's disk: the broker in this process has its own.
        patch.setattr(cloister.sealed.resume, "os", SimpleNamespace(**{**vars(os), "fsync": full}))
        ran = run("key", "reencrypt", "hospital/large", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (1, "storage.full")
    assert "the same command again" in ran.document["error"]["message"]
    ran = run("key", "reencrypt", "hospital/large", "--json")
    assert (ran.code, ran.document["version"], ran.document["resumed"]) == (0, 2, True)


def test_cancelling(agreed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seal_anew(agreed, "hospital/dropped")
    assert run("key", "reencrypt", "hospital/dropped", "--cancel").code == 2
    with monkeypatch.context() as patch:
        die(patch, "second file")
        with pytest.raises(Killed):
            operations.reencrypt(agreed.home, "hospital/dropped")
    assert "re-encryption" in run("key", "list", "--as", "hospital").out
    assert "is ended" in run("key", "reencrypt", "hospital/dropped", "--cancel").out
    done = operations.reencrypt(agreed.home, "hospital/dropped")
    assert (done.asset.version, done.resumed) == (2, False), "the key is another one, so nothing is kept"


# Waiting.


class Slow:
    """An agent whose rotation takes its time."""

    def __init__(self, *found: dict[str, Any]) -> None:
        self._found = list(found)

    def rotation(self) -> dict[str, Any]:
        return self._found.pop(0) if len(self._found) > 1 else self._found[0]


def state(done: int, *, pending: bool = True, running: bool = True, error: str | None = None) -> dict[str, Any]:
    return {"done": done, "total": 9, "pending": pending, "running": running, "error": error}


def test_waiting_for_a_rotation() -> None:
    seen: list[int] = []
    slept: list[float] = []
    agent: Any = Slow(state(0), state(3), state(3, error="away"), state(3), state(9, pending=False))
    found = client_keys._await_rotation(agent, lambda step: seen.append(step.done), sleep=slept.append)
    assert found["done"] == 9
    assert seen == [0, 3, 3, 3, 9]
    assert all(0 < seconds <= 0.5 for seconds in slept)


def test_a_rotation_that_can_not_go_on() -> None:
    agent: Any = Slow(state(3, running=False, error="The token is not there; put it in."))
    with pytest.raises(Unavailable) as refused:
        client_keys._await_rotation(agent, lambda _: None, sleep=lambda _: None)
    assert refused.value.code == "rotation.waits"
    assert "The token is not there; put it in; the broker goes on by itself" in refused.value.message


def test_shredding_tells_what_is_done_when_the_rotation_is_not(
    agreed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal_anew(agreed, "hospital/gone")
    words = ("key", "shred", "hospital/gone", "--reason", "withdrawn", "--yes", "--json")

    def fails(*_: object) -> dict[str, Any]:
        raise Unavailable("rotation.waits", "The token is not there; put it in.")

    with monkeypatch.context() as patch:
        patch.setattr(client_keys, "_await_rotation", fails)
        ran = run(*words)
    error = ran.document["error"]
    assert (ran.code != 0, error["code"]) == (True, "shred.rotation")
    for part in ("The keys are removed already", "The token is not there; put it in; it goes on without this command"):
        assert part in error["message"]
    (asset,) = (a for a in agreed.home.agent("hospital").assets() if a["name"] == "hospital/gone")
    assert asset["shredded"] is not None
    again = run(*words, "--version", "1").document
    assert [v["reason"] for v in again["versions"]] == ["withdrawn"]


# Recovery.


def test_a_drill(local: LocalHome, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The passphrase is lost; three of five people put the vault back in use."""
    operations.create_party(local.home, "clinic", PASSPHRASE)
    words = ("key", "recovery", "split", "--threshold", "3", "--shares", "5", "--as", "clinic")
    hidden = run(*words, "--json")
    assert (hidden.code, hidden.document["error"]["code"]) == (2, "recovery.terminal")
    ran = run(*words, "--print-shares", "--json")
    shares = ran.document["shares"]
    assert len(shares) == 5
    log = run("audit", "show", "--as", "clinic", "--kind", "vault.split", "--json").document["entries"]
    assert [e["details"].get("stage") for e in log] == [None, "made"]
    for share in shares:  # a single word of a share may stand in any text
        words_of = share.split()
        assert not any(" ".join(words_of[i : i + 3]) in " ".join(str(log).split()) for i in range(len(words_of) - 2))
    local.lock("clinic")
    home = local.folder / "parties" / "clinic"
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([shares[4], shares[0], shares[2]])))
    (tmp_path / "new").write_text("an entirely new passphrase\n")
    (tmp_path / "new").chmod(0o600)
    ran = run("key", "recovery", "restore", str(home / "vault.json"), "--passphrase-file", str(tmp_path / "new"))
    assert (ran.code, "is restored" in ran.out) == (0, True), ran.err
    settings = Settings(home, limits=Limits(heads_interval=3600.0))
    with pytest.raises(CloisterError) as refused:
        Broker.start(settings, PASSPHRASE.encode())
    assert refused.value.code == "vault.passphrase"
    Broker.start(settings, b"an entirely new passphrase").close()
    few = run_restore(run, monkeypatch, home / "vault.json", shares[:2], tmp_path / "new")
    assert few.code != 0
    assert run_restore(run, monkeypatch, tmp_path / "none", shares[:3], tmp_path / "new").code == 2
    with pytest.raises(Misuse) as option:
        operations.restore_secret_root(home / "vault.json", shares, "x" * 9, driver="tpm", options=["nothing"])
    assert option.value.code == "recovery.option"


def run_restore(run: Run, monkeypatch: pytest.MonkeyPatch, vault: Path, shares: list[str], file: Path) -> Any:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(shares)))
    return run("key", "recovery", "restore", str(vault), "--passphrase-file", str(file), "--json")


def test_shares_at_a_terminal(
    agreed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shown on stderr one at a time; stdout, which may go into a file, has none of them."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("\n" * 3))
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True, raising=False)
    ran = run("key", "recovery", "split", "--threshold", "2", "--shares", "3", "--as", "lab", "--json")
    assert ran.code == 0
    assert "shares" not in ran.document
    assert ran.document["shares_made"] == 3
    shown = [line for line in ran.err.splitlines() if len(line.split()) > 20 and "Share" not in line]
    assert len(shown) == 3
    assert ran.err.count("\033[2J") == 3, "each is wiped before the next"
    # One of its words may be a word of the answer, too ("party" is one of the list); three in a row are not.
    words = shown[0].split()
    assert not any(" ".join(words[i : i + 3]) in ran.out for i in range(len(words) - 2))


def test_shares_that_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister.cli.recovery import _read_shares

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    typed = iter([" one two ", "three", ""])
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda *_, **__: next(typed))
    assert _read_shares() == ["one two", "three"]
