"""Outputs: the permit that lets one leave, and the unwrapping of one that this party receives."""

from __future__ import annotations

from collections.abc import Sequence

from ..audit import Receipt
from ..contracts import (
    Contract,
    Job,
    check_output,
    check_signatures,
    permit_envelope,
    read_contract,
    read_job,
    read_permit,
)
from ..crypto import Envelope, frame
from ..errors import CloisterError, Denied, Untrusted
from ..fields import Fields
from ..sealed import MANIFEST_TYPE, Manifest, check_dek
from .core import Core
from .decision import Instance, check_unreleased
from .leases import live_run
from .refusals import About
from .state import ENTRY, Change

__all__ = ["Permits"]


class Permits:
    """What an owner's broker says about outputs, and what a recipient's broker opens."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def permit(self, envelope: Envelope) -> tuple[Envelope, Receipt]:
        """This owner's consent that the output leaves: logged first, signed after. One output an instance.

        The identical manifest again gives the identical permit. Raises Denied, Untrusted or Malformed.
        """
        manifest = Manifest.from_payload(envelope.payload)
        target = envelope.digest.hex()
        try:
            return self._decide(envelope, manifest)
        except CloisterError as refusal:
            details = {"contract": (manifest.contract or b"").hex(), "job": (manifest.job or b"").hex()}
            about = self._signer_contract(envelope, manifest)
            self._core.ledger.refuse("permit.refused", refusal, target=target, details=details, about=about)
            raise

    def _signer_contract(self, envelope: Envelope, manifest: Manifest) -> About | None:
        """Of the instance that signed the manifest, if we ever gave it a key: all others are strangers."""
        try:
            claimed = Fields(dict(manifest.terms), "output's terms").hex("instance", 16)
            instance = self._core.knowledge.instance(claimed)
            if instance is None:
                return None
            envelope.verify(MANIFEST_TYPE, [instance.signing])
        except CloisterError:
            return None  # decides only which bucket the refusal counts in
        return instance.contract, "permit"

    def _decide(self, envelope: Envelope, manifest: Manifest) -> tuple[Envelope, Receipt]:
        core = self._core
        instance_id = Fields(dict(manifest.terms), "output's terms").hex("instance", 16)
        with core.ledger.turn():
            contract, instance = live_run(core, manifest.contract or b"", manifest.job or b"", instance_id)
            envelope.verify(MANIFEST_TYPE, [instance.signing])
            given = core.ledger.state.row("permits", instance=instance_id.hex())
            if given is not None:
                if given["output"] != envelope.digest.hex():
                    raise Denied("permit.other", "This instance has a permit for another output already.")
                receipt = core.ledger.log.receipt(given["entry"])
                return self._signed(contract, instance, envelope.digest, given["issued"]), receipt
            check_unreleased(core.knowledge.permitted(instance.job), instance_id)
            check_output(manifest, contract, self._job(contract, instance.job), instance_id)
            issued = core.clock()
            row = {"instance": instance_id.hex(), "output": envelope.digest.hex(), "issued": issued, "entry": ENTRY}
            receipt = core.ledger.commit(
                "permit.issued",
                target=envelope.digest.hex(),
                details={
                    "contract": contract.digest.hex(),
                    "instance": instance_id.hex(),
                    "job": instance.job.hex(),
                    "output": envelope.digest.hex(),
                },
                changes=[Change("permits", row)],
            )
        # Only what the log has is signed. The same inputs sign to the same bytes, so nothing else needs to be kept.
        return self._signed(contract, instance, envelope.digest, issued), receipt

    def _signed(self, contract: Contract, instance: Instance, output: bytes, issued: int) -> Envelope:
        owner, key = self._core.parties.card.name, self._core.keys.receipt
        return permit_envelope(owner, contract.digest, instance.job, output, instance.instance, key, now=issued)

    def _job(self, contract: Contract, digest: bytes) -> Job:
        row = self._core.ledger.state.row("jobs", digest=digest.hex())
        if row is None:
            raise Denied("job.unknown", "This broker knows no such run.")
        return read_job(Envelope.from_bytes(row["envelope"].encode()), contract)

    def open_secret_output(
        self, contract_envelope: Envelope, job_envelope: Envelope, manifest_envelope: Envelope, wrap: bytes,
        permits: Sequence[Envelope],
    ) -> bytes:  # fmt: skip
        """The data key of an output that this party receives, after every owner's permit for it, and after the log."""
        core = self._core
        contract = read_contract(contract_envelope)
        check_signatures(contract, core.parties.pinned())
        lost = sorted(core.parties.compromised() & set(contract.parties))
        if lost:  # whoever has those keys could have signed permits
            raise Denied("party.compromised", f"The keys of {lost[0]} are declared compromised.", party=lost[0])
        job = read_job(job_envelope, contract)
        if manifest_envelope.payload_type != MANIFEST_TYPE:
            raise Untrusted("output.manifest", "The output's manifest is not a manifest.")
        manifest = Manifest.from_payload(manifest_envelope.payload)
        digest = manifest_envelope.digest
        instance = _check_permits(contract, job, digest, permits)
        output = check_output(manifest, contract, job, instance)
        own = core.parties.card.name
        if own not in output.recipients:
            raise Denied("output.recipient", "This party is not a recipient of this output.")
        details: dict[str, str | int] = {
            "contract": contract.digest.hex(),
            "instance": instance.hex(),
            "job": job.digest.hex(),
            "name": output.name,
        }
        core.ledger.append("output.unwrapped", target=digest.hex(), details=details)
        info = frame("cloister/output/v1", contract.digest, job.digest, digest)
        dek = core.keys.hpke.open(wrap, info)
        check_dek(manifest, dek)
        return dek


def _check_permits(contract: Contract, job: Job, output: bytes, permits: Sequence[Envelope]) -> bytes:
    """The instance that made the output, if every owner permitted exactly this output of this job by it."""
    given: dict[str, bytes] = {}
    for envelope in permits:
        permit = read_permit(envelope, contract)
        if (permit.job, permit.output) != (job.digest, output):
            raise Untrusted("permit.output", f"The permit of {permit.owner} is for another output.")
        given[permit.owner] = permit.instance
    missing = sorted(set(contract.brokers()) - set(given))
    if missing:
        raise Denied("permit.missing", f"There is no permit of {missing[0]} for this output.", party=missing[0])
    instances = set(given.values())
    if len(instances) != 1:
        raise Untrusted("permit.instance", "The owners permitted outputs of different instances.")
    return instances.pop()
