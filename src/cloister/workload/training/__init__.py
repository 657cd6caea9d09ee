"""Fine-tuning in memory, without keys, paths or network. Callers give bytes and ports, and get bytes.

The tour: ``base_model`` (a model folder from readers; what could execute is refused; ``tensors``, ``build``,
``architectures`` serve it), ``tokenize`` and ``batching`` (rows), ``heads`` and ``adapters`` (what is trained),
``trainer`` (the loop) with ``state``, ``snapshot`` and ``background`` (checkpoints, written beside it), ``engine`` with
one module a task (``classify``, ``multilabel``, ``extract``, ``rank``, ``embed`` over ``encoders``; ``generate``,
``chat``, ``preference``) and ``run`` (one whole run), ``export`` and ``usage`` (what leaves). ``ports`` are what it
needs from outside.
"""

from .base_model import BaseModel, load_base
from .engine import run_training
from .export import export_files
from .ports import CheckpointSink, Lease, Progress, SavedFiles
from .run import Timings, TrainingResult
from .usage import usage_snippet

__all__ = [
    "BaseModel",
    "CheckpointSink",
    "Lease",
    "Progress",
    "SavedFiles",
    "Timings",
    "TrainingResult",
    "export_files",
    "load_base",
    "run_training",
    "usage_snippet",
]
