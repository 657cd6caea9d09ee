"""The public Python client. The command line can do nothing that isn't here.

The tour: ``supervisor`` (``Home``: the parts of one machine), ``startup``, ``agent`` (a party's own broker),
``control`` (the control plane), then what people do, gathered in ``operations``: ``parties``, ``sealing`` over
``files``, ``drafting`` over ``proposal``, ``agreements`` over ``references``, ``drafts``, ``known`` and ``describe``,
``installation``, ``jobs``, ``pulling``, ``logs``, ``verify``; the life of keys: ``keys``, ``reencrypt``, ``recovery``.
"""

from . import operations
from .agent import OwnerAgent
from .agreements import Agreement
from .control import ControlClient, Signer
from .describe import ASSURANCE
from .jobs import Outcome
from .known import KnownContract
from .logs import Exported, LogCheck, Wanted
from .parties import Created, Moved
from .progress import Progress, Step, silent
from .pulling import Pulled
from .sealing import SealedAsset, SealOptions
from .supervisor import Home, default_home
from .verify import Verified

__all__ = [
    "ASSURANCE",
    "Agreement",
    "ControlClient",
    "Created",
    "Exported",
    "Home",
    "KnownContract",
    "LogCheck",
    "Moved",
    "Outcome",
    "OwnerAgent",
    "Progress",
    "Pulled",
    "SealOptions",
    "SealedAsset",
    "Signer",
    "Step",
    "Verified",
    "Wanted",
    "default_home",
    "operations",
    "silent",
]
