"""Fine-tuning in memory, without keys, paths or network. Callers give bytes and ports, and get bytes.

The tour: ``base_model`` (a model folder from readers; what could execute is refused; ``tensors``, ``build``,
``architectures`` serve it), ``tokenize`` and ``batching`` (rows), ``heads`` and ``adapters`` (what is trained),
``trainer`` (the loop) with ``steps``, ``watch``, ``looks`` (what the validation rows choose), ``health`` and ``pieces``
(what stops it, what is tried first), ``state``, ``snapshot`` and ``background`` (checkpoints), ``engine`` with one
module a task (``classify``, ``multilabel``, ``extract``, ``rank``, ``embed`` over ``encoders``; ``generate`` with
``seq2seq``, ``chat``, ``preference``) and ``run`` (one whole run), ``fast`` with ``packing``, ``losses`` and
``compiled`` (what makes its steps cheap), ``forgetting`` and ``consolidation`` (what is lost of general text, and what
holds it), ``export`` and ``usage`` (what leaves), ``history`` and ``tracking`` (how it went). ``ports`` are what it
needs from outside.
"""

from .base_model import BaseModel, load_base
from .engine import run_training
from .export import export_files
from .history import History
from .ports import CheckpointSink, Lease, Progress, SavedFiles
from .run import Timings, TrainingResult
from .tracking import tracking_files
from .usage import usage_snippet

__all__ = [
    "BaseModel",
    "CheckpointSink",
    "History",
    "Lease",
    "Progress",
    "SavedFiles",
    "Timings",
    "TrainingResult",
    "export_files",
    "load_base",
    "run_training",
    "tracking_files",
    "usage_snippet",
]
