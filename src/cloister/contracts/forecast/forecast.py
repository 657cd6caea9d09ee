"""Memory and time of one recipe on one machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import Misuse
from ..recipe import Recipe
from .duration import Duration, Machine, forecast_duration
from .memory import Memory, forecast_memory, packs
from .rows import Rows
from .shape import Shape

__all__ = ["Forecast", "forecast"]


@dataclass(frozen=True)
class Forecast:
    """``bf16``: the precision that the recipe comes to on that machine. ``packed``: rows without padding."""

    memory: Memory
    duration: Duration
    bf16: bool
    packed: bool

    def document(self) -> dict[str, Any]:
        """For programs: bytes, seconds, and floating point operations, all whole numbers."""
        least, most = self.duration.seconds
        return {
            "memory_bytes": {**self.memory.parts, "total": self.memory.total},
            "moment": self.memory.moment,
            "tokens": self.duration.tokens,
            "steps": self.duration.steps,
            "flops": round(self.duration.flops),
            "seconds": {"least": round(least), "most": round(most)},
            "precision": "bf16" if self.bf16 else "fp32",
            "packed": self.packed,
        }


def forecast(recipe: Recipe, shape: Shape, rows: Rows, machine: Machine) -> Forecast:
    """Pure: the same arguments, the same figures. Misuse (``recipe.forecast``) for a party's own program, of which
    nobody knows what it does."""
    if recipe.task == "script":
        raise Misuse("recipe.forecast", "What a party's own program takes can't be forecast; ask its author.")
    bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and machine.bf16)
    longest = recipe.max_length if shape.positions is None else min(recipe.max_length, shape.positions)
    cut = rows.cut(longest)
    packed = packs(recipe)
    memory = forecast_memory(recipe, shape, cut, bf16=bf16, gpu=machine.gpu)
    return Forecast(memory, forecast_duration(recipe, shape, cut, machine, bf16=bf16, packed=packed), bf16, packed)
