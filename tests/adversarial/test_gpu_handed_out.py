"""GPUs that a node must not hand out, and evidence of theirs that its agent must not pass on."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from cloister.attestation import Evidence
from cloister.attestation.binding import report_data
from cloister.crypto import canonical_json, parse_canonical
from cloister.errors import CloisterError, Denied, Unavailable, Untrusted
from cloister.node.attester import TpmAttester
from cloister.node.devices import Devices
from cloister.node.gpus import NvidiaGpus
from cloister.node.nvml import Nvml
from tests.nvidia_forge import measured
from tests.nvml_double import UNKNOWN, Driver
from tests.unit.test_node_gpus import (
    AGENT,
    BLACKWELL,
    CONTRACT,
    FORGE,
    INSTANCE,
    JOB,
    ONE,
    TWO,
    WORKLOAD,
    collect,
    verify,
)

REST = (WORKLOAD, CONTRACT, JOB)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "report"
    path.mkdir()
    return path


def refused(kind: type[CloisterError], code: str, act: Any) -> None:
    with pytest.raises(kind) as caught:
        act()
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"feature": 0}, "gpu.not-confidential"),
        ({"feature": 2}, "gpu.not-confidential"),
        ({"tools": 1}, "gpu.developer-tools"),
        ({"tools": 7}, "gpu.developer-tools"),
        ({"environment": 1}, "gpu.simulated"),
        ({"environment": 0}, "gpu.simulated"),
        ({"environment": 3}, "gpu.simulated"),
        ({"links": 1}, "gpu.protected-pcie"),
        ({"links": 1, "feature": 0}, "gpu.protected-pcie"),
    ],
    ids=str,
)
def test_gpus_that_are_not_confidential(folder: Path, change: dict[str, int], code: str) -> None:
    refused(Denied, code, lambda: collect(folder, Driver([ONE], **change)))


@pytest.mark.parametrize(("name", "value"), [("tools", 1), ("feature", 0)])
def test_developer_tools_switched_on_while_the_agent_runs(tmp_path: Path, name: str, value: int) -> None:
    """Neither is the next sandbox launched, nor does one that runs get evidence."""
    driver = Driver([ONE])
    devices = Devices([NvidiaGpus(Nvml(driver))])
    with TpmAttester.software(tmp_path / "state", AGENT, devices=devices) as attester:
        attester.extend_launch(INSTANCE, *REST)
        setattr(driver, name, value)
        with pytest.raises(Denied):
            attester.extend_launch(b"j" * 16, *REST)
        with pytest.raises(Denied):
            attester.evidence(INSTANCE, "n" * 88, {"kty": "x"})
        setattr(driver, name, 1 - value)
        attester.extend_launch(b"j" * 16, *REST)  # the refused launch was neither recorded nor extended
        assert "nvidia" in attester.evidence(b"j" * 16, "n" * 88, {"kty": "x"})["additional_evidence"]


@pytest.mark.parametrize("seen", [1, 0, 3])
def test_a_gpu_that_goes_or_comes_after_the_launch(tmp_path: Path, seen: int) -> None:
    driver = Driver([ONE, TWO])
    devices = Devices([NvidiaGpus(Nvml(driver))])
    with TpmAttester.software(tmp_path / "state", AGENT, devices=devices) as attester:
        attester.extend_launch(INSTANCE, *REST)
        driver.seen = seen
        code = "gpu.changed" if seen else "gpu.none"
        refused(Unavailable, code, lambda: attester.evidence(INSTANCE, "n" * 88, {"kty": "x"}))


def test_a_gpu_that_another_one_was_put_in_place_of(tmp_path: Path) -> None:
    """Their number is the same; which GPUs a sandbox was launched with is not."""
    driver = Driver([ONE, TWO])
    devices = Devices([NvidiaGpus(Nvml(driver))])
    with TpmAttester.software(tmp_path / "state", AGENT, devices=devices) as attester:
        attester.extend_launch(INSTANCE, *REST)
        driver.gpus = [ONE, BLACKWELL]
        refused(Unavailable, "gpu.changed", lambda: attester.evidence(INSTANCE, "n" * 88, {"kty": "x"}))
        refused(Unavailable, "gpu.changed", lambda: attester.extend_launch(b"j" * 16, *REST))


def test_a_report_for_another_nonce(folder: Path) -> None:
    refused(Unavailable, "gpu.report", lambda: collect(folder, Driver([ONE], nonce=b"o" * 32)))


def test_a_gpu_that_fails_is_not_left_out(folder: Path) -> None:
    fails = {"nvmlDeviceGetConfComputeGpuAttestationReport": UNKNOWN}
    refused(Unavailable, "gpu.driver", lambda: collect(folder, Driver([ONE, TWO], fails=fails)))


def test_one_gpu_shown_twice(folder: Path) -> None:
    found = collect(folder, Driver([ONE, ONE]))
    refused(Untrusted, "nvidia.same-device", lambda: verify(*found))


def test_firmware_that_nobody_published(folder: Path) -> None:
    found = collect(folder, Driver([ONE], how={"measurements": {21: measured(2100)}}))
    refused(Untrusted, "nvidia.measurement", lambda: verify(*found))


def changed(evidence: Evidence, nonce: str, key: dict[str, Any], nvidia: Any) -> tuple[Evidence, str, dict[str, Any]]:
    """The same guest, whose agent signs for other GPU evidence: what an agent that was taken over could send."""
    body = parse_canonical(evidence.additional.encode())
    body |= {"nvidia": nvidia(body["nvidia"])}
    additional = canonical_json(body).decode()
    report = FORGE.report(report_data=report_data(nonce, key, additional) + bytes(32))
    primary = {**evidence.primary, "report": base64.b64encode(report).decode()}
    return Evidence("snp", primary, additional), nonce, key


def test_one_gpu_left_out_of_the_evidence(folder: Path) -> None:
    found = collect(folder, Driver([ONE, TWO]))
    assert verify(*found).level == "gpu-tee"
    refused(Untrusted, "composite.gpu-count", lambda: verify(*changed(*found, lambda entries: entries[:1])))


def test_a_gpus_older_report(folder: Path) -> None:
    found = collect(folder, Driver([ONE]))
    old = ONE.entry(b"o" * 32)
    refused(Untrusted, "nvidia.nonce", lambda: verify(*changed(*found, lambda _: [old])))
