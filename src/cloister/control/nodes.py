"""What the supervisor starts the node with: who vouches for it, and which GPUs it attests."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import Misuse
from ..node.attesters import choose

__all__ = ["is_hardware", "node_arguments", "node_choice", "node_folder"]

_NAMES = ("attester", "tpm", "gpus")


def node_choice(options: argparse.Namespace) -> dict[str, Any] | None:
    """What ``--attester``, ``--tpm`` and ``--gpus`` say together, or None where none was given: then the last choice
    stands. Raises Misuse where they contradict each other, before anything starts."""
    given = {name: getattr(options, name) for name in _NAMES}
    if all(value is None for value in given.values()):
        return None
    chosen = choose(given["attester"], given["tpm"], given["gpus"])
    if chosen.gpus and chosen.attester != "tsm":
        raise Misuse(
            "node.arguments", "GPUs are attested beside a confidential guest; give --attester tsm with --gpus."
        )
    return {**given, "attester": chosen.attester}


def node_arguments(choice: dict[str, Any] | None) -> tuple[str, ...]:
    """Of ``python -m cloister.node``. None: its own default, a software TPM."""
    return () if choice is None else tuple(f"--{name}={choice[name]}" for name in _NAMES if choice.get(name))


def is_hardware(choice: dict[str, Any] | None) -> bool:
    """Whether a machine vouches, and not software on it. Its devices are root's, so the node can't be anybody else."""
    return choice is not None and choice["attester"] != "swtpm"


def node_folder(choice: dict[str, Any] | None) -> str:
    """One for each kind of attester: the keys of one TPM are of no use in another, and the node refuses them."""
    return f"node-{choice['attester']}" if choice is not None and is_hardware(choice) else "node"
