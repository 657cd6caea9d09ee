"""A party's program that wants more than its rows: keys, a way out, the operator's folder, other processes."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Malformed, Misuse
from tests.programs import Files, Ports, program, run

ROWS = Files({"rows.csv": b"a\n1\n"})

# Each is tried in the program's process, and must fail there with an OSError or not find what it looks for.
ATTEMPTS = {
    "a socket to the node": "import socket; socket.socket(socket.AF_UNIX).connect(TARGET)",
    "any socket": "import socket; socket.socket(socket.AF_INET)",
    "its own channel, connected anew": "import socket; socket.socket(fileno=os.dup(FD)).connect(TARGET)",
    "a file": "open(FOLDER + '/out', 'w')",
    "a file that exists": "open(FOLDER + '/there', 'r+')",
    "a file by another call": "os.open(FOLDER + '/out', os.O_RDONLY | os.O_CREAT)",
    "an unnamed file": "os.open(FOLDER, os.O_TMPFILE | os.O_RDWR)",
    "a file through /proc": "open('/proc/self/fd/' + str(os.open(FOLDER + '/there', os.O_RDONLY)), 'w')",
    "a folder whose name tells": "os.mkdir(FOLDER + '/row-1')",
    "a link whose target tells": "os.symlink('row 1', FOLDER + '/link')",
    "a name that tells": "os.rename(FOLDER + '/there', FOLDER + '/row-1')",
    "a mode that tells": "os.chmod(FOLDER + '/there', 0o600)",
    "a time that tells": "os.utime(FOLDER + '/there', (1, 1))",
    "a length that tells": "os.truncate(FOLDER + '/there', 1)",
    "an attribute that tells": "os.setxattr(FOLDER + '/there', 'user.row', b'1')",
    "a file's end": "os.unlink(FOLDER + '/there')",
    "the workload's memory": "open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    "the workload's environment": "open(f'/proc/{os.getppid()}/environ', 'rb').read(1)",
    "the workload's descriptors": "os.listdir(f'/proc/{os.getppid()}/fd')",
    "the workload's end": "os.kill(os.getppid(), 9)",
    "another thread's signal": "failed(ctypes.CDLL(None, use_errno=True).syscall(234, os.getpid(), os.getpid(), 0))",
    "another program": "os.execv('/bin/true', ['true'])",
    "another program, as a child": "import subprocess; subprocess.run(['/bin/true'], check=True)",
    "another process, traced": "failed(ctypes.CDLL(None, use_errno=True).ptrace(16, os.getppid(), 0, 0))",
}
PROGRAM = """
import ctypes, json, os, threading

def failed(value):
    if value == -1:
        raise OSError(ctypes.get_errno(), "refused")

def attempt(code, names, told, name):
    try:
        exec(code, names)
        told[name] = "worked"
    except OSError as error:
        told[name] = "refused"
    except BaseException as error:
        told[name] = f"{type(error).__name__}: {error}"

def place(link):
    try:
        return os.readlink(link)
    except FileNotFoundError:
        return "gone"

def train(run):
    names = {**json.loads(run.program.read("names.json")), "os": os, "ctypes": ctypes, "failed": failed, "FD": 3}
    told = {}
    told["threads"] = [
        line.split()[1]
        for thread in os.listdir("/proc/self/task")
        for line in open(f"/proc/self/task/{thread}/status")
        if line.startswith("Seccomp:")
    ]
    told |= {"descriptors": [place(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]}
    for name, code in json.loads(run.program.read("attempts.json")).items():
        attempt(code, names, told, name)
        thread = threading.Thread(target=attempt, args=(code, names, told, name + ", in a thread"))
        thread.start()
        thread.join()
    pid = os.fork()
    if pid == 0:
        inner = {}
        attempt("import socket; socket.socket(socket.AF_UNIX)", names, inner, "x")
        os._exit(0 if inner["x"] == "refused" else 1)
    told["a socket in a child"] = "refused" if os.waitpid(pid, 0)[1] == 0 else "worked"
    run.output("told.json", json.dumps(told).encode())
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("operator")
    (folder / "there").write_text("x")
    path = str(folder / "node.sock")
    with socket.socket(socket.AF_UNIX) as node:
        node.bind(path)
        node.listen()
        files = {
            **program(PROGRAM).files,
            "attempts.json": json.dumps(ATTEMPTS).encode(),
            "names.json": json.dumps({"FOLDER": str(folder), "TARGET": path}).encode(),
        }
        result = run(Files(files), ROWS)
    assert sorted(os.listdir(folder)) == ["node.sock", "there"]
    assert (folder / "there").read_text() == "x"
    return dict(json.loads(result.files["model/told.json"]))


@pytest.mark.parametrize("name", sorted(ATTEMPTS))
def test_a_program_can_not_have(told: dict[str, Any], name: str) -> None:
    # As root, a test's parent process is not hidden from its children as the workload is from its own (DESIGN §6).
    if os.geteuid() == 0 and name in (
        "the workload's environment",
        "the workload's memory",
        "the workload's descriptors",
    ):
        pytest.skip("root reads any process's memory; the workload is never root")
    assert told[name] == "refused"
    assert told[name + ", in a thread"] == "refused"


def test_the_threads_that_libraries_had_started_are_confined_too(told: dict[str, Any]) -> None:
    """numpy's, for one: a signal handler in such a thread would have been outside."""
    assert len(told["threads"]) > 1
    assert set(told["threads"]) == {"2"}


def test_a_program_can_not_have_a_socket_in_a_child(told: dict[str, Any]) -> None:
    assert told["a socket in a child"] == "refused"


def test_a_program_holds_no_descriptor_but_its_channel(told: dict[str, Any]) -> None:
    places = [place.partition(":")[0] for place in told["descriptors"]]
    assert places.count("socket") == 1
    assert set(places) <= {"socket", "/dev/null", "/dev/urandom", "gone"}


@pytest.mark.parametrize(
    "sent",
    [
        "run._channel._sock.sendall(b'\\xff' * 12)",
        "run._channel._sock.sendall(b'\\0\\0\\0\\4' + b'\\0' * 8 + b'nope')",
        "run._channel._sock.sendall(b'\\0\\0\\0\\2' + b'\\0' * 8 + b'[]')",
        "run._channel.send({'op': 'shell'})",
        "run._channel.send({'op': 'read', 'folder': 'data', 'path': '../../etc/passwd', 'offset': 0, 'length': 10})",
        "run._channel.send({'op': 'read', 'folder': 'keys', 'path': 'x', 'offset': 0, 'length': 10})",
        "run._channel.send({'op': 'read', 'folder': 'data', 'path': ['rows.csv'], 'offset': 0, 'length': 10})",
        "run._channel.send({'op': 'read', 'folder': 'data', 'path': 'rows.csv', 'offset': -1, 'length': 10})",
    ],
)
def test_what_is_not_of_the_interface_ends_the_run_or_is_refused(sent: str) -> None:
    code = f"""
def train(run):
    {sent}
    answer, _ = run._channel.receive(body_limit=100)
    assert "refused" in answer
    run.report(1, 1, refused=1)
"""
    ports = Ports()
    try:
        run(program(code), ROWS, ports)
    except Malformed:
        return
    assert ports.told[-1][3] == {"refused": "1.000000"}


def test_a_program_s_own_words_reach_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys\ndef train(run):\n    print('row 1')\n    sys.stderr.write('row 1')\n    raise ValueError('row 1')"
    )
    with pytest.raises(Misuse) as caught:
        run(program(code), ROWS)
    out, err = capfd.readouterr()
    assert "row 1" not in out + err + caught.value.message


def test_a_program_does_not_stand_in_for_a_library() -> None:
    code = "import json\ndef train(run):\n    run.report(1, 1, ours=float(hasattr(json, 'stolen')))"
    ports = Ports()
    run(program(code, json="stolen = True", safetensors="stolen = True"), ROWS, ports)
    assert ports.told[-1][3] == {"ours": "0.000000"}


def test_nothing_of_a_program_is_imported_by_the_workload() -> None:
    run(program("import marked\ndef train(run):\n    pass", marked="x = 1"), ROWS)
    assert "marked" not in sys.modules
    assert not [path for path in sys.path if Path(path, "marked.py").exists()]
