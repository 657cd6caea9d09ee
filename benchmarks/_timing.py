"""What one training took, bare or confidential, and the comparison of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

__all__ = ["FIXED", "Timed", "compare"]

# What a confidential run adds, whatever the size of the training. ``attest`` is from the launch to the keys: measuring
# the image, telling the TPM, starting the sandbox and its Python, handshakes with all brokers.
FIXED = ("seal", "download", "attest", "release", "upload")


@dataclass(frozen=True)
class Timed:
    """Seconds. ``train``: the training loop alone, of ``steps`` steps; ``wall``: from the first act to the result in
    the owner's hands; ``parts``: the stages of a confidential run."""

    train: float
    steps: int
    tokens: int
    accuracy: float
    wall: float
    parts: Mapping[str, float]

    @classmethod
    def from_evaluation(cls, evaluation: Mapping[str, Any], parts: Mapping[str, float], wall: float) -> Timed:
        return cls(
            train=float(evaluation["train_seconds"]),
            steps=int(evaluation["train_steps"]),
            tokens=int(evaluation["train_tokens"]),
            accuracy=float(evaluation["accuracy"]),
            wall=wall,
            parts=dict(parts),
        )

    @property
    def steps_per_second(self) -> float:
        return self.steps / self.train

    @property
    def fixed(self) -> float:
        return sum(self.parts.get(name, 0.0) for name in FIXED)

    @property
    def outside_loop(self) -> float:
        return self.wall - self.train


def compare(bare: Sequence[Timed], confidential: Sequence[Timed]) -> dict[str, float]:
    """The metrics. Each confidential run is compared with the bare one beside it, and the median of those is taken:
    on a machine whose other load changes slowly, both of a pair meet the same."""
    pairs = list(zip(bare, confidential, strict=True))
    out = {
        "throughput_ratio": median(c.steps_per_second / b.steps_per_second for b, c in pairs),
        "wall_ratio": median(c.wall / b.wall for b, c in pairs),
        "fixed_overhead_s": median(c.fixed for c in confidential),
        # The same question asked from outside: everything but the loop, less what a bare run needs for it.
        "added_outside_loop_s": median(c.outside_loop - b.outside_loop for b, c in pairs),
        "bare_steps_per_s": median(b.steps_per_second for b in bare),
        "confidential_steps_per_s": median(c.steps_per_second for c in confidential),
        "bare_tokens_per_s": median(b.tokens / b.train for b in bare),
        "confidential_tokens_per_s": median(c.tokens / c.train for c in confidential),
        "bare_train_s": median(b.train for b in bare),
        "confidential_train_s": median(c.train for c in confidential),
        "lowest_throughput_ratio": min(c.steps_per_second / b.steps_per_second for b, c in pairs),
        "highest_throughput_ratio": max(c.steps_per_second / b.steps_per_second for b, c in pairs),
    }
    names = sorted({name for c in confidential for name in c.parts})
    return out | {f"{name}_s": median(c.parts.get(name, 0.0) for c in confidential) for name in names}
