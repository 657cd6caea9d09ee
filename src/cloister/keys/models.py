"""A wrapped data key, and what binds it: PROTOCOL §5's associated data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..crypto import b64url, frame, unb64url
from ..errors import CloisterError, Malformed, Misuse

__all__ = ["DEK_SIZE", "KeyInfo", "WrappedKey", "wrap_context"]

DEK_SIZE = 32
_MAX_BOX = 2048  # the longest that a driver may make: PROTOCOL-sized boxes are 60 bytes, a KMS' a few hundred
_KEK_ID = re.compile(r"[0-9a-f]{32}")
_ALGORITHM = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")


@dataclass(frozen=True)
class WrappedKey:
    """A data key under a KEK. ``kek_id`` is 32 hex digits; ``algorithm`` says how the vault's driver made ``box``,
    at most 2048 bytes.

    It is no secret by itself. Raises Malformed when a field is out of form.
    """

    kek_id: str
    epoch: int
    algorithm: str
    box: bytes

    def __post_init__(self) -> None:
        well_formed = (
            isinstance(self.kek_id, str)
            and _KEK_ID.fullmatch(self.kek_id)
            and isinstance(self.epoch, int)
            and not isinstance(self.epoch, bool)
            and 1 <= self.epoch < 2**53
            and isinstance(self.algorithm, str)
            and _ALGORITHM.fullmatch(self.algorithm)
            and isinstance(self.box, bytes)
            and 1 <= len(self.box) <= _MAX_BOX
        )
        if not well_formed:
            raise Malformed("wrap.form", "A wrapped key is not of the expected form.")

    def to_document(self) -> dict[str, Any]:
        """For canonical JSON."""
        return {"alg": self.algorithm, "box": b64url(self.box), "epoch": self.epoch, "kek_id": self.kek_id}

    @classmethod
    def from_document(cls, document: Any) -> WrappedKey:
        """The inverse, strictly. Raises Malformed."""
        try:
            wrapped = cls(document["kek_id"], document["epoch"], document["alg"], unb64url(document["box"]))
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


@dataclass(frozen=True)
class KeyInfo:
    """What a vault tells about one key. ``kind``: ``kek``, ``secret`` or ``signing``; ``where``: the driver's name;
    ``extractable``: whether the vault's process can get at the key itself; ``created``: unix seconds, 0 if unknown.
    ``wraps``, ``unwraps`` and ``signs`` count since the vault was opened."""

    name: str
    kind: str
    epoch: int
    where: str
    extractable: bool
    created: int = 0
    wraps: int = 0
    unwraps: int = 0
    signs: int = 0
