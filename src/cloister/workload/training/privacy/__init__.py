"""Differentially private training: what one unit's presence may change in the weights is bounded. See README.md.

``units`` (whose presence is hidden, and how the rows are split), ``accountant`` (budget → noise), ``noise`` (the seed
and what is drawn from it), ``losses`` and ``clipping`` (each unit's gradient, shortened), ``ways`` (which way of that a
model allows), ``trainer`` (the loop), ``baseline`` (what the result is compared with).
"""

from .accountant import Budget
from .baseline import baseline_aside
from .trainer import PrivateTrainer
from .units import numbered, privacy_facts, split_units, users

__all__ = ["Budget", "PrivateTrainer", "baseline_aside", "numbered", "privacy_facts", "split_units", "users"]
