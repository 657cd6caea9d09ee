"""What people call a contract by, and whether an answer is what they asked for. Pure.

Nobody owns a name: any party may propose another contract under it. So a name only ever chooses among contracts that
this side vouches for itself, and what a service answers is compared with what was asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol, TypeVar

from ..contracts import Contract
from ..errors import Misuse, Untrusted

__all__ = ["Named", "check_answer", "choose", "is_beginning", "is_digest"]

_BEGINNING = re.compile(r"[0-9a-f]{8,64}")


class Named(Protocol):
    """Something that can be referred to; ``digest`` is the whole digest in hex."""

    @property
    def digest(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def serial(self) -> int: ...


N = TypeVar("N", bound=Named)


def is_digest(reference: str) -> bool:
    return len(reference) == 64 and is_beginning(reference)


def is_beginning(reference: str) -> bool:
    """Eight hex digits or more. It may be a name, too: the digest is tried first."""
    return _BEGINNING.fullmatch(reference) is not None


def choose(known: Iterable[N], reference: str) -> N | None:
    """By the digest's beginning, else the newest serial of the name; None if there is neither.

    Raises Misuse if several fit: which one is meant is not to be guessed.
    """
    each = list({one.digest: one for one in known}.values())
    found = [one for one in each if one.digest.startswith(reference)] if is_beginning(reference) else []
    if not found:
        named = [one for one in each if one.name == reference]
        found = [one for one in named if one.serial == max(other.serial for other in named)]
    if len(found) > 1:
        raise Misuse("contract.ambiguous", "More than one contract is called so; name it by its whole digest.")
    return found[0] if found else None


def check_answer(contract: Contract, reference: str) -> None:
    """Untrusted unless the contract is the one that was asked for, by whole digest or by name."""
    if reference not in (contract.digest.hex(), contract.name):
        raise Untrusted("contract.answer", "The control plane answered with another contract than was asked for.")
