"""What a private run draws: which units a step takes, and its noise. Both are pure functions of one secret seed, of
what the run is, and of the step: a resumed run draws again what the interrupted one drew.

The generator is AES-256 in counter mode (``crypto.stream``), each use under a key of its own that HKDF-SHA256 derives
from the seed. Whoever lacks the seed can tell none of it from truly random numbers. README.md argues why this is safe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ....crypto import canonical_json, constant_time_equal, frame, hkdf, random_bytes, sha256
from ....crypto.stream import keystream
from ....errors import Denied

__all__ = ["NoiseSource", "gaussians"]

_SEED = 32
_KEY, _NONCE = 32, 16
_WORD = 8  # bytes
_BITS = 53  # of a uniform number, as many as a float64 holds
_CHUNK = 1 << 15  # numbers that are made at a time: they stay in the processor's cache, and below torch's threads
_GROUP = 1 << 22  # numbers that are noised together, to bound the memory
_GRID_BITS = 24


@dataclass(frozen=True)
class NoiseSource:
    """``run``: what the run is (recipe, base, rows, units, machine). Another run with the same seed draws unrelated
    numbers."""

    seed: bytes = field(repr=False)
    run: bytes

    @classmethod
    def fresh(cls, identity: Mapping[str, str]) -> NoiseSource:
        return cls(random_bytes(_SEED), _run(identity))

    @classmethod
    def resumed(cls, state: Any, identity: Mapping[str, str]) -> NoiseSource:
        """From a checkpoint's ``state``. Denied (``resume.differs``) if it is not of this very run: the same noise on
        other rows, or other noise on the same ones, would take away what hides them."""
        found = state if isinstance(state, Mapping) else {}
        seed, bound = found.get("seed"), found.get("bound")
        if isinstance(seed, str) and isinstance(bound, str) and len(seed) == 2 * _SEED:
            try:
                source = cls(bytes.fromhex(seed), _run(identity))
            except ValueError:
                source = None
            if source is not None and constant_time_equal(source._bound().hex().encode(), bound.encode()):
                return source
        raise Denied(
            "resume.differs",
            "The checkpoint's noise was drawn for another run; a private run goes on only where it began.",
        )

    def state(self) -> dict[str, str]:
        """For the sealed checkpoint and nothing else: it holds the seed."""
        return {"bound": self._bound().hex(), "seed": self.seed.hex()}

    def chosen(self, step: int, units: int, rate: float) -> NDArray[np.int64]:
        """The units that ``step`` takes, each with probability ``rate`` by itself (Poisson sampling); often none."""
        stream = self._stream("units", step, 0, units * _WORD)
        drawn = np.frombuffer(stream, dtype=np.dtype("<u8")) >> np.uint64(64 - _BITS)
        return np.flatnonzero(drawn < np.uint64(math.floor(rate * 2**_BITS)))

    def add_to(self, step: int, sums: Sequence[torch.Tensor], deviation: float) -> Iterator[torch.Tensor]:
        """Each tensor plus Gaussian noise of this standard deviation, in float32, in the order of ``sums``.

        It is added in float64, and the result is rounded to a grid much finer than the noise. Every grid point within
        eight deviations can come out, whatever was summed: the low bits, which give Gaussian noise in floating point
        away (Mironov 2012), are gone.
        """
        if deviation == 0:
            yield from sums
            return
        grid = 2.0 ** (math.floor(math.log2(deviation)) - _GRID_BITS)
        for number, group in enumerate(_groups(sums)):
            flat = torch.cat([tensor.detach().reshape(-1).cpu().double() for tensor in group])
            drawn = gaussians(self._stream("noise", step, number, _WORD * (len(flat) + len(flat) % 2)))
            flat.add_(drawn[: len(flat)], alpha=deviation).div_(grid).round_().mul_(grid)
            parts = torch.split_with_sizes(flat.float(), [tensor.numel() for tensor in group])
            yield from (part.view_as(tensor).to(tensor.device) for part, tensor in zip(parts, group, strict=True))

    def _stream(self, use: str, step: int, number: int, length: int) -> bytearray:
        drawn = hkdf(self.seed, info=frame("cloister/privacy/v1", use, self.run, step, number), length=_KEY + _NONCE)
        return keystream(drawn[:_KEY], drawn[_KEY:], length)

    def _bound(self) -> bytes:
        return hkdf(self.seed, info=frame("cloister/privacy-bound/v1", self.run))


def gaussians(stream: bytearray) -> torch.Tensor:
    """Standard normal numbers in float64, one for each 8 bytes of ``stream``, whose count is even.

    Box and Muller 1958, on uniforms of 53 bits: exactly normal but for the rounding of float64 and for the tail, which
    ends at 8.57 deviations (all beyond has a probability of 1e-17).
    """
    words = torch.frombuffer(stream, dtype=torch.int64)
    out = torch.empty(len(words), dtype=torch.float64)
    for start in range(0, len(words), _CHUNK):
        piece = words[start : start + _CHUNK]
        uniform = piece.bitwise_right_shift_(64 - _BITS).bitwise_and_((1 << _BITS) - 1).double()
        half = len(uniform) // 2
        radius = uniform[:half].add_(1).mul_(2.0**-_BITS).log_().mul_(-2).sqrt_()  # of (0, 1]: never the log of zero
        angle = uniform[half:].mul_(2 * math.pi * 2.0**-_BITS)
        torch.mul(radius, angle.cos(), out=out[start : start + half])
        torch.mul(radius, angle.sin(), out=out[start + half : start + 2 * half])
    return out


def _run(identity: Mapping[str, str]) -> bytes:
    return sha256(canonical_json(dict(identity)))


def _groups(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """In order, as many as stay within the bound, and at least one."""
    group: list[torch.Tensor] = []
    for tensor in tensors:
        if group and sum(t.numel() for t in group) + tensor.numel() > _GROUP:
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group
