"""The description of a sandbox: what it accepts, what of it is measured, and the arguments for bubblewrap."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from cloister.crypto import canonical_json
from cloister.errors import Misuse, Unavailable
from cloister.node import Limits, SandboxSpec, launch_spec, launcher, profile, seccomp, workload_argv

ASSET = "/assets/" + "0f" * 32


def _spec(**changes: Any) -> SandboxSpec:
    fields: dict[str, Any] = {"image": Path("/srv/image"), "argv": workload_argv("cloister.workload")}
    return SandboxSpec(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"argv": ()}, "sandbox.argv"),
        ({"argv": ("python3",)}, "sandbox.argv"),
        ({"argv": ("/usr/bin/python3", "a\0b")}, "sandbox.text"),
        ({"env": {"A": "a\0b"}}, "sandbox.text"),
        ({"env": {"A=B": "c"}}, "sandbox.text"),
        ({"env": {"": "c"}}, "sandbox.text"),
        ({"ro_binds": {"/etc": Path("/x")}}, "sandbox.bind"),
        ({"ro_binds": {"/": Path("/x")}}, "sandbox.bind"),
        ({"ro_binds": {"/out": Path("/x")}}, "sandbox.bind"),
        ({"ro_binds": {"/assets/..": Path("/x")}}, "sandbox.bind"),
        ({"ro_binds": {ASSET + "/../../etc": Path("/x")}}, "sandbox.bind"),
        ({"ro_binds": {ASSET.upper(): Path("/x")}}, "sandbox.bind"),
        ({"ro_binds": {ASSET + "\n": Path("/x")}}, "sandbox.bind"),
        ({"rw_binds": {"/job": Path("/x")}}, "sandbox.bind"),
        ({"rw_binds": {ASSET: Path("/x")}}, "sandbox.bind"),
    ],
)
def test_a_description_outside_the_layout_is_refused(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(Misuse) as caught:
        _spec(**changes)
    assert caught.value.code == code


def test_the_measured_part_is_the_same_for_every_job_and_host() -> None:
    plain = launch_spec(_spec())
    other = _spec(
        image=Path("/elsewhere"),
        ro_binds={"/job": Path("/srv/job"), ASSET: Path("/srv/asset")},
        rw_binds={"/out": Path("/srv/out")},
        socket_path=Path("/srv/sock"),
        limits=Limits(memory_bytes=1, tasks=2),
        run_as=(65000, 65000),
    )
    assert launch_spec(other) == plain
    assert b"/srv" not in canonical_json(launch_spec(other))


@pytest.mark.parametrize(
    "changes", [{"argv": workload_argv("other")}, {"env": {"LD_PRELOAD": "/out/x.so"}}, {"env": {"HOME": "/out"}}]
)
def test_what_decides_what_runs_is_measured(changes: dict[str, Any]) -> None:
    assert canonical_json(launch_spec(_spec(**changes))) != canonical_json(launch_spec(_spec()))


def test_the_filter_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    before = launch_spec(_spec())
    monkeypatch.setattr(seccomp, "programs", lambda loopback: (b"a", b"b"))
    assert launch_spec(_spec()) != before


def test_both_filters_are_measured_whichever_a_sandbox_gets() -> None:
    assert launch_spec(_spec(loopback=True)) == launch_spec(_spec())
    measured = launch_spec(_spec())["seccomp"]
    assert isinstance(measured, dict)
    assert measured["digest"] == seccomp.seccomp_digest().hex()
    assert measured["several-processes"] == seccomp.seccomp_digest(loopback=True).hex() != measured["digest"]


@pytest.mark.parametrize(("processes", "loopback"), [(1, False), (2, True)])
def test_only_a_job_of_several_processes_gets_the_wider_filter(
    processes: int, loopback: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    specs: list[SandboxSpec] = []
    monkeypatch.setattr(launcher, "image_measurement", lambda image: b"m" * 32)
    monkeypatch.setattr(launcher, "SocketServer", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(launcher, "start_sandbox", lambda spec: contextlib.nullcontext(specs.append(spec)))
    order: Any = MagicMock(folder=tmp_path, assets={}, instance=b"i" * 16, purpose="release")
    order.contract.envelope.to_bytes.return_value = order.job.envelope.to_bytes.return_value = b"{}"
    order.job.recipe.processes = processes
    with launcher.Launcher(tmp_path, MagicMock(tee="sample"))(order):
        pass
    assert [spec.loopback for spec in specs] == [loopback]


def test_python_is_started_isolated() -> None:
    assert workload_argv("m", "x") == ("/usr/bin/python3", "-I", "-B", "-m", "m", "x")


def test_arguments_for_bubblewrap_confine() -> None:
    arguments = profile.bubblewrap_arguments(_spec(rw_binds={"/out": Path("/srv/out")}, socket_path=Path("/srv/s")))
    for flag in ("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"):
        assert flag in arguments
    assert arguments[arguments.index("--cap-drop") + 1] == "ALL"
    assert "--share-net" not in arguments
    assert arguments.count("--bind") == 1
    assert arguments[arguments.index("--bind") : arguments.index("--bind") + 3] == ["--bind", "/srv/out", "/out"]
    joined = " ".join(arguments)
    assert "--ro-bind /srv/image / " in joined
    assert "--ro-bind /srv/s /run/cloister.sock" in joined
    # Read-only only after everything was mounted below it.
    assert joined.index("/run/cloister.sock") < joined.index("--remount-ro /run")
    assert joined.index("--tmpfs /dev/shm") < joined.index("--remount-ro /dev")


def test_only_entries_that_the_kernel_has_are_masked(tmp_path: Path) -> None:
    (tmp_path / "kallsyms").touch()
    (tmp_path / "acpi").mkdir()
    arguments = profile._proc(tmp_path)
    assert arguments[2:5] == ["--ro-bind", "/dev/null", "/proc/kallsyms"]
    assert arguments[5:9] == ["--tmpfs", "/proc/acpi", "--remount-ro", "/proc/acpi"]
    assert ["--ro-bind", str(tmp_path / "sys"), "/proc/sys"] == arguments[9:]


def test_the_lists_of_system_calls_do_not_overlap_and_the_programs_are_stable() -> None:
    assert not seccomp.ALLOWED & seccomp.DENIED
    assert {"clone3", "ptrace", "mount", "bpf", "io_uring_setup"}.isdisjoint(seccomp.ALLOWED)
    first = seccomp.programs()
    seccomp.programs.cache_clear()
    assert seccomp.programs() == first
    # struct sock_filter has 8 bytes, and the kernel takes at most 4,096 instructions.
    assert all(len(program) % 8 == 0 and 0 < len(program) // 8 <= 4096 for program in first)


def test_the_programs_reach_the_launcher_in_memory_that_nobody_can_change() -> None:
    import os

    with seccomp.seccomp_fds() as fds:
        assert tuple(os.read(fd, 1 << 20) for fd in fds) == seccomp.programs()
        for fd in fds:
            with pytest.raises(PermissionError):
                os.pwrite(fd, b"\0", 0)
            with pytest.raises(PermissionError):
                os.ftruncate(fd, 0)


def test_without_libseccomp_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyseccomp", None)
    with pytest.raises(Unavailable, match="install libseccomp2") as caught:
        seccomp._library()
    assert caught.value.code == "sandbox.seccomp"
