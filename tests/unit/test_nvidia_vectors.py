"""Evidence of real GPUs, from the folder of vectors that stands beside the checkout.

The clock: the device chains are good from 2022 until the year 9999. The VBIOS manifest's signer is good until
2025-06-22, the driver manifest's from 2024-12-30 to 2026-12-30, so a test of both takes a day between.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from cloister.attestation.collateral import CollateralSet, Item, Staleness
from cloister.attestation.nvidia import DEVICE_ROOTS, MANIFEST_ROOTS, NvidiaVerifier, verify_report
from cloister.attestation.nvidia.compare import mismatches
from cloister.attestation.nvidia.rim import open_manifest
from cloister.attestation.nvidia.spdm import parse_report
from cloister.crypto.x509 import read_certificate, read_certificates
from cloister.errors import Malformed, Untrusted

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "nvidia"
pytestmark = pytest.mark.skipif(not SHARED.exists(), reason="the shared vectors are not beside the checkout")

BOTH, LATE = 1_737_000_000, 1_795_000_000  # 2025-01-16, 2026-11-18
DRIVER_FILE, VBIOS_FILE = "NV_GPU_DRIVER_GH100_550.144.03.xml", "1010_0200_882_96005E0001_PROD.swidtag"


def read(name: str) -> bytes:
    return (SHARED / name).read_bytes()


def report() -> bytes:
    return bytes.fromhex(read("hopperAttestationReport.txt").decode().strip())


def nonce() -> bytes:
    """What the report was asked for with: bytes 4 to 35 of the request."""
    return report()[4:36]


def manifest(name: str) -> Item:
    return Item("nvidia-rim", name, read(name), BOTH)


def test_the_pinned_roots_are_those_that_nvidia_publishes() -> None:
    assert {read_certificate(read("verifier_device_root.pem")).key_fingerprint} == set(DEVICE_ROOTS)
    assert {read_certificate(read("verifier_RIM_root.pem")).key_fingerprint} == set(MANIFEST_ROOTS)


@pytest.mark.parametrize("now", [BOTH, LATE])
def test_a_hopper_report_verifies_to_nvidias_root(now: int) -> None:
    chain = read("hopperCertChain.txt")
    assert len(read_certificates(chain)) == 5
    parsed = parse_report(report())
    assert parsed.signed == report()[:-96]
    device = verify_report(report(), chain, "HOPPER", now=now, nonce=nonce())
    # The serial number that NVIDIA's own tests expect as this device's UEID.
    assert device.facts["ueid"] == "478176379286082186618948445787393647364802107249"
    assert device.facts["hwmodel"] == "GH100 A01 GSP BROM"
    assert (device.facts["driver"], device.facts["vbios"]) == ("550.90.07", "96.00.9F.00.01")
    assert device.facts["pdi"] == "431d480fe5e87274"
    assert "measurements_match" not in device.facts
    assert device.facts["confidential"] is False


def test_the_evidence_file_verifies() -> None:
    (entry,) = json.loads(read("hopper_evidence.json"))
    data, chain = base64.b64decode(entry["evidence"]), base64.b64decode(entry["certificate"])
    device = verify_report(data, chain, entry["arch"], now=LATE, nonce=bytes.fromhex(entry["nonce"]))
    assert (device.facts["driver"], device.facts["mode"]) == ("590.12", "ppcie")
    # A broker's verifier wants the manifests of just these versions, and says which.
    verifier = NvidiaVerifier(CollateralSet([manifest(DRIVER_FILE)]), Staleness())
    with pytest.raises(Untrusted) as caught:
        verifier.verify([entry], bytes.fromhex(entry["nonce"]), now=LATE)
    assert caught.value.details["rim"] == "NV_GPU_DRIVER_GH100_590.12"
    with pytest.raises(Untrusted) as caught:
        verifier.verify([entry], nonce(), now=LATE)
    assert caught.value.code == "nvidia.nonce"


def test_what_matches_between_the_manifests_and_the_report() -> None:
    """Neither manifest is of this GPU's versions: driver 550.144.03 against 550.90.07, VBIOS 96.00.5E.00.01 against
    96.00.9F.00.01. Most of their values are the same all the same, which shows that both sides are read right."""
    parsed = parse_report(report())
    driver = open_manifest(manifest(DRIVER_FILE), roots=MANIFEST_ROOTS, now=BOTH)
    vbios = open_manifest(manifest(VBIOS_FILE), roots=MANIFEST_ROOTS, now=BOTH)
    assert (driver.version, driver.product, len(driver.active)) == ("550.144.03", "GH100", 21)
    assert (vbios.version, vbios.product, len(vbios.active)) == ("96.00.5E.00.01", "GH100", 12)
    assert len(vbios.active[12].values) == 4
    assert not driver.active.keys() & vbios.active.keys()
    assert mismatches(parsed, driver.active) == [7, 22, 31, 39, 40]
    assert mismatches(parsed, vbios.active) == [1, 2, 9, 11]


def test_a_manifest_of_another_version_is_refused_under_the_right_name() -> None:
    items = [
        Item("nvidia-rim", "NV_GPU_DRIVER_GH100_550.90.07", read(DRIVER_FILE), BOTH),
        Item("nvidia-rim", "NV_GPU_VBIOS_1010_0200_882_96009F0001", read(VBIOS_FILE), BOTH),
    ]
    with pytest.raises(Untrusted) as caught:
        verify_report(report(), read("hopperCertChain.txt"), "HOPPER", now=BOTH, collateral=CollateralSet(items))
    assert caught.value.code == "nvidia.manifest-version"


def test_real_evidence_that_was_changed() -> None:
    data, chain = report(), read("hopperCertChain.txt")
    for at in (4, 60, 3300, len(data) - 200, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises((Untrusted, Malformed)):
            verify_report(bytes(changed), chain, "HOPPER", now=LATE)
    for arch in ("BLACKWELL", "LS10"):
        with pytest.raises(Untrusted) as caught:
            verify_report(data, chain, arch, now=LATE)
        assert caught.value.code == "nvidia.architecture"
    other = base64.b64decode(json.loads(read("hopper_evidence.json"))[0]["certificate"])
    with pytest.raises(Untrusted) as caught:
        verify_report(data, other, "HOPPER", now=LATE)
    assert caught.value.code == "nvidia.signature"
