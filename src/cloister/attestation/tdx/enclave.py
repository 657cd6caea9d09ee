"""The quoting enclave: that Intel signed it, and in which state it is. One identity document for SGX, another for TDX.

Source: Intel, "SGX and TDX Provisioning Certification Service" API, "Get Quoting Enclave Identity", version 2 of the
document, with the rules for comparing a report with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from ...errors import Untrusted
from ...fields import Fields
from .documents import hex_field
from .quote import EnclaveReport
from .tcb import Level, find_level, read_component_levels

__all__ = ["EnclaveIdentity", "check_enclave", "read_identity"]

_TEES: Final = {"QE": "sgx", "TD_QE": "tdx"}


@dataclass(frozen=True)
class EnclaveIdentity:
    """``tee``: whose quotes the enclave signs. Values and masks are bytes as they stand in a report."""

    tee: str
    evaluation: int
    misc_select: bytes
    misc_mask: bytes
    attributes: bytes
    attributes_mask: bytes
    mr_signer: bytes
    isv_prod_id: int
    levels: tuple[Level, ...]


def read_identity(body: dict[str, Any]) -> EnclaveIdentity:
    """From the signed object. Raises Malformed."""
    fields = Fields(body, "quoting enclave's identity")
    fields.integer("version", low=2, high=2)
    return EnclaveIdentity(
        tee=_TEES[fields.text("id", limit=16, choices=tuple(_TEES))],
        evaluation=fields.integer("tcbEvaluationDataNumber", high=2**31),
        misc_select=hex_field(fields, "miscselect", 4),
        misc_mask=hex_field(fields, "miscselectMask", 4),
        attributes=hex_field(fields, "attributes", 16),
        attributes_mask=hex_field(fields, "attributesMask", 16),
        mr_signer=hex_field(fields, "mrsigner", 32),
        isv_prod_id=fields.integer("isvprodid", high=65535),
        levels=read_component_levels(fields),
    )


def check_enclave(identity: EnclaveIdentity, tee: str, report: EnclaveReport) -> Level:
    """The level of the quoting enclave that made ``report`` for quotes of ``tee``.

    Raises Untrusted ``tdx.qe-identity`` where it is another enclave, a debuggable one included (the mask covers that
    bit), or one so old that no level is left for it.
    """
    if identity.tee != tee:
        raise Untrusted("tdx.qe-identity", "The quoting enclave's identity is for another TEE than the quote's.")
    same = (
        report.mr_signer == identity.mr_signer
        and report.isv_prod_id == identity.isv_prod_id
        and _masked(report.misc_select, identity.misc_mask) == identity.misc_select
        and _masked(report.attributes, identity.attributes_mask) == identity.attributes
        and not report.debug
    )
    if not same:
        raise Untrusted("tdx.qe-identity", "The quote was signed by another enclave than Intel's quoting enclave.")
    level = find_level(identity.levels, report.isv_svn)
    if level is None:
        raise Untrusted("tdx.qe-identity", "The quoting enclave is older than any that Intel still speaks of.")
    return level


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(a & b for a, b in zip(value, mask, strict=True))
