"""Two replicas as processes: how they start over one database, what they tell, and what is left when one is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloister.client.agent import OwnerAgent
from cloister.client.logs import LogCheck, verify_log
from cloister.client.supervisor import Home
from tests.postgres import Postgres, address

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]

PASSPHRASE = b"correct horse battery\n"


@contextmanager
def started(home: Path, *more: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
    """The process and its first line. It is killed at the end, as a machine that loses its power."""
    command = [sys.executable, "-m", "cloister.broker", "--home", str(home), "--listen", "127.0.0.1:0", *more]
    pipe = subprocess.PIPE
    # What PostgreSQL's client would take from the environment must not decide where the broker connects to.
    env = {**os.environ, "PGHOSTADDR": "nowhere", "PGOPTIONS": "-c synchronous_commit=off"}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=env) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(PASSPHRASE)
            process.stdin.flush()
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


@contextmanager
def asked(home: Path) -> Iterator[OwnerAgent]:
    agent = OwnerAgent(home / "run" / "admin.sock")
    try:
        yield agent
    finally:
        agent.close()


def verified(home: Path, kept: Path) -> LogCheck:
    """As ``cloister audit verify`` does, through the broker in ``home``."""
    with asked(home) as agent:
        return verify_log(cast(Home, SimpleNamespace(path=kept, agent=lambda _: agent)), "hospital")


def test_two_processes_over_one_database(folder: Path, postgres: Postgres) -> None:
    name = postgres.database()
    file = address(folder / "url", postgres.url(name))
    password = postgres.url(name).split(":")[2].split("@")[0]
    one, two = folder / "one", folder / "two"
    with started(one, "--database", str(file), "--init", "hospital") as (first, ready):
        assert ready["ready"] is True
        assert not (one / "state.db").exists()
        for what in ("cmdline", "environ"):
            assert password.encode() not in Path(f"/proc/{first.pid}/{what}").read_bytes()
        with started(one, "--database", str(file)) as (_, refused):
            assert refused["error"]["code"] == "replica.locked"
        two.mkdir(mode=0o700)
        for part in ("vault.json", "card.json"):
            shutil.copy(one / part, two / part)
        with started(two, "--database", str(file)) as (_, also):
            assert also["ready"] is True
            with asked(one) as here, asked(two) as there:
                assert here.card.fingerprint == there.card.fingerprint
                assert here.status()["log_size"] == there.status()["log_size"] == 3
            assert verified(one, folder).compared == 0
            first.kill()
            first.wait(120)
            with asked(two) as there:
                assert there.status()["log_size"] == 3
            assert verified(two, folder).compared == 3, "the owner's check goes on with what the other replica showed"
    postgres.drop(name)


@pytest.mark.slow
def test_a_home_is_moved_by_a_command(folder: Path, postgres: Postgres) -> None:
    home = folder / "home"
    name = postgres.database()
    file = address(folder / "url", postgres.url(name))
    with started(home, "--init", "hospital") as (process, ready):
        assert ready["ready"] is True
        process.terminate()
        process.wait(120)
    with started(home, "--database", str(file), "--migrate") as (process, said):
        assert process.wait(120) == 0
        assert said["entries"] == 2
        assert len(said["aside"]) >= 2
    with started(home) as (process, refused):
        assert refused["error"]["code"] == "state.file"
    with started(home, "--database", str(file)) as (_, ready), asked(home) as agent:
        assert ready["ready"] is True
        assert agent.status()["log_size"] == 4
    postgres.drop(name)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "code"), [(0o644, "state.address_mode"), (0o600, "state.unreachable")])
def test_an_address_that_is_of_no_use(folder: Path, postgres: Postgres, mode: int, code: str) -> None:
    file = address(folder / "url", postgres.url("no_such_database"))
    file.chmod(mode)
    with started(folder / "home", "--database", str(file), "--init", "hospital") as (process, refused):
        assert refused["error"]["code"] == code
        assert process.wait(120) != 0
        assert "owner" not in json.dumps(refused)
