"""What a sandbox is: its description, the part of it that is measured, and the bubblewrap arguments.

Nothing here starts anything; ``sandbox.launch`` does. The layout is fixed: the image read-only as ``/``, and only

    /job                 one folder, read-only          /assets/<digest>   ciphertext, read-only
    /out                 one folder, read and write     /run/cloister.sock one Unix socket to the node agent
    /tmp, /dev/shm       bounded memory                 /dev, /proc        minimal, masked, read-only where possible
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Misuse
from .image import PYTHON
from .limits import Limits
from .seccomp import SECCOMP_PROFILE, seccomp_digest

__all__ = ["DEFAULT_ENV", "SANDBOX_PROFILE", "SandboxSpec", "bubblewrap_arguments", "launch_spec", "workload_argv"]

SANDBOX_PROFILE = "cloister/sandbox/v1"
SOCKET = "/run/cloister.sock"
# A user without privileges inside, the same on every host: the user outside is the operator's business.
_INSIDE_ID = "1000"

DEFAULT_ENV: Mapping[str, str] = {
    "HOME": "/tmp",  # noqa: S108  the sandbox's own tmpfs
    "USER": "workload",
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin",
    # Spinning barriers of OpenMP starve everything else on a shared machine.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc would return large blocks to the kernel after every training step and fault them in again.
    "MALLOC_TRIM_THRESHOLD_": "-1",
    "MALLOC_MMAP_MAX_": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

# What container runtimes hide of /proc: addresses, keys, and hardware that no workload needs to read.
_MASKED_FILES = tuple(
    """
    config.gz diskstats execdomains interrupts iomem ioports kallsyms kcore key-users keys kmsg kpagecgroup kpagecount
    kpageflags latency_stats modules mtrr pagetypeinfo sched_debug slabinfo softirqs sysrq-trigger timer_list
    timer_stats vmallocinfo zoneinfo
    """.split()  # noqa: SIM905
)
_MASKED_FOLDERS = ("acpi", "asound", "bus", "driver", "dynamic_debug", "fs", "irq", "scsi", "sysvipc")
_READ_ONLY = ("sys",)

_READ_TARGET = re.compile(r"/job|/assets/[0-9a-f]{64}")
_WRITE_TARGET = re.compile(r"/out")


def workload_argv(module: str, *arguments: str) -> tuple[str, ...]:
    """How the image's Python starts a module: isolated from environment and user (-I), writing no bytecode (-B)."""
    return (PYTHON, "-I", "-B", "-m", module, *arguments)


@dataclass(frozen=True)
class SandboxSpec:
    """One sandbox. Paths are the host's; keys of the binds are paths inside.

    ``ro_binds``: /job and /assets/<64 hex digits>. ``rw_binds``: /out. ``env`` is laid over ``DEFAULT_ENV``.
    ``run_as``: (user, group) to start as, for a caller that is root; otherwise the caller's own.
    ``loopback``: its processes may speak TCP with each other, on the loopback of the sandbox's own network.
    """

    image: Path
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ro_binds: Mapping[str, Path] = field(default_factory=dict)
    rw_binds: Mapping[str, Path] = field(default_factory=dict)
    socket_path: Path | None = None
    limits: Limits = field(default_factory=Limits)
    run_as: tuple[int, int] | None = None
    loopback: bool = False

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0].startswith("/"):
            raise Misuse("sandbox.argv", "A sandbox starts a program by its absolute path inside the image.")
        texts = (*self.argv, *self.env, *self.env.values())
        if any("\0" in text for text in texts) or any("=" in name or not name for name in self.env):
            raise Misuse("sandbox.text", "Arguments hold no zero bytes and names of variables no '='; correct them.")
        for binds, pattern in ((self.ro_binds, _READ_TARGET), (self.rw_binds, _WRITE_TARGET)):
            for target in binds:
                if not pattern.fullmatch(target):
                    raise Misuse(
                        "sandbox.bind", f"{target!r} can't be mounted there; use /job, /assets/<digest>, /out."
                    )

    @property
    def environment(self) -> dict[str, str]:
        return {**DEFAULT_ENV, **self.env}


def launch_spec(spec: SandboxSpec) -> dict[str, object]:
    """The measured part: everything that decides what runs and how it is confined, and no path of the host.

    Canonical-JSON-able. The digests of assets don't enter: one measurement serves all jobs, and the workload
    checks every asset against the contract itself. For the same reason both filters enter, whichever this sandbox gets:
    the launcher takes the second one for a job whose signed recipe wants several processes, and for no other.
    """
    return {
        "profile": SANDBOX_PROFILE,
        "argv": list(spec.argv),
        "env": spec.environment,
        "uid": _INSIDE_ID,
        "namespaces": ["cgroup", "ipc", "mount", "net", "pid", "user", "uts"],
        "nested-user-namespaces": False,
        "capabilities": [],
        "core-dumps": False,
        "seccomp": {
            "profile": SECCOMP_PROFILE,
            "digest": seccomp_digest().hex(),
            "several-processes": seccomp_digest(loopback=True).hex(),
        },
        "mounts": {
            "image": ["/"],
            "read-only": ["/job", "/assets/*"],
            "read-write": ["/out"],
            "memory": ["/tmp", "/dev/shm"],  # noqa: S108
            "socket": [SOCKET],
        },
        "proc": {"masked": [*_MASKED_FILES, *_MASKED_FOLDERS], "read-only": list(_READ_ONLY)},
    }


def _namespaces() -> list[str]:
    flags = ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    return [*flags, "--cap-drop", "ALL", "--uid", _INSIDE_ID, "--gid", _INSIDE_ID, "--hostname", "cloister"]


def _proc(host: Path) -> list[str]:
    """A new /proc without what is masked. Only entries that this kernel has can be covered."""
    arguments = ["--proc", "/proc"]
    for name in _MASKED_FILES:
        if (host / name).exists():
            arguments += ["--ro-bind", "/dev/null", f"/proc/{name}"]
    for name in _MASKED_FOLDERS:
        if (host / name).is_dir():
            arguments += ["--tmpfs", f"/proc/{name}", "--remount-ro", f"/proc/{name}"]
    for name in _READ_ONLY:
        arguments += ["--ro-bind", str(host / name), f"/proc/{name}"]
    return arguments


def _memory(path: str, size: int) -> list[str]:
    return ["--size", str(size), "--perms", "1777", "--tmpfs", path]


def _mounts(spec: SandboxSpec) -> list[str]:
    arguments = ["--ro-bind", str(spec.image), "/"]
    arguments += ["--dev", "/dev", *_memory("/dev/shm", spec.limits.shm_bytes), "--remount-ro", "/dev"]  # noqa: S108
    arguments += [*_proc(Path("/proc")), *_memory("/tmp", spec.limits.tmp_bytes)]  # noqa: S108
    arguments += ["--tmpfs", "/assets", "--tmpfs", "/run"]
    for target, source in sorted(spec.ro_binds.items()):
        arguments += ["--ro-bind", str(source), target]
    for target, source in sorted(spec.rw_binds.items()):
        arguments += ["--bind", str(source), target]
    if spec.socket_path is not None:
        arguments += ["--ro-bind", str(spec.socket_path), SOCKET]
    return [*arguments, "--remount-ro", "/assets", "--remount-ro", "/run"]


def bubblewrap_arguments(spec: SandboxSpec) -> list[str]:
    """Every option for bwrap but the descriptors that the launcher adds, without the program's own name."""
    arguments = [*_namespaces(), *_mounts(spec), "--clearenv"]
    for name, value in sorted(spec.environment.items()):
        arguments += ["--setenv", name, value]
    return [*arguments, "--chdir", "/tmp"]  # noqa: S108
