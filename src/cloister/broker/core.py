"""What every service of one broker shares. Built once, in ``app``."""

from __future__ import annotations

from dataclasses import dataclass

from .assets import Assets
from .clock import Clock
from .config import Limits
from .knowledge import Knowledge
from .ledger import Ledger
from .party import OwnKeys, Parties
from .peers import Peers
from .witness import Herald

__all__ = ["Core"]


@dataclass(frozen=True)
class Core:
    """The parts in the order in which they stand on each other."""

    clock: Clock
    limits: Limits
    ledger: Ledger
    keys: OwnKeys
    parties: Parties
    assets: Assets
    knowledge: Knowledge
    peers: Peers
    herald: Herald
