"""What a party's program can't do, beside what the sandbox takes from everybody in it: open a socket, or change a file.

The sandbox's output folder is read by the operator, and its socket leads to the node and, through it, to brokers, one
of which may be the program's author's. So a seccomp program refuses every system call that makes, connects or changes
such a thing; all threads and children inherit it, and nobody can take it off again (seccomp(2)). What is left is the
memory of the process, and the channel that it began with.

The program is written by hand because the image has no libseccomp: a list of numbers, and two places where an argument
counts. Numbers: the kernel's tables for x86-64 and arm64 (asm-generic/unistd.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Sequence

from ...errors import Unavailable

__all__ = ["confine"]

# name: (x86-64, arm64); None where that table has no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242), "bind": (49, 200),
    "listen": (50, 201), "creat": (85, None), "openat2": (437, 437), "mkdir": (83, None), "mkdirat": (258, 34),
    "rmdir": (84, None), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None),
    "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "unlink": (87, None), "unlinkat": (263, 35),
    "truncate": (76, 45), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54), "mknod": (133, None),
    "mknodat": (259, 33), "utime": (132, None), "utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "execve": (59, 221), "execveat": (322, 281), "io_uring_setup": (425, 425), "shmget": (29, 194), "semget": (64, 190),
    "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "pidfd_send_signal": (424, 424),
    "tgkill": (234, 131), "rt_tgsigqueueinfo": (297, 240), "setrlimit": (160, 164), "setpriority": (141, 140),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "flock": (73, 32),
    "ioprio_set": (251, 30),
}  # fmt: skip
_OPEN: tuple[int | None, int | None] = (2, None)
_OPENAT: tuple[int | None, int | None] = (257, 56)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
_X32 = 0x40000000  # the bit of x86-64's other ABI, which has numbers of its own
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | (os.O_TMPFILE & ~os.O_DIRECTORY)
# BPF (linux/filter.h): load a word of seccomp_data; jump if equal, greater-or-equal, or any bit set; return.
_LOAD, _EQUAL, _AT_LEAST, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in seccomp_data
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_NO_NEW_PRIVS, _PDEATHSIG, _DUMPABLE = 38, 1, 4
_SECCOMP = {"x86_64": 317, "aarch64": 277}  # seccomp(2)
_SET_FILTER, _ALL_THREADS = 1, 1
_SIGKILL = 9


def confine() -> None:
    """For the rest of this process, and for all that it starts. Raises Unavailable (``script.confinement``)."""
    libc = ctypes.CDLL(None, use_errno=True)
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    # One byte where that is still possible: a limit of none doesn't stop a host that pipes core dumps (core(5)).
    least = 0 if most == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (least, least))
    program = _program()
    code = b"".join(program)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    given = Program(len(program), ctypes.cast(buffer, ctypes.c_void_p))
    for option, value in ((_PDEATHSIG, _SIGKILL), (_DUMPABLE, 0), (_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise _impossible()
    # For every thread there is, not for this one alone: libraries start theirs when they load, and a thread without the
    # filter would be the way out. The kernel names the thread that it can't have, or takes all.
    if libc.syscall(_SECCOMP[platform.machine()], _SET_FILTER, _ALL_THREADS, ctypes.byref(given)) != 0:
        raise _impossible()
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/status", encoding="ascii") as status:
            if not any(line.split() == ["Seccomp:", "2"] for line in status):
                raise _impossible()


def _program() -> Sequence[bytes]:
    found = _ARCHITECTURES.get(platform.machine())
    if found is None:
        raise _impossible()
    column, arch = found
    out = [_step(_LOAD, _ARCH), _step(_EQUAL, arch, 1, 0), _step(_RETURN, _KILL), _step(_LOAD, _NUMBER)]
    if column == 0:
        out += [_step(_AT_LEAST, _X32, 0, 1), _step(_RETURN, _REFUSE)]
    for opening, flags in ((_OPEN, 1), (_OPENAT, 2)):
        number = opening[column]
        if number is not None:
            # An open that could write is refused, and the number is loaded again for what comes after.
            out += [
                _step(_EQUAL, number, 0, 4),
                _step(_LOAD, _ARGUMENTS + 8 * flags),
                _step(_BITS, _WRITING, 0, 1),
                _step(_RETURN, _REFUSE),
                _step(_RETURN, _ALLOW),
            ]
    for numbers in _REFUSED.values():
        number = numbers[column]
        if number is not None:
            out += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _REFUSE)]
    return [*out, _step(_RETURN, _ALLOW)]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _impossible() -> Unavailable:
    return Unavailable(
        "script.confinement", "This machine can't confine a party's program (seccomp); run the job on another one."
    )
