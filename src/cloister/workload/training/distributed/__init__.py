"""One training by several processes of one machine (docs/spec/distributed.md).

The tour: ``team`` (the first process starts the others and ends them), ``handed`` (what they are given, in sealed
memory), ``member`` (what they run), ``group`` (who is who, and what of a state lies where), ``trainer`` (the loop with
each step's rows split), ``shares`` (which rows are whose).
"""

from .team import require_processors, train_together

__all__ = ["require_processors", "train_together"]
