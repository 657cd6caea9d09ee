"""Watching each other's logs: this broker remembers the newest head of every pinned party, and shows them its own.

A party that puts back an old copy of everything it has still can't make its peers forget what they saw.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from functools import partial

from ..audit import AuditLog, Checkpoint, Receipt, check_advance, cosign, verify_checkpoint, verify_quorum
from ..contracts import Card, log_origin
from ..crypto import Signer, constant_time_equal
from ..crypto.merkle import verify_consistency
from ..errors import CloisterError, Denied, Unavailable, Untrusted
from ..fields import Fields
from .clock import Clock
from .errands import Line
from .peers import Peers
from .sessions import Channel
from .state import State

__all__ = ["Heads", "Herald"]

Cards = Callable[[], Mapping[str, Card]]
_FRESH = 60  # seconds: how old a cosignature may be that counts for a quorum
_MOST_LINES = 4  # that one witness adds to a note; one is usual
_EXCHANGES = 3  # with a witness, for one quorum: what it knows, our head, and one that was under way before


class Heads:
    """The heads of other parties' logs: they only grow (C2SP tlog-witness), and what was accepted is cosigned."""

    def __init__(self, state: State, cards: Cards, clock: Clock, *, name: str, key: Signer) -> None:
        self._state = state
        self._cards = cards
        self._clock = clock
        self._name = name
        self._key = key
        self._lock = threading.Lock()

    def accept(self, party: str, note: str, proof: Sequence[bytes]) -> str:
        """The note with our cosignature. Denied for a party that isn't pinned, Untrusted for a head that doesn't extend
        the one seen before."""
        card = self._cards().get(party)
        if card is None or party == self._name:
            raise Denied("head.unpinned", "Heads are kept of other, pinned parties' logs only.")
        with self._lock:
            seen = self.known(party)
            known = verify_checkpoint(seen, card.log_origin, card.keys.receipt) if seen is not None else None
            accepted = check_advance(known, note, proof, card.log_origin, card.keys.receipt)
            # Durable before the cosignature exists, and only on top of what it was checked against: else a crash, or
            # another replica at the same moment, could make us cosign two histories.
            if not self._state.swap_head(party, seen, note):
                raise Unavailable("head.busy", "Another head of that log was accepted at this moment; show it again.")
        return cosign(note, accepted, name=log_origin(self._name), key=self._key, now=self._clock())

    def check_sender(self, party: str, channel: Channel) -> None:
        """A head of ``party``'s log is shown by its own broker: the connection proved its card's TLS key.

        Raises Denied for a party that isn't pinned, Untrusted("channel.peer") for a connection of somebody else's.
        """
        card = self._cards().get(party)
        if card is None:
            raise Denied("head.unpinned", "Heads are kept of other, pinned parties' logs only.")
        if channel.key is None or not constant_time_equal(channel.key, card.keys.tls):
            raise Untrusted("channel.peer", "A log's head comes over a connection of its own party's broker only.")

    def known(self, party: str) -> str | None:
        """The newest head that was accepted of ``party``'s log."""
        row = self._state.row("heads", party=party)
        return None if row is None else row["note"]


class Herald:
    """Shows our own head to the peers: in the background after changes, and at once where a contract asks for it.

    Peers are asked all at once, so that none holds up another; each is asked one thing at a time, and never shown an
    older head after a newer one.
    """

    def __init__(self, log: AuditLog, peers: Peers, cards: Cards, clock: Clock, *, name: str, log_key: bytes) -> None:
        self._log = log
        self._peers = peers
        self._cards = cards
        self._clock = clock
        self._name = name
        self._log_key = log_key
        self._seen: dict[str, Checkpoint] = {}  # each peer's only by that peer's errands
        self._alarm: Untrusted | None = None
        self._lines: defaultdict[str, Line] = defaultdict(Line)
        self._order = threading.Lock()  # from reading our head until it stands in every line; never while one waits

    def check(self) -> None:
        """Raises Untrusted("state.rollback") once a peer has shown a head of ours that our log doesn't contain."""
        if self._alarm is not None:
            raise self._alarm

    def compare(self) -> int:
        """How many peers confirm that our log holds all that they saw of it: the check at start. Raises as ``check``.

        A peer that can't be reached, or that has seen nothing yet, confirms nothing.
        """
        confirmed = 0
        with self._order:
            errands = [self._lines[card.name].add(partial(self._ask, card)) for card in self._others()]
        for errand in errands:
            try:
                confirmed += errand.result() is not None
            except CloisterError:
                self.check()  # it was heard, and what it showed is alarming; all else counts as silence
        return confirmed

    def show_all(self) -> int:
        """Show every peer the newest head, best effort; how many took it."""
        reached = 0
        with self._order:
            errands = self._show_to(self._others(), self._log.head())
        for errand in errands:
            try:
                errand.result()
            except CloisterError:
                continue  # it learns of a later head; what it saw before, it keeps
            reached += 1
        return reached

    def gather(self, index: int, least: int, witnesses: Mapping[str, bytes]) -> Receipt:
        """Entry ``index`` under a head that at least ``least`` of ``witnesses`` cosigned just now.

        ``witnesses``: log name → key, of those that count; nobody else is asked. Raises Untrusted("witness.quorum").
        """
        since, end = self._clock() - _FRESH, time.monotonic() + _EXCHANGES * self._peers.seconds
        for last in (False, False, True):
            with self._order:
                receipt = self._log.receipt(index)
                cards = [card for card in self._others() if card.log_origin in witnesses]
                errands = self._show_to(cards, receipt.checkpoint)
            try:
                return receipt.with_cosigned(_quorum(receipt.checkpoint, errands, witnesses, least, since, end))
            except Untrusted:
                # Another replica may have shown a witness a newer head meanwhile, which takes no older one then.
                if last or self._log.head() == receipt.checkpoint or time.monotonic() > end:
                    raise
        raise AssertionError("the last round returns or raises")

    def _show_to(self, cards: Iterable[Card], note: str) -> dict[Future[str], str]:
        """The answers to come, each with the log name of whom it comes from."""
        return {self._lines[card.name].add(partial(self._show, card, note)): card.log_origin for card in cards}

    def _others(self) -> list[Card]:
        """Pinned parties whose address is known."""
        addresses = self._peers.addresses()
        return [card for name, card in sorted(self._cards().items()) if name in addresses and name != self._name]

    def _show(self, card: Card, note: str) -> str:
        new = verify_checkpoint(note, self._log.origin, self._log_key)
        old = self._seen.get(card.name) or self._ask(card)
        proof = self._log.prove_consistency(old.size, new.size) if old is not None else ()
        body = {"note": note, "party": self._name, "proof": [digest.hex() for digest in proof]}
        try:
            answer = Fields(self._peers.post(card, "/cloister/v1/heads", body), "peer's answer")
        except CloisterError:
            self._seen.pop(card.name, None)  # ask anew next time what it knows
            raise
        self._seen[card.name] = new
        return answer.text("cosigned", limit=512 * 1024)

    def _ask(self, card: Card) -> Checkpoint | None:
        """The newest head of ours that the peer remembers. It can't make one up: our own key signed it."""
        answer = Fields(self._peers.get(card, f"/cloister/v1/heads/{self._name}"), "peer's answer")
        note = answer.optional_text("note", limit=512 * 1024)
        if note is None:
            return None
        seen = verify_checkpoint(note, self._log.origin, self._log_key)
        try:
            self._check_contains(seen)
        except Untrusted:
            self._alarm = Untrusted(
                "state.rollback",
                f"The broker of {card.name} has seen more of this log than is here: an older copy was put back.",
            )
            raise self._alarm from None
        return seen

    def _check_contains(self, seen: Checkpoint) -> None:
        head = verify_checkpoint(self._log.head(), self._log.origin, self._log_key)
        proof = self._log.prove_consistency(seen.size, head.size) if seen.size <= head.size else ()
        verify_consistency(seen.size, head.size, proof, seen.root, head.root)


def _quorum(
    note: str, errands: Mapping[Future[str], str], witnesses: Mapping[str, bytes], least: int, since: int, end: float
) -> str:
    """``note`` with cosignatures of ``least`` witnesses, as soon as it has them; ``end`` is in monotonic seconds."""
    with contextlib.suppress(TimeoutError), _given_up_at_the_end(errands):  # the count below decides
        for errand in as_completed(errands, timeout=max(0.0, end - time.monotonic())):
            try:
                merged = _merge(note, errand.result(), errands[errand])
                verify_quorum(merged, witnesses, 0, not_before=since)
            except CloisterError:
                continue  # silence, a refusal, or lines that don't hold: nothing of it is taken
            note = merged
            with contextlib.suppress(Untrusted):  # not enough yet
                verify_quorum(note, witnesses, least, not_before=since)
                return note
    verify_quorum(note, witnesses, least, not_before=since)
    return note


@contextlib.contextmanager
def _given_up_at_the_end(errands: Iterable[Future[str]]) -> Iterator[None]:
    """What has not begun by then, nobody waits for any more, and what stands behind it in a line need not either."""
    try:
        yield
    finally:
        for errand in errands:
            errand.cancel()


def _merge(mine: str, cosigned: str, name: str) -> str:
    """Our note with the lines that a peer added in its own name; Untrusted if it is about something else.

    In others' names it could only spoil what they signed, and too many lines leave them no room.
    """
    text, _, lines = cosigned.rpartition("\n\n")
    if mine.rpartition("\n\n")[0] != text:
        raise Untrusted("witness.other", "A witness cosigned another head than the one it was shown.")
    have = set(mine.splitlines())
    added = [line for line in lines.split("\n") if line.startswith(f"\u2014 {name} ") and line not in have]
    return mine + "".join(f"{line}\n" for line in added[:_MOST_LINES])
