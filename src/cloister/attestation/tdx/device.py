"""What a verified quote says, as a device: measurements, facts, and words for people."""

from __future__ import annotations

from typing import Final

from ..models import Device, Fact
from .pck import PlatformCertificate
from .quote import EnclaveReport, Quote, TdReport
from .tcb import NOT_SUPPORTED, Evaluation

__all__ = ["describe"]

# TD ATTRIBUTES by bit (Intel TDX Module ABI Specification, ATTRIBUTES; later ones as Linux names them). Bits 0 to 7 are
# the group "TD under debug": with any of them set the domain isn't to be trusted.
_UNDER_DEBUG: Final = 0xFF
_ATTRIBUTES: Final = {
    16: "attributes.icssd",
    27: "attributes.lass",
    28: "attributes.sept_ve_disable",
    29: "attributes.migratable",
    30: "attributes.pks",
    31: "attributes.key_locker",
    62: "attributes.tpa",
    63: "attributes.perfmon",
}
_KNOWN_ATTRIBUTES: Final = _UNDER_DEBUG | sum(1 << bit for bit in _ATTRIBUTES)

_NO_COLLATERAL: Final = (
    "The state of the platform and revocations were not checked: this says only that a platform of Intel's signed."
)
_UNKNOWN_STATE: Final = "Intel's TCB info has no level for the state that this platform is in."


def describe(quote: Quote, platform: PlatformCertificate, evaluation: Evaluation | None, name: str) -> Device:
    """The device that ``quote`` is about. Everything in its facts is covered by a signature that was verified."""
    facts: dict[str, Fact] = {
        "fmspc": platform.fmspc.hex(),
        "pceid": platform.pceid.hex(),
        "pck_authority": platform.authority,
        "quote_version": quote.version,
        "report_data": quote.body.report_data.hex(),
        "sgx_type": platform.sgx_type,
        "tcb.components": platform.components.hex(),
        "tcb.pcesvn": platform.pcesvn,
        "tcb.qe": quote.qe_report.isv_svn,
        **{f"platform.{flag}": value for flag, value in platform.flags.items()},
    }
    body = quote.body
    if isinstance(body, TdReport):
        measurements = _td_measurements(body)
        facts |= _td_facts(body)
        hardware = f"Intel TDX, FMSPC {platform.fmspc.hex()}"
    else:
        measurements = {
            "configid": body.config_id.hex(),
            "mrenclave": body.mr_enclave.hex(),
            "mrsigner": body.mr_signer.hex(),
        }
        facts |= _enclave_facts(body)
        hardware = f"Intel SGX, FMSPC {platform.fmspc.hex()}"
    return Device(
        name=name,
        tee=quote.tee,
        identity=platform.identity,
        measurements=measurements,
        facts=facts | _state(evaluation),
        hardware=hardware,
        notes=_notes(quote, facts, evaluation),
    )


def _td_measurements(report: TdReport) -> dict[str, str]:
    found = {
        "mrconfigid": report.mr_config_id,
        "mrowner": report.mr_owner,
        "mrownerconfig": report.mr_owner_config,
        "mrseam": report.mr_seam,
        "mrsignerseam": report.mr_signer_seam,
        "mrtd": report.mr_td,
        **{f"rtmr{n}": value for n, value in enumerate(report.rtmrs)},
    }
    if report.mr_service_td is not None:
        found["mrservicetd"] = report.mr_service_td
    return {key: value.hex() for key, value in found.items()}


def _td_facts(report: TdReport) -> dict[str, Fact]:
    attributes = int.from_bytes(report.attributes, "little")
    facts: dict[str, Fact] = {
        "attributes": report.attributes.hex(),
        "attributes.reserved": bool(attributes & ~_KNOWN_ATTRIBUTES),
        "body": report.name,
        "debug": bool(attributes & _UNDER_DEBUG),
        "seam_attributes": report.seam_attributes.hex(),
        "tcb.module_major": report.tee_tcb_svn[1],
        "tcb.module_minor": report.tee_tcb_svn[0],
        "tcb.tee_tcb_svn": report.tee_tcb_svn.hex(),
        "xfam": report.xfam.hex(),
    }
    facts |= {word: bool(attributes >> bit & 1) for bit, word in _ATTRIBUTES.items()}
    if report.tee_tcb_svn2 is not None:
        facts["tcb.tee_tcb_svn2"] = report.tee_tcb_svn2.hex()
    if report.td_id is not None:
        facts["td_id"] = report.td_id.hex()
    return facts


def _enclave_facts(report: EnclaveReport) -> dict[str, Fact]:
    return {
        "attributes": report.attributes.hex(),
        "body": "sgx",
        "config_svn": report.config_svn,
        "debug": report.debug,
        "isv_ext_prod_id": report.isv_ext_prod_id.hex(),
        "isv_family_id": report.isv_family_id.hex(),
        "isv_prod_id": report.isv_prod_id,
        "isv_svn": report.isv_svn,
        "misc_select": report.misc_select.hex(),
        "tcb.cpusvn": report.cpu_svn.hex(),
    }


def _state(evaluation: Evaluation | None) -> dict[str, Fact]:
    if evaluation is None:
        return {}
    facts: dict[str, Fact] = {
        "advisories": list(evaluation.advisories),
        "tcb_evaluation": evaluation.number,
        "tcb_evaluation.platform": evaluation.platform_number,
        "tcb_evaluation.qe": evaluation.enclave_number,
        "tcb_status": evaluation.status,
        "tcb_status.platform": evaluation.platform,
        "tcb_status.qe": evaluation.enclave,
    }
    if evaluation.status != NOT_SUPPORTED:
        facts["tcb_date"] = evaluation.date
    if evaluation.module is not None:
        facts["tcb_status.module"] = evaluation.module
    if evaluation.running is not None:
        facts["tcb_status.running"] = evaluation.running
    return facts


def _notes(quote: Quote, facts: dict[str, Fact], evaluation: Evaluation | None) -> tuple[str, ...]:
    notes = []
    if evaluation is None:
        notes.append(_NO_COLLATERAL)
    elif evaluation.status == NOT_SUPPORTED:
        notes.append(_UNKNOWN_STATE)
    elif evaluation.status != "UpToDate":
        notes.append(f"Intel says of the platform's state: {evaluation.status}.")
    if facts["debug"]:
        notes.append("It can be debugged: whoever runs the host can read and change its memory.")
    if quote.trailing:
        notes.append(f"{len(quote.trailing)} bytes after the quote's end are signed by nobody, and were not looked at.")
    return tuple(notes)
