"""How much of the machine one sandbox may use, and what enforces it.

Rlimits always hold. A control group (``cgroups``) adds bounds over the whole sandbox: without one, memory is
bounded per process only. ``LimitsReport`` says which of the two a sandbox got, so nobody has to guess.
"""

from __future__ import annotations

import os
import resource
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Misuse, Unavailable

__all__ = ["Limits", "LimitsReport", "apply_rlimits", "report_limits"]

_GIB = 1024**3
# Not 0: a file is refused below one page (core(5)), so 1 writes none either, and only 1 also stops a
# core_pattern that pipes into a program of the host, for which the kernel ignores a limit of 0.
_NO_CORE = 1
_PRLIMIT = "/usr/bin/prlimit"


def _three_quarters_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4


@dataclass(frozen=True)
class Limits:
    """Bounds of one sandbox. Bytes, except ``tasks`` (processes and threads) and ``open_files`` (per process)."""

    memory_bytes: int = field(default_factory=_three_quarters_of_memory)
    tasks: int = 512
    open_files: int = 4096
    file_bytes: int = 64 * _GIB
    tmp_bytes: int = 2 * _GIB
    shm_bytes: int = _GIB

    def __post_init__(self) -> None:
        if min(self.memory_bytes, self.tasks, self.open_files, self.file_bytes, self.tmp_bytes, self.shm_bytes) <= 0:
            raise Misuse(
                "limits.positive", "Every limit of a sandbox must be above zero; leave it out for the default."
            )


@dataclass(frozen=True)
class LimitsReport:
    """What really bounds a running sandbox.

    ``memory``, ``tasks``: "cgroup-v2", "cgroup-v1", or "rlimit" (then memory is bounded per process, not in sum).
    ``no_swap``: whether its memory can't reach a swap device. ``notes``: why something weaker was used.
    """

    memory: str
    tasks: str
    no_swap: bool
    notes: tuple[str, ...]


def _rlimits(limits: Limits, bound_data: bool) -> dict[str, int]:
    """Values by name, none above the caller's own hard limit: going above takes privileges and isn't needed."""
    wanted = {
        "core": _NO_CORE,
        "nproc": limits.tasks,
        "nofile": limits.open_files,
        "fsize": limits.file_bytes,
        "msgqueue": 0,
        "rtprio": 0,
    }
    if bound_data:
        wanted["data"] = limits.memory_bytes
    for name, value in wanted.items():
        _, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
        wanted[name] = value if hard == resource.RLIM_INFINITY else min(value, hard)
    return wanted


def _by_program(pid: int, wanted: dict[str, int], ids: tuple[int, int]) -> None:
    options = [f"--{name}={value}:{value}" for name, value in wanted.items()]
    subprocess.run(
        [_PRLIMIT, "--pid", str(pid), *options],
        env={},
        user=ids[0],
        group=ids[1],
        extra_groups=[],
        check=True,
        capture_output=True,
    )


def apply_rlimits(pid: int, limits: Limits, ids: tuple[int, int], *, bound_data: bool) -> None:
    """Set the rlimits of the (still waiting) process ``pid``; its children inherit them and can't raise them.

    ``ids``: user and group of that process. ``bound_data`` also bounds each process's private memory: for sandboxes
    whose memory no control group bounds. Since Linux 5.14 the number of tasks counts inside the sandbox's user
    namespace, so sandboxes of one user don't starve each other. Raises Unavailable if the kernel refuses.
    """
    wanted = _rlimits(limits, bound_data)
    try:
        if os.geteuid() == ids[0]:
            for name, value in wanted.items():
                resource.prlimit(pid, getattr(resource, f"RLIMIT_{name.upper()}"), (value, value))
        else:
            # Root in a container may lack CAP_SYS_RESOURCE; a process of the same user needs no capability.
            _by_program(pid, wanted, ids)
    except (OSError, ValueError, subprocess.SubprocessError):
        raise Unavailable(
            "limits.rlimit",
            "The sandbox's limits could not be set; install util-linux, and bwrap must not be set-user-id.",
        ) from None


def host_swaps(swaps: Path = Path("/proc/swaps")) -> bool:
    """Whether the host has a swap device or can't say."""
    try:
        return len(swaps.read_text().splitlines()) > 1
    except OSError:
        return True


def report_limits(versions: dict[str, int], swap_bounded: bool, notes: tuple[str, ...]) -> LimitsReport:
    """``versions``: the control-group version (1 or 2) by controller, of those that a sandbox really joined."""
    names = {c: f"cgroup-v{versions[c]}" if c in versions else "rlimit" for c in ("memory", "pids")}
    no_swap = swap_bounded or not host_swaps()
    if not no_swap:
        notes = (*notes, "the host swaps and no control group keeps the sandbox's memory out of it")
    return LimitsReport(names["memory"], names["pids"], no_swap, notes)
