"""Starting a sandbox with bubblewrap, and the handle by which the agent waits for it or ends it.

The order matters. bwrap builds the namespaces and then waits on a pipe; meanwhile the agent, which now knows both
processes, sets their limits and puts them into a control group; only then does the program start.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import overload

from ..errors import Denied, Internal, Misuse, Unavailable
from .bubblewrap import Pipes, Process, await_end, failed, release, start
from .cgroups import Cgroup, create_cgroup
from .limits import Limits, LimitsReport, apply_rlimits, report_limits
from .profile import DEFAULT_ENV, SandboxSpec, bubblewrap_arguments, launch_spec, workload_argv
from .uids import who_can_traverse

__all__ = ["DEFAULT_ENV", "Sandbox", "SandboxSpec", "launch", "launch_spec", "workload_argv"]

_KILL_SECONDS = 15


def _readable(pidfd: int, seconds: int) -> bool:
    """Whether the process ends within ``seconds`` (pidfd_open(2): its descriptor then polls as readable)."""
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    return bool(ended.poll(seconds * 1000))


class Sandbox:
    """A running sandbox. ``pid`` is, on the host, the first process in its process namespace.

    ``limits`` says what bounds it; ``out_of_memory``, once it ended, whether the kernel killed for want of memory.
    Leaving it as a context manager kills it. It also dies with the agent's process.
    """

    def __init__(self, pid: int, pidfd: int, monitor: Process, cgroup: Cgroup | None) -> None:
        self.pid = pid
        self.limits: LimitsReport | None = None
        self.out_of_memory = False
        self._monitor = monitor
        self._cgroup = cgroup
        self._pidfd = pidfd
        self._lock = threading.Lock()

    @property
    def exit_code(self) -> int | None:
        """The program's exit status, 128 + n after signal n, or None while it runs."""
        return self._done(self._monitor.poll())

    @property
    def ended(self) -> bool:
        """Whether the first process, and with it all others, has ended."""
        with self._lock:
            return self._pidfd < 0 or _readable(self._pidfd, 0)

    @overload
    def wait(self, timeout: None = None) -> int: ...

    @overload
    def wait(self, timeout: float) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, or None if ``timeout`` (seconds) passes first."""
        try:
            return self._done(self._monitor.wait(timeout))
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> int:
        """End every process of the sandbox and return the exit code. Raises Internal if the kernel doesn't.

        The kernel itself kills a process namespace with its first process, so nothing inside can escape this.
        """
        with self._lock:
            if self._pidfd >= 0:
                self._end()
        code = self.wait(_KILL_SECONDS)
        if code is None:
            raise self._stuck()
        return code

    def _end(self) -> None:
        """Kill the first process, and return when the kernel has ended and reaped all others."""
        # It may be gone already, which is what is wanted.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if not _readable(self._pidfd, _KILL_SECONDS):
            raise self._stuck()

    def _stuck(self) -> Internal:
        return Internal("sandbox.kill", f"The sandbox of process {self.pid} does not end; restart this machine.")

    def _done(self, code: int | None) -> int | None:
        if code is None:
            return None
        with self._lock:
            if self._pidfd >= 0:
                # bwrap reports the program's end before the namespace, and what the program left in it, has ended.
                self._end()
                os.close(self._pidfd)
                self._pidfd = -1
                if self._cgroup is not None:
                    self.out_of_memory = self._cgroup.oom_kills() > 0
                    self._cgroup.remove()
        return 128 - code if code < 0 else code

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


@lru_cache(maxsize=1)
def _starter() -> ThreadPoolExecutor:
    """The one thread that starts sandboxes.

    bwrap's --die-with-parent follows the *thread* that started it (prctl(2), PR_SET_PDEATHSIG), so a sandbox started
    from a request's thread would die with the request. This thread lives as long as the agent.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="cloister-sandboxes")


def _identity(spec: SandboxSpec) -> tuple[int, int]:
    """(user, group) of the sandbox on the host; never root's, who could write the kernel's settings from inside."""
    own = (os.geteuid(), os.getegid())
    uid, gid = spec.run_as or own
    if uid == 0 or gid == 0:
        raise Denied(
            "sandbox.root", "A sandbox is never started as root; run the agent as an unprivileged user or give run_as."
        )
    if (uid, gid) != own and own[0] != 0:
        raise Denied("sandbox.user", "Only root can start a sandbox as another user; leave run_as out.")
    return uid, gid


def _check_sources(spec: SandboxSpec, uid: int, gid: int) -> None:
    """Find what would make bwrap fail, and say it in a sentence."""
    for path in (spec.image, *spec.ro_binds.values(), *spec.rw_binds.values()):
        if not path.is_dir():
            raise Misuse("sandbox.source", f"{path} is not a folder; check the sandbox's image and mounts.")
        who_can_traverse(path, uid, gid)
    if spec.socket_path is not None:
        if not spec.socket_path.is_socket():
            raise Misuse("sandbox.socket", f"{spec.socket_path} is not a socket; start the socket server first.")
        who_can_traverse(spec.socket_path, uid, gid)
    if not (spec.image / spec.argv[0].lstrip("/")).exists():
        raise Misuse("sandbox.program", f"The image has no {spec.argv[0]}; build it again or correct the program.")


@contextlib.contextmanager
def _output(log: Path | None) -> Iterator[int]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC) if log is None else os.open(log, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _bound(
    pid: int, limits: Limits, ids: tuple[int, int], group: Cgroup | None, notes: tuple[str, ...]
) -> LimitsReport:
    versions = group.versions if group is not None else {}
    apply_rlimits(pid, limits, ids, bound_data="memory" not in versions)
    if group is not None:
        group.add(pid)
    return report_limits(versions, group is not None and group.swap_bounded, notes)


def _build(spec: SandboxSpec, ids: tuple[int, int], pipes: Pipes, monitor: Process) -> Sandbox | None:
    """The bounded and running sandbox, or None if bwrap ended before the program could start."""
    pid = pipes.child_pid()
    if pid is None:
        return None
    # The child waits for its permission, so the number is still its own, unless it failed; then there is none.
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    group, notes = create_cgroup(spec.limits)
    sandbox = Sandbox(pid, pidfd, monitor, group)
    try:
        sandbox.limits = _bound(pid, spec.limits, ids, group, notes)
        running = release(pipes, monitor)
    except BaseException as error:
        # Limits can't be set on a process that ended while it built its mounts; then bwrap's reason is the one.
        failed_itself = isinstance(error, Unavailable) and sandbox.ended
        sandbox.kill()
        if failed_itself:
            return None
        raise
    if not running:
        sandbox.kill()
        return None
    return sandbox


def _run(spec: SandboxSpec, ids: tuple[int, int], log: Path | None) -> Sandbox:
    pipes = Pipes(bubblewrap_arguments(spec))
    try:
        with _output(log) as out:
            monitor = start(ids, pipes, spec.argv, out, loopback=spec.loopback)
        sandbox = _build(spec, ids, pipes, monitor)
        if sandbox is None:
            await_end(monitor)
            raise failed(spec, ids)
        return sandbox
    finally:
        pipes.close()


def launch(spec: SandboxSpec, *, insecure_log: Path | None = None) -> Sandbox:
    """Start ``spec.argv`` in a new sandbox; it is running, with its limits in force, when this returns.

    Output of the program goes nowhere: it could hold data, and the host could read it. ``insecure_log`` appends
    it to a file instead, for development. Raises Denied if it would run as root, Misuse if a path is missing or
    can't be reached by its user, Unavailable if bubblewrap, libseccomp or user namespaces are missing.
    """
    ids = _identity(spec)
    _check_sources(spec, *ids)
    return _starter().submit(_run, spec, ids, insecure_log).result()
