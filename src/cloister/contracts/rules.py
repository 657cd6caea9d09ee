"""What a contract asks of every recipe, and the exact decimals that bounds on differential privacy are told in.

An epsilon or delta is decimal text in one spelling, with at most 12 places. Sums are exact or raise: nothing floats,
and nothing is rounded in anybody's favour.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, InvalidOperation, Rounded
from typing import Any

from ..errors import Denied, Malformed
from ..fields import Fields
from .recipe import PrivacySettings, Recipe
from .recipe.fields import decimal_text

__all__ = ["UNITS", "PrivacyRule", "RecipeRule", "amount", "covers", "total"]

UNITS = ("example", "user")
_AMOUNT = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{0,11}[1-9])?", re.ASCII)
_EXACT = Context(prec=64, traps=[Inexact, Rounded, InvalidOperation])


def amount(text: str, *, high: str) -> Decimal:
    """A number from 0 to ``high``, in its one spelling: no exponent, sign, leading or trailing zeros. Malformed."""
    if not _AMOUNT.fullmatch(text) or Decimal(text) > Decimal(high):
        raise Malformed(
            "privacy.amount",
            f"A privacy bound is a decimal in quotes from 0 to {high}, with at most 12 places and no zeros at its end.",
        )
    return Decimal(text)


def total(*parts: Decimal) -> Decimal:
    """Their sum, exactly."""
    found = Decimal(0)
    for part in parts:
        found = _EXACT.add(found, part)
    return found


def covers(unit: str, needed: str) -> bool:
    """Whether hiding one ``unit`` is at least what is ``needed``: who hides all rows of a user hides each of them."""
    return UNITS.index(unit) >= UNITS.index(needed)


@dataclass(frozen=True)
class PrivacyRule:
    """What every recipe under a contract promises at least: DP-SGD with no more than this, for this unit."""

    max_epsilon: Decimal
    max_delta: Decimal
    unit: str

    @classmethod
    def read(cls, value: Any) -> PrivacyRule:
        f = Fields(value, "contract's privacy rule")
        epsilon, delta = f.text("max_epsilon", limit=32), f.text("max_delta", limit=32)
        rule = cls(amount(epsilon, high="1000"), amount(delta, high="0.01"), f.text("unit", choices=UNITS))
        f.done()
        if not rule.max_epsilon or not rule.max_delta:
            raise Malformed("contract.privacy", "A contract's privacy rule lets no run through; give bounds above 0.")
        return rule

    def check(self, recipe: Recipe) -> None:
        """Raises Denied("recipe.privacy")."""
        given: PrivacySettings | None = recipe.privacy
        if given is None:
            raise Denied("recipe.privacy", "The contract asks for differential privacy; add 'privacy' to the recipe.")
        if not covers(given.unit, self.unit):
            raise Denied("recipe.privacy", f"The contract asks for privacy of each {self.unit}; set privacy.unit.")
        if given.epsilon > self.max_epsilon or given.delta > self.max_delta:
            raise Denied(
                "recipe.privacy",
                f"The contract permits at most epsilon {decimal_text(self.max_epsilon)} and delta "
                f"{decimal_text(self.max_delta)}.",
            )


@dataclass(frozen=True)
class RecipeRule:
    """What a recipe may ask for. An empty list permits nothing. ``privacy``: None asks for none."""

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    max_epochs: int
    privacy: PrivacyRule | None = None

    @classmethod
    def read(cls, value: Any) -> RecipeRule:
        f = Fields(value, "contract's recipe rule")
        rule = cls(
            f.texts("tasks"),
            f.texts("methods"),
            f.integer("max_epochs", low=1, high=10_000),
            # Absent in contracts of before; what is there is never null, so that nothing has two spellings.
            PrivacyRule.read(f.raw("privacy")) if "privacy" in value else None,
        )
        f.done()
        return rule
