"""The system calls that a sandboxed process may make, as two BPF programs.

The kernel runs both and takes the stricter answer:

1. *allow*: what a Python process with native libraries needs; everything else is ENOSYS. A system call that
   is newer than this list is therefore refused, and libraries fall back as on an old kernel.
2. *deny*: what could reach the kernel's attack surface, other processes or the host is EPERM, by name or by
   argument (new namespaces in ``clone``, socket families other than AF_UNIX, pushing keys into a terminal).

Processes that train together exchange gradients over TCP: for them alone there is a second *deny*, ``loopback``. It
lets through plain TCP over IPv4, and the one kind of netlink that lists a network's interfaces. Where to is not for the
filter to say, because it can't see addresses: the sandbox's own network has no interface but loopback.

Two programs, because one libseccomp program can't say "every value of this argument but one" about the low
32 bits that the kernel reads, and a comparison of all 64 bits could be dodged with a high bit.
Source of the lists: seccomp(2), clone(2), ioctl_tty(2) and the kernel's system-call tables.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from ..crypto import frame, sha256
from ..errors import Unavailable

__all__ = ["ALLOWED", "DENIED", "SECCOMP_PROFILE", "programs", "seccomp_digest", "seccomp_fds"]

SECCOMP_PROFILE = "cloister/seccomp/v1"

_AF_UNIX, _AF_INET, _AF_NETLINK = 1, 2, 16
_SOCK_STREAM, _SOCK_TYPES = 1, 0xF  # the low four bits are the type, those above are flags
_TCP, _TCP_ULP = 6, 31  # TCP_ULP puts another protocol's code, and perhaps a newly loaded module, over a connection
_NETLINK_ROUTE = 0
_LOW_32 = 0xFFFFFFFF
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # type into, or paste into, the controlling terminal
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. (NEWTIME exists only for clone3 and unshare.)
_CLONE_NEW = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)


def _names(text: str) -> frozenset[str]:
    """The words of ``text``, without its comments."""
    return frozenset(word for line in text.splitlines() for word in line.partition("#")[0].split())


ALLOWED = _names(
    """
    # files and folders
    access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
    fallocate fchdir fchmod fchmodat fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fstat fstatfs fsync
    ftruncate futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch ioctl lchown lgetxattr link linkat listxattr llistxattr lseek lstat mkdir mkdirat newfstatat
    open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
    rename renameat renameat2 rmdir sendfile splice stat statfs statx symlink symlinkat sync sync_file_range syncfs
    tee truncate umask unlink unlinkat utime utimensat utimes vmsplice write writev
    # memory
    brk get_mempolicy madvise memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap msync munlock
    munlockall munmap pkey_alloc pkey_free pkey_mprotect membarrier
    # processes, threads, signals; clone's arguments are checked by the second program, and clone3, which hides
    # its flags behind a pointer that BPF can't follow, is left out: glibc falls back to clone on ENOSYS
    arch_prctl capget capset clone execve execveat exit exit_group fork futex futex_waitv get_robust_list
    getegid geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit
    getrusage getsid gettid getuid getcpu ioprio_get ioprio_set kill pause pidfd_open pidfd_send_signal prctl prlimit64
    restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
    sched_getparam sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield set_robust_list set_tid_address setpgid setpriority setrlimit setsid sigaltstack
    signalfd signalfd4 sysinfo tgkill times tkill uname vfork wait4 waitid
    landlock_create_ruleset landlock_add_rule landlock_restrict_self seccomp
    # time and waiting
    alarm clock_getres clock_gettime clock_nanosleep epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2
    epoll_wait eventfd eventfd2 getitimer gettimeofday nanosleep pipe pipe2 poll ppoll pselect6 select setitimer time
    timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime
    timerfd_settime getrandom
    # sockets (the family is checked by the second program) and System V IPC (its namespace is empty)
    accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg
    sendto setsockopt shutdown socket socketpair
    semctl semget semop semtimedop shmat shmctl shmdt shmget
    """
)

DENIED = _names(
    """
    # mounts and roots
    chroot fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree pivot_root umount2
    name_to_handle_at open_by_handle_at mknod mknodat
    # other processes and namespaces
    kcmp migrate_pages move_pages pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace setns unshare
    # kernel surface with a history of escapes
    add_key bpf fanotify_init fanotify_mark io_uring_enter io_uring_register io_uring_setup keyctl lookup_dcookie
    modify_ldt perf_event_open personality request_key userfaultfd
    # the machine
    acct adjtimex clock_adjtime clock_settime create_module delete_module finit_module init_module ioperm iopl
    kexec_file_load kexec_load mbind nfsservctl quotactl quotactl_fd reboot set_mempolicy setdomainname sethostname
    settimeofday swapoff swapon syslog uselib ustat sysfs vhangup _sysctl
    """
)


def _library() -> Any:
    try:
        import pyseccomp
    except (ImportError, RuntimeError):
        raise Unavailable(
            "sandbox.seccomp", "libseccomp can't be loaded; install libseccomp2 and the extra 'node' of cloister."
        ) from None
    return pyseccomp


def _known(lib: Any, names: frozenset[str]) -> list[str]:
    """Names that this libseccomp has on this machine's architecture, in a fixed order."""
    return [n for n in sorted(names) if lib.resolve_syscall(lib.Arch.NATIVE, n) >= 0]


def _export(program: Any) -> bytes:
    with tempfile.TemporaryFile() as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()


def _allow_program(lib: Any) -> bytes:
    program = lib.SyscallFilter(lib.ERRNO(errno.ENOSYS))
    # Binary search instead of some 250 comparisons for each call.
    program.set_attr(lib.Attr.CTL_OPTIMIZE, 2)
    # A denied call must pass this program, or the second one's EPERM would be hidden behind ENOSYS.
    for name in _known(lib, ALLOWED | DENIED):
        program.add_rule(lib.ALLOW, name)
    return _export(program)


def _refuse_sockets(program: Any, lib: Any, refuse: Any, *, loopback: bool) -> None:
    """All families but AF_UNIX. With ``loopback`` also let through: AF_INET for TCP, AF_NETLINK for NETLINK_ROUTE.

    Everything else is named or is above the highest number that may be, so that a high bit, which the kernel doesn't
    read, makes it refused too.
    """
    program.add_rule(refuse, "socketpair", lib.Arg(0, lib.NE, _AF_UNIX))
    if not loopback:
        program.add_rule(refuse, "socket", lib.Arg(0, lib.NE, _AF_UNIX))
        return
    for family in set(range(_AF_NETLINK)) - {_AF_UNIX, _AF_INET}:
        program.add_rule(refuse, "socket", lib.Arg(0, lib.EQ, family))
    program.add_rule(refuse, "socket", lib.Arg(0, lib.GT, _AF_NETLINK))
    inet = lib.Arg(0, lib.EQ, _AF_INET)
    for kind in set(range(_SOCK_TYPES + 1)) - {_SOCK_STREAM}:
        program.add_rule(refuse, "socket", inet, lib.Arg(1, lib.MASKED_EQ, _SOCK_TYPES, kind))
    for protocol in set(range(_TCP)) - {0}:
        program.add_rule(refuse, "socket", inet, lib.Arg(2, lib.EQ, protocol))
    program.add_rule(refuse, "socket", inet, lib.Arg(2, lib.GT, _TCP))
    program.add_rule(refuse, "socket", lib.Arg(0, lib.EQ, _AF_NETLINK), lib.Arg(2, lib.NE, _NETLINK_ROUTE))
    program.add_rule(
        refuse, "setsockopt", lib.Arg(1, lib.MASKED_EQ, _LOW_32, _TCP), lib.Arg(2, lib.MASKED_EQ, _LOW_32, _TCP_ULP)
    )


def _deny_program(lib: Any, *, loopback: bool) -> bytes:
    program, refuse = lib.SyscallFilter(lib.ALLOW), lib.ERRNO(errno.EPERM)
    for name in _known(lib, DENIED):
        program.add_rule(refuse, name)
    for flag in _CLONE_NEW:
        program.add_rule(refuse, "clone", lib.Arg(0, lib.MASKED_EQ, flag, flag))
    _refuse_sockets(program, lib, refuse, loopback=loopback)
    for request in (_TIOCSTI, _TIOCLINUX):
        program.add_rule(refuse, "ioctl", lib.Arg(1, lib.MASKED_EQ, _LOW_32, request))
    return _export(program)


@lru_cache(maxsize=2)
def programs(loopback: bool = False) -> tuple[bytes, bytes]:
    """The (allow, deny) BPF programs for this machine's architecture; the same bytes for the same libseccomp.

    ``loopback``: those for processes that train together.

    Calls of any other architecture (32-bit, x32) kill the process: libseccomp's default for a bad architecture.
    Raises Unavailable where libseccomp is missing.
    """
    lib = _library()
    return _allow_program(lib), _deny_program(lib, loopback=loopback)


def seccomp_digest(loopback: bool = False) -> bytes:
    """SHA-256 over profile name and both programs, 32 bytes: part of the launch specification."""
    allow, deny = programs(loopback)
    return sha256(frame(SECCOMP_PROFILE, allow, deny))


@contextlib.contextmanager
def seccomp_fds(loopback: bool = False) -> Iterator[tuple[int, int]]:
    """Descriptors from which a launcher reads the programs, in the order in which it must install them.

    They are sealed memory, so nobody can change them between here and the kernel.
    """
    fds: list[int] = []
    try:
        for program in programs(loopback):
            fd = os.memfd_create("seccomp", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
            fds.append(fd)
            os.write(fd, program)
            os.lseek(fd, 0, os.SEEK_SET)
            seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        yield fds[0], fds[1]
    finally:
        for fd in fds:
            os.close(fd)
