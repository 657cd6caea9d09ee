"""What a run will take of a machine, before any key is asked for: memory by part, and time. Pure, without torch.

The tour: ``shape`` (how large a base is, from its config.json), ``rows`` (how many, how long), ``memory`` (which
tensors are held at once), ``duration`` (how many products, on what machine), ``forecast`` (both together).
"""

from .duration import Duration, Machine
from .forecast import Forecast, forecast
from .memory import Memory, trained
from .rows import Rows
from .shape import Shape, read_shape

__all__ = ["Duration", "Forecast", "Machine", "Memory", "Rows", "Shape", "forecast", "read_shape", "trained"]
