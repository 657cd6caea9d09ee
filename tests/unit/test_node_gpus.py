"""What the agent collects of its GPUs, through a double of NVIDIA's library, is what owners' brokers verify."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cloister.attestation import Evidence, device_data, make_nonce
from cloister.attestation.binding import report_data
from cloister.attestation.collateral import Staleness
from cloister.attestation.composite import verify_evidence
from cloister.attestation.models import Claims
from cloister.attestation.snp import SnpVerifier
from cloister.crypto import JweKey, parse_canonical, sha256
from cloister.errors import Denied, Unavailable
from cloister.node import nvml
from cloister.node.attesters import Choice, open_attester
from cloister.node.devices import Devices
from cloister.node.gpus import NvidiaGpus
from cloister.node.nvml import Mode, Nvml, open_nvml
from tests.nvidia_forge import Factory
from tests.nvml_double import NOT_SUPPORTED, UNKNOWN, Driver
from tests.pki import DAY, NOW
from tests.snp_forge import Forge
from tests.unit.test_node_tsm import AGENT, CONTRACT, INSTANCE, JOB, WORKLOAD, Kernel, host_table

FACTORY, FORGE = Factory(), Forge()
FORGE.made["leaf"] = FORGE.make_leaf(ends=NOW + DAY)  # both forges have a clock of their own; GPUs' is the later one
ONE, TWO, BLACKWELL = FACTORY.gpu(), FACTORY.gpu(), FACTORY.gpu("BLACKWELL")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "report"
    path.mkdir()
    return path


def collect(folder: Path, driver: Driver) -> tuple[Evidence, str, dict[str, Any]]:
    """Evidence of one launched sandbox of a SEV-SNP guest with these GPUs."""
    nonce, key = make_nonce(sha256(b"ctx"), b"n" * 32), dict(JweKey().public_jwk)
    kernel = Kernel(folder, FORGE, table=host_table(FORGE))
    choice = Choice("tsm", "", gpus=True)
    with open_attester(choice, folder, AGENT, files=kernel, nvml=Nvml(driver)) as opened:
        opened.attester.extend_launch(INSTANCE, WORKLOAD, CONTRACT, JOB)
        return Evidence.from_wire(opened.attester.evidence(INSTANCE, nonce, key)), nonce, key


def verify(evidence: Evidence, nonce: str, key: dict[str, Any]) -> Claims:
    crl = FORGE.once("newer crl", lambda: FORGE.crl(begins=NOW - DAY, ends=NOW + DAY))
    cpu = SnpVerifier(FORGE.collateral(obtained=NOW - 60, crl=crl), Staleness(), roots=FORGE.roots)
    report, device = report_data(nonce, key, evidence.additional), device_data(nonce, key)
    return verify_evidence({"snp": cpu}, {"nvidia": FACTORY.verifier()}, evidence, report, device, now=NOW)


@pytest.mark.parametrize("gpus", [[ONE], [ONE, TWO], [ONE, TWO, BLACKWELL]], ids=len)
def test_a_guest_with_gpus_reaches_gpu_tee(folder: Path, gpus: list[Any]) -> None:
    driver = Driver(gpus)
    claims = verify(*collect(folder, driver))
    assert (claims.level, claims.gpus) == ("gpu-tee", len(gpus))
    assert [device.name for device in claims.devices] == ["cpu0", *(f"gpu{n}" for n in range(len(gpus)))]
    assert driver.calls[-1] == "nvmlShutdown"


def test_the_form_is_what_the_verifier_of_gpus_reads(folder: Path) -> None:
    evidence, _, _ = collect(folder, Driver([ONE, BLACKWELL]))
    body = parse_canonical(evidence.additional.encode())
    assert set(body) == {"cloister", "nvidia"}
    assert body["cloister"]["launch"]["gpus"] == "2"
    assert [set(entry) for entry in body["nvidia"]] == [{"arch", "certificate", "evidence"}] * 2
    assert [entry["arch"] for entry in body["nvidia"]] == ["HOPPER", "BLACKWELL"]


def test_an_older_driver_tells_its_mode_in_another_way() -> None:
    old = frozenset({"nvmlSystemGetConfComputeSettings"})
    good = Mode(confidential=True, developer_tools=False, simulated=False, links="none")
    assert Nvml(Driver([ONE], without=old)).mode() == good
    refuses = {"nvmlSystemGetConfComputeSettings": NOT_SUPPORTED}
    assert Nvml(Driver([ONE], fails=refuses)).mode() == good
    with pytest.raises(Denied) as caught:
        NvidiaGpus(Nvml(Driver([ONE], without=old, tools=1)))
    assert caught.value.code == "gpu.developer-tools"


@pytest.mark.parametrize("links", [0, 2])
def test_links_that_are_encrypted_or_not_there(links: int) -> None:
    assert NvidiaGpus(Nvml(Driver([ONE], links=links))).gpus == 1


@pytest.mark.parametrize(
    ("driver", "code"),
    [
        ({"fails": {"nvmlInit_v2": UNKNOWN}}, "gpu.driver"),
        ({"fails": {"nvmlDeviceGetArchitecture": UNKNOWN}}, "gpu.driver"),
        ({"without": frozenset({"nvmlDeviceGetCount_v2"})}, "gpu.driver"),
        (
            {"without": frozenset({"nvmlSystemGetConfComputeSettings", "nvmlSystemGetConfComputeState"})},
            "gpu.driver",
        ),
        ({"links": 3}, "gpu.mode"),
        ({"seen": 0}, "gpu.none"),
        ({"seen": 9}, "gpu.none"),
    ],
)
def test_a_driver_that_does_not_answer(driver: dict[str, Any], code: str) -> None:
    with pytest.raises(Unavailable) as caught:
        NvidiaGpus(Nvml(Driver([ONE], **driver)))
    assert caught.value.code == code


def test_a_generation_that_nobody_verifies() -> None:
    old = FACTORY.gpu()
    old.arch = "ADA"
    with pytest.raises(Unavailable) as caught:
        NvidiaGpus(Nvml(Driver([old])))
    assert caught.value.code == "gpu.architecture"


@pytest.mark.parametrize("size", [0, 0x2001, 0xFFFFFFFF])
@pytest.mark.parametrize("what", ["report", "certificates"])
def test_a_size_that_can_not_be(what: str, size: int) -> None:
    gpus = NvidiaGpus(Nvml(Driver([ONE], sizes={what: size})))
    with pytest.raises(Unavailable) as caught:
        gpus.evidence(b"n" * 32)
    assert caught.value.code == "gpu.size"


def test_a_driver_that_hangs() -> None:
    """It is left behind, and asked nothing more: what it holds up is one call, never the agent."""
    driver = Driver([ONE])
    library = Nvml(driver, seconds=0.2)
    gpus = NvidiaGpus(library)
    driver.hangs = "nvmlDeviceGetConfComputeGpuAttestationReport"
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            gpus.evidence(b"n" * 32)
        assert caught.value.code == "gpu.hangs"
    assert driver.calls.count(driver.hangs) == 1
    library.close()
    assert "nvmlShutdown" not in driver.calls
    driver.awake.set()


def test_what_a_node_with_gpus_says_of_itself(folder: Path) -> None:
    """That they are attested, and that no sandbox computes on them: a level alone would say the opposite."""
    kernel = Kernel(folder, FORGE, table=host_table(FORGE))
    with open_attester(Choice("tsm", "", gpus=True), folder, AGENT, files=kernel, nvml=Nvml(Driver([ONE]))) as opened:
        assert "1 NVIDIA GPUs attested" in opened.hardware
        assert "sandboxes compute on the processor" in opened.hardware


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libno-such-library.so.1")
    with pytest.raises(Unavailable) as caught:
        open_nvml()
    assert caught.value.code == "gpu.library"
    assert "--gpus" in caught.value.message


def test_a_library_is_let_go_once() -> None:
    driver = Driver([ONE])
    library = Nvml(driver)
    library.close()
    library.close()
    assert driver.calls == ["nvmlInit_v2", "nvmlShutdown"]


def test_a_node_without_devices_says_nothing_of_them() -> None:
    devices = Devices()
    assert (devices.hand_out(), devices.evidence("", {})) == (0, {})


# The public header's structures and signatures, and nothing that a GPU would do.
LIBRARY = r"""
#include <string.h>
typedef struct nvmlDevice_st *nvmlDevice_t;
typedef struct {
    unsigned int version, environment, ccFeature, devToolsMode, multiGpuMode;
} nvmlSystemConfComputeSettings_v1_t;
typedef struct {
    unsigned int certChainSize, attestationCertChainSize;
    unsigned char certChain[0x1000], attestationCertChain[0x1400];
} nvmlConfComputeGpuCertificate_t;
typedef struct {
    unsigned int isCecAttestationReportPresent, attestationReportSize, cecAttestationReportSize;
    unsigned char nonce[0x20], attestationReport[0x2000], cecAttestationReport[0x1000];
} nvmlConfComputeGpuAttestationReport_t;
static char device[2];
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *found) {
    if (index > 1) return 2;
    *found = (nvmlDevice_t)&device[index];
    return 0;
}
int nvmlDeviceGetArchitecture(nvmlDevice_t one, unsigned int *found) {
    *found = (char *)one == device ? 9 : 10;
    return 0;
}
int nvmlDeviceGetUUID(nvmlDevice_t one, char *found, unsigned int size) {
    if (size < 80) return 7;
    strcpy(found, (char *)one == device ? "GPU-a" : "GPU-b");
    return 0;
}
int nvmlSystemGetConfComputeSettings(nvmlSystemConfComputeSettings_v1_t *found) {
    if (found->version != (sizeof *found | 1u << 24)) return 25;
    found->environment = 2, found->ccFeature = 1, found->devToolsMode = 0, found->multiGpuMode = 0;
    return 0;
}
int nvmlDeviceGetConfComputeGpuAttestationReport(nvmlDevice_t one, nvmlConfComputeGpuAttestationReport_t *found) {
    memcpy(found->attestationReport, "\x11\xe0\x01\xff", 4);
    memcpy(found->attestationReport + 4, found->nonce, 32);
    found->attestationReport[36] = (char *)one == device ? 'a' : 'b';
    found->attestationReportSize = 37;
    memset(found->cecAttestationReport, 0xff, sizeof found->cecAttestationReport);
    return 0;
}
int nvmlDeviceGetConfComputeGpuCertificate(nvmlDevice_t one, nvmlConfComputeGpuCertificate_t *found) {
    memset(found->certChain, 'x', sizeof found->certChain);
    memcpy(found->attestationCertChain, "chain", 5);
    found->certChainSize = sizeof found->certChain, found->attestationCertChainSize = 5;
    return 0;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler here")
def test_a_library_in_c_is_called_by_its_own_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A double in Python can't tell a wrong offset or way of passing a handle from a right one; a compiler can."""
    (tmp_path / "nvml.c").write_text(LIBRARY)
    built = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(built), str(tmp_path / "nvml.c")], check=True, timeout=60)
    monkeypatch.setattr(nvml, "LIBRARY", str(built))
    library = open_nvml()
    assert [library.identity(index) for index in range(2)] == ["GPU-a", "GPU-b"]
    gpus = NvidiaGpus(library)
    nonce = bytes(range(32))
    found = gpus.evidence(nonce)
    assert [entry["arch"] for entry in found] == ["HOPPER", "BLACKWELL"]
    reports = [base64.b64decode(entry["evidence"]) for entry in found]
    assert reports == [b"\x11\xe0\x01\xff" + nonce + end for end in (b"a", b"b")]
    assert [base64.b64decode(entry["certificate"]) for entry in found] == [b"chain"] * 2
    library.close()
