"""How much noise a budget needs: from epsilon, delta, sampling rate and steps to the noise multiplier.

The figures are Opacus's: its PRV accountant (Gopi, Lee, Wutschitz 2021, "Numerical composition of differential
privacy"), whose answer is an upper bound with its own error added, and the older RDP bound beside it. Both are for
Poisson sampling, and for neighbours that differ in one whole unit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache

from opacus.accountants import PRVAccountant, RDPAccountant

from ....contracts.recipe import PrivacySettings
from ....errors import Misuse

__all__ = ["Budget", "plan_noise", "spent_until"]

_LARGEST = 100.0  # epsilon: far beyond it the PRV accountant's exponents overflow
_MOST_NOISE = 1e4  # standard deviations per clip norm; beyond it no model learns anything
_LEAST_NOISE = 0.05
_TOLERANCE = 0.02  # of epsilon: at most so much of the budget is left over
_ERROR = 0.02  # of epsilon: what the PRV accountant may be wrong by, which it adds to its answer
_MESH = 1e-6  # the finest steps on which it adds up: its memory and time grow as they shrink
_PLACES = Decimal("0.000001")


@dataclass(frozen=True)
class Budget:
    """What a run does and what that costs. ``epsilon`` is what is claimed: ``accountant``'s upper bound, at most the
    recipe's. ``epsilon_rdp`` stands beside it: an upper bound too, and mostly a looser one."""

    epsilon: Decimal
    epsilon_rdp: Decimal
    delta: Decimal
    noise_multiplier: float
    rate: float
    steps: int
    accountant: str


def plan_noise(settings: PrivacySettings, *, rate: float, steps: int, units: int) -> Budget:
    """The noise with which ``steps`` steps stay within the recipe's budget and nearly use it. Every step takes
    each unit with probability ``rate``.

    Raises Misuse: ``privacy.few`` where a step would take all units, ``privacy.delta`` where delta is too large for so
    many units to mean anything, ``privacy.unreachable`` where no noise is enough.
    """
    if not 0 < rate < 1:
        raise Misuse(
            "privacy.few",
            "A step would take every row, and privacy needs a random part of them; lower batch_size or"
            " gradient_accumulation, or give more rows.",
        )
    if settings.delta * units >= 1:
        # Giving away one unit in a thousand, whole, is (0, 0.001)-private.
        raise Misuse(
            "privacy.delta",
            f"Delta must be below one over the number of units, which is {units}; lower privacy.delta.",
        )
    return _plan(settings.epsilon, settings.delta, rate, steps)


def spent_until(budget: Budget, steps: int) -> Decimal:
    """An upper bound of the epsilon of the first ``steps`` steps, at the same delta."""
    if steps >= budget.steps:
        return budget.epsilon
    return min(budget.epsilon, _up(_rdp(budget.noise_multiplier, budget.rate, max(steps, 1), float(budget.delta))))


@lru_cache(maxsize=64)
def _plan(epsilon: Decimal, delta: Decimal, rate: float, steps: int) -> Budget:
    target, chance = float(epsilon), float(delta)
    found, accountant = _least(lambda noise: _rdp(noise, rate, steps, chance), target, 1.0), "rdp"
    if target <= _LARGEST:  # the tighter bound needs less noise
        begin = found[0] if found else 1.0
        tighter = _least(lambda noise: _prv(noise, rate, steps, chance, target), target, begin)
        found, accountant = (tighter, "prv") if tighter else (found, accountant)
    if found is None:
        raise Misuse(
            "privacy.unreachable",
            "No noise keeps this run within its budget; raise privacy.epsilon or privacy.delta, or lower epochs.",
        )
    noise, bound = found
    rdp = _rdp(noise, rate, steps, chance)
    # Rounded up, but what was checked against the target stays a bound, however it is rounded.
    return Budget(min(_up(bound), epsilon), _up(rdp), delta, noise, rate, steps, accountant)


def _least(spends: Callable[[float], float], target: float, begin: float) -> tuple[float, float] | None:
    """The noise that spends nearly ``target`` and never more, with what it spends; None if there is none. ``begin``:
    the first guess; little noise takes the accountants long.

    Epsilon falls as noise grows, on a scale of logarithms nearly straight: the secant's guess mostly needs four looks.
    Where it falls outside of what is left, the middle is taken, so the search ends whatever the shape.
    """
    low, high = math.log(_LEAST_NOISE), math.log(_MOST_NOISE)
    best: tuple[float, float] | None = None
    at, slope, before = math.log(begin), -0.4, (0.0, 0.0)
    while high - low > _TOLERANCE / 4:
        spent = spends(math.exp(at))
        if spent <= target:
            high, best = at, (math.exp(at), spent)
            if spent >= target * (1 - _TOLERANCE):
                break
        else:
            low = at
        guess = math.inf
        if 0 < spent < math.inf:
            here = (at, math.log(spent))
            if before != (0.0, 0.0) and here[1] != before[1]:
                slope = (here[0] - before[0]) / (here[1] - before[1])
            before = here
            guess = at + slope * (math.log(target * (1 - _TOLERANCE / 2)) - here[1])
        at = guess if low < guess < high else (low + high) / 2
    return best


def _prv(noise: float, rate: float, steps: int, delta: float, target: float) -> float:
    """Infinite where the numerics don't carry: then nothing is claimed of it. ``target`` tells how exact to be."""
    # Its mesh is the error over this root (Gopi et al., theorem 5.5, with the error in delta that Opacus sets).
    error = max(target * _ERROR, _MESH * math.sqrt(steps * math.log(12_000 / delta) / 2))
    if error > target / 2:
        return math.inf
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    try:
        with warnings.catch_warnings():
            _quiet()
            found = float(accountant.get_epsilon(delta, eps_error=error))
    except (ArithmeticError, MemoryError, RuntimeError, ValueError):
        return math.inf
    return found if 0 < found <= 2 * _LARGEST else math.inf


def _rdp(noise: float, rate: float, steps: int, delta: float) -> float:
    accountant = RDPAccountant()
    accountant.history = [(noise, rate, steps)]
    with warnings.catch_warnings():
        _quiet()
        found = float(accountant.get_epsilon(delta))
    return found if math.isfinite(found) else math.inf


def _quiet() -> None:
    """The best order lies at an end of the list: the bound is only less tight than it could be. Integrals that
    converge slowly, and exponents that overflow far out in the tail, are covered by the error that PRV adds."""
    warnings.filterwarnings("ignore", message="Optimal order is the", category=UserWarning)
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"opacus\.accountants")
    warnings.filterwarnings("ignore", message=".*(subdivisions|roundoff|integral is probably).*")


def _up(value: float) -> Decimal:
    return Decimal(value).quantize(_PLACES, ROUND_CEILING) if math.isfinite(value) else Decimal("Infinity")
