"""Jobs from the parties' side: submit a recipe, follow a run, cancel it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..contracts import Card, Contract, Recipe, parse_recipe, read_contract
from ..crypto import Envelope, parse_json
from ..errors import Denied, Malformed, Misuse, Unavailable, Untrusted
from ..sealed import Manifest
from .agreements import contract_to_run
from .approvals import approved_values
from .control import ControlClient
from .progress import Progress, Step, silent
from .supervisor import Home
from .verify import Verified, verify_release

__all__ = ["Outcome", "cancel_job", "check_recipe", "find_job", "follow", "list_jobs", "submit"]

_PREFIX = re.compile(r"[0-9a-f]{4,64}")
_PATIENCE = 5  # polls in a row without an answer, before following gives up


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``gates``: metric, margin and whether it passed, as the output's manifest says; ``values``: the
    last telemetry, of contracted figures alone. ``verified``: the release record, against pinned cards; None if there
    is no record, or nothing to check it with, and then all of this is the control plane's word."""

    job: dict[str, Any]
    values: dict[str, str]
    gates: tuple[dict[str, Any], ...]
    recipients: tuple[str, ...]
    verified: Verified | None = None

    @property
    def succeeded(self) -> bool:
        return bool(self.job["state"] == "succeeded")

    def document(self) -> dict[str, Any]:
        job = {k: v for k, v in self.job.items() if k != "job"}
        more = {"gates": list(self.gates), "recipients": list(self.recipients), "values": self.values}
        return {**job, **more, "verified": self.verified is not None}


def check_recipe(text: str | bytes, changes: Sequence[str] = ()) -> Recipe:
    """The same check that brokers make. ``changes``: "key=value" each."""
    return parse_recipe(text, changes)


def submit(
    home: Home,
    recipe_text: str | bytes,
    contract: str,
    party: str,
    *,
    output: str | None = None,
    changes: Sequence[str] = (),
) -> dict[str, Any]:
    """Sign a run of a recipe and queue it. Raises the refusal that a broker would give.

    ``contract``: a digest, its beginning, or a name: then the newest serial that the party's own broker has complete.
    """
    recipe = parse_recipe(recipe_text, changes)
    client = home.control(party)
    agreed = contract_to_run(home, contract, party)
    _check_platform(agreed, client.info()["node"], approved_values(home, party, agreed.digest.hex()))
    name = output or _output_for(agreed, recipe)
    job = home.agent(party).sign_job(agreed.envelope, recipe, name)
    queued = client.submit(job)
    if queued["digest"] != job.digest.hex():
        raise Untrusted("job.answer", "The control plane answered with another job than the one that was submitted.")
    return queued


def _check_platform(contract: Contract, claim: dict[str, Any] | None, approved: frozenset[str]) -> None:
    """Spare a start that every broker would refuse: an update of the node's software, say, changes what it measures.

    The node only claims these values here; what counts is the evidence that brokers get. ``approved``: what every party
    approved since the contract was signed.
    """
    platform = contract.platform
    permitted = {"measurement": platform.measurements, "agent": platform.agents, "attester": platform.attesters}
    for what, values in permitted.items():
        if claim is not None and claim.get(what) not in {*values, *approved}:
            raise Denied(
                f"appraisal.{what}",
                f"This node's {what} is not one that the contract names; sign a new serial: cloister contract new.",
            )


def _output_for(contract: Contract, recipe: Recipe) -> str:
    fitting = [o.name for o in contract.outputs if o.form == recipe.form]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(o.name for o in contract.outputs) or "none"
    raise Misuse("job.output", f"Say which output the run makes with --output; the contract lets out: {names}.")


def find_job(client: ControlClient, reference: str) -> dict[str, Any]:
    """By digest or its unique beginning."""
    if not _PREFIX.fullmatch(reference):
        raise Misuse("job.reference", "A job is named by its digest, or by at least its first four hex digits.")
    if len(reference) < 64:
        found = [j["digest"] for j in client.jobs() if j["digest"].startswith(reference)]
        if len(found) != 1:
            what = "No job's" if not found else "More than one job's"
            raise Misuse("job.unknown", f"{what} digest begins so; 'cloister job list' shows them.")
        reference = str(found[0])
    job = client.job(reference)
    if job["digest"] != reference:
        raise Untrusted("job.answer", "The control plane answered with another job than was asked for.")
    return job


def list_jobs(home: Home, party: str | None = None) -> list[dict[str, Any]]:
    return home.control(home.choose(party)).jobs()


def cancel_job(home: Home, reference: str, party: str | None = None) -> dict[str, Any]:
    client = home.control(home.choose(party))
    return client.cancel(str(find_job(client, reference)["digest"]))


def follow(
    client: ControlClient,
    digest: str,
    *,
    progress: Progress = silent,
    on_code: Callable[[str], None] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
    pins: Mapping[str, Card] | None = None,
) -> Outcome:
    """Watch a run to its end. A control plane that is away is asked again; raises Unavailable if it stays away.

    With ``pins``, a run counts as succeeded only if its release record verifies against them: Untrusted or Denied if
    not, as from ``verify_release``.
    """
    after, silent_polls = 0, 0
    values: dict[str, str] = {}
    while True:
        try:
            answer = client.events(digest, after)
        except Unavailable:
            silent_polls += 1
            if silent_polls >= _PATIENCE:
                raise
            sleep(1.0)
            continue
        silent_polls = 0
        for entry in answer["events"]:
            after = int(entry["seq"])
            values |= _show(entry["event"], progress, on_code)
        if answer["final"]:
            return _outcome(client, digest, values, pins)


def _show(event: dict[str, Any], progress: Progress, on_code: Callable[[str], None]) -> dict[str, str]:
    if event["kind"] == "state":
        on_code(str(event["code"]))
        return {}
    values = {str(k): str(v) for k, v in event["values"].items()}
    progress(Step(str(event["stage"]), int(event["step"]), int(event["total"]), "steps", values))
    return values


def _outcome(client: ControlClient, digest: str, values: dict[str, str], pins: Mapping[str, Card] | None) -> Outcome:
    job = client.job(digest)
    if job["state"] != "succeeded":
        return Outcome(job, values, (), ())
    data = client.release(digest)
    verified = None
    if pins is not None:
        verified, _ = verify_release(data, pins)
        if (verified.job, verified.output) != (digest, job["output"]):
            raise Untrusted("job.release", "The control plane answered with the release record of another job.")
    record = parse_json(data, limit=16 << 20)
    try:
        contract = read_contract(Envelope.from_bytes(record["contract"].encode()))
        manifest = Manifest.from_payload(Envelope.from_bytes(record["manifest"].encode()).payload)
        gates = tuple({name: gate[name] for name in ("metric", "margin", "passed")} for gate in manifest.terms["gates"])
        recipients = tuple(manifest.terms["recipients"])
    except (KeyError, TypeError, AttributeError):
        raise Malformed("release.form", "The release record can't be read; update the client.") from None
    contracted = {name: value for name, value in values.items() if name in contract.telemetry}
    return Outcome(job, contracted, gates, recipients, verified)
