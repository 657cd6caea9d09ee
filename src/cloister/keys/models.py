"""A wrapped data key, and what binds it: PROTOCOL §5's associated data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..crypto import b64url, frame, unb64url
from ..errors import CloisterError, Malformed, Misuse

__all__ = ["DEK_SIZE", "WrappedKey", "wrap_context"]

DEK_SIZE = 32
_BOX = 12 + DEK_SIZE + 16
_KEK_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class WrappedKey:
    """A data key under a KEK. ``kek_id`` is 32 hex digits, ``box`` is nonce ‖ ciphertext ‖ tag (60 bytes).

    It is no secret by itself. Raises Malformed when a field is out of form.
    """

    kek_id: str
    epoch: int
    box: bytes

    def __post_init__(self) -> None:
        well_formed = (
            isinstance(self.kek_id, str)
            and _KEK_ID.fullmatch(self.kek_id)
            and isinstance(self.epoch, int)
            and not isinstance(self.epoch, bool)
            and 1 <= self.epoch < 2**53
            and isinstance(self.box, bytes)
            and len(self.box) == _BOX
        )
        if not well_formed:
            raise Malformed("wrap.form", "A wrapped key is not of the expected form.")

    def to_document(self) -> dict[str, Any]:
        """For canonical JSON."""
        return {"box": b64url(self.box), "epoch": self.epoch, "kek_id": self.kek_id}

    @classmethod
    def from_document(cls, document: Any) -> WrappedKey:
        """The inverse, strictly. Raises Malformed."""
        try:
            wrapped = cls(document["kek_id"], document["epoch"], unb64url(document["box"]))
        except (KeyError, TypeError, ValueError, AttributeError, CloisterError):
            raise Malformed("wrap.form", "A wrapped key is not of the expected form.") from None
        if wrapped.to_document() != document:
            raise Malformed("wrap.form", "A wrapped key is not of the expected form.")
        return wrapped


def wrap_context(manifest_digest: bytes, kek_id: str, epoch: int) -> bytes:
    """Associated data of a wrapped key: it opens for one manifest, under one KEK, of one epoch."""
    if len(manifest_digest) != 32:
        raise Misuse("wrap.digest", "A manifest's digest has exactly 32 bytes.")
    return frame("cloister/wrap/v1", manifest_digest, bytes.fromhex(kek_id), epoch)
