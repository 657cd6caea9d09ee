"""Checkpoints (C2SP tlog-checkpoint v1.0.0): the signed head of a log. Pure.

The note's text is ``origin``, tree size in decimal, root hash in base64, then optional extension lines. The log's
key name equals the origin, so a checkpoint of one log can't be passed off as another's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..crypto import Signer
from ..crypto.merkle import EMPTY_ROOT
from ..errors import Malformed, Misuse, Untrusted
from .limits import LIMITS
from .note import Note, b64, check_key_name, sign_note, unb64

__all__ = ["Checkpoint", "parse_checkpoint_text", "sign_checkpoint", "verify_checkpoint"]

_SIZE = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """The tree of ``size`` entries of log ``origin`` has the RFC 6962 root ``root`` (32 bytes)."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """The text that is signed."""
        return "".join(f"{line}\n" for line in (self.origin, str(self.size), b64(self.root), *self.extensions))


def parse_checkpoint_text(text: str) -> Checkpoint:
    """Strict: ``parse_checkpoint_text(t).text() == t``. Raises Malformed. Nothing is verified."""
    lines = text.split("\n")
    if lines.pop() != "" or not 3 <= len(lines) <= 3 + LIMITS.extensions or not all(lines):
        raise Malformed("checkpoint.form", "A checkpoint needs origin, size and root, each on its line.")
    origin, size, root, *extensions = lines
    if not _SIZE.fullmatch(size) or int(size) > LIMITS.tree:
        raise Malformed("checkpoint.size", "A checkpoint's tree size is not a plain decimal number in range.")
    digest = unb64(root, "checkpoint's root")
    if len(digest) != 32 or (size == "0" and digest != EMPTY_ROOT):
        raise Malformed("checkpoint.root", "A checkpoint's root is not a SHA-256 root of a tree of its size.")
    return Checkpoint(origin, int(size), digest, tuple(extensions))


def sign_checkpoint(checkpoint: Checkpoint, key: Signer) -> str:
    """The signed note. The signer's part is to sign only what extends all that it signed before. Raises Misuse."""
    check_key_name(checkpoint.origin)
    text = checkpoint.text()
    try:
        faithful = parse_checkpoint_text(text) == checkpoint
    except Malformed:
        faithful = False
    if not faithful:
        raise Misuse("checkpoint.form", "A checkpoint with such a size, root or extension can't be written.")
    return sign_note(text, checkpoint.origin, key)


def verify_checkpoint(note_text: str, origin: str, key: bytes) -> Checkpoint:
    """The checkpoint, if log ``origin`` signed it with the pinned public ``key`` (32 bytes).

    Raises Malformed for what isn't a checkpoint, Untrusted for another origin, key or signature.
    """
    note = Note.parse(note_text)
    note.verify(origin, key)
    checkpoint = parse_checkpoint_text(note.text)
    if checkpoint.origin != origin:
        raise Untrusted("checkpoint.origin", "A checkpoint is signed for another log than the one expected.")
    return checkpoint
