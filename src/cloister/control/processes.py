"""Starting and watching one part as a process of its own, as its own user, with nothing of the caller's environment."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..crypto import parse_json
from ..errors import Misuse, Unavailable, error_from_wire

__all__ = ["Part", "PartProcess"]

_READY_SECONDS = 120
_STOP_SECONDS = 15
_LINE_LIMIT = 64 * 1024
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Part:
    """What to start: ``module`` with ``arguments``, as user ``uid`` (None: the caller's own)."""

    name: str
    module: str
    arguments: tuple[str, ...]
    uid: int | None

    @property
    def log_name(self) -> str:
        return self.name.replace("/", "-") + ".log"


@dataclass
class PartProcess:
    """A started part. ``claims`` is what its one line on stdout said of itself."""

    part: Part
    process: subprocess.Popen[bytes]
    claims: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls, part: Part, home: Path, *, secret: str | None = None, seconds: float = _READY_SECONDS
    ) -> PartProcess:
        """Start it and wait, at most for ``seconds``, until it is ready. ``secret`` goes through a pipe: never argv,
        environment or disk.

        Call it from a thread that lives on: the part is told to end when this thread does. Raises the part's own
        error, or Unavailable if it says nothing in time.
        """
        identity: dict[str, Any] = {}
        if part.uid is not None:
            identity = {"user": part.uid, "group": part.uid, "extra_groups": []}
        with _open_log(home / part.log_name) as log:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-m", part.module, *part.arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=_environment(home),
                    start_new_session=True,
                    umask=0o077,
                    preexec_fn=_end_with_parent,
                    **identity,
                )
            except (OSError, subprocess.SubprocessError):
                raise Unavailable(
                    "embedded.fork", f"The part {part.name} can't be started; look for memory and limits of processes."
                ) from None
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # who ended already says why on stdout
            if secret is not None:
                pipe.write(secret.encode() + b"\n")
        return cls(part, process, _await_ready(part, process, seconds))

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """End it, gently first. Of one that has ended, let go."""
        if self.running:
            self.process.terminate()
            try:
                self.process.wait(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def _open_log(path: Path) -> BinaryIO:
    """To append to, for whoever started Cloister alone. A link in its place is not followed: as root this would
    otherwise write to any file of the machine."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
        os.fchmod(fd, 0o600)  # one of an earlier version may be wider
    except OSError:
        raise Misuse("home.log", f"{path.name} in the home is no plain file of yours; remove it.") from None
    return os.fdopen(fd, "ab")


def _end_with_parent() -> None:
    # Runs after the change of user, which would clear it (prctl(2)). A part whose supervisor died could be neither
    # stopped nor started again, because its port stays taken.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _environment(home: Path) -> dict[str, str]:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"HOME": str(home), "LANG": "C.UTF-8", "PATH": path}


def _await_ready(part: Part, process: subprocess.Popen[bytes], seconds: float) -> dict[str, Any]:
    stdout = process.stdout
    assert stdout is not None
    lines: list[bytes] = []
    reader = threading.Thread(target=lambda: lines.append(stdout.readline(_LINE_LIMIT)), daemon=True)
    reader.start()
    reader.join(seconds)
    if not lines or not lines[0].strip():
        process.kill()
        process.wait()
        reader.join(_STOP_SECONDS)
        if not reader.is_alive():  # what the part itself started may hold the other end
            stdout.close()
        raise Unavailable(
            "embedded.start", f"The part {part.name} did not start; its reasons are in {part.log_name}.", part=part.name
        )
    answer = parse_json(lines[0], limit=_LINE_LIMIT)
    if not isinstance(answer, dict) or answer.get("ready") is not True:
        process.wait()
        stdout.close()
        raise error_from_wire(answer.get("error") if isinstance(answer, dict) else None)
    return {name: value for name, value in answer.items() if name != "ready"}
