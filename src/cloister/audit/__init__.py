"""The append-only audit log: each organization's own, checkable by anybody who holds one old head of it.

The tour. Formats, pure: ``note`` (C2SP signed notes and cosignatures), ``checkpoint`` (signed heads), ``tiles``
(C2SP tlog-tiles geometry, subtree hashes), ``growth`` (what an append changes), ``receipt`` (an entry with its
proof), ``events`` and ``ocsf`` (what is logged). ``log``: appending in shared commits, over a store (``ports``).
Disk: ``files`` (durable writes), ``journal`` (write-ahead frames), ``storage`` (one locked folder), ``recovery``
(opening after a crash), ``file_store``. In a database that replicas share: ``rows``, ``database_store``, which
whoever has a database imports by themselves. ``export``: a copy for anybody.
Judging others: ``witness`` (accept only growth, cosign, count a quorum) and ``checker``, which shares no code with
the writing side.

A release is logged first: ``log.append(encode_event(event(…)))`` returns a ``Receipt`` only when the entry is on disk
under a stored, signed head; whoever gets the receipt calls ``receipt.verify(origin, pinned_key)``.
"""

from .checker import LogReport, check_log
from .checkpoint import Checkpoint, sign_checkpoint, verify_checkpoint
from .events import Facts, Outcome, encode_event, event, parse_event
from .export import export_log
from .limits import LIMITS, Limits
from .log import AuditLog
from .note import Note, NoteSignature, sign_note
from .ocsf import KINDS
from .ports import Database, OutcomeUnknown
from .receipt import Receipt
from .witness import check_advance, cosign, verify_quorum

__all__ = [
    "KINDS",
    "LIMITS",
    "AuditLog",
    "Checkpoint",
    "Database",
    "Facts",
    "Limits",
    "LogReport",
    "Note",
    "NoteSignature",
    "Outcome",
    "OutcomeUnknown",
    "Receipt",
    "check_advance",
    "check_log",
    "cosign",
    "encode_event",
    "event",
    "export_log",
    "parse_event",
    "sign_checkpoint",
    "sign_note",
    "verify_checkpoint",
    "verify_quorum",
]
