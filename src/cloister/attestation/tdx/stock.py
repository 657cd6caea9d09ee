"""TDX guests of the Confidential Containers kind: what a quote without our launch log proves. Pure.

Evidence is ``{"quote": base64, "cc_eventlog": base64 or null, "aa_eventlog": text or null}``; the two logs may be left
out. The first is the CCEL log, which newer guests go on writing when they run, into RTMR 3. The second is a text of
older guests about RTMR 3: it is not looked at, and nothing depends on it. RTMR 3 itself is told, for an owner's policy.

Source: confidential-containers/guest-components, ``attestation-agent/attester/src/tdx``, and the verifier of Trustee.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from ...fields import Fields
from ..collateral import Collateral, Staleness
from ..guests import Guest
from ..models import guest_digest
from .roots import ROOTS
from .runtime import RTMR_START
from .verifier import GUEST_MEASUREMENTS, attester_id, boot_facts, level_of, prove_domain, read_boot_log, read_quote

__all__ = ["TdxGuestJudge"]

_MAX_TEXT: Final = 64 * 1024
_RUNTIME: Final = 3
_NOTE_RUNTIME: Final = "The guest's own event log was not looked at; what it has extended into RTMR 3 is told as it is."


class TdxGuestJudge:
    """See ``guests.GuestJudge``. ``roots``: only tests have others than Intel's."""

    tee = "tdx"

    def __init__(self, collateral: Collateral, staleness: Staleness, *, roots: Collection[str] = ROOTS) -> None:
        self._collateral = collateral
        self._staleness = staleness
        self._roots = frozenset(roots)

    def judge(self, primary: object, report: bytes, *, now: int) -> Guest:
        """The report data must be ``report`` (32 bytes) and 32 zero bytes, exactly. A CCEL log that comes along must
        lead to RTMR 0 to 2, and to RTMR 3 if it speaks of that."""
        f = Fields(primary, "TDX evidence")
        raw = read_quote(f.raw("quote"))
        sent = f.raw("cc_eventlog", optional=True)
        log = None if sent in (None, "") else read_boot_log(sent)
        f.optional_text("aa_eventlog", limit=_MAX_TEXT)
        f.done()
        cpu, body = prove_domain(raw, report, self._collateral, self._staleness, now=now, roots=self._roots)
        cpu.facts.update(boot_facts(log, body))
        told = log is not None and any(event.extends and event.index == _RUNTIME + 1 for event in log.events)
        if not told and body.rtmrs[_RUNTIME] != RTMR_START:
            cpu = replace(cpu, notes=(*cpu.notes, _NOTE_RUNTIME))
        return Guest(
            level=level_of(cpu),
            attester=attester_id(cpu.identity),
            agent=guest_digest(self.tee, {name: cpu.measurements[name] for name in GUEST_MEASUREMENTS}),
            device=cpu,
        )
