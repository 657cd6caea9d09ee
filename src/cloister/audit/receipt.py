"""A receipt: an entry, its place, and the proof that a signed head covers it. Pure; it is verified offline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..crypto.merkle import leaf_hash, verify_inclusion
from ..errors import Malformed, Untrusted
from .checkpoint import Checkpoint, verify_checkpoint
from .limits import LIMITS
from .note import Note, b64, unb64

__all__ = ["Receipt"]


@dataclass(frozen=True)
class Receipt:
    """``leaf`` is the entry itself (not its hash), ``proof`` its RFC 6962 audit path, lowest sibling first."""

    leaf: bytes
    index: int
    proof: tuple[bytes, ...]
    checkpoint: str

    @property
    def leaf_hash(self) -> bytes:
        """RFC 6962 leaf hash, 32 bytes: what a key release binds."""
        return leaf_hash(self.leaf)

    def verify(self, origin: str, log_key: bytes) -> Checkpoint:
        """The verified head, if the pinned log signed it and it covers this entry at this index.

        Raises Untrusted (signature, origin, proof) or Malformed (what isn't a checkpoint).
        """
        checkpoint = verify_checkpoint(self.checkpoint, origin, log_key)
        verify_inclusion(self.leaf_hash, self.index, checkpoint.size, self.proof, checkpoint.root)
        return checkpoint

    def with_cosigned(self, note_text: str) -> Receipt:
        """The same receipt with a cosigned copy of its checkpoint. Raises Untrusted for another checkpoint."""
        if Note.parse(note_text).text != Note.parse(self.checkpoint).text:
            raise Untrusted("receipt.checkpoint", "The cosigned note is not the checkpoint of this receipt.")
        return replace(self, checkpoint=note_text)

    def to_wire(self) -> dict[str, Any]:
        """A JSON object; ``from_wire`` reads exactly this form."""
        return {
            "checkpoint": self.checkpoint,
            "index": self.index,
            "leaf": b64(self.leaf),
            "proof": [b64(digest) for digest in self.proof],
        }

    @classmethod
    def from_wire(cls, body: object) -> Receipt:
        """Strict and bounded; raises Malformed. Nothing is verified yet."""
        if not isinstance(body, dict) or set(body) != {"checkpoint", "index", "leaf", "proof"}:
            raise Malformed("receipt.form", "A log receipt needs exactly checkpoint, index, leaf and proof.")
        index, proof = body["index"], body["proof"]
        if type(index) is not int or not 0 <= index <= LIMITS.tree:
            raise Malformed("receipt.index", "A log receipt's index is not an integer in range.")
        if not isinstance(proof, list) or len(proof) > LIMITS.proof:
            raise Malformed("receipt.proof", "A log receipt's proof is not a list of at most 63 hashes.")
        hashes = tuple(_bytes(item, 32, "receipt's proof") for item in proof)
        if any(len(digest) != 32 for digest in hashes):
            raise Malformed("receipt.proof", "A log receipt's proof holds something that is not a hash.")
        checkpoint = body["checkpoint"]
        if not isinstance(checkpoint, str) or len(checkpoint) > LIMITS.note:
            raise Malformed("receipt.checkpoint", "A log receipt's checkpoint is not a note.")
        return cls(_bytes(body["leaf"], LIMITS.entry, "receipt's leaf"), index, hashes, checkpoint)


def _bytes(text: object, limit: int, what: str) -> bytes:
    if not isinstance(text, str) or len(text) > 4 * (limit // 3 + 1):
        raise Malformed("receipt.base64", f"The {what} is not base64 text of a possible length.")
    return unb64(text, what)
