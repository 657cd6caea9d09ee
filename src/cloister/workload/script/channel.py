"""Messages between the workload and a party's program: a canonical JSON head, and bytes behind it.

A message is: length of the head (4 bytes, big-endian), length of the body (8 bytes), head, body. Both sides bound both
lengths before they read on; neither side ever unpickles.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Any

from ...crypto import canonical_json, parse_json
from ...errors import CloisterError, Malformed

__all__ = ["BODY_LIMIT", "Channel", "Ended"]

HEAD_LIMIT = 1 << 20
BODY_LIMIT = 1 << 34  # bytes of one message: a checkpoint, or a file of the output
_LENGTHS = struct.Struct(">IQ")


class Ended(Exception):
    """The other side closed the channel, between two messages or within one."""


class Channel:
    """One end. Not for several threads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, head: Mapping[str, Any], body: bytes | memoryview = b"") -> None:
        """Raises Ended."""
        packed = canonical_json(dict(head))
        try:
            self._sock.sendall(_LENGTHS.pack(len(packed), len(body)) + packed)
            if body:  # of nothing, too, would fail if the other side read the head, answered and ended meanwhile
                self._sock.sendall(body)
        except OSError:
            raise Ended from None

    def receive(self, *, body_limit: int) -> tuple[dict[str, Any], bytes]:
        """Raises Ended, and Malformed (``script.message``) for what breaks the form or a limit."""
        head_length, body_length = _LENGTHS.unpack(self._exactly(_LENGTHS.size))
        if head_length > HEAD_LIMIT or body_length > body_limit:
            raise Malformed("script.message", "A message of the training program is longer than it may be.")
        packed = self._exactly(head_length)
        try:
            head = parse_json(packed, limit=HEAD_LIMIT)
        except CloisterError:
            head = None
        if not isinstance(head, dict):
            raise Malformed("script.message", "A message of the training program is not of the known form.")
        return head, self._exactly(body_length)

    def _exactly(self, count: int) -> bytes:
        out = bytearray(count)
        view, place = memoryview(out), 0
        while place < count:
            try:
                got = self._sock.recv_into(view[place:])
            except TimeoutError:
                raise
            except OSError:
                raise Ended from None
            if got == 0:
                raise Ended
            place += got
        return bytes(out)
