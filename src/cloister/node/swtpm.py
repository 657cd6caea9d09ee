"""A software TPM (swtpm) as a child process, on Unix sockets in a folder that only its owner can enter.

It speaks the real protocol and is no hardware trust: whoever can read the state folder has its keys. So all
evidence from it is level ``none``. The state folder keeps the TPM's seeds, hence its identity, across restarts;
the PCRs begin anew with every process, as after a reboot.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType

from ..errors import Misuse, Unavailable

__all__ = ["SoftwareTpm"]

_START_SECONDS = 30.0  # a bound on hanging; it takes a few hundredths
_STOP_SECONDS = 5.0
_SUN_PATH = 108 - 1  # unix(7): bytes of a socket's path, with its closing zero


class SoftwareTpm:
    """A running swtpm; ``tcti`` is how to reach it. A context manager; ``close`` stops it. Start it from the main
    thread: the kernel stops it when the thread that started it ends, so that no crash of the agent leaves it behind.

    Raises Unavailable if swtpm is missing or doesn't start (another process holding the state folder included).
    """

    def __init__(self, state: Path, *, sockets: Path | None = None) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise Misuse("swtpm.thread", "Start the software TPM from the main thread; it ends with its thread.")
        command = [_program("setpriv", "util-linux"), "--pdeathsig", "TERM", _program("swtpm", "swtpm")]
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        state.chmod(0o700)
        # mkdtemp makes the folder 0700: no other user can reach the TPM or its control channel.
        self._sockets = Path(tempfile.mkdtemp(prefix="cloister-tpm-", dir=sockets))
        self._path = self._sockets / "tpm"
        try:
            self._process = self._start(command, state)
        except BaseException:
            shutil.rmtree(self._sockets)
            raise

    @property
    def tcti(self) -> str:
        """The TSS connection string."""
        return f"swtpm:path={self._path}"

    @property
    def pid(self) -> int:
        """The process id of swtpm."""
        return self._process.pid

    def _start(self, command: list[str], state: Path) -> subprocess.Popen[bytes]:
        control = Path(f"{self._path}.ctrl")  # the TSS expects it exactly there
        if len(os.fsencode(control)) > _SUN_PATH or "," in f"{state}{control}":
            raise Misuse("swtpm.path", "The software TPM's folders need short paths without commas; choose others.")
        arguments = ["socket", "--tpm2", "--tpmstate", f"dir={state},mode=0600"]
        arguments += ["--server", f"type=unixio,path={self._path},mode=0600"]
        arguments += ["--ctrl", f"type=unixio,path={control},mode=0600"]
        arguments += ["--flags", "not-need-init,startup-clear", "--log", "file=-"]
        process = subprocess.Popen(
            command + arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            start_new_session=True,  # Ctrl-C reaches the agent, which then stops us in order
        )
        try:
            self._wait_ready(process)
        except BaseException:
            _stop(process)
            raise
        return process

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(str(self._path)) == 0:
                    return
            time.sleep(0.005)
        raise Unavailable(
            "swtpm.start", "swtpm did not start; is its state folder writable, whole, and not in use by another swtpm?"
        )

    def close(self) -> None:
        """Stop it and remove the sockets; the state stays. Calling it again does nothing."""
        _stop(self._process)
        shutil.rmtree(self._sockets, ignore_errors=True)

    def __enter__(self) -> SoftwareTpm:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _program(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise Unavailable("swtpm.missing", f"{name} is not installed; install it with: apt install {package}")
    return path


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
