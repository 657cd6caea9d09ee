"""The forms in which evidence of NVIDIA's devices travels. None of them is signed; what they carry is."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ...errors import Malformed, Untrusted
from ..reader import canonical_base64
from .chain import ARCHITECTURES, Architecture

__all__ = ["MAX_GPUS", "MAX_SWITCHES", "Entry", "architecture", "read_entries"]

MAX_GPUS: Final = 8
MAX_SWITCHES: Final = 8

_REQUIRED: Final = frozenset({"arch", "certificate", "evidence"})
_OPTIONAL: Final = frozenset({"nonce", "uuid", "version", "driver_version", "vbios_version"})
_SAID: Final = frozenset({"driver_version", "vbios_version"})
_LIST: Final = "device_evidence_list"
_MAX_TEXT: Final = 64 * 1024
_MAX_WORD: Final = 128
_HEX: Final = re.compile(r"(?:[0-9a-fA-F]{2})+")
_URL_SAFE: Final = re.compile(r"[A-Za-z0-9_-]*")

# RATS conceptual message wrappers (draft-ietf-rats-msg-wrap), as a collection with NVIDIA's profile.
_TYPE: Final = "__cmwc_t"
_COLLECTION: Final = "tag:nvidia.com,2026:verifier-input/profiles/base/pre-1.0.0"
_ITEM: Final = "tag:nvidia.com,2026:evidence-item/v1"
_OCTETS: Final = "application/octet-stream"
_TRANSCRIPT: Final = "application/vnd.nvidia.spdm-measurement-transcript"
_CHAIN: Final = "application/vnd.nvidia.pem-cert-chain"


@dataclass(frozen=True)
class Entry:
    """One device's evidence. ``architecture``: None where the form doesn't say; ``said``: versions that must be those
    that the device signed, and its nonce in hex where one stands beside it."""

    report: bytes
    certificates: bytes
    architecture: Architecture | None = None
    said: Mapping[str, str] = field(default_factory=dict)

    def check_nonce(self, nonce: bytes) -> None:
        """Return unless the form itself says that it was collected for something else."""
        if self.said.get("nonce", nonce.hex()).lower() != nonce.hex():
            raise Untrusted("nvidia.nonce", "A GPU's evidence was collected for another challenge or workload key.")


def architecture(name: str) -> Architecture:
    """The generation by its name, in any case; Malformed for an unknown one."""
    found = ARCHITECTURES.get(name.upper())
    if found is None:
        raise Malformed("nvidia.architecture", "GPU evidence must be of HOPPER, BLACKWELL or LS10.")
    return found


def read_entries(evidence: Any) -> tuple[Entry, ...]:
    """The devices, 1 to 16: from NVIDIA's list, its wrapped collection, or Confidential Containers' object with a list.

    Raises Malformed: ``nvidia.form``, ``nvidia.base64``, ``nvidia.architecture``.
    """
    if isinstance(evidence, dict) and _TYPE in evidence:
        return _collection(evidence)
    if isinstance(evidence, dict):
        if set(evidence) != {_LIST}:
            raise Malformed("nvidia.form", "GPU evidence is neither a list of devices nor an object with one.")
        evidence = evidence[_LIST]
    if not isinstance(evidence, list):
        raise Malformed("nvidia.form", "GPU evidence is neither a list of devices nor an object with one.")
    _check_count(len(evidence))
    return tuple(_listed(item) for item in evidence)


def _check_count(count: int) -> None:
    if not 1 <= count <= MAX_GPUS + MAX_SWITCHES:
        raise Malformed("nvidia.form", f"GPU evidence must be of 1 to {MAX_GPUS + MAX_SWITCHES} devices.")


def _listed(item: Any) -> Entry:
    if not isinstance(item, dict) or not _REQUIRED <= set(item) <= _REQUIRED | _OPTIONAL:
        raise Malformed("nvidia.form", "A device in GPU evidence does not have exactly the expected fields.")
    for key, value in item.items():
        if not isinstance(value, str) or len(value) > (_MAX_TEXT if key in ("certificate", "evidence") else _MAX_WORD):
            raise Malformed("nvidia.form", "A device in GPU evidence has a field that is no text, or too long.")
    report = item["evidence"]
    return Entry(
        # Older Confidential Containers guests send the report in hex.
        report=bytes.fromhex(report) if _HEX.fullmatch(report) else _base64(report),
        certificates=_base64(item["certificate"]),
        architecture=architecture(item["arch"]),
        said={key: item[key] for key in _SAID | {"nonce"} if key in item},
    )


def _collection(evidence: dict[str, Any]) -> tuple[Entry, ...]:
    labels = sorted(set(evidence) - {_TYPE, "nonce"})
    _check_count(len(labels))
    if evidence[_TYPE] != _COLLECTION:
        raise Malformed("nvidia.form", "A collection of GPU evidence is of a profile that is not known.")
    # A nonce beside the devices is said of each of them.
    common = _nonce(evidence)
    return tuple(_wrapped(evidence[label], common) for label in labels)


def _wrapped(item: Any, common: Mapping[str, str]) -> Entry:
    known = {_TYPE, "evidence", "certificate", "nonce", "hints"}
    if not isinstance(item, dict) or not {_TYPE, "evidence", "certificate"} <= set(item) <= known:
        raise Malformed("nvidia.form", "A device in a collection of GPU evidence does not have the expected fields.")
    if item[_TYPE] != _ITEM:
        raise Malformed("nvidia.form", "A device in a collection of GPU evidence is of an unknown form.")
    return Entry(
        report=_record(item["evidence"], _TRANSCRIPT),
        certificates=_record(item["certificate"], _CHAIN),
        said={**common, **_nonce(item)},
    )


def _nonce(item: Mapping[str, Any]) -> dict[str, str]:
    return {"nonce": _record(item["nonce"], _OCTETS).hex()} if "nonce" in item else {}


def _record(value: Any, media_type: str) -> bytes:
    """A pair of a media type and base64url without padding."""
    if not isinstance(value, list) or len(value) != 2 or value[0] != media_type:
        raise Malformed("nvidia.form", "A part of wrapped GPU evidence is not of the expected type.")
    text = value[1]
    if not isinstance(text, str) or len(text) > _MAX_TEXT or not _URL_SAFE.fullmatch(text) or len(text) % 4 == 1:
        raise Malformed("nvidia.base64", "A part of wrapped GPU evidence is not base64url.")
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(raw).decode().rstrip("=") != text:
        raise Malformed("nvidia.base64", "A part of wrapped GPU evidence is not canonical base64url.")
    return raw


def _base64(text: str) -> bytes:
    return canonical_base64(text, "GPU", limit=_MAX_TEXT, code="nvidia.base64")
