"""The node's attester: it alone holds the attestation key, and says what each sandbox is.

A workload never chooses what is said about it: the agent knows the asker by its sandbox's own socket, opens that
sandbox's launch event itself, and computes the report over its own additional evidence. The workload brings only
the nonce and its public key.
"""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..attestation.binding import report_data
from ..attestation.events import PCR_START, Journal, event_digest
from ..attestation.models import Evidence
from ..attestation.tpm import BOOT_PCRS, EVENT_PCR, MAX_BOOT_LOG, QUOTED_PCRS
from ..attestation.tpm.enrolment import Challenge, EnrolmentRequest
from ..attestation.tpm.parser import parse_attest
from ..crypto import sha256
from ..errors import CloisterError, Malformed, Unavailable
from .boot_logs import TPM_LOG as BOOT_LOG
from .boot_logs import explaining_log
from .devices import Devices, beside
from .enrolment import ask, prove
from .swtpm import SoftwareTpm
from .tpm import Identity, Tpm

__all__ = ["BOOT_LOG", "TpmAttester"]


class TpmAttester:
    """See ``attestation.ports.Attester``. Build it with ``software`` or ``hardware``. Thread-safe.

    PCR 15 must be untouched, because the log starts with this agent: a hardware TPM needs a reboot before a second
    agent can start, a software TPM starts anew by itself. Raises Unavailable otherwise.
    """

    tee = "tpm"

    def __init__(
        self,
        tpm: Tpm,
        identity: Identity,
        agent_measurement: bytes,
        on_close: Callable[[], None],
        boot_log: Path | None = None,
        devices: Devices | None = None,
    ) -> None:
        self._tpm = tpm
        self._devices = devices or Devices()
        self._identity = identity
        self._booted = tpm.read_pcrs(BOOT_PCRS)
        self._boot_log = b"" if boot_log is None else explaining_log(boot_log, self._booted, limit=MAX_BOOT_LOG)
        self._on_close = on_close
        self._lock = threading.Lock()
        self._usable = True
        self._pcrs: dict[int, bytes] | None = None
        self._journal = Journal(agent_measurement)
        if tpm.read_pcrs([EVENT_PCR])[EVENT_PCR] != PCR_START:
            raise Unavailable("attester.pcr-used", "PCR 15 was used since this machine started; reboot it first.")
        tpm.extend(EVENT_PCR, self._journal.agent_digest)

    @classmethod
    def software(cls, state: Path, agent_measurement: bytes, *, devices: Devices | None = None) -> TpmAttester:
        """With a software TPM whose identity lives in ``state``. ``agent_measurement``: 32 bytes. Level none."""
        swtpm = SoftwareTpm(state)
        with contextlib.ExitStack() as undo:
            undo.callback(swtpm.close)
            tpm = Tpm(swtpm.tcti)
            undo.callback(tpm.close)

            def stop() -> None:
                # An orderly shutdown only matters to a TPM that still answers.
                with contextlib.suppress(Unavailable):
                    tpm.shutdown()
                tpm.close()
                swtpm.close()

            attester = cls(tpm, tpm.load_identity(state), agent_measurement, stop, devices=devices)
            undo.pop_all()
            return attester

    @classmethod
    def hardware(
        cls,
        tcti: str,
        state: Path,
        agent_measurement: bytes,
        *,
        boot_log: Path | None = BOOT_LOG,
        devices: Devices | None = None,
    ) -> TpmAttester:
        """With the machine's own TPM, for example ``device:/dev/tpmrm0``; ``state`` keeps the attestation key.

        ``boot_log``: the firmware's event log, which goes along where it can be read and explains the TPM's registers.
        """
        with contextlib.ExitStack() as undo:
            tpm = Tpm(tcti)
            undo.callback(tpm.close)
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            attester = cls(tpm, tpm.load_identity(state), agent_measurement, tpm.close, boot_log, devices)
            undo.pop_all()
            return attester

    @property
    def attester_id(self) -> str:
        """SHA-256 of the attestation key's Name, hex: the same after every restart."""
        return self._identity.attester_id

    def extend_launch(
        self, instance: bytes, measurement: bytes, contract: bytes, job: bytes, *, exclusive: bool = False
    ) -> None:
        """Measure a sandbox before it starts. Denied for a used instance id, Unavailable if the TPM fails."""
        with self._lock:
            self._check_usable()
            gpus = self._devices.hand_out()
            event = self._journal.prepare(instance, measurement, contract, job, gpus=gpus, exclusive=exclusive)
            try:
                self._pcrs = None  # read anew, whatever becomes of this
                self._tpm.extend(EVENT_PCR, event_digest(event))
            except CloisterError:
                # The TPM may or may not have taken it: our log could now be wrong, and can't be mended.
                self._usable = False
                raise
            self._journal.commit(event)

    def evidence(self, instance: bytes, nonce: str, tee_pubkey: Mapping[str, Any]) -> dict[str, Any]:
        """Evidence in wire form for a running sandbox; Denied for any other, Malformed for a bad nonce or key."""
        found = self._devices.evidence(nonce, tee_pubkey)
        with self._lock:
            self._check_usable()
            additional = beside(self._journal.additional(instance), found)
            report = report_data(nonce, tee_pubkey, additional)
            # One lock around reading and quoting, so that no launch changes PCR 15 in between.
            pcrs, quote, signature = self._quoted(report)
        primary = {
            "quote": _base64(quote),
            "signature": _base64(signature),
            "ak_public": _base64(self._identity.ak_public),
            "ek_public": _base64(self._identity.ek_public),
            "pcrs": {str(index): value.hex() for index, value in pcrs.items()},
        }
        if self._boot_log and self._booted.items() <= pcrs.items():
            # It says more about the boot, but is never the reason why there is no evidence: events may fill the space,
            # and a system may extend a boot PCR later, which the firmware's log can't tell of.
            with contextlib.suppress(Malformed):
                return Evidence(self.tee, {**primary, "boot_log": _base64(self._boot_log)}, additional).to_wire()
        return Evidence(self.tee, primary, additional).to_wire()

    def enrolment(self) -> EnrolmentRequest:
        """What an owner needs first, to enrol this TPM. Unavailable ``tpm.no-certificate`` for one without a
        maker's."""
        with self._lock:
            self._check_usable()
            return ask(self._tpm, self._identity)

    def prove(self, request: EnrolmentRequest, challenge: Challenge) -> bytes:
        """The proof (32 bytes) that answers an owner's challenge; Untrusted if that isn't for this TPM and key."""
        with self._lock:
            self._check_usable()
            return prove(self._tpm, request, challenge)

    def _quoted(self, report: bytes) -> tuple[dict[int, bytes], bytes, bytes]:
        """Values and a quote of them. Boot PCRs hardly ever change, and reading them takes longer than the quote: those
        that were read last are kept, and read anew where the quote's digest says that they are not what was quoted."""
        for kept in (self._pcrs, None):
            pcrs = kept if kept is not None else self._tpm.read_pcrs(QUOTED_PCRS)
            quote, signature = self._tpm.quote(report, QUOTED_PCRS)
            if parse_attest(quote).pcr_digest == sha256(b"".join(pcrs[index] for index in sorted(pcrs))):
                break
        self._pcrs = pcrs
        return pcrs, quote, signature

    def retire(self, instance: bytes) -> None:
        """The sandbox ended: no more evidence for it. Its event stays in the log."""
        with self._lock:
            self._journal.retire(instance)

    def close(self) -> None:
        """Let go of the TPM, and stop it if it is ours. Calling it again does nothing."""
        with self._lock:
            self._usable = False
            closing, self._on_close = self._on_close, _nothing
        closing()

    def _check_usable(self) -> None:
        if not self._usable:
            raise Unavailable("attester.unusable", "The attester is closed or its TPM failed; restart the node agent.")

    def __enter__(self) -> TpmAttester:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _nothing() -> None:
    """What closing a closed attester does."""


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
