"""What invariant 2 of the design says, as a small pure model: who may have a key, a lease, a signature, and when.

Written from the rules, not from the broker's code, and with nothing of it: no table, no log, no digest. Documents are
numbers, keys are the serial of a card, assets are versions. ``failures`` give *every* clause that does not hold, by
its code: a broker that refuses must name one of them, and one that gives must find none. ``Book`` is what one party's
broker knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

__all__ = ["NONCE", "PARTIES", "SESSION", "Book", "Deal", "Instance", "Knock", "Run", "Session", "Statement"]

PARTIES = ("hospital", "lab")
SKEW = 5  # seconds by which a statement may come from the future
NONCE, SESSION = 60, 300


@dataclass
class Deal:
    """A contract. ``signed``: by whom, on the document; ``cards``: the serial of each party's card that it carries;
    ``versions``: of each party's asset."""

    number: int
    serial: int
    lease: int
    runs: int
    begins: int
    expires: int
    cards: dict[str, int]
    versions: dict[str, int]
    signed: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Run:
    """A job under a deal. ``epsilon``: what it may spend at worst; 0: it is trained without privacy."""

    number: int
    deal: Deal = field(compare=False)
    epsilon: int = 0


@dataclass(frozen=True)
class Statement:
    """A party's signed word, at ``issued`` by its own clock, that a deal is in force for it."""

    party: str
    deal: int
    issued: int


@dataclass(frozen=True)
class Instance:
    """A started workload with its lease. ``honest``: what runs is what contracts name."""

    number: int
    run: Run
    honest: bool
    sequence: int = 0
    expires: int = 0
    cut: bool = False


@dataclass(frozen=True)
class Knock:
    """What a workload asks for in one session."""

    instance: Instance
    purpose: str
    sequence: int
    statements: tuple[Statement, ...]


@dataclass
class Session:
    """``opened`` by the clock of the broker that it is at."""

    party: str
    knock: Knock
    opened: int
    challenged: bool = True
    attested: bool = False
    answers: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Book:
    """One party's broker: what it signed, saw, counted and remembers for good. Its ``now`` never goes back while it
    runs; ``restart`` sets it to what the machine's clock says."""

    name: str
    now: int
    pins: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTIES, 1))
    signed: dict[int, int] = field(default_factory=dict)  # deal -> serial
    complete: dict[int, int] = field(default_factory=dict)
    revoked: dict[int, str] = field(default_factory=dict)
    admitted: dict[int, list[int]] = field(default_factory=dict)  # deal -> runs
    instances: dict[int, Instance] = field(default_factory=dict)
    checkpoints: dict[int, int] = field(default_factory=dict)  # run -> step
    newest: int = 1
    shredded: set[int] = field(default_factory=set)
    budget: int | None = None  # epsilon that runs on the own data may spend together
    spent: int = 0
    released: int = 0  # entries of released keys that the log must have

    def tick(self, machine: int) -> None:
        self.now = max(self.now, machine)

    def knows(self, deal: Deal) -> bool:
        return deal.number in self.signed or deal.number in self.complete or deal.number in self.revoked

    # Clauses. Each gives the codes of those that don't hold.

    def unkept(self, deal: Deal) -> set[str]:
        """1 and 2: every party's signature by the pinned key; in force."""
        bad = set()
        if any(self.pins[party] != deal.cards[party] for party in PARTIES):
            bad.add("contract.keys")
        if set(PARTIES) - deal.signed:
            bad.add("contract.unsigned")
        return bad | self.not_in_force(deal)

    def not_in_force(self, deal: Deal) -> set[str]:
        bad = set()
        if deal.number in self.revoked:
            bad.add("contract.revoked")
        if deal.serial < max(self.complete.values(), default=0):
            bad.add("contract.superseded")
        if self.now < deal.begins:
            bad.add("contract.early")
        if self.now >= deal.expires:
            bad.add("contract.expired")
        return bad

    def unsaid(self, deal: Deal, statements: tuple[Statement, ...]) -> set[str]:
        """2: every other party says freshly that it is in force."""
        bad: set[str] = set()
        heard: list[str] = []
        for said in statements:
            if said.deal != deal.number:
                bad.add("status.other")
            elif not self.now - deal.lease <= said.issued <= self.now + SKEW:
                bad.add("status.stale")
            else:
                heard.append(said.party)
        if len(heard) > len(set(heard)):
            bad.add("status.twice")
        return bad | ({"status.missing"} if set(PARTIES) - {self.name, *heard} else set())

    def unaffordable(self, run: Run) -> set[str]:
        """5: the budget of runs, and the owner's privacy budget."""
        admitted = self.admitted.get(run.deal.number, [])
        fresh = run.number not in admitted
        bad = {"budget.runs"} if fresh and len(admitted) >= run.deal.runs else set()
        if self.budget is None:
            return bad
        if not run.epsilon:
            return bad | {"privacy.required"}
        return bad | ({"privacy.budget"} if fresh and self.spent + run.epsilon > self.budget else set())

    def dead(self, instance: Instance) -> set[str]:
        bad = {"lease.cut"} if instance.cut else set()
        return bad | ({"lease.expired"} if self.now >= instance.expires else set())

    def untimely(self, knock: Knock) -> set[str]:
        """5: whether this instance may begin, go on, or renew."""
        run, known = knock.instance.run, self.instances.get(knock.instance.number)
        bad = self.dead(known) if known is not None else set()
        if knock.purpose == "renew":
            if known is None:
                return {"lease.unknown"}
            return bad | ({"lease.sequence"} if knock.sequence != known.sequence + 1 else set())
        if knock.sequence:
            bad.add("lease.sequence")
        if knock.purpose == "resume" and run.number not in self.admitted.get(run.deal.number, []):
            bad.add("job.unknown")
        if knock.purpose == "release" and run.number in self.checkpoints:
            bad.add("job.checkpointed")
        return bad

    def unwelcome(self, knock: Knock) -> set[str]:
        """Everything that can be said without evidence."""
        run = knock.instance.run
        bad = self.unkept(run.deal) | self.unsaid(run.deal, knock.statements)
        if run.deal.versions[self.name] in self.shredded:
            bad.add("asset.shredded")
        return bad | self.unaffordable(run) | self.untimely(knock)

    def unfit(self, knock: Knock) -> set[str]:
        """And with it: 3 and 4."""
        return self.unwelcome(knock) | (set() if knock.instance.honest else {"appraisal.measurement"})

    def withheld(self, knock: Knock, owner: str) -> set[str]:
        """And for the key of ``owner``'s asset."""
        bad = self.unfit(knock)
        if knock.purpose == "renew":
            bad.add("session.purpose")
        if owner != self.name:
            bad.add("asset.owner")
        elif knock.instance.run.deal.versions[owner] != self.newest:
            bad.add("asset.old")
        return bad

    def unsignable(self, deal: Deal) -> set[str]:
        bad = {"contract.keys"} if any(self.pins[party] != deal.cards[party] for party in PARTIES) else set()
        if self.now >= deal.expires:
            bad.add("contract.expired")
        if deal.serial <= max(self.signed.values(), default=0):
            bad.add("contract.serial")
        if deal.versions[self.name] in self.shredded:
            bad.add("asset.shredded")
        if deal.versions[self.name] != self.newest:
            bad.add("asset.old")
        return bad

    def silent(self, deal: Deal) -> set[str]:
        """Why it does not say that the deal is in force."""
        if not self.knows(deal):
            return {"contract.unknown"}
        bad = {"contract.keys"} if any(self.pins[party] != deal.cards[party] for party in PARTIES) else set()
        if deal.number not in self.signed and deal.number not in self.complete:
            bad.add("contract.unsigned")
        return (
            bad
            | self.not_in_force(deal) - {"contract.early"}
            | ({"contract.expired"} if self.now < deal.begins else set())
        )

    def shut(self, session: Session) -> set[str]:
        """Why a session takes no evidence."""
        age = self.now - session.opened
        bad = set() if session.challenged else {"nonce.replayed"}
        if age >= NONCE:
            bad.add("nonce.expired")
        if age >= (SESSION if session.attested else NONCE):
            bad.add("session.absent")  # forgotten, at the latest when another one begins
        return bad

    def closed(self, session: Session) -> set[str]:
        """Why a session gives nothing."""
        bad = set() if session.attested else {"session.unattested"}
        age = self.now - session.opened
        return bad | ({"session.absent"} if age >= (SESSION if session.attested else NONCE) else set())

    # What happens.

    def admit(self, knock: Knock) -> None:
        """A key went out, or was logged to: the run counts, and its newest instance is this one."""
        run, number = knock.instance.run, knock.instance.number
        self.complete.setdefault(run.deal.number, run.deal.serial)
        runs = self.admitted.setdefault(run.deal.number, [])
        if run.number not in runs:
            runs.append(run.number)
            self.spent += run.epsilon
        if number not in self.instances:
            for other, known in self.instances.items():
                if known.run.number == run.number:
                    self.instances[other] = replace(known, cut=True)
            expires = min(self.now + run.deal.lease, run.deal.expires)
            self.instances[number] = replace(knock.instance, sequence=0, expires=expires)
        self.released += 1

    def renew(self, knock: Knock) -> None:
        known = self.instances[knock.instance.number]
        expires = min(self.now + known.run.deal.lease, known.run.deal.expires)
        self.instances[known.number] = replace(known, sequence=knock.sequence, expires=expires)

    def revoke(self, deal: Deal, by: str) -> None:
        if deal.number in self.revoked:
            return
        self.revoked[deal.number] = by
        for number, known in self.instances.items():
            if known.run.deal.number == deal.number:
                self.instances[number] = replace(known, cut=True)

    def shred_all(self) -> None:
        """The owner destroys every version's key: who may hold one is cut off."""
        self.shredded |= set(range(1, self.newest + 1))
        for number, known in self.instances.items():
            if self.now < known.expires:
                self.instances[number] = replace(known, cut=True)
