"""What whoever runs the machines can do: see processes, stop and kill them, edit the catalogue, sit on the wire."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.e2e.story import Run, Story, until

__all__ = [
    "Wire", "address", "as_user", "broker_pid", "catalogue", "children", "frozen", "kill_broker", "node_pid",
    "node_socket", "replaced", "workload_pid",
]  # fmt: skip


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:  # it ended meanwhile
        return ""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _processes() -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]


def _below(pid: int, ancestor: int) -> bool:
    while pid > 1:
        pid = _parent(pid)
        if pid == ancestor:
            return True
    return False


def _part(story: Story, module: str, folder: Path) -> int | None:
    needle = f"-m {module} --home {folder} "
    named = [pid for pid in _processes() if needle in _command(pid)]
    # A child has its parent's command line until it runs its own program.
    found = [pid for pid in named if _parent(pid) not in named]
    assert len(found) < 2
    return found[0] if found else None


def broker_pid(story: Story, party: str) -> int:
    pid = _part(story, "cloister.broker", story.home.path / "parties" / party)
    assert pid is not None
    return pid


def node_pid(story: Story) -> int:
    pid = _part(story, "cloister.node", story.home.path / "node")
    assert pid is not None
    return pid


def workload_pid(story: Story) -> int | None:
    """The Python inside the running sandbox; not bubblewrap, which has the same words in its command line."""
    agent = node_pid(story)
    for pid in _processes():
        words = _command(pid)
        if words.startswith("/usr/bin/python3 ") and "-m cloister.workload " in words and _below(pid, agent):
            return pid
    return None


def children(pid: int, module: str) -> list[int]:
    """Processes that ``pid`` started and that run this module."""
    return [child for child in _processes() if _parent(child) == pid and f" -m {module} " in _command(child)]


def kill_broker(story: Story, party: str) -> None:
    """The power fails: no goodbye. Returns when the supervisor knows."""
    os.kill(broker_pid(story, party), signal.SIGKILL)
    story.forget(party)
    until("the broker's end", lambda: story.home.parties()[party]["state"] == "locked")


@contextlib.contextmanager
def frozen(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def catalogue(story: Story, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run one SQL statement on the control plane's database, behind its back."""
    path = story.home.path / "control" / "catalogue.db"
    connection = sqlite3.connect(path, timeout=20)
    try:
        with connection:
            return list(connection.execute(statement, values))
    finally:
        connection.close()


@contextlib.contextmanager
def address(story: Story, party: str, port: int) -> Iterator[None]:
    """A directory that names another place for a party's broker."""
    ((before,),) = catalogue(story, "SELECT address FROM parties WHERE name = ?", party)
    catalogue(story, "UPDATE parties SET address = ? WHERE name = ?", f"127.0.0.1:{port}", party)
    try:
        yield
    finally:
        catalogue(story, "UPDATE parties SET address = ? WHERE name = ?", before, party)


@contextlib.contextmanager
def replaced(path: Path, new: bytes | Path) -> Iterator[None]:
    """A file or folder with something else in its place; owner and mode stay."""
    # Away from its neighbours: a folder that is measured must not gain a file by this.
    away = Path(tempfile.mkdtemp(prefix="cloister-kept-", dir="/tmp"))
    info, kept = path.lstat(), away / path.name
    path.rename(kept)
    try:
        if isinstance(new, bytes):
            path.write_bytes(new)
        else:
            shutil.copytree(new, path)
        for place in (path, *path.rglob("*")):
            os.chown(place, info.st_uid, info.st_gid)
        path.chmod(info.st_mode & 0o777)
        yield
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        kept.rename(path)
        away.rmdir()


def as_user(uid: int, code: str, *arguments: str) -> str:
    """What a piece of Python prints when another user of this machine runs it."""
    user: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": []} if uid != os.geteuid() else {}
    command = [getattr(sys, "_base_executable", sys.executable), "-I", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={}, cwd="/", timeout=120, check=False, **user)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Wire:
    """A man in the middle on loopback: forwards to ``port`` and keeps every byte that it saw."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.sent: list[bytearray] = []  # by the client, one entry a connection
        self.answered: list[bytearray] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(60)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        sent, answered = bytearray(), bytearray()
        self.sent.append(sent)
        self.answered.append(answered)
        # A broker that is away ends the connection, as it would without somebody in the middle.
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self._target)) as broker:
            back = threading.Thread(target=_copy, args=(broker, client, answered), daemon=True)
            back.start()
            _copy(client, broker, sent)
            back.join()


def _copy(source: socket.socket, sink: socket.socket, record: bytearray) -> None:
    with contextlib.suppress(OSError):  # one end hung up
        while part := source.recv(65536):
            record += part
            sink.sendall(part)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def node_socket(run: Run) -> Path:
    """Where the sandbox of a running job talks to the node agent."""
    return run.folder / "node.sock"
