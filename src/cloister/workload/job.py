"""One run, from the job file to the release record. Start reading here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..audit import parse_event
from ..contracts import read_contract, read_job
from ..crypto import Envelope, canonical_json, parse_json
from ..errors import CloisterError, Denied, Malformed, Unavailable
from ..fields import Fields
from ..sealed import SealedObject, open_sealed
from .acquire import Acquired, acquire_keys, record_checkpoint
from .broker_client import BrokerClient
from .checkpoints import CHECKPOINT_TAG, NoCheckpoints, SealedCheckpoints
from .identity import WorkloadIdentity
from .key_session import RunContext
from .leases import LeaseKeeper
from .node_link import NodeLink
from .release import CardFacts, OutputRelease, model_card, provenance_statement
from .telemetry import Telemetry

if TYPE_CHECKING:
    from .pipeline import Outcome

__all__ = ["Place", "run_job"]

_JOB_FILE_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True)
class Place:
    """Where the sandbox put things."""

    job: Path = Path("/job/job.json")
    out: Path = Path("/out")
    socket: Path = Path("/run/cloister.sock")


@dataclass(frozen=True)
class _Order:
    """What the job file asks for: untrusted, and proved only when brokers release keys for it."""

    run: RunContext
    purpose: str
    assets: dict[str, Path]


def run_job(place: Place) -> None:
    """The whole run. Raises a CloisterError when it can't end in a release; nothing has left then but telemetry."""
    order = _read_order(place)
    run = order.run
    telemetry = Telemetry(run.contract, run.link)
    try:
        got = acquire_keys(run, purpose=order.purpose)
    except CloisterError as refusal:
        telemetry.refusal(refusal)
        raise
    telemetry.state("keys")
    try:
        with _leases(run, got, telemetry) as lease, _assets(order, got) as assets:
            # The training libraries take seconds to load. A run that is refused has been told so before that.
            from .pipeline import Inputs, train_and_evaluate

            outcome = train_and_evaluate(
                Inputs(
                    recipe=run.job.recipe,
                    data=assets[run.job.data],
                    base=assets[run.job.base],
                    gates=run.contract.gates,
                    run=run.job.digest.hex(),
                    general=None if run.job.general is None else assets[run.job.general],
                ),
                sink=_checkpoints(place, run, got, lease),
                progress=telemetry,
                lease=lease,
            )
            _require_gates(outcome, telemetry)
            for asset in assets.values():
                asset.require_complete()  # every byte that was trained on is what the manifests name
            lease.check()
            telemetry.state("release")
            _release(place, run, got, outcome, lease)
    except BaseException as problem:
        telemetry.failure(problem)
        raise


def _read_order(place: Place) -> _Order:
    f = Fields(parse_json(place.job.read_bytes(), limit=_JOB_FILE_LIMIT), "job file")
    contract = read_contract(Envelope.from_bytes(f.text("contract", limit=_JOB_FILE_LIMIT).encode()))
    job = read_job(Envelope.from_bytes(f.text("job", limit=_JOB_FILE_LIMIT).encode()), contract)
    run = RunContext(
        contract=contract,
        job=job,
        instance=f.hex("instance", 16),
        tee=f.text("tee", limit=32),
        identity=WorkloadIdentity(),
        link=NodeLink(place.socket),
    )
    purpose = f.text("purpose", choices=("release", "resume"))
    assets = f.mapping("assets", lambda _, v: Path(v) if isinstance(v, str) else _bad_path(), limit=16)
    f.done()
    return _Order(run, purpose, assets)


def _bad_path() -> Path:
    raise Malformed("job.path", "The job file's asset paths are not text.")


@contextlib.contextmanager
def _leases(run: RunContext, got: Acquired, telemetry: Telemetry) -> Iterator[LeaseKeeper]:
    keeper = LeaseKeeper(run, got.keys, got.leases, on_lost=telemetry.refusal)
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.stop()


@contextlib.contextmanager
def _assets(order: _Order, got: Acquired) -> Iterator[dict[bytes, SealedObject]]:
    """The assets, verified and open; the rest of their ciphertext is checked in the background while training runs."""
    with contextlib.ExitStack() as stack:
        opened: dict[bytes, SealedObject] = {}
        for digest in order.run.job.assets:
            asset = order.run.contract.asset(digest)
            folder = order.assets.get(digest.hex())
            if folder is None:
                raise Unavailable("job.asset", "The node did not provide one of the job's assets.")
            sealed = open_sealed(
                folder,
                dek=got.keys.use(digest.hex()),
                expected_digest=digest,
                signer_keys=[order.run.contract.parties[asset.owner].signing],
                owner=asset.owner,
            )
            opened[digest] = stack.enter_context(sealed)
            sealed.check_roots(background=True)
        yield opened


def _checkpoints(place: Place, run: RunContext, got: Acquired, lease: LeaseKeeper) -> SealedCheckpoints | NoCheckpoints:
    if run.contract.trustees:
        return NoCheckpoints()
    return SealedCheckpoints(
        run,
        got.keys.use(CHECKPOINT_TAG),
        place.out / "checkpoints",
        known=got.checkpoint,
        record=lambda record: lease.patiently(lambda: record_checkpoint(run, record)),
    )


def _require_gates(outcome: Outcome, telemetry: Telemetry) -> None:
    telemetry.state("gate")
    for gate in outcome.gates:
        if gate["passed"] is not True:
            raise Denied("gate.failed", "A gate of the contract did not pass, so nothing is released.")


def _release(place: Place, run: RunContext, got: Acquired, outcome: Outcome, lease: LeaseKeeper) -> None:
    def ask_permit(owner: str, manifest: str) -> dict[str, Any]:
        return lease.patiently(lambda: _ask_permit(run, owner, manifest))

    release = OutputRelease(run, place.out, ask_permit)
    measurement = _fact(got, "measurement")
    # The manifest is readable in the store, so it says that gates passed; by how much stands in the sealed files.
    gates = [{name: gate[name] for name in ("metric", "margin", "passed")} for gate in outcome.gates]
    facts = CardFacts(
        evaluation=outcome.evaluation,
        gates=outcome.gates,
        terms=release.terms(),
        usage=outcome.usage,
        measurement=measurement,
        assurance=_fact(got, "level"),
        unbound=[key.statement() for key in got.unbound],
    )
    files = {
        **outcome.files,
        "README.md": model_card(run.contract, run.job, facts).encode(),
        "evaluation.json": canonical_json(dict(outcome.evaluation)),
    }
    statement = provenance_statement(
        files, run.contract, run.job, run.instance, measurement, run.identity.signing, unbound=facts.unbound
    )
    release.release({**files, "provenance.dsse.json": statement.to_bytes()}, gates, got.released, got.tokens)


def _fact(got: Acquired, name: str) -> str:
    """What the owners' logs say about this very run: all of them the same, or nothing leaves."""
    found = {str(parse_event(k.receipt.leaf).details.get(name)) for keys in got.released.values() for k in keys}
    if len(found) != 1:
        raise Denied("release.facts", f"The owners' brokers logged different values of {name} for this run.")
    return found.pop()


def _ask_permit(run: RunContext, owner: str, manifest: str) -> dict[str, Any]:
    client = BrokerClient(run.link, run.contract, owner)
    try:
        f = Fields(client.post("/cloister/v1/permit", {"manifest": manifest}), "permit answer")
        return {"permit": f.text("permit", limit=1 << 20), "receipt": f.raw("receipt")}
    finally:
        client.close()
