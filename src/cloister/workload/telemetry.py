"""What may leave while a run goes on: contracted names, a fixed schedule, quantized values, coded messages."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from ..contracts import Contract
from ..errors import CloisterError
from .node_link import NodeLink
from .reasons import spoken

__all__ = ["Telemetry"]

_POINTS = 100  # progress events per stage, whatever happens inside it
_LOOK = "look"
_QUANTUM = Decimal("0.0001")


class Telemetry:
    """The filter. Anything that the contract doesn't name is dropped here, inside the trusted code."""

    def __init__(self, contract: Contract, link: NodeLink) -> None:
        self._allowed = frozenset(contract.telemetry)
        self._link = link
        self._last: dict[str, int] = {}

    def report(self, stage: str, step: int, total: int, values: Mapping[str, str]) -> None:
        """Progress of ``stage``. At most ``_POINTS`` events a stage, at fixed fractions of ``total``."""
        slot = step * _POINTS // max(total, 1)
        if stage not in self._last:
            if stage != _LOOK:  # it happens within training, which goes on after it
                self.state(stage)
        elif self._last[stage] == slot:
            return
        self._last[stage] = slot
        kept = {name: _quantize(value) for name, value in values.items() if name in self._allowed}
        self._link.telemetry({"kind": "progress", "stage": stage, "step": step, "total": total, "values": kept})

    def state(self, code: str) -> None:
        """One of the codes of docs/spec/workload.md."""
        self._link.telemetry({"code": code, "kind": "state"})

    def failure(self, error: BaseException) -> None:
        """How the run ended badly: a code, and the sentence that ``reasons`` has for it."""
        self._link.telemetry({"code": "failed", "error": spoken(error), "kind": "state"})

    def refusal(self, error: CloisterError) -> None:
        """A refusal from outside: of a broker, of the node. It was worded where there is no plaintext."""
        self._link.telemetry({"code": "failed", "error": error.to_wire(), "kind": "state"})


def _quantize(value: str) -> str:
    number = Decimal(value)
    return str(number.quantize(_QUANTUM)) if number.is_finite() else "nan"
