"""A real PostgreSQL for the tests: in a temporary folder, as an unprivileged user, on loopback and a Unix socket.

It is durable as in production (the broker refuses anything else), which costs nothing in memory.
"""

from __future__ import annotations

import itertools
import os
import pwd
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

__all__ = ["Postgres", "address", "programs"]

_PASSWORD = secrets.token_urlsafe(24)


def programs() -> Path | None:
    """Debian keeps each version's programs apart; the newest counts."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if found:
        return found[-1].parent
    path = shutil.which("initdb")
    return None if path is None else Path(path).resolve().parent


def _user() -> str | None:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@dataclass
class Postgres:
    """``folder``: of its data and its socket. Every broker of a test gets a database of its own in it."""

    folder: Path
    port: int
    programs: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    def start(cls, folder: Path, programs: Path) -> Postgres:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if (user := _user()) is not None:
            shutil.chown(folder, user)
        server = cls(folder, port, programs)
        password = folder / "password"
        password.write_text(_PASSWORD)
        if user is not None:
            shutil.chown(password, user)
        server._run("initdb", "-D", str(folder / "data"), "-U", "owner", "-A", "scram-sha-256", "--pwfile",
                    str(password), "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions")  # fmt: skip
        server.launch()
        return server

    def launch(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories={self.folder} " \
            "-c max_connections=120 -c shared_buffers=16MB -c max_wal_size=256MB"  # fmt: skip
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-o", options, "-l", str(self.folder / "log"), "-w", "start"
        )

    def stop(self, how: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", how, "-w", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        # It must not inherit pipes of ours: the server would keep them open.
        with open(self.folder / "out", "wb") as out:
            done = subprocess.run(
                [str(self.programs / program), *arguments], user=_user(), extra_groups=[] if _user() else None,
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env={"LC_ALL": "C", "PATH": os.defpath},
            )  # fmt: skip
        assert done.returncode == 0, (self.folder / "out").read_text()

    def url(self, database: str, *, port: int | None = None, query: str = "") -> str:
        return f"postgresql://owner:{_PASSWORD}@127.0.0.1:{port or self.port}/{database}{query}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        return psycopg.connect(self.url(database), autocommit=True)

    def database(self, like: str | None = None) -> str:
        """A new one, empty or a copy of another, to which nobody is connected."""
        name = f"broker{next(self.numbers)}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {like or 'template0'}")
        return name

    def drop(self, name: str) -> None:
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def kick(self, name: str) -> None:
        """End every session of a database, as a restart of the server or of a firewall would."""
        with self.connect() as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))


def address(path: Path, url: str) -> Path:
    """The file that a broker reads the URL from."""
    path.touch(mode=0o600)
    path.write_text(url + "\n")
    return path
