"""How long operations tell what they do: one small record, one callback, no terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["Progress", "Step", "silent"]


@dataclass(frozen=True)
class Step:
    """``stage`` is at ``done`` of ``total`` (bytes or steps; 0 where unknown). ``values`` are figures by name."""

    stage: str
    done: int
    total: int
    unit: str = "steps"
    values: Mapping[str, str] = field(default_factory=dict)


Progress = Callable[[Step], None]


def silent(_: Step) -> None:
    """For callers that don't watch."""
