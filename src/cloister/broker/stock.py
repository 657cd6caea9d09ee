"""Guests that speak KBS as published and nothing else. Their nonce names nothing, so the hardware must.

Such a guest was started by an untrusted host with init-data, whose digest the hardware signs (HOST_DATA, MRCONFIGID, or
a PCR that was extended once). The init-data holds the signed job, the job names its contract, and this broker knows the
contract itself. So the evidence commits to a job under a contract, as ``ctx`` does for our own workload. Beside that
much is missing: no HPKE key, so the key goes out under the response key alone; no lease that could be renewed, no
checkpoint, no output that a permit could be asked for. So a contract must allow it in so many words, and a broker
serves no such guest unless its owner switched it on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from ..attestation import Claims
from ..attestation.guests import Guest, GuestJudge
from ..contracts import Contract, Job, read_job
from ..crypto import Envelope, canonical_json, frame, sha256
from ..errors import CloisterError, Denied
from ..fields import Fields
from .core import Core
from .decision import Request
from .init_data import InitData, check_init_data
from .kbs_request import Attestation, Knock

__all__ = ["JOB_ENTRY", "Guest", "GuestJudge", "StockGuests"]

JOB_ENTRY: Final = "cloister.job"
"""The entry of the init-data that holds the job: a DSSE envelope as text."""
_FIRST: Final = (0, 3, 0)  # before it a message has no init-data
_NO_DEVICES: Final = ("", "{}")


class StockGuests:
    """``judges`` by platform; ``allows``: whether a contract accepts such guests. Both may only narrow."""

    def __init__(self, core: Core, judges: Mapping[str, GuestJudge], allows: Callable[[Contract], bool]) -> None:
        self._core = core
        self._judges = dict(judges)
        self._allows = allows

    def check_knock(self, knock: Knock) -> None:
        """What can be said before a challenge. Raises Denied."""
        if knock.tee not in self._judges:
            raise Denied("stock.platform", "This broker judges no guests of this platform without a launch log.")
        if knock.version < _FIRST:
            raise Denied("stock.version", "A guest without our parameters needs init-data: KBS 0.3 or later.")
        if "sha256" not in knock.hashes:
            # It would hash with its own default, and what the hardware signed could never match.
            raise Denied("kbs.hash", "This broker binds evidence with SHA-256, which the guest does not offer.")

    def admit(self, tee: str, nonce: str, message: Attestation, *, now: int) -> tuple[Request, Claims]:
        """What a guest asks for, according to its hardware, and what that proved. The decision is still to be made.

        Raises Malformed, Untrusted or Denied.
        """
        init = message.init_data
        if init is None:
            raise Denied(
                "stock.init-data", "A guest without our parameters must show the init-data that names its job."
            )
        # What the init-data says, in our own words for it. Nothing vouches for it yet.
        contract, job = self._named(init)
        if message.additional not in _NO_DEVICES:
            # The report covers it, and nobody here would look at it: it could be the one that says "debug".
            raise Denied("stock.devices", "This broker judges no devices beside a guest without our parameters.")
        # Authentic, fresh, bound to this nonce and this response key.
        guest = self._judges[tee].judge(message.primary, message.report(nonce), now=now)
        # And started with exactly this init-data.
        check_init_data(init, guest.device)
        request = Request(
            purpose="release",
            tee=tee,
            contract=contract,
            job=job,
            instance=sha256(frame("cloister/stock-instance/v1", nonce))[:16],
            hpke=b"",
            signing=sha256(frame("cloister/stock-key/v1", canonical_json(message.tee_pubkey))),
            sequence=0,
            statements=self._statements(contract),
        )
        return request, _claims(guest, request)

    def _named(self, init: InitData) -> tuple[Contract, Job]:
        text = init.data.get(JOB_ENTRY)
        if text is None:
            raise Denied("stock.job", f"The init-data has no entry {JOB_ENTRY} with the signed job.")
        envelope = Envelope.from_bytes(text.encode())
        digest = Fields(envelope.document(), "job").hex("contract", 32)
        contract = self._core.knowledge.contract(digest)
        if contract is None:
            raise Denied("stock.contract-unknown", "This broker holds no contract of the digest that the job names.")
        if not self._allows(contract):
            raise Denied("stock.contract", "The contract does not allow guests without our parameters.")
        return contract, read_job(envelope, contract)

    def _statements(self, contract: Contract) -> tuple[Envelope, ...]:
        """Such a guest brings no statements. So we ask the others ourselves; who is silent has not consented."""
        found = []
        for name, card in sorted(self._core.parties.pinned().items()):
            if name not in contract.speaking() or name == self._core.parties.card.name:
                continue
            try:
                answer = self._core.peers.get(card, f"/cloister/v1/status/{contract.digest.hex()}")
                text = Fields(answer, "peer's answer").text("statement", limit=self._core.limits.peer_answer)
                found.append(Envelope.from_bytes(text.encode()))
            except CloisterError:
                continue  # the decision counts who spoke
        return tuple(found)


def _claims(guest: Guest, request: Request) -> Claims:
    return Claims(
        tee=request.tee,
        level=guest.level,
        attester=guest.attester,
        # The whole guest is the workload: a contract that allows this names its digest as agent and as measurement.
        measurement=guest.agent,
        agent=guest.agent,
        instance=request.instance.hex(),
        contract=request.contract.digest.hex(),
        job=request.job.digest.hex(),
        hardware=guest.device.hardware,
        notes=("Bound by init-data: the nonce of a stock guest names no contract and no job.", *guest.device.notes),
        devices=(guest.device,),
    )
