"""What runs on this very machine, to compare a contract's platform with.

``platform: this`` is filled in from what the control plane says of its node. The supervisor started the node itself and
heard over a pipe what that measured of its own source and of the image in this home, so nothing lies between.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..contracts import Contract
from .supervisor import Home

__all__ = ["platform_matches", "this_node"]

_COMPARED = ("agent", "measurement")


def this_node(home: Home) -> dict[str, str]:
    """``agent`` and ``measurement`` in hex as this installation measures; without what is not known here."""
    node = home.status().get("node")
    claims = node if isinstance(node, dict) else {}
    return {what: str(claims[what]) for what in _COMPARED if isinstance(claims.get(what), str)}


def platform_matches(contract: Contract, here: Mapping[str, str]) -> dict[str, bool | None]:
    """Whether the contract permits this installation's agent and workload, and no others; None: nothing to compare."""
    named = {"agent": contract.platform.agents, "measurement": contract.platform.measurements}
    return {what: set(values) == {here[what]} if what in here else None for what, values in named.items()}
