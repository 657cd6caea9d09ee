"""RTMR 3: where a guest's node agent may extend its event log, event by event, so that hardware keeps it.

An event's digest is the 32 bytes that the log lists. What is extended is 48 bytes, as registers of TDX take them::

    extended = SHA-384(frame("cloister/rtmr3/v1", digest))
    RTMR 3   = SHA-384(RTMR 3 ‖ extended)          from 48 zero bytes

The label keeps an event from being taken for anything else that is extended into such a register. Source of the second
line: Intel, "TDX Module ABI Specification", TDG.MR.RTMR.EXTEND.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha384
from typing import Final

from ...crypto import frame

__all__ = ["RTMR_START", "extend_rtmr", "extended_value", "replay_rtmr3"]

RTMR_START: Final = bytes(48)
_LABEL: Final = "cloister/rtmr3/v1"


def extended_value(digest: bytes) -> bytes:
    """The 48 bytes that an agent extends for an event with this digest (32 bytes)."""
    return sha384(frame(_LABEL, digest)).digest()


def extend_rtmr(register: bytes, value: bytes) -> bytes:
    """The register's new value; both have 48 bytes."""
    return sha384(register + value).digest()


def replay_rtmr3(digests: Iterable[bytes]) -> bytes:
    """The value of RTMR 3 after exactly these events, in this order."""
    register = RTMR_START
    for digest in digests:
        register = extend_rtmr(register, extended_value(digest))
    return register
