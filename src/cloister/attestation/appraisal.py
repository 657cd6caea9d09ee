"""Are proven claims enough? And the attestation result, as an EAR token. All pure: the clock is an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..crypto import Signer, b64url, canonical_json, parse_canonical, sha256, unb64url, verify_ed25519
from ..errors import Denied, Malformed, Misuse, Untrusted
from .models import Claims, ReferenceValues, level_rank
from .policy import AppraisalPolicy
from .trust import device_result, workload_result

__all__ = ["EAR_PROFILE", "MAX_TOKEN_LIFE", "appraise", "check_placement", "result_token", "verify_token"]

EAR_PROFILE: Final = "tag:github.com,2023:veraison/ear"
MAX_TOKEN_LIFE: Final = 300
"""Seconds. A session lives at most 5 minutes (PROTOCOL §1), so no token outlives one."""
CLOCK_LEEWAY: Final = 60
"""Seconds that a token may seem to come from the future, for a reader whose clock runs behind."""

_MAX_TOKEN: Final = 64 * 1024
_MOST_BODY: Final = 45_000  # bytes, so that the token in base64 stays below what readers take
_ANNOTATED: Final = "ear.veraison.annotated-evidence"
_WORKLOAD: Final = "cpu0"
"""The submodule about the workload and the machine under it; where Confidential Containers look for the result."""
_BOOT_PCRS: Final = tuple(str(i) for i in range(8))
_QUOTES_PCRS: Final = ("tpm", "az-snp-vtpm", "az-tdx-vtpm")
"""Platforms where what booted is told by PCRs alone."""
_HEADER: Final = {"alg": "EdDSA", "typ": "JWT"}


def appraise(claims: Claims, reference: ReferenceValues, *, instance: bytes, contract: bytes, job: bytes) -> None:
    """Return only if the claims satisfy the contract's reference values and are about this very run.

    ``instance`` (16 bytes), ``contract`` and ``job`` (32 each) are what the broker itself bound into the nonce.
    Raises Denied (a rule said no; the code names it) or Untrusted (evidence about something else).
    """
    # 1-6. What runs, on what, is named by the contract.
    _check_reference(claims, reference)
    # 7. The evidence is about this instance, contract and job.
    for name, expected, found in (
        ("instance", instance, claims.instance),
        ("contract", contract, claims.contract),
        ("job", job, claims.job),
    ):
        if expected.hex() != found:
            raise Untrusted(f"appraisal.{name}", f"The evidence is about another {name} than the one that asks.")


def _check_reference(claims: Claims, reference: ReferenceValues) -> None:
    # 1. An empty set names nothing, so it accepts nothing.
    if not (reference.measurements and reference.agents and reference.attesters):
        raise Denied("appraisal.reference", "The contract names no measurement, agent or attester; name at least one.")
    # 2. The level is at least the contract's.
    if level_rank(claims.level) < level_rank(reference.least_level):
        raise Denied(
            "appraisal.level",
            f"The evidence reaches level {claims.level}; the contract asks for {reference.least_level}.",
            found=claims.level,
            least=reference.least_level,
        )
    # 3-5. Workload, node agent and attester are named.
    _check_named("measurement", claims.measurement, reference.measurements)
    _check_named("agent", claims.agent, reference.agents)
    _check_named("attester", claims.attester, reference.attesters)
    # 6. Every PCR that is named has its value; above level none all boot PCRs of a TPM must be named.
    if claims.tee in _QUOTES_PCRS and claims.level != "none" and not set(_BOOT_PCRS) <= set(reference.pcrs):
        raise Denied("appraisal.pcr-reference", "The contract must name PCR 0 to 7 for a TPM above level none.")
    for index, expected in sorted(reference.pcrs.items()):
        if claims.pcrs.get(index) != expected:
            raise Denied("appraisal.pcr", f"PCR {index} does not have the value that the contract names.", pcr=index)


def _check_named(what: str, found: str, named: frozenset[str]) -> None:
    if found not in named:
        raise Denied(f"appraisal.{what}", f"The contract does not name this {what}; compare the digests.", found=found)


def check_placement(claims: Claims, devices: Mapping[str, tuple[str, ...]], tenancy: str | None) -> None:
    """Return only if the evidence comes from a machine that the contract lets run it.

    ``devices``: ids in hex by platform. Every platform that is named must be attested, and every attested device of it
    must be named: a second chip or GPU that nobody agreed on is refused, and so is evidence that names none.
    ``tenancy``: None says nothing. Raises Denied ``appraisal.device``, ``appraisal.tenancy``.
    """
    for kind, named in devices.items():
        found = [device for device in claims.devices if device.tee == kind]
        if not found:
            raise Denied("appraisal.device", f"The contract pins devices of platform {kind}, and none is attested.")
        for device in found:
            if not device.identity or device.identity not in named:
                shown = device.identity or "none"
                raise Denied("appraisal.device", f"The contract does not name the id of {device.name}.", found=shown)
    if tenancy == "exclusive" and claims.tenancy != "exclusive":
        # The measured agent alone can say it. Where it says nothing, others may run beside.
        raise Denied("appraisal.tenancy", "The node's agent does not say that nothing else runs beside the workload.")


def result_token(
    claims: Claims,
    reference: ReferenceValues,
    *,
    signer: Signer,
    now: int,
    ttl: int,
    tee_pubkey: Mapping[str, Any],
    policy: AppraisalPolicy | None = None,
    approvals: Sequence[str] = (),
    developer: str = "cloister",
    build: str = "cloister 0.1",
) -> str:
    """An EAR (draft-ietf-rats-ear) as an EdDSA JWT (RFC 7519, RFC 8037) signed by the broker's key.

    One submodule for the workload and its machine (cpu0), and one for each other attested device. ``policy`` is the
    owner's, and its digest stands in each. ``approvals``: the parties' signed documents by which a workload that the
    contract does not name was let in; with them the token can be checked later, offline. Reference values and policy
    are checked once more, so there is no token for claims that they don't accept; ``appraise`` must have passed before,
    because only it knows the session. ``ttl`` is 1 to 300 seconds. The workload's key stands where Confidential
    Containers' key brokers look for it. Raises Denied, Misuse.
    """
    if not 0 < ttl <= MAX_TOKEN_LIFE:
        raise Misuse("ear.ttl", f"A result token lives 1 to {MAX_TOKEN_LIFE} seconds.")
    _check_reference(claims, reference)
    values = f"urn:cloister:reference:{sha256(canonical_json(reference.to_wire())).hex()}"
    common = {"ear.appraisal-policy-id": values}
    if policy is not None:
        policy.check(claims)
        common = {
            "ear.appraisal-policy-id": f"urn:cloister:policy:{policy.digest}",
            "cloister.reference-values": values,
        }
    others = {d.name: device_result(d, claims.level) for d in claims.devices if d.name != _WORKLOAD}
    workload = workload_result(claims, bool(reference.pcrs), list(others.values()))
    workload[_ANNOTATED]["runtime_data_claims"] = {"tee-pubkey": dict(tee_pubkey)}
    body: dict[str, Any] = {
        "ear.verifier-id": {"build": build, "developer": developer},
        "eat_profile": EAR_PROFILE,
        "exp": now + ttl,
        "iat": now,
        "submods": {name: {**found, **common} for name, found in {_WORKLOAD: workload, **others}.items()},
    }
    if approvals:
        body["cloister.approvals"] = list(approvals)
    encoded = canonical_json(body)
    if len(encoded) > _MOST_BODY:
        # Many GPUs say much. A reader of today's limits gets their results, and a digest of what they rest on.
        for name in others:
            module = body["submods"][name]
            whole = module[_ANNOTATED]
            # Which piece it is stays: contracts pin that.
            module[_ANNOTATED] = {
                "digest": sha256(canonical_json(whole)).hex(),
                "identity": whole["identity"],
                "tee": whole["tee"],
            }
        encoded = canonical_json(body)
    message = f"{b64url(canonical_json(_HEADER))}.{b64url(encoded)}"
    return f"{message}.{b64url(signer.sign(message.encode()))}"


def verify_token(token: str, public: bytes, *, now: int) -> dict[str, Any]:
    """The claims of a token that ``public`` signed and that is in its time.

    The algorithm is fixed by us and never taken from the header. Raises Malformed or Untrusted.
    """
    parts = token.split(".") if isinstance(token, str) and len(token) <= _MAX_TOKEN else []
    if len(parts) != 3:
        raise Malformed("ear.form", "The text is not an attestation result token.")
    if unb64url(parts[0]) != canonical_json(_HEADER):
        raise Untrusted("ear.algorithm", "The token is not signed with EdDSA.")
    verify_ed25519(public, f"{parts[0]}.{parts[1]}".encode(), unb64url(parts[2]))
    body = parse_canonical(unb64url(parts[1]), limit=_MAX_TOKEN)
    if not isinstance(body, dict) or body.get("eat_profile") != EAR_PROFILE:
        raise Untrusted("ear.profile", "The token is not an attestation result of the profile that is accepted.")
    issued, expires = _time(body.get("iat")), _time(body.get("exp"))
    if not isinstance(body.get("submods"), dict):
        raise Malformed("ear.form", "The token carries no result.")
    if issued > now + CLOCK_LEEWAY or now >= expires or expires - issued > MAX_TOKEN_LIFE:
        raise Untrusted("ear.time", "The token is not in its time; attest again.")
    return body


def _time(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Malformed("ear.form", "The token lacks its times.")
    return value
