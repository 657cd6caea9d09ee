"""Running the program bwrap: its descriptors, its process, and its words when it fails. ``sandbox`` is the way in."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import termios
import time
from typing import TypeAlias

from ..crypto import parse_json
from ..errors import Unavailable
from .profile import SandboxSpec, bubblewrap_arguments
from .seccomp import seccomp_fds

__all__ = ["Pipes", "Process", "await_end", "failed", "release", "start"]

_BWRAP = ("/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap")
_SETUP_SECONDS = 30
Process: TypeAlias = "subprocess.Popen[bytes]"


def _program() -> str:
    for path in _BWRAP:
        if os.access(path, os.X_OK):
            return path
    raise Unavailable("sandbox.bwrap", "bubblewrap is not installed; install the package 'bubblewrap'.")


class Pipes:
    """The descriptors between agent and bwrap. ``info`` tells the child's pid, ``go`` lets the program start."""

    def __init__(self, arguments: list[str]) -> None:
        # Through a descriptor, so that neither /proc/1/cmdline inside nor other users' ps shows the host's paths.
        self.arguments = os.memfd_create("bwrap-arguments", os.MFD_CLOEXEC)
        os.write(self.arguments, b"".join(a.encode() + b"\0" for a in arguments))
        os.lseek(self.arguments, 0, os.SEEK_SET)
        self.info_read, self.info_write = os.pipe2(os.O_CLOEXEC)
        self.go_read, self.go_write = os.pipe2(os.O_CLOEXEC)

    def close(self, *names: str) -> None:
        for name in names or tuple(vars(self)):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
            setattr(self, name, -1)

    def child_pid(self) -> int | None:
        """What bwrap wrote about its child, or None if it ended first."""
        # Closes by itself: bwrap holds the other end only until it has written.
        text = b"".join(iter(lambda: os.read(self.info_read, 4096), b""))
        if not text:
            return None
        pid = parse_json(text)["child-pid"]
        return int(pid)

    def taken(self) -> bool:
        """Whether the child has read its permission to go on: then all its mounts are made."""
        (left,) = struct.unpack("i", fcntl.ioctl(self.go_write, termios.FIONREAD, b"\0" * 4))
        return bool(left == 0)


def _popen(command: list[str], keep: tuple[int, ...], ids: tuple[int, int], out: int) -> Process:
    change = os.geteuid() == 0
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        # bwrap's own environment, which its first process would show inside at /proc/1/environ.
        env={},
        cwd="/",
        pass_fds=keep,
        start_new_session=True,
        umask=0o077,
        user=ids[0] if change else None,
        group=ids[1] if change else None,
        extra_groups=[] if change else None,
    )


def start(ids: tuple[int, int], pipes: Pipes, argv: tuple[str, ...], out: int, *, loopback: bool = False) -> Process:
    """Start bwrap as the user and group ``ids``; the descriptors that it took over are closed here. ``loopback``: see
    ``SandboxSpec``."""
    with seccomp_fds(loopback) as programs:
        options = ["--args", str(pipes.arguments), "--info-fd", str(pipes.info_write), "--block-fd", str(pipes.go_read)]
        for fd in programs:
            options += ["--add-seccomp-fd", str(fd)]
        keep = (pipes.arguments, pipes.info_write, pipes.go_read, *programs)
        process = _popen([_program(), *options, "--", *argv], keep, ids, out)
        pipes.close("arguments", "info_write", "go_read")
        return process


def await_end(process: Process) -> None:
    """Wait for a bwrap that failed; raises Unavailable, and kills it, if it doesn't end."""
    try:
        process.wait(_SETUP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Unavailable("sandbox.setup", "bubblewrap could not build the sandbox and does not end.") from None


def _reason(spec: SandboxSpec, ids: tuple[int, int]) -> str:
    """Why bwrap fails to build this sandbox, in its own words: built once more, with nothing to run in it.

    The words of the first attempt can't be read, because the workload would have written to the same place.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    pipes = Pipes(bubblewrap_arguments(spec))
    try:
        process = start(ids, pipes, ("/dev/null",), write)
        os.close(write)
        pipes.close("go_write")
        # First the end, then the words: bwrap writes a sentence in pieces, and none of them fills a pipe.
        await_end(process)
        os.set_blocking(read, False)
        text = ""
        with contextlib.suppress(BlockingIOError):
            text = os.read(read, 4096).decode(errors="replace")
    finally:
        pipes.close()
        os.close(read)
    return text.strip().splitlines()[0] if text.strip() else "no reason was given"


def failed(spec: SandboxSpec, ids: tuple[int, int]) -> Unavailable:
    """The error for a sandbox that could not be built, with bwrap's reason."""
    return Unavailable(
        "sandbox.setup", f"bubblewrap could not build the sandbox ({_reason(spec, ids)}); see docs/spec."
    )


def release(pipes: Pipes, monitor: Process) -> bool:
    """Let the program start; True once bwrap has finished its mounts, False if it ended instead."""
    deadline = time.monotonic() + _SETUP_SECONDS
    with contextlib.suppress(BrokenPipeError):
        os.write(pipes.go_write, b"1")
        while time.monotonic() < deadline:
            if pipes.taken():
                return True
            if monitor.poll() is not None:
                # Between the two looks a short program may have been let go and have ended.
                return pipes.taken()
            time.sleep(0.0005)
    return False
