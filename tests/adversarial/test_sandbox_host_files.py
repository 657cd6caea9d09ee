"""Attack: the workload reads or changes files, processes or variables of the host, or leaves something behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.node import measure_tree
from tests.sandbox_kit import ASSET, RUN_AS, Box, box


@pytest.fixture
def inside() -> Iterator[Box]:
    with box() as made:
        yield made


def test_only_the_image_and_the_mounts_are_there(inside: Box) -> None:
    assert " ".join(sorted(inside.probe("os.listdir('/')"))) == (
        "assets bin dev etc job lib lib64 opt out proc run tmp usr"
    )
    paths = ["/etc/shadow", "/root", "/home", str(Path.home()), str(inside.folder), "/sys", "/boot", "/var"]
    assert inside.probe(f"[p for p in {paths} if os.path.lexists(p)]") == []


def test_no_shell_and_no_set_user_id_program_is_there(inside: Box) -> None:
    assert inside.probe("sorted(os.listdir('/usr/bin'))") == ["python3"]
    code = """
bad = [os.path.join(d, f) for d, _, fs in os.walk("/usr") for f in fs if os.lstat(os.path.join(d, f)).st_mode & 0o6000]
print(bad)
"""
    assert inside.run(code) == "[]\n"


def test_processes_of_the_host_are_invisible(inside: Box) -> None:
    assert inside.probe("sorted(int(p) for p in os.listdir('/proc') if p.isdigit())") == [1, 2]
    assert inside.probe(f"attempt(os.kill, {os.getpid()}, 0)") == "ESRCH"


def test_no_variable_of_the_host_is_visible(inside: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOISTER_TEST_PASSPHRASE", "correct horse")
    seen = inside.probe("[open(f'/proc/{p}/environ').read() for p in (1, 'self')] + [dict(os.environ)]")
    assert seen[0] == ""
    assert "CLOISTER_TEST_PASSPHRASE" not in str(seen)
    assert "correct horse" not in str(seen)


def test_paths_of_the_host_are_not_in_the_command_line(inside: Box) -> None:
    assert str(inside.folder) not in inside.probe("open('/proc/1/cmdline').read()")


def test_no_descriptor_of_the_agent_is_inherited(inside: Box) -> None:
    with open(inside.job / "job.json") as file:
        os.set_inheritable(file.fileno(), True)
        # 3 is the listing's own.
        assert inside.probe("sorted(os.listdir('/proc/self/fd'))") == ["0", "1", "2", "3"]


def test_image_and_inputs_can_not_be_changed(inside: Box) -> None:
    before = measure_tree(inside.image)
    targets = ["/x", "/usr/lib/x", "/opt/cloister/lib/cloister/errors.py", "/etc/passwd", "/job/job.json"]
    targets += [f"/assets/{ASSET}/0000.sealed", "/assets/x", "/run/x", "/dev/x"]
    assert inside.probe(f"[attempt(write, p) for p in {targets}]") == ["EROFS"] * len(targets)
    assert inside.probe("attempt(os.chmod, '/usr/bin/python3', 0o777)") == "EROFS"
    assert inside.probe("attempt(os.unlink, '/job/job.json')") == "EROFS"
    assert measure_tree(inside.image) == before
    assert (inside.job / "job.json").read_text() == "{}"
    assert (inside.asset / "0000.sealed").read_bytes() == b"ciphertext"


def test_writes_go_to_out_and_memory_only(inside: Box) -> None:
    code = """
writable = []
for folder, names, _ in os.walk("/"):
    names[:] = [n for n in names if os.path.join(folder, n) != "/proc"]
    if attempt(write, os.path.join(folder, ".probe")) == "done":
        writable.append(folder)
print(sorted(writable))
"""
    assert inside.run(code) == "['/dev/shm', '/out', '/tmp']\n"
    assert [p.name for p in inside.out.iterdir()] == [".probe"]
    # What it leaves belongs to its user and to nobody else.
    info = (inside.out / ".probe").stat()
    assert info.st_mode & 0o777 == 0o600
    assert info.st_uid == (RUN_AS[0] if RUN_AS else os.getuid())


def test_link_out_of_the_output_folder_does_not_reach_the_host(inside: Box) -> None:
    secret = inside.folder / "secret"
    secret.write_text("of the host")
    (inside.out / "link").symlink_to(secret)
    assert inside.probe("attempt(open, '/out/link')") == "ENOENT"


def test_device_can_not_be_made(inside: Box) -> None:
    assert inside.probe("attempt(os.mknod, '/tmp/disk', 0o60600, os.makedev(254, 0))") == "EPERM"


def test_unmeasured_bytecode_is_never_loaded(inside: Box) -> None:
    code = """
os.makedirs("/tmp/lib/__pycache__")
write("/tmp/lib/evil.py", "x = 1")
os.environ["PYTHONPATH"] = "/tmp/lib"
sys.stdout.flush()
os.execv("/usr/bin/python3", ["/usr/bin/python3", "-I", "-B", "-c",
    "import sys, importlib.util as u; print(sys.path, u.find_spec('evil'), sys.dont_write_bytecode)"])
"""
    version = inside.probe("list(sys.version_info[:2])")
    lib = f"/usr/lib/python{version[0]}.{version[1]}"
    assert inside.run(code) == f"['{lib}', '{lib}/lib-dynload', '/opt/cloister/lib'] None True\n"
