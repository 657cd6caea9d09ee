"""Is this manifest the output that the contract lets a job make? One pure answer for brokers and for verifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..errors import Denied
from ..fields import Fields
from .contract import Contract, Output
from .documents import Job
from .terms import Terms

__all__ = ["OutputManifest", "check_output"]


class OutputManifest(Protocol):
    """What is looked at of a sealed manifest (``sealed.Manifest`` is one)."""

    @property
    def name(self) -> str: ...
    @property
    def asset_class(self) -> str: ...
    @property
    def contract(self) -> bytes | None: ...
    @property
    def job(self) -> bytes | None: ...
    @property
    def parents(self) -> tuple[bytes, ...]: ...
    @property
    def terms(self) -> Mapping[str, Any]: ...


def check_output(manifest: OutputManifest, contract: Contract, job: Job, instance: bytes) -> Output:
    """The contract's output that ``manifest`` is: right job, parents, form, recipients, terms, every gate passed.

    Who signed the manifest is the caller's to check. Raises Denied with the rule that said no, Malformed for terms
    that aren't of an output.
    """
    output = next((o for o in contract.outputs if o.name == job.output), None)
    if output is None or manifest.name != output.name or manifest.asset_class != "artifact":
        raise Denied("output.name", "The manifest is not of the output that the job was to make.")
    if (manifest.contract, manifest.job) != (contract.digest, job.digest):
        raise Denied("output.job", "The manifest is of another contract or job.")
    parents = tuple(sorted(job.assets))
    if manifest.parents != parents:
        raise Denied("output.parents", "The manifest names other parents than the assets that the job used.")
    f = Fields(dict(manifest.terms), "output's terms")
    if f.text("form") != output.form:
        raise Denied("output.form", "The output has another form than the contract lets out.")
    if f.texts("recipients") != output.recipients:
        raise Denied("output.recipients", "The output names other recipients than the contract.")
    if f.hex("instance", 16) != instance:
        raise Denied("output.instance", "The output was made by another instance.")
    if Terms.read(f.raw("terms")) != Terms.intersect([contract.asset(parent).terms for parent in parents]):
        raise Denied("output.terms", "The output's terms are not the intersection of its parents' terms.")
    _check_gates(f.items("gates", lambda value: value, limit=64), contract)
    f.done()
    return output


def _check_gates(gates: Sequence[Any], contract: Contract) -> None:
    """Every gate of the contract is recorded as passed at its very margin, and none as failed."""
    passed = {(g.get("metric"), g.get("margin")) for g in gates if isinstance(g, dict) and g.get("passed") is True}
    for gate in contract.gates:
        if (gate.metric, f"{gate.margin:f}") not in passed:
            raise Denied("output.gate", f"The contract's gate on {gate.metric} is not recorded as passed.")
    if any(not isinstance(g, dict) or g.get("passed") is not True for g in gates):
        raise Denied("output.gate", "The output's manifest records a gate that did not pass.")
