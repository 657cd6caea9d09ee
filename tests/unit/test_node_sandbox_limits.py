"""Limits: rlimits on a real process; control groups on invented trees of version 1, 2 and both, and on the real one."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.errors import Misuse, Unavailable
from cloister.node import Limits, cgroups
from cloister.node.limits import apply_rlimits, host_swaps, report_limits

_V1 = """\
30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
31 24 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
"""


@pytest.mark.parametrize("name", ["memory_bytes", "tasks", "open_files", "file_bytes", "tmp_bytes", "shm_bytes"])
def test_a_limit_of_nothing_is_misuse(name: str) -> None:
    with pytest.raises(Misuse) as caught:
        Limits(**{name: 0})
    assert caught.value.code == "limits.positive"


@pytest.mark.parametrize("bound_data", [True, False])
def test_rlimits_hold_for_the_process_and_are_not_above_the_callers(bound_data: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        limits = Limits(memory_bytes=2**33, tasks=77, open_files=2**30)
        apply_rlimits(child.pid, limits, (os.geteuid(), os.getegid()), bound_data=bound_data)
        assert resource.prlimit(child.pid, resource.RLIMIT_CORE) == (1, 1)
        assert resource.prlimit(child.pid, resource.RLIMIT_NPROC) == (77, 77)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE) == (hard, hard)
        data = resource.prlimit(child.pid, resource.RLIMIT_DATA)
        assert data == ((2**33, 2**33) if bound_data else resource.getrlimit(resource.RLIMIT_DATA))
        child.communicate(b"\n")


def test_limits_of_a_process_that_is_gone_are_an_error() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(Unavailable) as caught:
        apply_rlimits(child.pid, Limits(), (os.geteuid(), os.getegid()), bound_data=False)
    assert caught.value.code == "limits.rlimit"


def test_the_report_says_what_bounds_and_whether_memory_may_be_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloister.node import limits

    monkeypatch.setattr(limits, "host_swaps", lambda: True)
    weak = report_limits({}, False, ("why",))
    assert (weak.memory, weak.tasks, weak.no_swap) == ("rlimit", "rlimit", False)
    assert weak.notes[0] == "why"
    assert "swap" in weak.notes[1]
    strong = report_limits({"memory": 2, "pids": 1}, True, ())
    assert (strong.memory, strong.tasks, strong.no_swap, strong.notes) == ("cgroup-v2", "cgroup-v1", True, ())


def test_a_host_that_can_not_say_whether_it_swaps_is_taken_to_swap(tmp_path: Path) -> None:
    assert host_swaps(tmp_path / "missing")
    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n")
    assert not host_swaps(tmp_path / "swaps")
    (tmp_path / "swaps").write_text("Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n")
    assert host_swaps(tmp_path / "swaps")


def _proc(tmp_path: Path, mounts: str, own: str) -> Path:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(mounts.replace("/sys/fs/cgroup", str(tmp_path / "fs")))
    (tmp_path / "proc/self/cgroup").write_text(own)
    return tmp_path / "proc"


def test_version_1_is_found_below_the_agents_own_group(tmp_path: Path) -> None:
    proc = _proc(tmp_path, _V1, "4:memory:/box/a\n8:pids:/\n")
    found = {h.controller: h for h in cgroups.hierarchies(proc)}
    assert found["memory"] == cgroups.Hierarchy("memory", 1, tmp_path / "fs/memory/box/a")
    assert found["pids"] == cgroups.Hierarchy("pids", 1, tmp_path / "fs/pids")


def test_in_a_container_the_mounts_root_is_not_repeated(tmp_path: Path) -> None:
    proc = _proc(tmp_path, _V1.replace("0:26 /", "0:26 /docker/1"), "4:memory:/docker/1/inner\n8:pids:/\n")
    found = {h.controller: h for h in cgroups.hierarchies(proc)}
    assert found["memory"].base == tmp_path / "fs/memory/inner"


def test_a_delegated_group_is_preferred(tmp_path: Path) -> None:
    (tmp_path / "fs/pids/cloister").mkdir(parents=True)
    proc = _proc(tmp_path, _V1, "4:memory:/\n8:pids:/\n")
    found = {h.controller: h.base for h in cgroups.hierarchies(proc)}
    assert found == {"memory": tmp_path / "fs/memory", "pids": tmp_path / "fs/pids/cloister"}


def _version_2(tmp_path: Path, controllers: str = "memory pids cpu") -> Path:
    unit = tmp_path / "fs/unified/node.service"
    (unit / "agent").mkdir(parents=True)
    (unit / "cgroup.controllers").write_text(controllers)
    (unit / "cgroup.subtree_control").write_text("")
    mounts = _V1 + "32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    return _proc(tmp_path, mounts, "4:memory:/\n8:pids:/\n0::/node.service/agent\n")


def test_version_2_is_preferred_and_the_agents_siblings_are_used(tmp_path: Path) -> None:
    proc = _version_2(tmp_path)
    unit = tmp_path / "fs/unified/node.service"
    where = cgroups.hierarchies(proc)
    assert {(h.controller, h.version, h.base) for h in where} == {("memory", 2, unit), ("pids", 2, unit)}


def test_hybrid_takes_each_controller_from_where_it_is(tmp_path: Path) -> None:
    proc = _version_2(tmp_path, controllers="pids hugetlb")
    found = {h.controller: h.version for h in cgroups.hierarchies(proc)}
    assert found == {"memory": 1, "pids": 2}


def test_a_group_of_version_2_is_bounded_and_kept_out_of_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = _version_2(tmp_path)
    monkeypatch.setattr(Path, "mkdir", _kernel_mkdir(Path.mkdir))
    group, notes = cgroups.create_cgroup(Limits(memory_bytes=123456, tasks=7), where=cgroups.hierarchies(proc))
    assert notes == ()
    assert group is not None
    assert group.swap_bounded
    assert group.versions == {"memory": 2, "pids": 2}
    (folder,) = {part.base for part in group.parts}
    assert (folder / "memory.max").read_text() == "123456"
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "pids.max").read_text() == "7"
    assert "+" in (folder.parent / "cgroup.subtree_control").read_text()
    group.add(4711)
    assert (folder / "cgroup.procs").read_text() == "4711"
    (folder / "memory.events").write_text("low 0\noom 2\noom_kill 3\n")
    assert group.oom_kills() == 3


def _kernel_mkdir(real: object) -> object:
    """A new group's folder gets its files from the kernel; here, from this."""

    def mkdir(self: Path, *args: object, **kwargs: object) -> None:
        new = not self.exists()
        real(self, *args, **kwargs)  # type: ignore[operator]
        if new and self.name.startswith("sandbox-"):
            for name in ("memory.swap.max", "cgroup.procs"):
                (self / name).write_text("")

    return mkdir


def test_no_controller_is_said_and_not_hidden(tmp_path: Path) -> None:
    proc = _proc(tmp_path, "", "0::/\n")
    group, notes = cgroups.create_cgroup(Limits(), where=cgroups.hierarchies(proc))
    assert group is None
    assert [n.split()[-2] for n in notes] == ["memory", "pids"]


def test_a_group_that_may_not_be_made_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    where = (cgroups.Hierarchy("pids", 1, tmp_path / "missing"),)
    group, notes = cgroups.create_cgroup(Limits(), where=where)
    assert group is None
    assert notes[1] == "the pids control group could not be made: No such file or directory"
    assert list(tmp_path.iterdir()) == []


def test_groups_of_killed_agents_are_swept_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "proc" / "200").mkdir(parents=True)
    base = tmp_path / "pids"
    for name in ("sandbox-100-aa", "sandbox-200-bb", "other"):
        (base / name).mkdir(parents=True)
    where = (cgroups.Hierarchy("pids", 1, base),)
    group, _ = cgroups.create_cgroup(Limits(), where=where, proc=tmp_path / "proc")
    assert group is not None
    left = {p.name for p in base.iterdir()} - {part.base.name for part in group.parts}
    assert left == {"sandbox-200-bb", "other"}


def test_a_group_that_is_not_empty_is_an_error_and_not_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_EMPTY_SECONDS", 0.2)
    (tmp_path / "group/process").mkdir(parents=True)
    group = cgroups.Cgroup((cgroups.Hierarchy("pids", 1, tmp_path / "group"),), False)
    with pytest.raises(Unavailable, match="are processes left in it") as caught:
        group.remove()
    assert caught.value.code == "limits.cgroup"


def test_a_process_that_can_not_be_moved_is_an_error(tmp_path: Path) -> None:
    group = cgroups.Cgroup((cgroups.Hierarchy("pids", 1, tmp_path / "missing"),), False)
    with pytest.raises(Unavailable) as caught:
        group.add(1)
    assert caught.value.code == "limits.cgroup"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can delegate a control group")
def test_root_delegates_to_an_unprivileged_agent(tmp_path: Path) -> None:
    where = (cgroups.Hierarchy("pids", 1, tmp_path), cgroups.Hierarchy("memory", 2, tmp_path / "two"))
    (tmp_path / "cloister").mkdir()
    (tmp_path / "cloister/cgroup.procs").touch()
    assert cgroups.delegate(64901, 64902, where=where) == (tmp_path / "cloister",)
    info = (tmp_path / "cloister/cgroup.procs").stat()
    assert (info.st_uid, info.st_gid) == (64901, 64902)
    assert not (tmp_path / "two").exists()
