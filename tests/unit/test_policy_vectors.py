"""The built-in policy, and owners' rules, on real hardware's evidence: facts are named as the verifiers name them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.attestation import Claims
from cloister.attestation.collateral import CollateralSet
from cloister.attestation.models import Device
from cloister.attestation.nvidia import verify_report as verify_gpu
from cloister.attestation.policy import DEFAULT_POLICY, PolicyDenied, read_policy
from cloister.attestation.snp import verify_report
from cloister.attestation.tdx import read_collateral, verify_quote
from cloister.attestation.trust import device_result
from cloister.crypto import canonical_json
from cloister.crypto.x509 import read_certificate, read_certificates

SNP_NOW, TDX_NOW, GPU_NOW = 1_700_000_000, 1_750_420_800, 1_795_000_000


def claims(*devices: Device) -> Claims:
    return Claims(devices[0].tee, "cpu-tee", "", "", "", "", "", "", devices=devices)


def policy(platform: str, *rules: dict[str, Any]) -> Any:
    body = {"default": True, "least_level": "cpu-tee", "name": "x", "platforms": {platform: list(rules)}}
    return read_policy(canonical_json({**body, "type": "appraisal-policy/v1"}))


def refused(made: Any, device: Device) -> list[tuple[str, str]]:
    with pytest.raises(PolicyDenied) as caught:
        made.check(claims(device))
    return [(finding.rule.partition(":")[0], finding.found) for finding in caught.value.findings]


def snp(shared: Path, report: bytes, vcek: str) -> Device:
    folder = shared / "vectors" / "snp"
    chain = read_certificates((folder / "roots" / "ask_ark_milan.pem").read_bytes())
    return verify_report(report, read_certificate((folder / vcek).read_bytes()), chain, now=SNP_NOW)


def test_a_real_snp_report(shared: Path) -> None:
    report = bytes.fromhex((shared / "vectors" / "snp" / "milan_report.hex").read_text())
    device = snp(shared, report, "milan_vcek.der")
    DEFAULT_POLICY.check(claims(device))
    floor: dict[str, Any] = {"about": "fact tcb.snp", "at_least": 8, "where": {"product": "milan"}}
    launch = {"about": "measurement launch", "one_of": [device.measurements["launch"]]}
    policy("snp", floor, launch, {"about": "identity", "one_of": [device.identity]}).check(claims(device))
    policy("snp", {**floor, "at_least": 99, "where": {"product": "genoa"}}).check(claims(device))
    assert refused(policy("snp", {**floor, "at_least": 9}), device) == [("fact tcb.snp", "8")]
    assert device_result(device, "cpu-tee")["ear.status"] == "affirming"


def test_a_real_snp_report_of_a_guest_under_debugging(shared: Path) -> None:
    device = snp(shared, (shared / "vectors" / "snp" / "milan_debug_report.bin").read_bytes(), "milan_debug_vcek.cer")
    assert refused(DEFAULT_POLICY, device) == [("fact debug", "true")]
    assert device_result(device, "cpu-tee")["ear.status"] == "contraindicated"


def intel(shared: Path, name: str, *, collateral: bool = True) -> Device:
    folder = shared / "vectors" / "tdx"
    data = (folder / f"{name}_quote_collateral.json").read_bytes()
    items = CollateralSet(read_collateral(data, obtained=TDX_NOW)) if collateral else None
    return verify_quote((folder / f"{name}_quote").read_bytes(), items, now=TDX_NOW)


def test_a_real_tdx_quote(shared: Path) -> None:
    device = intel(shared, "tdx")
    DEFAULT_POLICY.check(claims(device))
    assert device_result(device, "cpu-tee")["ear.status"] == "affirming"
    policy("tdx", {"about": "fact advisories", "subset_of": []}).check(claims(device))
    assert refused(DEFAULT_POLICY, intel(shared, "tdx", collateral=False)) == [("fact tcb_status", "nothing")]


def test_a_real_enclave_whose_platform_wants_configuring(shared: Path) -> None:
    device = intel(shared, "sgx")
    assert refused(DEFAULT_POLICY, device) == [("fact tcb_status", '"ConfigurationAndSWHardeningNeeded"')]
    assert device_result(device, "cpu-tee")["ear.status"] == "warning"


def test_a_real_gpu_that_nothing_was_compared_with(shared: Path) -> None:
    folder = shared / "vectors" / "nvidia"
    report = bytes.fromhex((folder / "hopperAttestationReport.txt").read_text().strip())
    chain = (folder / "hopperCertChain.txt").read_bytes()
    device = verify_gpu(report, chain, "HOPPER", now=GPU_NOW, nonce=report[4:36])
    assert dict(refused(DEFAULT_POLICY, device)) == {
        "fact measurements_match": "nothing",
        "fact confidential": "false",
        "fact debug": "nothing",
    }
    assert device_result(device, "cpu-tee")["ear.status"] == "contraindicated"
