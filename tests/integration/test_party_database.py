"""A party whose record lies in a PostgreSQL, through the command line, with the supervisor's own processes."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.cli import main
from cloister.client import Home
from cloister.control.embedded import Supervisor, serve
from cloister.control.processes import PartProcess
from cloister.errors import Misuse
from tests.patience import until
from tests.postgres import Postgres, address

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]


class WithoutNode(Supervisor):
    """Control plane and brokers, as real processes; no node, whose image takes a while."""

    def _image(self) -> Path:
        return self._home

    def _start(self, name: str, *more: Any, **secret: Any) -> None:
        if name != "node":
            super()._start(name, *more, **secret)

    def watch(self) -> None:
        """Nothing that ends is started again."""


@contextlib.contextmanager
def up(home: Path) -> Iterator[None]:
    home.mkdir(mode=0o700, exist_ok=True)
    supervisor = WithoutNode(home, separate_users=False)
    try:
        supervisor.start()
        serving = threading.Thread(target=serve, args=(supervisor, home / "supervisor.sock"))
        serving.start()
        until("the supervisor", Home(home).running)
        yield
        Home(home).ask({"op": "stop"})
        serving.join(60)
    finally:
        supervisor.stop()


Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    secret = folder / "passphrase"
    secret.write_text("correct horse battery\n")
    secret.chmod(0o600)

    def call(*words: str) -> tuple[int, Any]:
        capsys.readouterr()
        more = ["--passphrase-file", str(secret)] if words[0] == "org" and words[1] != "list" else []
        code = main([*words, *more, "--home", str(folder / "h"), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


def error(answer: tuple[int, Any]) -> str:
    return str(answer[1]["error"]["code"])


def processes_say(text: str) -> bool:
    """Whether any process of this machine shows ``text`` in its arguments or environment."""
    for process in Path("/proc").glob("[0-9]*"):
        for what in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                if text.encode() in (process / what).read_bytes():
                    return True
    return False


def test_a_party_is_created_over_a_database(folder: Path, postgres: Postgres, run: Run, empty: str) -> None:
    url = postgres.url(empty)
    file = address(folder / "url", url)
    with up(folder / "h"):
        file.chmod(0o644)
        assert error(run("org", "create", "lab", "--database", str(file))) == "state.address_mode"
        assert not (folder / "h" / "parties" / "lab" / "vault.json").exists()
        file.chmod(0o600)
        code, made = run("org", "create", "lab", "--database", str(file))
        assert (code, made["name"]) == (0, "lab")
        assert not processes_say(url.split(":")[2].split("@")[0]), "the password went through the pipe alone"
        place = folder / "h" / "parties" / "lab"
        assert not (place / "state.db").exists()
        assert not (place / "log").exists()
        assert run("audit", "verify", "--as", "lab")[1]["size"] > 0
        assert error(run("org", "create", "clinic", "--database", str(file))) == "state.taken"
    assert url not in (folder / "h" / "supervisor.json").read_text(), "only where the file is"
    with up(folder / "h"):
        assert run("org", "unlock", "lab")[0] == 0, "the place was remembered"
        file.unlink()
    with up(folder / "h"):
        assert error(run("org", "unlock", "lab")) == "state.address"
        moved = address(folder / "elsewhere", url)
        assert run("org", "unlock", "lab", "--database", str(moved))[0] == 0


@pytest.mark.slow
def test_a_party_is_moved_into_a_database(folder: Path, postgres: Postgres, run: Run, empty: str) -> None:
    file = address(folder / "url", postgres.url(empty))
    with up(folder / "h"):
        assert error(run("org", "migrate", "lab", "--database", str(file))) == "party.unknown"
        run("org", "create", "lab")
        before = run("audit", "verify", "--as", "lab")[1]
        assert error(run("org", "migrate", "lab", "--database", str(file))) == "party.running"
    with up(folder / "h"):
        missing = address(folder / "missing", postgres.url("no_such_database"))
        assert error(run("org", "migrate", "lab", "--database", str(missing))) == "state.unreachable"
        assert run("org", "unlock", "lab")[0] == 0, "the home is as it was"
        assert (folder / "h" / "parties" / "lab" / "state.db").exists()
    with up(folder / "h"):
        code, moved = run("org", "migrate", "lab", "--database", str(file))
        assert code == 0
        assert moved["entries"] >= before["size"]
        assert all(Path(path).exists() for path in moved["aside"])
        after = run("audit", "verify", "--as", "lab")[1]
        assert after["compared"] == before["size"], "the log goes on where it was"
        assert after["kinds"]["state.migrated"] == 1
        assert error(run("org", "migrate", "lab", "--database", str(file))) == "migration.done"
    with up(folder / "h"):
        assert run("org", "unlock", "lab")[0] == 0


class Killed(BaseException):
    """The supervisor ends here."""


@pytest.mark.slow
def test_a_machine_that_stops_when_a_party_was_just_moved(
    folder: Path, postgres: Postgres, run: Run, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker has moved its record, and nobody lived to hear of it: it is unlocked where its record lies."""
    file = address(folder / "url", postgres.url(empty))
    with up(folder / "h"):
        run("org", "create", "lab")
        size = run("audit", "verify", "--as", "lab")[1]["size"]

    def killed(part: PartProcess) -> None:
        assert part.process.stdout is not None
        part.process.stdout.close()
        raise Killed

    supervisor = WithoutNode(folder / "h", separate_users=False)
    supervisor.start()
    with monkeypatch.context() as patched:
        patched.setattr(PartProcess, "stop", killed)
        with pytest.raises(Killed):
            supervisor.migrate_party("lab", "correct horse battery", str(file))
    supervisor.stop()
    place = folder / "h" / "parties" / "lab"
    assert (place / "state.db.migrated").exists()
    with up(folder / "h"):
        assert error(run("org", "migrate", "lab", "--database", str(file))) == "migration.done"
        assert run("org", "unlock", "lab")[0] == 0
        assert run("audit", "verify", "--as", "lab")[1]["compared"] == size


def test_a_url_where_its_file_is_asked_for(folder: Path) -> None:
    (folder / "h").mkdir(mode=0o700)
    for name in ("postgres", "postgresql"):
        with pytest.raises(Misuse) as caught:
            Home(folder / "h").start_party("lab", "x", create=True, database=Path(f"{name}://lab:hidden@127.0.0.1/lab"))
        assert caught.value.code == "home.database"
        assert "hidden" not in caught.value.message
