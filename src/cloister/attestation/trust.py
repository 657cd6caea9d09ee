"""From proven facts to a trust vector: what a result token says of each device. Pure.

AR4SI (draft-ietf-rats-ar4si-09, section 2.3) trustworthiness claims: 0 makes no claim, 2 to 31 affirm, 32 to 95 warn,
96 and above contraindicate. A status is the tier of the worst claim, and never better; it may be worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from .models import Claims, Device, Fact

__all__ = ["TIERS", "device_result", "status_of", "tier", "workload_result"]

TIERS: Final = ("none", "affirming", "warning", "contraindicated")
"""The statuses of draft-ietf-rats-ear, best first; \"none\" is no result at all."""

# Values that the draft gives a meaning, by claim.
_RECOGNIZED_INSTANCE = 2
_CONFIGURATION, _CONFIGURATION_UNSAFE, _CONFIGURATION_UNKNOWN, _CONFIGURATION_UNSUPPORTABLE = 2, 32, 36, 96
_AT_START, _UNRECOGNIZED = 3, 33
_GENUINE, _GENUINE_UNSAFE, _GENUINE_CONTRAINDICATED, _NOT_RECOGNIZED = 2, 32, 96, 97
_ENCRYPTED, _VISIBLE = 2, 96
_SOURCES = {"none": 32, "affirming": 2, "warning": 32, "contraindicated": 96}
_SAID: Final[dict[Any, int]] = {"affirming": 2, "warning": 32}  # another verifier's status as a claim of ours

_MEMORY_ENCRYPTED = frozenset({"snp", "tdx", "sgx", "nvidia"})
# Below a TEE the host's root can read everything: no result about a TPM is better than a warning.
_AT_BEST = {"none": "contraindicated", "tpm": "warning", "cpu-tee": "affirming", "gpu-tee": "affirming"}


def tier(value: int) -> str:
    """The tier of one trustworthiness claim."""
    if value == 0:
        return "none"
    if value < 0 or value >= 96:
        return "contraindicated"
    return "affirming" if value < 32 else "warning"


def status_of(vector: Mapping[str, int], at_best: str) -> str:
    """The worst tier of the vector, and no better than ``at_best``."""
    return max([at_best, *(tier(value) for value in vector.values())], key=TIERS.index)


def device_result(device: Device, level: str) -> dict[str, Any]:
    """The submodule of one device."""
    vector = _device_vector(device, level)
    return _result(vector, status_of(vector, _at_best(device, level)), device.to_wire())


def _at_best(device: Device, level: str) -> str:
    if device.tee == "ear" and level != "none":
        # Another verifier's word, with its own vector: ours is never better.
        said = device.facts.get("status")
        return said if isinstance(said, str) and said in TIERS else "contraindicated"
    return "warning" if device.tee == "tpm" and level != "none" else _AT_BEST[level]


def workload_result(claims: Claims, pcrs_named: bool, others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The submodule of the workload and the machine under it. ``others``: the other submodules, on which it stands, so
    its status is never better than the worst of them."""
    vector = _vector(
        configuration=_CONFIGURATION if pcrs_named else _CONFIGURATION_UNKNOWN,
        executables=_AT_START,
        hardware=_GENUINE if claims.level != "none" else _NOT_RECOGNIZED,
        instance=_RECOGNIZED_INSTANCE,
        runtime=_ENCRYPTED if claims.level in ("cpu-tee", "gpu-tee") else 0,
    )
    evidence, at_best = claims.to_wire(), _AT_BEST[claims.level]
    for device in claims.devices:
        if device.name == "cpu0":
            at_best = max(at_best, _at_best(device, claims.level), key=TIERS.index)
            own = _device_vector(device, claims.level)
            if not pcrs_named and own["configuration"]:
                vector["configuration"] = own["configuration"]  # a TEE's own facts instead of PCRs
            vector = {name: max(value, own[name]) for name, value in vector.items()}
            evidence = {**evidence, "device": device.to_wire()}
    if others:
        vector["sourced-data"] = _SOURCES[max((other["ear.status"] for other in others), key=TIERS.index)]
    return _result(vector, status_of(vector, at_best), evidence)


def _result(vector: dict[str, int], status: str, evidence: dict[str, Any]) -> dict[str, Any]:
    return {
        "ear.status": status,
        "ear.trustworthiness-vector": vector,
        "ear.veraison.annotated-evidence": evidence,
    }


def _vector(*, configuration: int, executables: int, hardware: int, instance: int, runtime: int) -> dict[str, int]:
    return {
        "configuration": configuration,
        "executables": executables,
        "file-system": 0,
        "hardware": hardware,
        "instance-identity": instance,
        "runtime-opaque": runtime,
        "sourced-data": 0,
        "storage-opaque": 0,
    }


def _device_vector(device: Device, level: str) -> dict[str, int]:
    facts = device.facts
    return _vector(
        configuration=_configuration(device.tee, facts),
        executables=_executables(facts),
        hardware=_NOT_RECOGNIZED if level == "none" else _hardware(facts),
        instance=_RECOGNIZED_INSTANCE if device.identity else 0,
        runtime=_runtime(device.tee, facts),
    )


def _configuration(tee: str, facts: Mapping[str, Fact]) -> int:
    if facts.get("debug") is True:
        return _CONFIGURATION_UNSUPPORTABLE
    if tee == "ear":
        return _SAID.get(facts.get("status"), _CONFIGURATION_UNSUPPORTABLE)
    if tee == "tpm":
        known = {True: _CONFIGURATION, False: _CONFIGURATION_UNSAFE}
        secure = facts.get("secure_boot")
        return known[secure] if isinstance(secure, bool) else _CONFIGURATION_UNKNOWN
    return _CONFIGURATION if facts.get("debug") is False else _CONFIGURATION_UNKNOWN


def _executables(facts: Mapping[str, Fact]) -> int:
    match = facts.get("measurements_match")
    return 0 if match is None else _AT_START if match is True else _UNRECOGNIZED


def _hardware(facts: Mapping[str, Fact]) -> int:
    """Intel's words for a TCB; where the platform has none, its chain and floor were checked by the verifier."""
    status = facts.get("tcb_status")
    if status is None or status == "UpToDate":
        return _GENUINE
    return _GENUINE_CONTRAINDICATED if status == "Revoked" else _GENUINE_UNSAFE


def _runtime(tee: str, facts: Mapping[str, Fact]) -> int:
    if facts.get("debug") is True or (tee == "nvidia" and facts.get("confidential") is not True):
        return _VISIBLE
    return _ENCRYPTED if tee in _MEMORY_ENCRYPTED else 0
