"""Control groups for sandboxes: version 1, 2, or both side by side (hybrid), whatever this host has.

An agent that root started may make groups below its own; an unprivileged one may where they were delegated to it:
by systemd (``Delegate=memory pids`` with ``DelegateSubgroup=agent``: the agent's group is then named ``agent`` and
sandboxes become its siblings), or by root through ``delegate``. Where neither holds, ``create_cgroup`` says why.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from ..crypto import random_bytes
from ..errors import Unavailable
from .limits import Limits

__all__ = ["Cgroup", "Hierarchy", "create_cgroup", "delegate", "hierarchies"]

_CONTROLLERS = ("memory", "pids")
_DELEGATED = "cloister"
_AGENT = "agent"
_PREFIX = "sandbox-"
_EMPTY_SECONDS = 15.0  # it takes a moment; a bound on hanging


@dataclass(frozen=True)
class Hierarchy:
    """Where one controller's groups can be made: ``base`` is the folder below which a sandbox's group goes."""

    controller: str
    version: int
    base: Path


@dataclass(frozen=True)
class Cgroup:
    """One sandbox's groups (one folder for each hierarchy)."""

    parts: tuple[Hierarchy, ...]
    swap_bounded: bool

    @property
    def versions(self) -> dict[str, int]:
        return {part.controller: part.version for part in self.parts}

    def add(self, pid: int) -> None:
        """Move a process in; what it starts from now on is in too. Raises Unavailable."""
        try:
            for folder in {part.base for part in self.parts}:
                (folder / "cgroup.procs").write_text(str(pid))
        except OSError:
            raise Unavailable("limits.cgroup", "A sandbox could not be moved into its control group.") from None

    def oom_kills(self) -> int:
        """How many processes of this sandbox the kernel killed for want of memory."""
        for part in self.parts:
            if part.controller == "memory":
                name = "memory.events" if part.version == 2 else "memory.oom_control"
                return _field(part.base / name, "oom_kill")
        return 0

    def remove(self) -> None:
        """Remove the groups once all processes are gone; raises Unavailable if some are left after that time."""
        deadline = time.monotonic() + _EMPTY_SECONDS
        for folder in {part.base for part in self.parts}:
            while folder.exists():
                try:
                    folder.rmdir()
                except OSError:
                    # The kernel empties a group a moment after its last process was reaped.
                    if time.monotonic() > deadline:
                        raise Unavailable(
                            "limits.cgroup", f"The control group {folder} can't be removed; are processes left in it?"
                        ) from None
                    time.sleep(0.01)


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _mounts(proc: Path) -> list[tuple[str, str, str, frozenset[str]]]:
    """(root, mount point, file system, super options) of each control-group mount; format: proc(5), mountinfo."""
    found = []
    for line in (proc / "self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) > 4 and len(kind) > 2 and kind[0] in ("cgroup", "cgroup2"):
            found.append((fields[3], fields[4], kind[0], frozenset(kind[2].split(","))))
    return found


def _own_paths(proc: Path) -> dict[str, str]:
    """This process's group by controller; the key of version 2 is the empty text (cgroups(7))."""
    paths = {}
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        paths.update(dict.fromkeys(names.split(","), path))
    return paths


def _base(root: str, point: str, path: str) -> Path:
    # In a container the mount's root is the container's own group, and paths may repeat it.
    relative = path.removeprefix(root) if root != "/" else path
    return Path(point) / relative.lstrip("/")


def hierarchies(proc: Path = Path("/proc")) -> tuple[Hierarchy, ...]:
    """Where the memory and pids controllers live for this process, version 2 preferred; empty where none is mounted."""
    own, found = _own_paths(proc), {}
    for root, point, kind, options in _mounts(proc):
        if kind == "cgroup2" and "" in own:
            base = _base(root, point, own[""])
            if base.name == _AGENT:
                base = base.parent
            offered = base / "cgroup.controllers"
            names = offered.read_text().split() if offered.exists() else []
            found.update({c: Hierarchy(c, 2, base) for c in _CONTROLLERS if c in names})
        elif kind == "cgroup":
            for c in _CONTROLLERS:
                if c in options and c in own:
                    found.setdefault(c, Hierarchy(c, 1, _base(root, point, own[c])))
    return tuple(Hierarchy(h.controller, h.version, _delegated(h.base)) for h in found.values())


def _delegated(base: Path) -> Path:
    inside = base / _DELEGATED
    return inside if inside.is_dir() and os.access(inside, os.W_OK) else base


def _enable(part: Hierarchy) -> None:
    if part.version == 2 and part.controller not in (part.base / "cgroup.subtree_control").read_text().split():
        (part.base / "cgroup.subtree_control").write_text(f"+{part.controller}")


def _bound(part: Hierarchy, limits: Limits) -> bool:
    """Write one controller's bounds; True if they also keep the group's memory out of swap."""
    if part.controller == "pids":
        (part.base / "pids.max").write_text(str(limits.tasks))
        return False
    amount, swap = str(limits.memory_bytes), part.base / "memory.swap.max"
    if part.version == 2:
        (part.base / "memory.max").write_text(amount)
    else:
        (part.base / "memory.limit_in_bytes").write_text(amount)
        # Memory and swap together may not be more than memory alone: so nothing is swapped.
        swap = part.base / "memory.memsw.limit_in_bytes"
    if not swap.exists():  # a kernel without swap accounting
        return False
    swap.write_text("0" if part.version == 2 else amount)
    return True


def _sweep(base: Path, proc: Path) -> None:
    """Remove what agents left that were killed: groups are named after their agent's process."""
    for folder in base.glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if not (proc / pid).exists():
            # Another agent may sweep at the same time, and a group that isn't empty yet is next time's.
            with contextlib.suppress(OSError):
                folder.rmdir()


def create_cgroup(
    limits: Limits, *, where: tuple[Hierarchy, ...] | None = None, proc: Path = Path("/proc")
) -> tuple[Cgroup | None, tuple[str, ...]]:
    """(a new group for one sandbox or None, notes on every controller that could not be had and why)."""
    name = f"{_PREFIX}{os.getpid()}-{random_bytes(8).hex()}"
    parts: list[Hierarchy] = []
    notes: list[str] = []
    swap = False
    offered = {h.controller: h for h in (hierarchies(proc) if where is None else where)}
    for controller in _CONTROLLERS:
        if controller not in offered:
            notes.append(f"no control group offers the {controller} controller")
            continue
        parent = offered[controller]
        part = Hierarchy(controller, parent.version, parent.base / name)
        try:
            _sweep(parent.base, proc)
            _enable(parent)
            part.base.mkdir(mode=0o755, exist_ok=True)
            swap |= _bound(part, limits)
        except OSError as error:
            notes.append(f"the {controller} control group could not be made: {error.strerror}")
            _discard(part.base)
        else:
            parts.append(part)
    return (Cgroup(tuple(parts), swap) if parts else None), tuple(notes)


def _discard(folder: Path) -> None:
    if folder.is_dir() and not (folder / "cgroup.procs").read_text():
        folder.rmdir()


def delegate(uid: int, gid: int, *, where: tuple[Hierarchy, ...] | None = None) -> tuple[Path, ...]:
    """As root, make a group that an unprivileged agent may divide among its sandboxes (version 1 only).

    Returns the folders. In version 2 an agent may only move processes inside the subtree that it lives in, so
    there let systemd delegate as this module's docstring says.
    """
    made = []
    for part in hierarchies() if where is None else where:
        if part.version == 1:
            folder = part.base if part.base.name == _DELEGATED else part.base / _DELEGATED
            folder.mkdir(mode=0o755, exist_ok=True)
            for path in (folder, folder / "cgroup.procs"):
                os.chown(path, uid, gid)
            made.append(folder)
    return tuple(made)
