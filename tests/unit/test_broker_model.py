"""Random lives of two real brokers beside the model of ``tests/broker_model.py``: contracts, revocations, statements,
clocks, leases, releases, shredding, new cards, crashes at every durable step, in any order.

Whenever a key leaves, the model finds no clause of invariant 2 broken, the log has the entry with a proof that
verifies, and the workload can open the key. Whenever a broker refuses, it names a clause that the model finds broken.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from cloister.audit import Receipt, parse_event
from cloister.contracts import Contract, Job, read_contract, read_job
from cloister.contracts.documents import read_revocation
from cloister.crypto import Envelope
from cloister.errors import CloisterError
from tests.broker_model import PARTIES, Book, Deal, Instance, Knock, Run, Session, Statement
from tests.broker_party import LEASE, NOW, OUTPUT, FakeClock, Party, insecure_attester, insecure_judges, recipe_document
from tests.broker_world import Workload, World
from tests.key_chores import Killed, dies_at

pytest_plugins = ["tests.broker_fixtures"]

WRONG = b"\xee" * 32  # a measurement that no contract names
ASSETS = {"hospital": ("hospital/queries", "dataset"), "lab": ("lab/minilm", "model")}
NODE = 400  # launches: fewer than a node's log holds
STEPS = st.integers(1, 8)  # of a commit: before and after each durable step
PARTY = st.sampled_from(PARTIES)


class Clock:
    """As the broker's own: within one life it never goes back, whatever is done to the machine's."""

    def __init__(self, machine: FakeClock) -> None:
        self._machine, self._newest = machine, 0

    def __call__(self) -> int:
        self._newest = max(self._newest, self._machine())
        return self._newest

    def reborn(self) -> None:
        self._newest = 0


class Lives(RuleBasedStateMachine):
    """Real things by the numbers of the model's."""

    template: ClassVar[World]
    place: ClassVar[Path]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=self.place))
        shutil.copytree(self.template.folder, self.folder / "w")
        self.world = World(self.folder / "w")
        first = self.template
        self.world.data, self.world.base = first.data, first.base
        self.machine = FakeClock()
        self.clocks = {name: Clock(self.machine) for name in PARTIES}
        judges = insecure_judges()
        for name in PARTIES:
            home = self.folder / "w" / name
            self.world.parties[name] = Party(name, home, self.clocks[name], judges)  # type: ignore[arg-type]
        self.books = {name: Book(name, NOW) for name in PARTIES}
        self.deals: list[Deal] = []
        self.contracts: list[Contract] = []
        self.runs: list[Run] = []
        self.jobs: list[Job] = []
        self.cards: list[tuple[str, int, str]] = []
        self.said: list[tuple[Statement, str]] = []
        self.revocations: list[tuple[Deal, str, Envelope]] = []
        self.workloads: list[tuple[Instance, Workload]] = []
        self.sessions: list[tuple[Session, str, str]] = []  # with cookie and nonce
        self.assets = {name: {1: getattr(self.world, what)} for name, what in (("hospital", "data"), ("lab", "base"))}
        self.seen = {name: self.party(name).broker.core.ledger.log.size for name in PARTIES}
        self.deks = {name: {1: self.dek(name, 1)} for name in PARTIES}
        for book in self.books.values():  # the template's own contract stands first
            book.signed[-1] = book.complete[-1] = 1
        self.agree()
        self.conclude()

    # What both sides share.

    def party(self, name: str) -> Party:
        return self.world.parties[name]

    def dek(self, name: str, version: int) -> bytes:
        return self.party(name).broker.core.assets.unwrap_secret_dek(self.assets[name][version].digest)

    def tick(self) -> None:
        for name in PARTIES:
            self.books[name].tick(self.machine.now)
            self.clocks[name]()

    def attempt(self, bad: set[str], call: Callable[[], Any]) -> Any:
        """The result of ``call`` where nothing is ``bad``; else None, and it was refused for one of those reasons."""
        done, code = None, ""
        try:
            done = call()
        except CloisterError as refusal:
            code = refusal.code
        assert code in bad if code else not bad, f"refused with {code}: {bad}" if code else f"given, although: {bad}"
        return done

    def agree(self) -> None:
        """The log has exactly the releases that the model knows of."""
        for name in PARTIES:
            log = self.party(name).broker.core.ledger.log
            new = [parse_event(entry) for entry in log.entries(self.seen[name], log.size)]
            self.seen[name] = log.size
            self.books[name].released -= sum(facts.kind == "key.released" for facts in new)
            assert self.books[name].released == 0, name

    # Contracts.

    @rule(
        serial=st.integers(0, 2), lease=st.sampled_from([5, LEASE, 600]), runs=st.integers(1, 2),
        begins=st.sampled_from([-1, -1, 20]), life=st.sampled_from([60, 5000, 5000]),
    )  # fmt: skip
    def propose(self, serial: int, lease: int, runs: int, begins: int, life: int) -> None:
        self.tick()
        cards = {name: self.party(name).broker.card for name in PARTIES}
        now, number = self.machine.now, len(self.deals)
        newest = max([1, *(deal.serial for deal in self.deals)])
        versions = {name: self.books[name].newest for name in PARTIES}
        deal = Deal(
            number, newest + serial, lease, runs, now + begins, now + life,
            {name: card.serial for name, card in cards.items()}, versions,
        )  # fmt: skip
        self.world.data, self.world.base = (self.assets[name][versions[name]] for name in PARTIES)
        fields = self.world.contract_fields(
            serial=deal.serial, lease_seconds=lease, runs=runs, not_before=deal.begins, expires=deal.expires,
            purpose=f"tests {number}",
        )  # fmt: skip
        self.deals.append(deal)
        self.contracts.append(read_contract(self.world.unsigned(fields)))

    @precondition(lambda self: self.deals)
    @rule(name=PARTY, pick=st.integers(0, 99))
    def sign(self, name: str, pick: int) -> None:
        self.tick()
        deal = self.deals[-1 - pick % min(3, len(self.deals))]
        book, agreements = self.books[name], self.party(name).broker.agreements
        bad = book.unsignable(deal) if deal.number not in book.signed else set()
        if deal.number in book.signed and deal.number in book.revoked:
            bad = {"contract.revoked"}
        signed = self.attempt(bad, lambda: agreements.sign(self.contracts[deal.number].envelope))
        if signed is not None:
            deal.signed.add(name)
            book.signed[deal.number] = deal.serial
            self.contracts[deal.number] = read_contract(signed)

    @precondition(lambda self: self.deals)
    @rule(name=PARTY, pick=st.integers(0, 99))
    def store(self, name: str, pick: int) -> None:
        self.tick()
        deal = self.deals[-1 - pick % min(3, len(self.deals))]
        bad = self.books[name].unkept(deal) & {"contract.keys", "contract.unsigned"}
        envelope = self.contracts[deal.number].envelope
        if self.attempt(bad, lambda: self.party(name).broker.agreements.store(envelope)) is not None:
            self.books[name].complete[deal.number] = deal.serial

    @precondition(lambda self: not self.deals or self.books["hospital"].unkept(self.deals[-1]))
    @rule()
    def conclude(self) -> None:
        """A whole contract at once, where there is none: else few random lives would get to a release."""
        self.propose(1, LEASE, 2, -1, 5000)
        for name in PARTIES:
            self.sign(name, 0)
        for name in PARTIES:
            self.store(name, 0)
        self.submit(0, 1)

    @precondition(lambda self: self.deals)
    @rule(name=PARTY, pick=st.integers(0, 99), really=st.booleans())
    def revoke(self, name: str, pick: int, really: bool) -> None:
        if not really:
            return
        deal = self.deals[-1 - pick % min(3, len(self.deals))]
        book, contract = self.books[name], self.contracts[deal.number]
        bad = set() if book.knows(deal) else {"contract.unknown"}
        done = self.attempt(bad, lambda: self.party(name).broker.agreements.revoke(contract.digest, "enough"))
        if done is not None:
            envelope = Envelope.from_bytes(done[1].encode())
            book.revoke(deal, by := read_revocation(envelope, contract)[0])
            assert book.revoked[deal.number] == by
            self.revocations.append((deal, by, envelope))

    @precondition(lambda self: self.revocations)
    @rule(name=PARTY, pick=st.integers(0, 99))
    def hear(self, name: str, pick: int) -> None:
        deal, by, envelope = self.revocations[pick % len(self.revocations)]
        book, contract = self.books[name], self.contracts[deal.number]
        bad = set() if book.knows(deal) else book.unkept(deal) & {"contract.keys", "contract.unsigned"}
        agreements = self.party(name).broker.agreements
        if self.attempt(bad, lambda: [agreements.accept_revocation(contract.envelope, envelope)]) is not None:
            book.revoke(deal, by)

    @precondition(lambda self: self.deals)
    @rule(name=PARTY, pick=st.integers(0, 99))
    def ask(self, name: str, pick: int) -> None:
        """For a statement that the contract is in force."""
        self.ask_about(name, self.deals[-1 - pick % min(3, len(self.deals))])

    def ask_about(self, name: str, deal: Deal) -> None:
        self.tick()
        book = self.books[name]
        status = self.party(name).broker.agreements.status(self.contracts[deal.number].digest)
        bad = book.silent(deal)
        if status.refusal is not None:
            assert status.refusal.code in bad
            return
        assert not bad
        assert status.statement is not None
        self.said.append((Statement(name, deal.number, book.now), status.statement.to_bytes().decode()))

    # Jobs and workloads.

    @precondition(lambda self: self.deals)
    @rule(pick=st.integers(0, 99), epsilon=st.sampled_from([0, 1, 3]))
    def submit(self, pick: int, epsilon: int) -> None:
        self.tick()
        deal, book = self.deals[-1 - pick % min(3, len(self.deals))], self.books["hospital"]
        run = Run(len(self.runs), deal, epsilon)
        recipe = recipe_document(**({"privacy": {"epsilon": str(epsilon)}} if epsilon else {}))
        contract = self.contracts[deal.number]
        bad = book.unkept(deal) | book.unaffordable(run)
        sign = self.party("hospital").broker.agreements.sign_job
        envelope = self.attempt(bad, lambda: sign(contract.envelope, recipe, OUTPUT))
        if envelope is not None:
            self.runs.append(run)
            self.jobs.append(read_job(envelope, contract))
            self.launch(0, True)

    @precondition(lambda self: self.runs)
    @rule(pick=st.integers(0, 99), honest=st.sampled_from([True, True, True, False]))
    def launch(self, pick: int, honest: bool) -> None:
        if len(self.workloads) % NODE == NODE - 1:
            self.next_node()
        run = self.runs[-1 - pick % min(4, len(self.runs))]
        more = {} if honest else {"measurement": WRONG}
        contract = self.contracts[run.deal.number]
        workload = self.world.workload(contract=contract, job=self.jobs[run.number], **more)
        self.workloads.append((Instance(len(self.workloads), run, honest), workload))

    def next_node(self) -> None:
        """An attester's log holds so many launches. Whoever is started from now on, or attests again, is on another."""
        self.world.attester = insecure_attester()
        for _, workload in self.workloads:
            workload.launched = False

    @precondition(lambda self: self.workloads)
    @rule(
        name=PARTY, pick=st.integers(0, 99), purpose=st.sampled_from(["release", "release", "resume", "renew"]),
        fresh=st.booleans(), off=st.sampled_from([0, 0, 0, 1]),
    )  # fmt: skip
    def knock(self, name: str, pick: int, purpose: str, fresh: bool, off: int) -> None:
        self.tick()
        instance, workload = self.workloads[-1 - pick % min(4, len(self.workloads))]
        book, number = self.books[name], instance.run.deal.number
        if fresh:
            for other in PARTIES:
                self.ask_about(other, self.deals[number])
        shown = self.said[-2:] if fresh else self.said[-1:]
        known = book.instances.get(instance.number)
        sequence = (known.sequence + 1 if known is not None else 1) if purpose == "renew" else 0
        asked = Knock(instance, purpose, sequence + off, tuple(statement for statement, _ in shown))
        request = workload.request(purpose, sequence + off, statements=[text for _, text in shown])
        done = self.attempt(book.unwelcome(asked), lambda: self.party(name).broker.releases.challenge(request))
        if done is not None:
            self.sessions.append((Session(name, asked, book.now), done[0], done[1]["nonce"]))

    @precondition(lambda self: self.sessions)
    @rule(pick=st.integers(0, 99))
    def attest(self, pick: int) -> None:
        self.tick()
        session, cookie, nonce = self.sessions[-1 - pick % min(3, len(self.sessions))]
        book, workload = self.books[session.party], self.workloads[session.knock.instance.number][1]
        shut = book.shut(session)
        bad = shut | (set() if shut else book.unfit(session.knock))
        evidence = workload.attestation(nonce)
        releases = self.party(session.party).broker.releases
        session.attested |= self.attempt(bad, lambda: releases.attest(cookie, evidence)) is not None
        session.challenged = False

    @precondition(lambda self: self.sessions)
    @rule(pick=st.integers(0, 99), owner=st.sampled_from(["own", "own", "own", "other"]), dies=st.none() | STEPS)
    def fetch(self, pick: int, owner: str, dies: int | None) -> None:
        """The key, perhaps with the broker's end in the middle."""
        self.tick()
        session, cookie, _ = self.sessions[-1 - pick % min(3, len(self.sessions))]
        name, book = session.party, self.books[session.party]
        asset = name if owner == "own" else next(other for other in PARTIES if other != name)
        deal = session.knock.instance.run.deal
        closed = book.closed(session)
        bad = closed | (set() if closed else book.withheld(session.knock, asset))
        digest = self.assets[asset][deal.versions[asset]].digest
        party, workload = self.party(name), self.workloads[session.knock.instance.number][1]
        if dies is not None:
            self.die(name, dies, lambda: workload.fetch(party, cookie, digest), None if bad else session.knock)
            return
        jwe = self.attempt(bad, lambda: workload.fetch(party, cookie, digest))
        if jwe is None:
            return
        if asset in session.answers:
            assert session.answers[asset] == jwe
        else:
            book.admit(session.knock)
            session.answers[asset] = jwe
        key, answer = workload.open(jwe, digest)
        assert key == self.deks[name][deal.versions[name]]
        self.logged(party, answer, workload, digest)
        self.agree()

    def logged(self, party: Party, answer: dict[str, Any], workload: Workload, digest: bytes) -> None:
        """The receipt proves an entry that says exactly this."""
        receipt = Receipt.from_wire(answer["receipt"])
        log, keys = party.broker.core.ledger.log, party.broker.card.keys
        receipt.verify(log.origin, keys.receipt)
        assert log.entry(receipt.index) == receipt.leaf
        facts = parse_event(receipt.leaf)
        assert (facts.kind, facts.outcome, facts.target) == ("key.released", "success", digest.hex())
        assert facts.details["instance"] == workload.instance.hex()
        assert facts.details["job"] == workload.job.digest.hex()

    def whole(self, pick: int, purpose: str, dies: int | None) -> None:
        """A workload that does all of it at both brokers."""
        for name in PARTIES:
            before = len(self.sessions)
            self.knock(name, pick, purpose, True, 0)
            if len(self.sessions) > before:
                self.attest(0)
                if purpose == "renew":
                    self.renew(0)
                else:
                    self.fetch(0, "own", dies if name == "hospital" else None)

    @precondition(lambda self: self.workloads)
    @rule(pick=st.integers(0, 3))
    def run(self, pick: int) -> None:
        self.whole(pick, "release", None)

    @precondition(lambda self: self.workloads)
    @rule(pick=st.integers(0, 3), purpose=st.sampled_from(["release", "resume"]), dies=STEPS)
    def run_to_death(self, pick: int, purpose: str, dies: int) -> None:
        self.whole(pick, purpose, dies)

    @precondition(lambda self: self.workloads)
    @rule(pick=st.integers(0, 3))
    def run_again(self, pick: int) -> None:
        """A new instance of a run that was admitted, perhaps: it goes on, or begins anew."""
        self.launch(pick, True)
        run = self.workloads[-1][0].run
        begun = any(run.number in book.checkpoints for book in self.books.values())
        self.whole(0, "resume" if begun else "release", None)

    @precondition(lambda self: self.workloads)
    @rule(pick=st.integers(0, 3))
    def live_on(self, pick: int) -> None:
        self.whole(pick, "renew", None)

    @precondition(lambda self: self.sessions)
    @rule(pick=st.integers(0, 99))
    def renew(self, pick: int) -> None:
        self.tick()
        session, cookie, _ = self.sessions[-1 - pick % min(3, len(self.sessions))]
        book, releases = self.books[session.party], self.party(session.party).broker.leases
        closed = book.closed(session)
        bad = closed or (set() if "lease" in session.answers else book.unfit(session.knock))
        if session.knock.purpose != "renew" and not closed and "lease" not in session.answers:
            bad = bad | {"session.purpose"}
        lease = self.attempt(bad, lambda: releases.renew(cookie))
        if lease is not None and "lease" not in session.answers:
            book.renew(session.knock)
            session.answers["lease"] = lease

    @precondition(lambda self: self.workloads)
    @rule(name=PARTY, pick=st.integers(0, 99), step=st.integers(1, 3))
    def checkpoint(self, name: str, pick: int, step: int) -> None:
        self.tick()
        instance, workload = self.workloads[-1 - pick % min(4, len(self.workloads))]
        book = self.books[name]
        known, run = book.instances.get(instance.number), instance.run
        bad = {"lease.unknown"} if known is None else book.dead(known) | book.unkept(run.deal)
        before = book.checkpoints.get(run.number, 0)
        if step < before:
            bad = bad | {"checkpoint.rollback"}
        record = workload.record(step)
        if self.attempt(bad, lambda: self.party(name).broker.leases.checkpoint(record)) is not None:
            book.checkpoints[run.number] = step

    # Owners, time, and the end of processes.

    @rule(name=PARTY, what=st.sampled_from(["", "", "", "rotate", "shred", "seal", "card", "card untold"]))
    def owner(self, name: str, what: str) -> None:
        """What an owner does with keys; often nothing, or few lives would have anything left to release."""
        self.tick()
        if not what:
            return
        {"shred": self.shred, "seal": self.seal, "rotate": self.rotate}.get(what, self.card)(name)
        if what == "card":
            self.tell(name)

    @rule(epsilon=st.sampled_from([0, 3, 6, 40]), really=st.sampled_from([False, False, True]))
    def limit(self, epsilon: int, really: bool) -> None:
        """The hospital sets its privacy budget, perhaps under what is spent."""
        self.tick()
        if really:
            self.party("hospital").broker.budgets.set(ASSETS["hospital"][0], str(epsilon), "1", None)
            self.books["hospital"].budget = epsilon

    def shred(self, name: str) -> None:
        book, lifecycle = self.books[name], self.party(name).broker.lifecycle
        lifecycle.shredder.shred(ASSETS[name][0], None, "over")
        lifecycle.rotation.finish()
        book.shred_all()

    def seal(self, name: str) -> None:
        book, number = self.books[name], self.books[name].newest + 1
        sealed = self.party(name).seal(self.folder / f"{name}-{number}", *ASSETS[name])
        book.newest, self.assets[name][number] = number, sealed
        self.deks[name][number] = self.dek(name, number)

    def rotate(self, name: str) -> None:
        self.party(name).broker.lifecycle.rotation.rotate()

    def card(self, name: str) -> None:
        card = self.party(name).broker.core.parties.rotate_signing()
        self.books[name].pins[name] = card.serial
        self.cards.append((name, card.serial, card.envelope.to_bytes().decode()))

    def tell(self, name: str) -> None:
        """The other party pins what it has not seen yet, each signed by the one before."""
        other = next(party for party in PARTIES if party != name)
        for whose, serial, text in self.cards:
            if whose == name and serial > self.books[other].pins[name]:
                self.party(other).broker.core.parties.pin(text, None)
                self.books[other].pins[name] = serial

    @rule(seconds=st.sampled_from([1, 1, 4, 4, 10, 10, 29, 30, 61, 400, 6000]))
    def wait(self, seconds: int) -> None:
        self.machine.pass_seconds(seconds)

    @rule(seconds=st.sampled_from([3, 30, 500]))
    def set_back(self, seconds: int) -> None:
        self.machine.pass_seconds(-seconds)

    @rule(name=PARTY)
    def restart(self, name: str) -> None:
        self.tick()
        self.sessions = [entry for entry in self.sessions if entry[0].party != name]
        self.agree()
        self.clocks[name].reborn()
        self.party(name).restart()
        self.books[name].now = self.machine.now

    def die(self, name: str, step: int, call: Callable[[], object], granted: Knock | None) -> None:
        """The broker's process ends at a durable step of ``call``. What the log has happened; nobody got anything."""
        log = self.party(name).broker.core.ledger.log
        self.agree()
        patch = pytest.MonkeyPatch()
        try:
            with dies_at(step, patch):
                call()
        except (Killed, CloisterError):
            pass
        finally:
            patch.undo()
        size = log.size
        self.party(name).broker.close()
        self.clocks[name].reborn()
        before = self.books[name].now
        self.party(name).start()
        log = self.party(name).broker.core.ledger.log
        new = [parse_event(entry) for entry in log.entries(self.seen[name], log.size)]
        assert log.size >= size
        released = [facts for facts in new if facts.kind == "key.released"]
        assert len(released) <= 1
        if released:
            assert granted is not None, "an entry of a release that should have been refused"
            self.books[name].admit(granted)
        self.sessions = [entry for entry in self.sessions if entry[0].party != name]
        self.agree()
        assert self.books[name].now == before
        self.books[name].now = self.machine.now

    def teardown(self) -> None:
        if not hasattr(self, "folder"):
            return
        try:
            self.agree()
            for name in PARTIES:
                self.compare(name)
        finally:
            self.world.close()
            shutil.rmtree(self.folder)

    def compare(self, name: str) -> None:
        """The tables say what the model says."""
        book, state = self.books[name], self.party(name).broker.core.ledger.state
        instances = {row["instance"]: row for row in state.rows("instances")}
        assert len(instances) == len(book.instances)
        for number, known in book.instances.items():
            row = instances[self.workloads[number][1].instance.hex()]
            assert (row["sequence"], row["expires"], bool(row["cut"])) == (known.sequence, known.expires, known.cut)
        admitted = {run for runs in book.admitted.values() for run in runs}
        if book.budget is not None:
            kept = self.party(name).broker.budgets.listing()[ASSETS[name][0]]
            private = [run for run in admitted if self.runs[run].epsilon]
            assert (kept["spent_epsilon"], kept["runs"]) == (str(book.spent), len(private))
            assert kept["unbounded"] == len(admitted) - len(private)
        assert {row["digest"] for row in state.rows("jobs")} == {self.jobs[run].digest.hex() for run in admitted}


@pytest.fixture
def lives(template: World, fast_folder: Path) -> type[Lives]:
    Lives.template, Lives.place = template, fast_folder
    return Lives


# Shrinking a life of real brokers takes longer than reading it.
CALM: dict[str, Any] = {"phases": [Phase.generate], "suppress_health_check": list(HealthCheck), "database": None}


def test_no_key_leaves_outside_the_invariant(lives: type[Lives]) -> None:
    run_state_machine_as_test(lives, settings=settings(max_examples=8, stateful_step_count=30, **CALM))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_key_leaves_outside_the_invariant_in_long_lives(lives: type[Lives], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand steps in each life; Hypothesis ends one sooner when its choices outgrow a fixed budget."""
    for module in ("internal.conjecture.engine", "stateful"):
        monkeypatch.setattr(f"hypothesis.{module}.BUFFER_SIZE", 1 << 20)
    run_state_machine_as_test(lives, settings=settings(max_examples=10, stateful_step_count=2000, **CALM))
