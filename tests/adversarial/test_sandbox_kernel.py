"""Attack: the workload gains privileges, changes the kernel's settings, or gets at memory through the kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cloister.errors import Denied
from cloister.node import launch
from tests.sandbox_kit import Box, box

# x86-64 numbers (arch/x86/entry/syscalls/syscall_64.tbl).
_REFUSED = {
    "ptrace": 101, "syslog": 103, "personality": 135, "pivot_root": 155, "adjtimex": 159, "chroot": 161, "acct": 163,
    "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169, "sethostname": 170, "iopl": 172,
    "init_module": 175, "quotactl": 179, "clock_settime": 227, "kexec_load": 246, "add_key": 248, "keyctl": 250,
    "migrate_pages": 256, "unshare": 272, "perf_event_open": 298, "name_to_handle_at": 303, "open_by_handle_at": 304,
    "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313,
    "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425, "open_tree": 428, "fsopen": 430,
    "pidfd_getfd": 438, "mount_setattr": 442,
}  # fmt: skip


@pytest.fixture
def inside() -> Iterator[Box]:
    with box() as made:
        yield made


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the system calls are those of x86-64")
def test_dangerous_system_calls_are_refused(inside: Box) -> None:
    answers = inside.probe(f"{{n: syscall(c, 0, 0, 0, 0, 0) for n, c in {_REFUSED}.items()}}")
    assert answers == dict.fromkeys(_REFUSED, "EPERM")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the system calls are those of x86-64")
def test_unknown_and_new_system_calls_do_not_exist(inside: Box) -> None:
    # clone3, whose flags a filter can't see; cachestat, which is newer than the list; and one that nobody has.
    assert inside.probe("[syscall(c, 0, 0, 0, 0) for c in (435, 451, 999)]") == ["ENOSYS"] * 3


@pytest.mark.parametrize("flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_clone_makes_no_new_namespace(inside: Box, flag: int) -> None:
    # 17 is SIGCHLD: without a namespace flag this would be a plain fork.
    assert inside.probe(f"syscall(56, {flag} | 17, 0, 0, 0, 0)") == "EPERM"


def test_call_of_the_32_bit_table_kills_the_caller(inside: Box) -> None:
    # x32: the same numbers with a high bit, which a careless filter takes for unknown or for allowed.
    with inside.start("libc.syscall(0x40000000 | 39)") as sandbox:
        assert sandbox.wait(30) == 128 + 31  # SIGSYS


def test_no_capability_and_no_way_to_gain_one(inside: Box) -> None:
    status = inside.probe("dict(l.split(':', 1) for l in open('/proc/self/status').read().splitlines())")
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    assert inside.probe("[os.getuid(), os.getgid(), os.getgroups()]") in ([1000, 1000, []], [1000, 1000, [65534]])


def test_kernel_settings_can_not_be_written(inside: Box) -> None:
    code = """
open_for_writing = []
for folder, _, files in os.walk("/proc/sys"):
    for name in files:
        if attempt(os.open, os.path.join(folder, name), os.O_WRONLY) == "done":
            open_for_writing.append(os.path.join(folder, name))
print(open_for_writing)
"""
    assert inside.run(code) == "[]\n"
    with open("/proc/sys/kernel/core_pattern") as file:
        before = file.read()
    assert inside.probe("attempt(write, '/proc/sys/kernel/core_pattern', '|/out/evil')") in ("EROFS", "EACCES")
    assert inside.probe("attempt(write, '/proc/sysrq-trigger', 'b')") in ("EROFS", "EACCES", "ENOENT")
    with open("/proc/sys/kernel/core_pattern") as file:
        assert file.read() == before


def test_kernel_addresses_and_keys_are_hidden(inside: Box) -> None:
    names = [
        n for n in ("kallsyms", "keys", "key-users", "timer_list", "iomem", "modules") if os.path.exists(f"/proc/{n}")
    ]
    # Covered with /dev/null on a mount without devices, which can't even be opened.
    assert inside.probe(f"[attempt(open, '/proc/' + n) for n in {names}]") == ["EACCES"] * len(names)
    assert inside.probe("[attempt(open, p) for p in ('/proc/kcore', '/dev/mem', '/dev/kmsg')]") in (
        ["ENOENT", "ENOENT", "ENOENT"],
        ["EACCES", "ENOENT", "ENOENT"],
    )


def test_crash_leaves_no_core_dump(inside: Box) -> None:
    code = """
import resource
for folder in ("/tmp", "/out"):
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        os.abort()
    os.waitpid(child, 0)
limits = [resource.getrlimit(resource.RLIMIT_CORE)]
limits.append(attempt(lambda: resource.setrlimit(resource.RLIMIT_CORE, (1, 1))))
try:
    resource.setrlimit(resource.RLIMIT_CORE, (2**20, 2**20))
except ValueError:
    limits.append("refused")
print(limits, os.listdir("/tmp"), os.listdir("/out"))
"""
    # A limit of 1, not 0: below one page no file is written, and only 1 stops a core_pattern that is a pipe.
    assert inside.run(code) == "[(1, 1), 'done', 'refused'] [] []\n"


def test_terminal_of_the_host_can_not_be_typed_into(inside: Box) -> None:
    code = """
import fcntl, pty
leader, follower = pty.openpty()
for request in (0x5412, 0x541C, (1 << 32) | 0x5412):
    print(syscall(16, follower, ctypes.c_ulong(request), ctypes.c_char_p(b"x")))
"""
    assert inside.run(code) == "EPERM\nEPERM\nEPERM\n"
    assert inside.probe("attempt(open, '/dev/tty')") == "ENXIO"


def test_root_is_refused_as_the_sandboxes_user(inside: Box) -> None:
    for run_as in ((0, 0), (0, 64901), (64901, 0)):
        with pytest.raises(Denied, match="never started as root") as caught:
            launch(inside.spec("", run_as=run_as))
        assert caught.value.code == "sandbox.root"
    if os.geteuid() == 0:
        with pytest.raises(Denied) as caught:
            launch(inside.spec("", run_as=None))
        assert caught.value.code == "sandbox.root"
    assert list(inside.out.iterdir()) == []
