"""What a witness decides, and what the users of witnesses check. Pure: no clock, no storage.

A witness is another organization's broker that remembers the newest checkpoint it saw of a log. It accepts only
growth, so two different histories can't both be cosigned by it (C2SP tlog-witness). The caller keeps the accepted
checkpoint durably, and atomically with the check, before it hands out a cosignature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..crypto import Signer
from ..crypto.merkle import EMPTY_ROOT, verify_consistency
from ..errors import Untrusted
from .checkpoint import Checkpoint, verify_checkpoint
from .limits import LIMITS
from .note import Note, sign_cosignature

__all__ = ["check_advance", "cosign", "verify_quorum"]


def check_advance(
    known: Checkpoint | None, note_text: str, proof: Sequence[bytes], origin: str, key: bytes
) -> Checkpoint:
    """The new checkpoint, if it extends ``known`` (None: nothing seen yet, which counts as the empty tree).

    ``proof`` is the RFC 6962 consistency proof from ``known.size``; it is empty where nothing is known or the sizes
    are equal. Raises Untrusted: ``witness.rollback`` for a smaller tree, ``witness.split_view`` for another root at
    the same size, ``witness.inconsistent`` where the proof does not hold; and what ``verify_checkpoint`` raises.
    """
    new = verify_checkpoint(note_text, origin, key)
    if known is None:
        known = Checkpoint(origin, 0, EMPTY_ROOT)
    if known.origin != origin:
        raise Untrusted("witness.origin", "The remembered checkpoint is of another log; look up the right one.")
    if new.size < known.size:
        raise Untrusted(
            "witness.rollback", "A log offers a smaller tree than it showed before.", known=known.size, offered=new.size
        )
    if new.size == known.size and new.root != known.root:
        raise Untrusted("witness.split_view", "A log shows two different trees of one size.", size=new.size)
    if len(proof) > LIMITS.proof:
        raise Untrusted("witness.inconsistent", "A consistency proof is longer than any tree needs.")
    try:
        verify_consistency(known.size, new.size, proof, known.root, new.root)
    except Untrusted:
        raise Untrusted(
            "witness.inconsistent",
            "A log's new head does not extend the one seen before: it was rewritten or forked.",
            known=known.size,
            offered=new.size,
        ) from None
    return new


def cosign(note_text: str, accepted: Checkpoint, *, name: str, key: Signer, now: int) -> str:
    """The note with this witness's cosignature added. ``accepted`` is what ``check_advance`` returned for it.

    ``now`` is POSIX seconds. Raises Untrusted if the note does not say what was accepted.
    """
    note = Note.parse(note_text)
    if note.text != accepted.text():
        raise Untrusted("witness.mismatch", "The note to cosign is not the checkpoint that was checked.")
    return note.with_signature(sign_cosignature(note, name, key, now=now)).render()


def verify_quorum(note_text: str, witnesses: Mapping[str, bytes], least: int, *, not_before: int) -> dict[str, int]:
    """Which of the pinned ``witnesses`` (name → public key) cosigned at or after ``not_before``, and when (seconds).

    One organization under two names, or one key under two names, must not count twice: keys are counted, not lines.
    Raises Untrusted("witness.quorum") if fewer than ``least`` did, and if a line in a witness's name is forged.
    """
    note = Note.parse(note_text)
    times: dict[str, int] = {}
    for name, public in witnesses.items():
        try:
            seconds = note.verify_cosignature(name, public)
        except Untrusted as error:
            if error.code != "note.unsigned":
                raise
            continue  # this witness did not sign; the count below decides
        if seconds >= not_before:
            times[name] = seconds
    if len({witnesses[name] for name in times}) < least:
        raise Untrusted("witness.quorum", "Too few witnesses cosigned a log's head.", least=least, found=len(times))
    return times
