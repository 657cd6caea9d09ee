"""Starting and stopping everything on one machine. The supervisor is a process of its own, not a library."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

from ..crypto import parse_json
from ..errors import Misuse, Unavailable, error_from_wire
from .supervisor import Home, check_owner

__all__ = ["down", "run_in_foreground", "up"]

_READY_SECONDS = 300.0
_STOP_SECONDS = 60.0
_LINE = 1 << 20


def _command(home: Home, single_user: bool) -> list[str]:
    command = [sys.executable, "-m", "cloister.control.embedded", "--home", str(home.path)]
    return [*command, "--single-user"] if single_user else command


def _storage(objects: str | None, credentials: Path | None, cache_mib: int | None) -> list[str]:
    """Options for a store of objects elsewhere. The credentials' file is named, never what is in it."""
    named = {"--objects": objects, "--objects-credentials": credentials, "--objects-cache": cache_mib}
    if objects is None and (credentials is not None or cache_mib is not None):
        raise Misuse("control.objects", "Name the store that these options are for with --objects.")
    return [f"{name}={value}" for name, value in named.items() if value is not None]


def _node(attester: str | None, tpm: str | None, gpus: str | None) -> list[str]:
    """Options for what vouches for the node; the supervisor judges whether they fit together."""
    named = {"--attester": attester, "--tpm": tpm, "--gpus": gpus}
    for name, value, known in (("--attester", attester, ("swtpm", "tpm", "tsm")), ("--gpus", gpus, ("nvidia",))):
        if value is not None and value not in known:
            raise Misuse("node.arguments", f"{name} is one of: {', '.join(known)}.")
    return [f"{name}={value}" for name, value in named.items() if value is not None]


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError:
        raise Misuse(
            "home.folder", "The home folder can't be made; choose another with --home or $CLOISTER_HOME."
        ) from None
    check_owner(path)


def _open_log(path: Path) -> BinaryIO:
    """To append to, for its owner alone. A link in its place is not followed: it might lead to anybody's file."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
        os.fchmod(fd, 0o600)  # one of an earlier version may be wider
    except OSError:
        raise Misuse("home.log", f"{path.name} in the home is no plain file of yours; remove it.") from None
    return os.fdopen(fd, "ab")


def up(
    home: Home,
    *,
    single_user: bool = False,
    objects: str | None = None,
    credentials: Path | None = None,
    cache_mib: int | None = None,
    attester: str | None = None,
    tpm: str | None = None,
    gpus: str | None = None,
) -> tuple[dict[str, Any], bool]:
    """Start what isn't running. Returns (status, whether it was started now). Raises the failing part's own error.

    ``objects`` is the URL of a store for sealed objects, ``credentials`` a file of mode 0600 for it, ``cache_mib`` how
    much of it is kept here; ``attester`` (swtpm, tpm, tsm), ``tpm`` (a TCTI) and ``gpus`` (nvidia) say what vouches for
    the node. The home remembers them.
    """
    more = [*_storage(objects, credentials, cache_mib), *_node(attester, tpm, gpus)]
    if home.running():
        if more:
            raise Misuse("home.running", "Cloister is running here; 'cloister down' first, then start it so.")
        return home.status(), False
    _make_folder(home.path)
    with _open_log(home.path / "supervisor.log") as log:
        process = subprocess.Popen(
            [*_command(home, single_user), *more],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    # It outlives this process. As long as this one lives, somebody has to take note when it ends.
    threading.Thread(target=process.wait, daemon=True).start()
    _await_ready(process)
    deadline = time.monotonic() + _READY_SECONDS
    while not home.running():  # it says ready just before it listens
        if process.poll() is not None or time.monotonic() > deadline:
            raise Unavailable("home.start", "Cloister stopped while starting; its reasons are in supervisor.log.")
        time.sleep(0.05)
    return home.status(), True


def _await_ready(process: subprocess.Popen[bytes]) -> None:
    """The supervisor's one line on stdout: ready, or why not."""
    stdout = process.stdout
    assert stdout is not None
    lines: list[bytes] = []
    reader = threading.Thread(target=lambda: lines.append(stdout.readline()), daemon=True)
    reader.start()
    reader.join(_READY_SECONDS)
    if not lines:
        process.terminate()
        raise Unavailable("home.start", "Cloister did not come up in time; its reasons are in supervisor.log.")
    stdout.close()
    if not lines[0].strip():
        process.wait()
        raise Unavailable("home.start", "Cloister could not start; its reasons are in supervisor.log.")
    answer = parse_json(lines[0], limit=_LINE)
    if not isinstance(answer, dict) or answer.get("ready") is not True:
        process.wait()
        raise error_from_wire(answer.get("error") if isinstance(answer, dict) else None)


def run_in_foreground(
    home: Home,
    *,
    single_user: bool = False,
    objects: str | None = None,
    credentials: Path | None = None,
    cache_mib: int | None = None,
    attester: str | None = None,
    tpm: str | None = None,
    gpus: str | None = None,
) -> int:
    """Run the supervisor as this terminal's process until it is interrupted; returns its exit code.

    Options as in ``up``.
    """
    more = [*_storage(objects, credentials, cache_mib), *_node(attester, tpm, gpus)]
    if home.running():
        raise Misuse("home.running", "Cloister is running here already; stop it with 'cloister down' first.")
    _make_folder(home.path)
    process = subprocess.Popen([*_command(home, single_user), *more], stdin=subprocess.DEVNULL)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the supervisor got the same signal and is stopping its parts


def down(home: Home) -> bool:
    """Stop everything; False if nothing ran. Returns when the supervisor is gone."""
    if not home.running():
        return False
    pid = int(home.status().get("pid", 0))
    home.ask({"op": "stop"})
    deadline = time.monotonic() + _STOP_SECONDS
    while _alive(pid):
        if time.monotonic() > deadline:
            raise Unavailable("home.stop", "Cloister has not stopped yet; look into supervisor.log.")
        time.sleep(0.05)
    return True


def _alive(pid: int) -> bool:
    """Running, and not merely waiting for its parent to take note of its end."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
