"""Owners' attestation results in a release bundle: read strictly, and held against the contract. Pure.

A result is signed by its owner's broker, and an owner may be the liar. So nothing about its form is taken for granted,
and what it says is judged by the very rules by which an honest broker judges evidence (``attestation.appraisal``).
"""

from __future__ import annotations

from typing import Any, Final

from ..attestation import Claims, appraise, verify_token
from ..attestation.appraisal import check_placement
from ..attestation.models import LEVELS, MAX_DEVICES, Device, level_rank
from ..broker.decision import reference_values
from ..contracts import Contract
from ..crypto import Envelope, parse_canonical, unb64url
from ..errors import Denied, Malformed, Untrusted
from ..fields import Fields

__all__ = ["check_result"]

_ANNOTATED: Final = "ear.veraison.annotated-evidence"
_WORKLOAD: Final = "cpu0"
_MAX_TOKEN: Final = 64 * 1024
_MAX_APPROVALS: Final = 2048
_MAX_PCRS: Final = 24
_NAME: Final = 64  # characters of a device's name
_WORD: Final = 256  # characters of a digest, an id or a platform's name


def check_result(
    token: Any, owner: str, contract: Contract, *, job: bytes, instance: bytes, said: dict[str, str]
) -> None:
    """Return only if ``owner`` appraised this very run, and found what the contract asks for.

    ``job`` (32 bytes), ``instance`` (16): the run; ``said``: what the key releases in the logs say of its ``level`` and
    ``measurement``. Checked are signature, workload, agent, attester, level, and the PCRs, devices and tenancy that the
    contract pins. Raises Untrusted ``verify.token-form`` for a result that can't be read, ``verify.token`` for one
    about another run, Denied ``verify.platform`` for a platform that the contract does not name.
    """
    try:
        # A token's time is long over when a bundle is checked: it is judged at the moment of its own issue.
        body = verify_token(token, contract.parties[owner].receipt, now=_issued(token))
        claims = _claims(body["submods"])
        # What the contract names, and what every party approved since: their documents travel in the token.
        reference = reference_values(contract, _approvals(body))
    except Malformed as fault:
        # Its owner signed it, so this is no slip on the way: it is not what an honest broker writes.
        raise Untrusted(
            "verify.token-form", f"The attestation result of {owner} can't be read: {fault.message}"
        ) from None
    about = (claims.contract, claims.job, claims.instance, claims.level, claims.measurement)
    if about != (contract.digest.hex(), job.hex(), instance.hex(), said["level"], said["measurement"]):
        raise Untrusted("verify.token", f"The attestation result of {owner} is about another run.")
    try:
        appraise(claims, reference, instance=instance, contract=contract.digest, job=job)
        check_placement(claims, contract.platform.devices, contract.platform.tenancy)
        if contract.platform.devices and (unknown := [d.name for d in claims.devices if not d.tee]):
            # Its platform might be one whose devices are pinned, so it must not be passed over.
            raise Denied("appraisal.device", f"The result does not say what {unknown[0]} is.")
    except Denied as refusal:
        raise Denied(
            "verify.platform", f"{owner} appraised a platform that the contract does not name: {refusal.message}"
        ) from None


def _issued(token: Any) -> int:
    parts = token.split(".") if isinstance(token, str) and len(token) <= _MAX_TOKEN else []
    body = parse_canonical(unb64url(parts[1])) if len(parts) == 3 else None
    return Fields(body, "attestation result").integer("iat")


def _claims(modules: dict[str, Any]) -> Claims:
    if len(modules) > MAX_DEVICES + 1 or any(len(name) > _NAME for name in modules):
        raise Malformed("ear.form", "The token has results about too many devices, or one whose name is too long.")
    f = Fields(Fields(modules, "token").child(_WORKLOAD).raw(_ANNOTATED), "appraised evidence")
    own = f.raw("device", optional=True)
    found = [] if own is None else [_device(_WORKLOAD, own)]
    found += [_device(name, Fields(m, "submodule").raw(_ANNOTATED)) for name, m in modules.items() if name != _WORKLOAD]
    # Results of earlier versions say nothing of devices, PCRs or tenancy: enough where the contract pins none.
    pcrs = {} if f.raw("pcrs", optional=True) is None else f.mapping("pcrs", _pcr, limit=_MAX_PCRS)
    return Claims(
        tee=f.text("tee", limit=_WORD),
        level=LEVELS[level_rank(f.text("level", limit=_WORD))],
        attester=f.text("attester", limit=_WORD),
        measurement=f.text("measurement", limit=_WORD),
        agent=f.text("agent", limit=_WORD),
        instance=f.text("instance", limit=_WORD),
        contract=f.text("contract", limit=_WORD),
        job=f.text("job", limit=_WORD),
        pcrs=pcrs,
        devices=tuple(found),
        tenancy=f.optional_text("tenancy", limit=_WORD) or "shared",
    )


def _pcr(_: str, value: Any) -> str:
    return Fields({"value": value}, "PCR").text("value", limit=_WORD)


def _device(name: str, value: Any) -> Device:
    """What a contract can pin of it. Of some devices a result that is full keeps a digest alone: their platform is
    empty here."""
    f = Fields(value, "device")
    if f.optional_text("tee", limit=_WORD) is None and f.optional_text("digest", limit=_WORD) is not None:
        return Device(name, "")
    return Device(name, f.text("tee", limit=_WORD), f.text("identity", limit=_WORD))


def _approvals(body: dict[str, Any]) -> list[Envelope]:
    f = Fields({"approvals": body.get("cloister.approvals", [])}, "attestation result")
    return list(f.items("approvals", _envelope_text, limit=_MAX_APPROVALS))


def _envelope_text(value: Any) -> Envelope:
    if not isinstance(value, str):
        raise Malformed("verify.approval", "An approval in the attestation result is not the text of an envelope.")
    return Envelope.from_bytes(value.encode())
