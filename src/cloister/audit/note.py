"""Signed notes (C2SP signed-note v1.0.0) and timestamped cosignatures (C2SP tlog-cosignature v1.0.0). Pure.

A note is text that ends in a newline, an empty line, then signature lines ``— name base64(key id ‖ signature)``.
The key id, ``SHA-256(name ‖ "\\n" ‖ type ‖ public key)[:4]``, only says which key to try: whose signature counts is
decided by the name and key that the verifier pinned, and signatures of anybody else are skipped.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from ..crypto import Signer, sha256, verify_ed25519
from ..errors import Malformed, Misuse, Untrusted
from .limits import LIMITS

__all__ = ["Note", "NoteSignature", "b64", "check_key_name", "key_id", "sign_cosignature", "sign_note", "unb64"]

ED25519 = 0x01
COSIGNATURE = 0x04
_DASH = "\u2014 "
_NAME = re.compile(r"[^\s+\x00-\x1f]+")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_MAX_TIME = 2**63 - 1  # tlog-cosignature: a timestamp must not exceed it


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def unb64(text: str, what: str) -> bytes:
    """Standard base64 in its one canonical spelling; Malformed otherwise, saying ``what`` it should have been."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    # Re-encoding refuses spare bits and missing padding: one value has one spelling.
    if b64(raw) != text:
        raise Malformed("audit.base64", f"The {what} is not canonical base64.")
    return raw


def check_key_name(name: str) -> None:
    """Misuse unless ``name`` can stand in a signature line: not empty, no spaces, no plus, no control characters."""
    if not _NAME.fullmatch(name) or len(name) > LIMITS.key_name:
        raise Misuse("note.name", "A log or witness name must not be empty or long, nor hold spaces or plus signs.")


def key_id(name: str, kind: int, public: bytes) -> bytes:
    """4 bytes. ``kind`` is 0x01 for notes, 0x04 for cosignatures, so one key gives two ids."""
    return sha256(name.encode() + b"\n" + bytes([kind]) + public)[:4]


@dataclass(frozen=True)
class NoteSignature:
    """One signature line: ``blob`` is what follows the key id."""

    name: str
    key_id: bytes
    blob: bytes

    def line(self) -> str:
        return f"{_DASH}{self.name} {b64(self.key_id + self.blob)}\n"

    @classmethod
    def parse(cls, line: str) -> NoteSignature:
        """``line`` without its newline. Raises Malformed."""
        parts = line.removeprefix(_DASH).split(" ")
        if not line.startswith(_DASH) or len(parts) != 2:
            raise Malformed("note.signature", "A note's signature line is not of the form '— name base64'.")
        try:
            check_key_name(parts[0])
        except Misuse:
            raise Malformed("note.signature", "A note's signature line holds a key name that is not allowed.") from None
        raw = unb64(parts[1], "note's signature")
        if not 4 < len(raw) <= LIMITS.signature:
            raise Malformed("note.signature", "A note's signature has a length that no signature has.")
        return cls(parts[0], raw[:4], raw[4:])


@dataclass(frozen=True)
class Note:
    """``text`` (ending in a newline) and the signature lines under it. Nothing is verified yet."""

    text: str
    signatures: tuple[NoteSignature, ...]

    @classmethod
    def parse(cls, note: str) -> Note:
        """Strict and bounded; whatever it accepts, ``render`` writes back identically. Raises Malformed."""
        try:
            size = len(note.encode())
        except UnicodeEncodeError:
            raise Malformed("note.text", "A note is not valid UTF-8.") from None
        if size > LIMITS.note or _CONTROL.search(note):
            raise Malformed("note.text", "A note is too long or holds control characters.")
        text, found, block = note.rpartition("\n\n")
        lines = block.split("\n")
        if not found or not text or lines.pop() != "" or not 1 <= len(lines) <= LIMITS.note_signatures:
            raise Malformed("note.form", "A note needs a text, an empty line and 1 to 64 signature lines.")
        return cls(text + "\n", tuple(NoteSignature.parse(line) for line in lines))

    def render(self) -> str:
        return self.text + "\n" + "".join(signature.line() for signature in self.signatures)

    def with_signature(self, signature: NoteSignature) -> Note:
        """The same note with one more line (or the same note, if it has that line already)."""
        if signature in self.signatures:
            return self
        return Note(self.text, (*self.signatures, signature))

    def verify(self, name: str, public: bytes) -> None:
        """Return if the pinned key ``public`` under ``name`` signed the text.

        Raises Untrusted if no line claims to be from that key, or if one that does is wrong.
        """
        for blob in self._claimed(name, ED25519, public):
            _verify(public, self.text.encode(), blob)

    def verify_cosignature(self, name: str, public: bytes) -> int:
        """When the witness (pinned ``name`` and ``public``) cosigned: POSIX seconds, the latest if it did so twice.

        Raises Untrusted like ``verify``.
        """
        times = []
        for blob in self._claimed(name, COSIGNATURE, public):
            seconds = int.from_bytes(blob[:8], "big")
            if len(blob) != 72 or seconds > _MAX_TIME:
                raise Untrusted("note.signature", "A witness's cosignature is not 72 bytes with a sane time.")
            _verify(public, _cosigned(seconds, self.text), blob[8:])
            times.append(seconds)
        return max(times)

    def _claimed(self, name: str, kind: int, public: bytes) -> list[bytes]:
        """Signatures that name this key. All of them must hold (signed-note: reject the note otherwise)."""
        wanted = key_id(name, kind, public)
        found = [s.blob for s in self.signatures if s.name == name and s.key_id == wanted]
        if not found:
            raise Untrusted("note.unsigned", "A note carries no signature by the expected name and key.")
        return found


def _verify(public: bytes, message: bytes, signature: bytes) -> None:
    try:
        verify_ed25519(public, message, signature)
    except Untrusted:
        raise Untrusted("note.signature", "A note's signature by the expected key does not verify.") from None


def _cosigned(seconds: int, text: str) -> bytes:
    # The header line keeps a cosignature from being passed off as a signature over another kind of note.
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def sign_note(text: str, name: str, key: Signer) -> str:
    """The note: ``text`` must end in a newline and hold no control characters. Raises Misuse or Malformed."""
    check_key_name(name)
    if not text.endswith("\n"):
        raise Misuse("note.text", "The text of a note must end in a newline.")
    line = NoteSignature(name, key_id(name, ED25519, key.public), key.sign(text.encode()))
    note = Note(text, (line,)).render()
    Note.parse(note)  # never emit what a strict reader would refuse
    return note


def sign_cosignature(note: Note, name: str, key: Signer, *, now: int) -> NoteSignature:
    """A witness's line over ``note``'s text at ``now`` (POSIX seconds). The caller has checked the text."""
    check_key_name(name)
    if not 0 <= now <= _MAX_TIME:
        raise Misuse("note.time", "A cosignature's time must be POSIX seconds.")
    signature = key.sign(_cosigned(now, note.text))
    return NoteSignature(name, key_id(name, COSIGNATURE, key.public), now.to_bytes(8, "big") + signature)
