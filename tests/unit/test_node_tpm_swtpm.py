"""Starting and stopping a real swtpm."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from cloister.errors import Misuse, Unavailable
from cloister.node import swtpm as swtpm_module
from cloister.node.swtpm import SoftwareTpm
from cloister.node.tpm import Tpm
from tests.patience import until


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # it ended, maybe in this moment
        return False


def socket_folder(tpm):
    return Path(tpm.tcti.removeprefix("swtpm:path=")).parent


def test_identity_survives_restarts_and_pcrs_do_not(tmp_path):
    seen = []
    for _ in range(2):
        with SoftwareTpm(tmp_path / "state") as running:
            tpm = Tpm(running.tcti)
            assert tpm.read_pcrs([15])[15] == bytes(32)
            tpm.extend(15, b"x" * 32)
            assert tpm.read_pcrs([15])[15] != bytes(32)
            seen.append(tpm.load_identity(tmp_path / "state"))
            tpm.close()
    assert seen[0] == seen[1]


def test_identity_survives_being_killed(tmp_path):
    """Power loss, several times: no lockout, no new identity."""
    seen = set()
    for _ in range(5):
        running = SoftwareTpm(tmp_path / "state")
        tpm = Tpm(running.tcti)
        seen.add(tpm.load_identity(tmp_path / "state"))
        tpm.quote(bytes(32), [15])
        os.kill(running.pid, signal.SIGKILL)
        tpm.close()
        running.close()
    assert len(seen) == 1


def test_two_state_folders_are_two_identities(tmp_path):
    ids = set()
    for name in ("a", "b"):
        with SoftwareTpm(tmp_path / name) as running:
            tpm = Tpm(running.tcti)
            ids.add(tpm.load_identity(tmp_path / name).attester_id)
            tpm.close()
    assert len(ids) == 2


def test_folders_are_closed_to_others_and_sockets_are_removed(tmp_path):
    running = SoftwareTpm(tmp_path / "state")
    folder, pid = socket_folder(running), running.pid
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    for entry in (tmp_path / "state").glob("*.permall"):
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    assert alive(pid)
    running.close()
    running.close()
    assert not alive(pid)
    assert not folder.exists()
    assert any((tmp_path / "state").iterdir())


def test_state_in_use_by_another_swtpm(tmp_path):
    with SoftwareTpm(tmp_path / "state") as first:
        with pytest.raises(Unavailable) as caught:
            SoftwareTpm(tmp_path / "state", sockets=tmp_path)
        assert caught.value.code == "swtpm.start"
        tpm = Tpm(first.tcti)
        assert tpm.read_pcrs([0])[0] == bytes(32)  # the first one is unharmed
        tpm.close()
    assert list(tmp_path.glob("cloister-tpm-*")) == []


def test_corrupt_state_gives_no_identity(tmp_path):
    def identity():
        with SoftwareTpm(tmp_path / "state") as running:
            tpm = Tpm(running.tcti)
            try:
                return tpm.load_identity(tmp_path)
            finally:
                tpm.close()

    identity()
    next((tmp_path / "state").glob("*.permall")).write_bytes(os.urandom(64))
    with pytest.raises(Unavailable) as caught:
        identity()
    assert caught.value.code in ("swtpm.start", "tpm.command")


def test_swtpm_that_hangs_is_given_up(tmp_path, monkeypatch):
    stub = tmp_path / "swtpm"
    stub.write_text("#!/bin/sh\nexec sleep 60\n")
    stub.chmod(0o755)
    real = shutil.which
    monkeypatch.setattr(swtpm_module.shutil, "which", lambda name: str(stub) if name == "swtpm" else real(name))
    monkeypatch.setattr(swtpm_module, "_START_SECONDS", 0.2)
    with pytest.raises(Unavailable) as caught:
        SoftwareTpm(tmp_path / "state", sockets=tmp_path)
    assert caught.value.code == "swtpm.start"
    assert list(tmp_path.glob("cloister-tpm-*")) == []


def test_swtpm_that_ignores_the_signal_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(swtpm_module, "_STOP_SECONDS", 0.2)
    running = SoftwareTpm(tmp_path / "state")
    os.kill(running.pid, signal.SIGSTOP)  # a stopped process doesn't act on SIGTERM
    running.close()
    assert not alive(running.pid)


@pytest.mark.parametrize(("missing", "package"), [("swtpm", "swtpm"), ("setpriv", "util-linux")])
def test_missing_program_names_the_package(tmp_path, monkeypatch, missing, package):
    real = shutil.which
    monkeypatch.setattr(swtpm_module.shutil, "which", lambda name: None if name == missing else real(name))
    with pytest.raises(Unavailable) as caught:
        SoftwareTpm(tmp_path / "state")
    assert caught.value.code == "swtpm.missing"
    assert f"apt install {package}" in caught.value.message
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("name", ["s" * 120, "with,comma"])
def test_paths_that_swtpm_could_not_use(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    with pytest.raises(Misuse) as caught:
        SoftwareTpm(tmp_path / "state", sockets=folder)
    assert caught.value.code == "swtpm.path"
    assert list(folder.iterdir()) == []


def test_only_the_main_thread_starts_it(tmp_path):
    caught = []

    def start():
        try:
            SoftwareTpm(tmp_path / "state")
        except Misuse as error:
            caught.append(error.code)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert caught == ["swtpm.thread"]


def test_swtpm_ends_with_a_killed_agent(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from cloister.node.swtpm import SoftwareTpm\n"
        "t = SoftwareTpm(Path(sys.argv[1]), sockets=Path(sys.argv[2])); print(t.pid, flush=True); time.sleep(60)"
    )
    with tempfile.TemporaryDirectory() as sockets:
        agent = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "state"), sockets], stdout=subprocess.PIPE, text=True
        )
        with agent:
            pid = int(agent.stdout.readline())
            assert alive(pid)
            agent.kill()
        until("its end", lambda: not alive(pid))
