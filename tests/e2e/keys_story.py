"""A home whose keys are in devices and whose ciphertext is in S3: hospital on SoftHSM, lab on a software TPM.

It is apart from the shared home, because the stories told on it destroy keys and stop everything.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tpm2_pytss as tss

from cloister.client import operations
from cloister.keys import DriverConfig, KeyVault, open_vault
from tests.e2e.story import Story, obstacle, until
from tests.key_chores import copy_state
from tests.readme import commands, printed
from tests.s3_server import S3Server, free_port
from tests.softhsm import MODULE, SoftHsm

__all__ = ["PAGES", "Backup", "KeysStory", "TcpTpm", "keys_story"]

PAGES = Path(__file__).resolve().parents[2]
PREFIX = "cloister"  # in the README's URL of the store


def point_softhsm_to(configuration: Path, home: Path) -> None:
    """SoftHSM finds its tokens through a file below the home folder of whoever starts it: parts that ``cloister up``
    starts get no environment, and Cloister's home as theirs."""
    folder = home / ".config" / "softhsm2"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(configuration, folder / "softhsm2.conf")
    for path in (folder / "softhsm2.conf", folder, folder.parent):
        path.chmod(0o644 if path.is_file() else 0o755)


class TcpTpm:
    """A software TPM on loopback ports, so that a broker reaches it whoever's user it has."""

    def __init__(self, state: Path) -> None:
        state.mkdir(mode=0o700)
        self._port = _port_pair()
        address = "bindaddr=127.0.0.1"
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state},mode=0600"]
        command += ["--server", f"type=tcp,port={self._port},{address}"]
        command += ["--ctrl", f"type=tcp,port={self._port + 1},{address}"]
        command += ["--flags", "not-need-init,startup-clear"]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env={"PATH": os.defpath})
        try:
            until("swtpm", lambda: _listens(self._port + 1))  # the other port serves a single client at a time
        except BaseException:
            self.close()
            raise

    @property
    def tcti(self) -> str:
        return f"swtpm:host=127.0.0.1,port={self._port}"

    def wrong_credentials(self) -> int:
        """How many the TPM has counted. Nobody else may be connected."""
        esapi = tss.ESAPI(self.tcti)
        try:
            found = esapi.get_capability(tss.TPM2_CAP.TPM_PROPERTIES, tss.TPM2_PT.LOCKOUT_COUNTER, 1)[1]
            return int(found.data.tpmProperties[0].value)
        finally:
            esapi.close()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(60)


def _port_pair() -> int:
    """A free port with a free one behind it: the TSS expects the control channel there."""
    while True:
        port = free_port()
        with socket.socket() as probe:
            if port < 65535 and probe.connect_ex(("127.0.0.1", port + 1)) != 0:
                return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Backup:
    """What a thief or a backup took of a party's broker at some time: vault file and database."""

    def __init__(self, broker: Path, to: Path) -> None:
        self.state = copy_state(broker, to)
        self.vault = Path(shutil.copy(broker / "vault.json", to / "vault.json"))


class KeysStory(Story):
    """``Story`` with other devices, told through the same client. The PIN is the hospital's passphrase."""

    def __init__(self) -> None:
        super().__init__()
        self.s3_secret = f"secret-{secrets.token_hex(12)}"
        self.hsm = SoftHsm(self.folder / "hsm")
        self.token = self.hsm.create("hospital", self.passphrases["hospital"].encode())
        self.share_tokens()
        (self.folder / "store").mkdir(mode=0o700)
        self.s3 = S3Server(self.folder / "store" / "s3", secret=self.s3_secret)
        self.s3.start()
        assert self.s3.process is not None
        self.strangers.add(self.s3.process.pid)  # of course the store knows its own key
        self.credentials = self.sources / "s3.json"
        self.credentials.write_text(self.s3.credentials().reveal_json())
        self.credentials.chmod(0o600)
        try:
            self.tpm = TcpTpm(self.folder / "tpm")
        except BaseException:
            self.s3.stop()
            raise
        self.drivers = {
            "hospital": DriverConfig("pkcs11", {"module": MODULE, "token": "hospital"}),
            "lab": DriverConfig("tpm", {"tcti": self.tpm.tcti, "pcrs": "0,7"}),
        }

    def open(self) -> Story:
        """Started as the README says, by its own command."""
        self.printed = commands(printed(PAGES / "README.md", "keys"))
        self.shell(self.printed[0])
        point_softhsm_to(self.hsm.configuration, self.home.path)
        return super().open()

    def create(self, name: str) -> None:
        operations.create_party(self.home, name, self.passphrases[name], vault=self.drivers[name])

    def share_tokens(self) -> None:
        """A broker runs as a user of its own, who is not known before its party is made. What a person would give to
        that user then (docs/vaults.md) is open to all here: these tokens hold nothing that lasts."""
        for path in (self.hsm.tokens, *self.hsm.tokens.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.s3.stop()
            self.tpm.close()

    def secrets(self) -> dict[str, bytes]:
        pin = self.hsm.security_pin.encode()
        return {**super().secrets(), "the store's key": self.s3_secret.encode(), "the security officer's PIN": pin}

    # --- looking behind the scenes ------------------------------------------------------------------------------------

    def broker(self, party: str) -> Path:
        return self.home.path / "parties" / party

    def backup(self, party: str, name: str) -> Backup:
        return Backup(self.broker(party), self.folder / "backups" / name)

    @contextmanager
    def vault(self, file: Path) -> Iterator[KeyVault]:
        """The hospital's vault from some file, opened with its true PIN beside the running broker."""
        with (
            self.hsm,
            open_vault(file, self.passphrases["hospital"].encode(), driver=self.drivers["hospital"]) as vault,
        ):
            yield vault

    def bucket(self, digest: str) -> dict[str, bytes]:
        """The objects of an asset in S3, by key."""
        folder = self.s3.path(PREFIX, bytes.fromhex(digest))
        return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def shell(self, command: str, *, credential: str = "hospital") -> subprocess.CompletedProcess[str]:
        """A command line as a person types it among their files. It succeeds."""
        done = self.cli(*shlex.split(command)[1:], credential=credential)
        assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
        return done

    def cli(self, *words: str, credential: str = "hospital") -> subprocess.CompletedProcess[str]:
        """The installed ``cloister``. ``credential``: a party whose true one is given, or another text."""
        file = self.sources / "credential"
        file.touch(mode=0o600)
        file.write_text(self.passphrases.get(credential, credential) + "\n")
        environment = {"CLOISTER_HOME": str(self.home.path), "CLOISTER_PASSPHRASE_FILE": str(file), "PATH": os.defpath}
        command = [str(Path(sys.executable).with_name("cloister")), *words]
        return subprocess.run(
            command, env=environment, cwd=self.sources, capture_output=True, text=True, timeout=300, check=False
        )

    def json(self, *words: str, credential: str = "hospital") -> tuple[int, dict[str, Any]]:
        """Exit status and the one object that the command prints."""
        done = self.cli(*words, "--json", credential=credential)
        return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def keys_story() -> Iterator[KeysStory]:
    if reason := obstacle():
        pytest.skip(reason)
    made = KeysStory()
    try:
        made.open()
        yield made
    finally:
        made.close()
