"""The append-only audit log of one organization: what is appended is durable and under a signed head, or refused.

Many threads may append at once. They share commits: the first one that finds no commit under way leads and takes
everything that waits; the others sleep until their entries are settled. Where the log lies, and how a commit makes
entries durable and signs the head over them, is the store's (``ports``): only then the waiting return. What nobody
waits for (``append_soon``) stands in the same queue, so it is in the log before whatever was appended after it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ..crypto import Signer
from ..crypto.merkle import leaf_hash
from ..errors import CloisterError, Misuse, Unavailable, Untrusted
from .file_store import FileStore
from .limits import LIMITS
from .ports import Head, LogStore, StillSound
from .receipt import Receipt
from .tiles import WIDTH, encode_bundle, parse_resource

__all__ = ["AuditLog"]

_SOON = 0.05  # seconds until what nobody waits for is committed without another entry's help
_AGAIN = 2.0  # seconds until that is tried again when the signer is away
_PATIENT = 1024  # entries that may wait for nobody


@dataclass(eq=False)
class _Ticket:
    """Entries that one caller waits for, unless they are ``patient``. ``first`` is set when they are committed,
    ``failed`` when they can't be; ``reason`` then where the log itself is sound. ``aside``: kept beside the first."""

    entries: tuple[bytes, ...]
    aside: bytes = b""
    patient: bool = False
    first: int = -1
    failed: bool = False
    reason: CloisterError | None = None


class AuditLog:
    """In a folder: use ``create`` once, ``open`` from then on. Elsewhere: give it the store. Close it (it is a context
    manager)."""

    def __init__(self, store: LogStore) -> None:
        self._store = store
        lock = threading.RLock()
        self._changed = threading.Condition(lock)
        self._soon = threading.Condition(lock)  # what wakes the flusher; commits don't
        self._queue: list[_Ticket] = []
        self._busy = False
        self._refusal: str | None = None
        self._flusher: threading.Thread | None = None
        self._resting = False  # the flusher, until it is woken

    @classmethod
    def create(cls, folder: Path, *, origin: str, signer: Signer) -> AuditLog:
        """A new, empty log in ``folder``, which is made if needed. Misuse("log.exists") if one is there already."""
        return cls(FileStore.create(folder, origin=origin, signer=signer))

    @classmethod
    def open(cls, folder: Path, *, origin: str, signer: Signer) -> AuditLog:
        """Open and, after a crash, recover. Reads a bounded amount, however long the log is.

        Raises Misuse("log.absent"), Unavailable("audit.locked" or "audit.unwritable"), and Untrusted where the disk
        does not hold what was signed (``log.truncated``, ``log.rollback``, ``log.root``, ``note.*``, …).
        """
        return cls(FileStore.open(folder, origin=origin, signer=signer))

    # Appending.

    def append(self, entry: bytes, *, aside: bytes = b"") -> Receipt:
        """Blocks until the entry is durable and a stored, signed head covers it; the receipt proves that.

        ``aside``: at most 1 MiB that become durable with the entry and are no part of the log; see ``asides``.
        Only in a folder.

        Raises Misuse for an entry that is empty or over 65,535 bytes, and Unavailable("audit.unwritable") when it
        can't be written: then nothing more is accepted until the log is opened again, and whether this entry is in
        the log is only known then. Where the signer refuses or is away, its own error is raised: the log stays sound,
        and this entry is not in it. A log in a database stays sound as well, and raises Unavailable("state.*").
        """
        return self.receipt(self._append(_Ticket((bytes(entry),), aside)))

    def append_many(self, entries: Sequence[bytes]) -> range:
        """The same for up to 4096 entries of 16 MiB in sum at once; returns their indexes, which are contiguous."""
        first = self._append(_Ticket(tuple(bytes(entry) for entry in entries)))
        return range(first, first + len(entries))

    def append_soon(self, entry: bytes) -> None:
        """Append without waiting: durable in about 50 ms, and never later than what is appended after it.

        For entries that nothing is granted for unless another entry follows: a crash may lose them, together with
        whatever came after them. While the signer is away they wait. Raises Misuse for what is no entry, and
        Unavailable("audit.unwritable") once the log is broken, which a write that fails later makes it, too. Where
        too many wait, or others append to the same log, this is ``append``.
        """
        ticket = _Ticket((bytes(entry),), patient=True)
        _check(ticket)
        with self._changed:
            self._refuse_if_broken()
            if self._store.defers and sum(each.patient for each in self._queue) < _PATIENT:
                self._queue.append(ticket)
                if self._flusher is None:
                    self._flusher = threading.Thread(target=self._flush, name="audit log", daemon=True)
                    self._flusher.start()
                if self._resting:  # else it looks at the queue in a moment anyway, and waking it costs a hand-over
                    self._soon.notify()
                return
        self._append(_Ticket(ticket.entries))

    def _append(self, ticket: _Ticket) -> int:
        _check(ticket)
        with self._changed:
            self._refuse_if_broken()
            self._queue.append(ticket)
            while ticket.first < 0 and not ticket.failed:
                if self._busy:
                    self._changed.wait()
                else:
                    self._lead()
            if ticket.failed:
                self._refuse_if_broken()
                if ticket.reason is not None:
                    raise ticket.reason
        return ticket.first

    def settle(self) -> None:
        """Wait for what was appended without waiting. Raises the signer's error while it is away, and
        Unavailable("audit.unwritable")."""
        with self._changed:
            while self._busy:
                self._changed.wait()
            last = self._queue[-1] if self._queue else None
            while last is not None and last.first < 0 and not last.failed:
                if self._busy:
                    self._changed.wait()
                else:
                    self._lead()
            self._refuse_if_broken()

    def _flush(self) -> None:
        """The thread that commits what nobody waits for, unless somebody else does so first."""
        pause = _SOON
        with self._changed:
            while self._refusal is None:
                if not self._queue:
                    self._resting = True
                    self._soon.wait()
                    self._resting = False
                self._soon.wait_for(lambda: self._refusal is not None, pause)
                pause = _SOON
                if self._refusal is None and self._queue and not self._busy:
                    try:
                        self._lead()
                    except CloisterError:
                        # Not lost: either the entries are in the queue again, or the log takes nothing more.
                        pause = _AGAIN

    @property
    def sound(self) -> bool:
        """False once a write failed: disk and memory may disagree since."""
        return self._refusal is None

    def _lead(self) -> None:
        """Commit what waits. Called with the lock, gives it up while the store works, has it again at the end."""
        self._busy = True
        batch = self._take_batch()
        entries: list[bytes] = []
        asides: dict[int, bytes] = {}
        for ticket in batch:
            if ticket.aside:
                asides[len(entries)] = ticket.aside
            entries += ticket.entries
        self._changed.release()
        try:
            # Only one thread is ever in here (``_busy``).
            first = self._store.commit(tuple(entries), asides)
        except StillSound as failed:
            self._changed.acquire()
            self._fail(batch, failed.reason)
            raise failed.reason from None
        except BaseException:
            self._changed.acquire()
            # Whatever went wrong, disk and memory may disagree now: never go on as if all were well.
            self._refusal = "audit.unwritable"
            self._fail(batch, None)
            raise
        else:
            self._changed.acquire()
            for ticket in batch:
                ticket.first = first
                first += len(ticket.entries)
        finally:
            self._busy = False
            self._changed.notify_all()

    def _fail(self, batch: list[_Ticket], reason: CloisterError | None) -> None:
        """Everybody who waits: nobody's entry may be written after its caller was told that it failed. What nobody
        waits for stays where the log is sound, before whatever comes next."""
        tickets, self._queue = [*batch, *self._queue], []
        for ticket in tickets:
            if ticket.patient and reason is not None:
                self._queue.append(ticket)
            else:
                ticket.failed, ticket.reason = True, reason

    def _take_batch(self) -> list[_Ticket]:
        """From the front of the queue, within the limits of a batch; at least one ticket, if there is one."""
        entries = size = count = 0
        for ticket in self._queue:
            entries += len(ticket.entries)
            size += sum(map(len, ticket.entries))
            if count and (entries > LIMITS.batch_entries or size > LIMITS.batch_bytes):
                break
            count += 1
        batch, self._queue = self._queue[:count], self._queue[count:]
        return batch

    def _refuse_if_broken(self) -> None:
        if self._refusal == "audit.closed":
            raise Misuse("audit.closed", "This audit log was closed; open it again.")
        if self._refusal:
            raise Unavailable(
                "audit.unwritable",
                "The audit log could not be written, so it accepts nothing more; mend the disk and restart.",
            )

    # What is kept beside entries.

    @property
    def asides(self) -> Mapping[int, bytes]:
        """What was given with entries and not forgotten, by their indexes. Private; nothing of the tree covers it."""
        return self._store.asides

    def forget_asides(self, end: int) -> None:
        """What is kept beside entries below ``end`` isn't needed any more."""
        with self._changed:
            while self._busy:
                self._changed.wait()
            self._store.forget_asides(end)

    # Reading.

    @property
    def origin(self) -> str:
        return self._store.origin

    @property
    def size(self) -> int:
        """Entries under the newest stored head."""
        return self._store.head().size

    def head(self) -> str:
        """The newest stored signed checkpoint."""
        return self._store.head().note

    def entry(self, index: int) -> bytes:
        """One entry, checked against the tree; Misuse outside the log, Untrusted if it was changed where it lies."""
        return self.entries(index, index + 1)[0]

    def entries(self, start: int, end: int) -> list[bytes]:
        """Entries [start, end), each checked against the tree's leaf hashes."""
        return self._entries(self._reaching(end), start, end)

    def receipt(self, index: int) -> Receipt:
        """The entry with its proof under the newest head."""
        head = self._store.head()
        entry = self._entries(head, index, index + 1)[0]
        return Receipt(entry, index, head.tree.inclusion(index), head.note)

    def prove_consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """RFC 6962 consistency proof that the first ``new`` entries extend the first ``old``. Misuse outside."""
        return self._reaching(new).tree.consistency(old, new)

    def resource(self, path: str) -> bytes:
        """What a tlog-tiles server answers for ``checkpoint``, ``tile/…`` and ``tile/entries/…``.

        A partial tile of any width that some head had is cut from what there is now. Malformed for another path,
        Misuse for what the log doesn't have yet.
        """
        head = self._store.head()
        if path == "checkpoint":
            return head.note.encode()
        level, index, width = parse_resource(path)
        if level is None:
            end = index * WIDTH + width
            return encode_bundle(self._entries(head, end - width, end))
        hashes = head.tree.tile(level, index)
        if len(hashes) < width:
            raise Misuse("log.tile", "The log has no such tile.")
        return b"".join(hashes[:width])

    def _reaching(self, end: int) -> Head:
        """A head over the first ``end`` entries, if there is one: what is under a known head needs no newer one."""
        known = self._store.known_head()
        return known if end <= known.size else self._store.head()

    def _entries(self, head: Head, start: int, end: int) -> list[bytes]:
        if not 0 <= start <= end <= head.size:
            raise Misuse("log.range", "The log has no such entries; ask within its size.")
        found = self._store.entries(head, start, end)
        for index, entry in enumerate(found, start):
            if leaf_hash(entry) != head.tree.tile(0, index // WIDTH)[index % WIDTH]:
                raise Untrusted("log.entry", "A stored log entry is not the one that was logged.", index=index)
        return found

    def close(self) -> None:
        """Commit what waits, then give the lock back. Closing twice is fine. Raises as ``settle``, after it closed."""
        with self._changed:
            try:
                while self._busy or self._queue:
                    if self._busy:
                        self._changed.wait()
                    else:
                        self._lead()
            finally:
                broken, self._refusal = self._refusal, "audit.closed"
                self._queue.clear()
                self._soon.notify_all()
                if broken != "audit.closed":
                    self._store.close(sound=not broken)
        if self._flusher is not None:
            self._flusher.join()

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check(ticket: _Ticket) -> None:
    entries = ticket.entries
    if len(ticket.aside) > LIMITS.aside:
        raise Misuse("log.aside", "What is kept beside an entry has at most 1 MiB.")
    if not 1 <= len(entries) <= LIMITS.batch_entries or sum(map(len, entries)) > LIMITS.batch_bytes:
        raise Misuse("log.batch", "Append between 1 and 4096 entries of at most 16 MiB in sum at once.")
    if not all(1 <= len(entry) <= LIMITS.entry for entry in entries):
        raise Misuse("log.entry", f"A log entry has between 1 and {LIMITS.entry} bytes; shorten it.")
