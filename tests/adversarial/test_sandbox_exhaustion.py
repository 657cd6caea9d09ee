"""Attack: the workload takes the machine's memory, processes or disk, or goes on running when it should be dead."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cloister
from cloister.node import Limits
from tests.patience import until
from tests.sandbox_kit import RUN_AS, Box, box

_FORK_BOMB = """
children = 0
try:
    while children < 500:
        if os.fork() == 0:
            import signal
            signal.pause()
        children += 1
except OSError as error:
    print(children, errno.errorcode[error.errno])
"""
_HOG = """
print("start", flush=True)
blocks = []
while True:
    blocks.append(bytearray(b"x" * 2**24))
    if len(blocks) > 200:
        print("more than 3 GB", flush=True)
        break
"""
_STUBBORN = """
import signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()  # leaves process group and session, as a daemon does
        break
write(f"/out/{os.getpid()}")
signal.pause()
"""


@pytest.fixture
def inside() -> Iterator[Box]:
    with box() as made:
        yield made


def _members(pid: int) -> list[int]:
    """Processes in the process namespace of ``pid``, as the host numbers them."""
    space = os.readlink(f"/proc/{pid}/ns/pid")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(folder / "ns/pid") == space:
                found.append(int(folder.name))
    return found


def _alive(pids: list[int]) -> list[int]:
    """Those that still run. One that ended, and that the host's init hasn't collected yet (state Z), doesn't."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(pid)
    return found


def test_fork_bomb_is_bounded(inside: Box) -> None:
    # 64 tasks, less the first process of the namespace and the bomb itself.
    assert inside.run(_FORK_BOMB) in ("62 EAGAIN\n", "63 EAGAIN\n")


def test_memory_hog_is_bounded(inside: Box) -> None:
    with inside.start(_HOG) as sandbox:
        assert sandbox.limits is not None
        by_group = sandbox.limits.memory != "rlimit"
        code = sandbox.wait(60)
    if by_group:
        assert code == 128 + signal.SIGKILL
        assert sandbox.out_of_memory
        assert inside.log.read_text() == "start\n"
    else:
        assert code == 1
        assert inside.log.read_text().rstrip().endswith("MemoryError")


def test_memory_file_systems_are_bounded(inside: Box) -> None:
    code = """
for path in ("/tmp/fill", "/dev/shm/fill"):
    written = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while written < 2**28:
                written += file.write(bytes(2**20))
    except OSError as error:
        print(written, errno.errorcode[error.errno])
"""
    assert inside.run(code) == f"{8 * 2**20} ENOSPC\n" * 2


def test_file_larger_than_allowed_is_refused(inside: Box) -> None:
    code = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with open("/out/big", "wb", buffering=0) as file:
    print(file.write(bytes(2**20)), attempt(file.write, b"x"))
"""
    limits = Limits(memory_bytes=2**29, file_bytes=2**20)
    assert inside.run(code, limits=limits) == f"{2**20} EFBIG\n"
    assert (inside.out / "big").stat().st_size == 2**20


def test_limits_can_not_be_raised_from_inside(inside: Box) -> None:
    code = """
import resource
for name in ("NPROC", "NOFILE", "FSIZE", "CORE"):
    number = getattr(resource, "RLIMIT_" + name)
    soft, hard = resource.getrlimit(number)
    try:
        resource.setrlimit(number, (hard + 1, hard + 1))
        print("raised", name)
    except (ValueError, OSError):
        pass
print("end")
"""
    assert inside.run(code) == "end\n"


def test_kill_leaves_no_process_behind(inside: Box) -> None:
    with inside.start(_STUBBORN) as sandbox:
        until("all four", lambda: len(list(inside.out.iterdir())) == 4)
        members = _members(sandbox.pid)
        assert len(members) == 5  # the first process of the namespace and four that ignore what can be ignored
        assert sandbox.kill() == 128 + signal.SIGKILL
        assert _alive(members) == []
    assert sandbox.exit_code == 128 + signal.SIGKILL
    assert sandbox.kill() == 128 + signal.SIGKILL  # once more harms nobody, whose number it may now be


def test_program_that_ends_takes_its_children_along(inside: Box) -> None:
    code = """
import signal, time
if os.fork() == 0:
    write("/out/child")
    signal.pause()
while not os.path.exists("/out/go"):
    time.sleep(0.01)
"""
    with inside.start(code) as sandbox:
        until("the child", (inside.out / "child").exists)
        members = _members(sandbox.pid)
        assert len(members) == 3  # the first process of the namespace, the program and its child
        (inside.out / "go").touch()
        assert sandbox.wait(60) == 0
    assert _alive(members) == []


_AGENT = """
import os, sys, threading, time
from pathlib import Path
from cloister.node import Limits, SandboxSpec, launch
image, out, mode = sys.argv[1:4]
code = "open('/out/started', 'w').close()\\nimport time\\ntime.sleep(600)"
if mode == "hog":
    code = "blocks = [bytearray(b'x' * 2**24) for _ in range(100)]"
spec = SandboxSpec(Path(image), ("/usr/bin/python3", "-I", "-c", code), rw_binds={"/out": Path(out)},
    limits=Limits(memory_bytes=2**28, tasks=32), run_as=tuple(map(int, sys.argv[4:])) or None)
made = []
thread = threading.Thread(target=lambda: made.append(launch(spec)))
thread.start()
thread.join()
print(made[0].pid, made[0].limits.memory, made[0].limits.tasks, flush=True)
if mode == "hog":
    print(made[0].wait())
else:
    time.sleep(600)
"""


def _agent(inside: Box, mode: str, *, unprivileged: bool) -> subprocess.Popen[str]:
    """An agent in a process of its own, that launches from a thread which ends."""
    drop = unprivileged and RUN_AS is not None
    arguments = [str(inside.image), str(inside.out), mode]
    if RUN_AS is not None and not drop:
        arguments += [str(i) for i in RUN_AS]
    source = str(Path(cloister.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", _AGENT, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
        env={"PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"},
        user=RUN_AS[0] if drop and RUN_AS else None,
        group=RUN_AS[1] if drop and RUN_AS else None,
        extra_groups=[] if drop else None,
    )


def test_sandbox_outlives_the_thread_but_not_the_agent(inside: Box) -> None:
    with _agent(inside, "sleep", unprivileged=False) as agent:
        try:
            assert agent.stdout is not None
            pid = int(agent.stdout.readline().split()[0])
            until("the program", (inside.out / "started").exists)
            members = _members(pid)
            assert len(members) >= 2
        finally:
            agent.kill()
    # bwrap dies with the agent, and the kernel ends the rest: a moment later nothing is left.
    until("their end", lambda: _alive(members) == [])


@pytest.mark.skipif(
    not os.access(sys.executable, os.X_OK) or Path(sys.executable).resolve().is_relative_to(Path.home()),
    reason="the interpreter lies under a private home, where another user can't run it",
)
def test_memory_is_bounded_for_an_agent_without_privileges(inside: Box) -> None:
    with _agent(inside, "hog", unprivileged=True) as agent:
        assert agent.stdout is not None
        _, memory, _ = agent.stdout.readline().split()
        code = int(agent.stdout.readline())
    assert code == (1 if memory == "rlimit" else 128 + signal.SIGKILL)
