"""Which attester a node starts with, what it says of itself, and what goes along from a confidential guest's boot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloister.attestation import Evidence, make_nonce
from cloister.attestation.binding import report_data
from cloister.attestation.bootlog import BootLog, encode_log, replay
from cloister.attestation.collateral import Staleness
from cloister.attestation.models import Claims
from cloister.attestation.snp import SnpVerifier
from cloister.attestation.tdx import TdxVerifier
from cloister.crypto import JweKey, SigningKey, sha256
from cloister.errors import Misuse, Unavailable
from cloister.node.attesters import Choice, choose, open_attester
from cloister.node.boot_logs import explaining_ccel
from cloister.node.configfs import REPORTS, ConfigFs
from cloister.node.tsm import TsmAttester
from tests import control_world, snp_forge, tdx_forge
from tests.adversarial.test_tdx_evidence import HEADER
from tests.boot_logs import secure_boot_events
from tests.control_world import NodeParty, World
from tests.unit.test_node_tsm import AGENT, CONTRACT, INSTANCE, JOB, WORKLOAD, Kernel, host_table

CHIP = "device:/dev/tpmrm0"
TSM = Choice("tsm", "swtpm")
TDX = tdx_forge.Forge()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "report"
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ((None, None), Choice("swtpm", "swtpm")),
        ((None, "swtpm"), Choice("swtpm", "swtpm")),
        ((None, "device:/dev/tpm0"), Choice("tpm", "device:/dev/tpm0")),
        (("swtpm", None), Choice("swtpm", "swtpm")),
        (("swtpm", "swtpm"), Choice("swtpm", "swtpm")),
        (("tpm", None), Choice("tpm", CHIP)),
        (("tpm", "device:/dev/tpm0"), Choice("tpm", "device:/dev/tpm0")),
        (("tsm", None), TSM),
        (("tsm", None, "nvidia"), Choice("tsm", "swtpm", gpus=True)),
    ],
    ids=str,
)
def test_what_is_chosen(given: tuple[Any, ...], chosen: Choice) -> None:
    assert choose(*given) == chosen


@pytest.mark.parametrize("given", [("tsm", CHIP), ("tsm", "swtpm"), ("swtpm", CHIP), ("tpm", "swtpm")])
def test_flags_that_contradict_each_other(given: tuple[str, str]) -> None:
    with pytest.raises(Misuse) as caught:
        choose(*given)
    assert caught.value.code == "node.arguments"


def started(*words: str, key: str = "11" * 32) -> tuple[int, dict[str, Any]]:
    """A node's process that ends before it reaches any control plane, and its one line."""
    command = [sys.executable, "-m", "cloister.node", *words]
    done = subprocess.run(command, input=key + "\n", capture_output=True, text=True, check=False, timeout=120)
    (line,) = done.stdout.splitlines()
    return done.returncode, json.loads(line)


@pytest.mark.skipif(REPORTS.parent.exists(), reason="this machine is a confidential guest")
def test_a_machine_that_is_no_confidential_guest_says_so(tmp_path: Path) -> None:
    address = ("--control", "http://127.0.0.1:1", "--image", str(tmp_path))
    code, answer = started("--home", str(tmp_path), *address, "--attester", "tsm")
    assert (code, answer["ready"], answer["error"]["code"]) == (1, False, "tsm.absent")
    assert "/sys/kernel/config/tsm" in answer["error"]["message"]
    assert answer["error"]["message"].count(".") == 1, "one sentence"


def test_a_machine_without_gpus_says_so(tmp_path: Path) -> None:
    """Before anything else is opened: no software TPM is made for a node that then can't start."""
    address = ("--control", "http://127.0.0.1:1", "--image", str(tmp_path))
    code, answer = started("--home", str(tmp_path), *address, "--gpus", "nvidia")
    if answer["error"]["code"] != "gpu.library":
        pytest.skip("this machine has NVIDIA's driver")
    assert (code, answer["ready"]) == (1, False)
    assert not (tmp_path / "tpm").exists()


def test_a_guest_is_not_enrolled(tmp_path: Path) -> None:
    code, answer = started("--home", str(tmp_path), "--attester", "tsm", "--enrolment")
    assert (code, answer["error"]["code"]) == (2, "node.enrolment")


def test_a_node_tells_the_control_plane_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Known(NodeParty):
        def __init__(self) -> None:
            self.signing = SigningKey(b"\x11" * 32)

    monkeypatch.setattr(control_world, "NodeParty", Known)
    image = tmp_path / "image"
    image.mkdir(mode=0o755)
    world = World(tmp_path / "w", register=False)
    try:
        command = [sys.executable, "-m", "cloister.node", "--home", str(tmp_path / "n"), "--control", world.url]
        command += ["--image", str(image), "--attester", "swtpm"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as node:
            assert node.stdin is not None
            assert node.stdout is not None
            node.stdin.write("11" * 32 + "\n")
            node.stdin.flush()
            said = json.loads(node.stdout.readline())
            node.terminate()
            assert node.wait(60) == 0
        told = world.node.info()["node"]
    finally:
        world.close()
    assert said.pop("ready") is True
    assert (said["hardware"], said["level"]) == ("software TPM: assurance level none", "none")
    assert told == said


def evidence(attester: Any) -> tuple[Evidence, bytes]:
    attester.extend_launch(INSTANCE, WORKLOAD, CONTRACT, JOB)
    nonce, key = make_nonce(sha256(b"ctx"), b"n" * 32), dict(JweKey().public_jwk)
    found = Evidence.from_wire(attester.evidence(INSTANCE, nonce, key))
    return found, report_data(nonce, key, found.additional)


def test_a_snp_guest_names_the_agent_that_a_verifier_finds(folder: Path) -> None:
    forge = snp_forge.Forge()
    kernel = Kernel(folder, forge, table=host_table(forge))
    with open_attester(TSM, folder, AGENT, files=kernel) as opened:
        found, report = evidence(opened.attester)
    claims = SnpVerifier(forge.collateral(), Staleness(), roots=forge.roots).verify(found, report, now=snp_forge.NOW)
    assert (claims.agent, claims.attester) == (opened.agent, opened.attester.attester_id)
    assert claims.agent != AGENT.hex()
    assert "SEV-SNP" in opened.hardware
    with pytest.raises(Unavailable) as closed:
        opened.attester.evidence(INSTANCE, "n" * 88, {"kty": "x"})
    assert closed.value.code == "attester.unusable"


@pytest.mark.parametrize("provider", ["arm_cca_guest", "sev-guest", ""])
def test_a_provider_that_nobody_verifies(folder: Path, provider: str) -> None:
    with (
        pytest.raises(Unavailable) as caught,
        open_attester(TSM, folder, AGENT, files=Kernel(folder, snp_forge.Forge(), provider=provider)),
    ):
        pass
    assert caught.value.code == "tsm.provider"


def test_a_folder_in_which_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    with pytest.raises(Unavailable) as caught:
        ConfigFs(tmp_path / "report").make("no/such")
    assert caught.value.code == "tsm.kernel"


LOG = BootLog("rtmr", ("sha384",), tuple(secure_boot_events(banks=("sha384",), register=1)), HEADER)
BOOTED = {"rtmr0": replay(LOG, "sha384")[0], "rtmr1": bytes(48), "rtmr2": bytes(48)}


def trust_domain(folder: Path, registers: dict[str, bytes]) -> Kernel:
    """A TDX guest with these registers; they are read anew at each report."""
    return Kernel(
        folder,
        answer=lambda data: TDX.quote(TDX.td(report_data=data, **registers)),
        provider="tdx_guest",
        floor=None,
        table=None,
    )


def verified(found: Evidence, report: bytes) -> Claims:
    return TdxVerifier(TDX.collateral(), Staleness(), roots=TDX.roots).verify(found, report, now=tdx_forge.NOW)


@pytest.mark.parametrize("padding", [b"", b"\xff" * 70_000])
def test_a_tdx_guests_boot_log_goes_along(folder: Path, tmp_path: Path, padding: bytes) -> None:
    (tmp_path / "CCEL").write_bytes(encode_log(LOG) + padding)
    with TsmAttester(AGENT, files=trust_domain(folder, BOOTED), boot_log=tmp_path / "CCEL") as attester:
        found, report = evidence(attester)
    claims = verified(found, report)
    assert (claims.agent, claims.attester) == (attester.agent, attester.attester_id)
    assert (claims.devices[0].facts["boot_log"], claims.devices[0].facts["secure_boot"]) == (True, True)


@pytest.mark.parametrize("content", [None, b"", b"junk", encode_log(LOG)[:-1]], ids=str)
def test_a_boot_log_that_explains_nothing_is_left_out(folder: Path, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "CCEL").write_bytes(content)
    with TsmAttester(AGENT, files=trust_domain(folder, BOOTED), boot_log=tmp_path / "CCEL") as attester:
        found, report = evidence(attester)
    assert set(found.primary) == {"quote"}
    assert verified(found, report).devices[0].facts["boot_log"] is False


def test_a_register_that_moved_since_the_start_takes_the_log_away(folder: Path, tmp_path: Path) -> None:
    """A guest's own measurements, after firmware and kernel: the log can't tell of them, and must not refuse them."""
    (tmp_path / "CCEL").write_bytes(encode_log(LOG))
    registers = dict(BOOTED)
    with TsmAttester(AGENT, files=trust_domain(folder, registers), boot_log=tmp_path / "CCEL") as attester:
        registers["rtmr2"] = b"2" * 48
        found, report = evidence(attester)
    assert set(found.primary) == {"quote"}
    assert verified(found, report).level == "cpu-tee"


def test_a_boot_log_that_is_too_long(tmp_path: Path) -> None:
    raw = encode_log(LOG)
    (tmp_path / "CCEL").write_bytes(raw)
    registers = {n: BOOTED[f"rtmr{n}"] for n in range(3)}
    assert explaining_ccel(tmp_path / "CCEL", registers, limit=len(raw)) == encode_log(LOG.trimmed([1, 2, 3]))
    assert explaining_ccel(tmp_path / "CCEL", registers, limit=99) == b""


@pytest.mark.parametrize("what", ["is_dir", "exists"])
def test_a_kernel_that_lets_nobody_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """configfs belongs to root. Elsewhere the agent says what it could not do, and does not break."""

    def closed(*_: Any) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, what, closed)
    files = ConfigFs(tmp_path)
    with pytest.raises(Unavailable) as caught:
        files.make("entry") if what == "is_dir" else files.read("entry", "outblob", 64)
    assert caught.value.code == "tsm.kernel"
