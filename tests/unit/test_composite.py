"""A processor's evidence and that of the devices beside it: one verdict, and which level it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from cloister.attestation import Evidence
from cloister.attestation.composite import verify_evidence
from cloister.attestation.events import open_log
from cloister.attestation.models import Claims, Device, Level
from cloister.crypto import canonical_json, parse_canonical
from cloister.errors import Denied, Malformed, Untrusted
from tests.adversarial.evidence_forge import Log, launch_event

REPORT, DEVICE = b"r" * 32, b"d" * 32
NOW = 1_790_000_000


@dataclass
class Processor:
    """A processor's verifier that has verified already: this is about what happens with its claims."""

    level: Level = "cpu-tee"
    devices: tuple[Device, ...] = (Device("cpu0", "snp"),)
    tee: str = "snp"

    def verify(self, evidence: Evidence, report: bytes, *, now: int) -> Claims:
        assert (report, now) == (REPORT, NOW)
        launch = open_log(evidence.additional).launch
        words = {name: launch[name] for name in ("measurement", "instance", "contract", "job")}
        return Claims(tee="snp", level=self.level, attester="", agent="", hardware="AMD", devices=self.devices, **words)


@dataclass
class Beside:
    """A verifier of devices that finds what it is told."""

    found: tuple[Device, ...]
    kind: str = "nvidia"
    fails: Exception | None = None

    def verify(self, evidence: Any, device: bytes, *, now: int) -> tuple[Device, ...]:
        assert (evidence, device, now) == ("evidence", DEVICE, NOW)
        if self.fails is not None:
            raise self.fails
        return self.found


def gpu(number: int = 0, **facts: Any) -> Device:
    return Device(f"gpu{number}", "nvidia", facts={"confidential": True} | facts, hardware="NVIDIA GPU")


SWITCH = Device("nvswitch0", "nvidia", facts={"confidential": True}, hardware="NVIDIA NVSwitch")


def evidence(given: int = 0, *kinds: str) -> Evidence:
    event = launch_event(**({"gpus": str(given)} if given else {}))
    body = parse_canonical(Log(event).text().encode())
    return Evidence("snp", {}, canonical_json(body | dict.fromkeys(kinds, "evidence")).decode())


def verify(sent: Evidence, *found: Device, processor: Processor | None = None, **beside: Any) -> Claims:
    devices = {"nvidia": Beside(found, **beside)}
    return verify_evidence({"snp": processor or Processor()}, devices, sent, REPORT, DEVICE, now=NOW)


def refused(code: str, act: Callable[[], object]) -> None:
    with pytest.raises(Untrusted) as caught:
        act()
    assert caught.value.code == code


def test_a_processor_alone() -> None:
    claims = verify(evidence())
    assert (claims.level, claims.gpus, [d.name for d in claims.devices]) == ("cpu-tee", 0, ["cpu0"])


def test_a_processor_and_its_gpus() -> None:
    claims = verify(evidence(2, "nvidia"), gpu(0), gpu(1), SWITCH)
    assert (claims.level, claims.gpus) == ("gpu-tee", 2)
    assert [d.name for d in claims.devices] == ["cpu0", "gpu0", "gpu1", "nvswitch0"]
    assert claims.hardware == "AMD; NVIDIA GPU; NVIDIA NVSwitch"


@pytest.mark.parametrize(("given", "shown"), [(2, 1), (1, 2), (0, 1), (1, 0), (8, 7)])
def test_another_number_of_gpus_than_was_given(given: int, shown: int) -> None:
    found = [gpu(i) for i in range(shown)] or [SWITCH]
    refused("composite.gpu-count", lambda: verify(evidence(given, "nvidia"), *found))


@pytest.mark.parametrize(
    "facts", [{"confidential": False}, {"confidential": 1}, {"confidential": "True"}, {"confidential": []}]
)
def test_one_gpu_that_is_not_confidential_takes_the_level(facts: dict[str, Any]) -> None:
    claims = verify(evidence(2, "nvidia"), gpu(0), gpu(1, **facts))
    assert claims.level == "none"
    assert len(claims.devices) == 3
    assert "not shown to be confidential" in claims.notes[-1]


def test_a_verifier_that_says_nothing_of_it() -> None:
    silent = replace(gpu(), facts={})
    assert verify(evidence(1, "nvidia"), silent).level == "none"
    assert verify(evidence(1, "nvidia"), gpu(), replace(SWITCH, facts={})).level == "none"


def test_gpus_without_evidence_take_the_level_of_a_tee() -> None:
    claims = verify(evidence(4))
    assert (claims.level, claims.gpus) == ("none", 4)
    assert "without evidence" in claims.notes[-1]


@pytest.mark.parametrize("level", ["none", "tpm"])
def test_gpus_below_a_tee_give_no_level(level: Level) -> None:
    below = Processor(level)
    claims = verify(evidence(1, "nvidia"), gpu(), processor=below)
    assert claims.level == level
    assert len(claims.devices) == 2
    assert "no level follows" in claims.notes[-1]
    # Nor is anything asked of a plain GPU there: it protects nothing, and nobody was told that it does.
    assert verify(evidence(1), processor=below).level == level


def test_a_gpu_that_is_not_confidential_takes_the_level_that_another_verifier_gave() -> None:
    """Its token says that all is well, and the GPU itself says that it can be debugged."""
    pinned = Processor("gpu-tee", (Device("cpu0", "ear"), Device("gpu-a", "ear")))
    for facts in ({"confidential": False, "debug": True}, {"confidential": 1}, {}):
        claims = verify(evidence(1, "nvidia"), replace(gpu(), facts=facts), processor=pinned)
        assert (claims.level, len(claims.devices)) == ("none", 3)
        assert "not shown to be confidential" in claims.notes[-1]
    assert verify(evidence(1, "nvidia"), gpu(), replace(SWITCH, facts={}), processor=pinned).level == "none"


def test_another_verifiers_word_of_gpus_stands_beside_what_is_proven_here() -> None:
    pinned = Processor("gpu-tee", (Device("cpu0", "ear"), Device("gpu-a", "ear")))
    claims = verify(evidence(1, "nvidia"), gpu(), processor=pinned)
    assert (claims.level, claims.notes, claims.hardware) == ("gpu-tee", (), "AMD; NVIDIA GPU")
    assert verify(evidence(1), processor=pinned).level == "gpu-tee"


def test_a_switch_without_a_gpu_is_no_gpu_tee() -> None:
    assert verify(evidence(0, "nvidia"), SWITCH).level == "cpu-tee"


def test_a_kind_that_nobody_verifies() -> None:
    refused("composite.kind", lambda: verify(evidence(1, "nvidia", "other"), gpu()))
    refused("composite.kind", lambda: verify(evidence(0, "amd-gpu")))


def test_a_device_that_hides_behind_the_name_of_another() -> None:
    refused("composite.devices", lambda: verify(evidence(2, "nvidia"), gpu(0), gpu(0, debug=True)))
    refused("composite.devices", lambda: verify(evidence(1, "nvidia"), gpu(), Device("cpu0", "nvidia")))


def test_what_either_verifier_raises_is_raised() -> None:
    for error in (Untrusted("x.y", "no"), Malformed("x.y", "no"), Denied("x.y", "no")):
        with pytest.raises(type(error)):
            verify(evidence(1, "nvidia"), gpu(), fails=error)
    with pytest.raises(Malformed):
        verify_evidence({"snp": Processor()}, {}, Evidence("snp", {}, "{}"), REPORT, DEVICE, now=NOW)
