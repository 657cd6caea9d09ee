"""The stage of ``key_release``: two parties, contracts with jobs to spend, homes with logs of a chosen length, brokers
as processes of their own, and nodes with software TPMs whose workloads ask for keys with the real client code.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister.audit import encode_event, event
from cloister.broker import Settings
from cloister.broker.startup import open_home
from cloister.contracts import Contract, Job, read_job
from cloister.crypto import random_bytes
from cloister.crypto.merkle import EMPTY_ROOT
from cloister.node.attester import TpmAttester
from cloister.workload.identity import WorkloadIdentity
from cloister.workload.key_session import AttestedSession, RunContext
from tests.broker_party import AGENT, MEASUREMENT, OUTPUT, PASSPHRASE, FakeClock, recipe_document
from tests.broker_world import World

ROOT = Path(__file__).resolve().parents[1]
OWNER = "hospital"  # whose broker is measured
RUNS = 32  # of one contract: a broker reads the runs of the contract in question, so a realistic number
PER_NODE = 8  # clients of one node: its TPM makes one quote at a time
LAUNCHES = 64  # of one node between two starts of its agent: evidence grows with them
SPREAD = 1_000  # seconds over which the runs' statements were made
_BATCH = 4096


@dataclass(frozen=True)
class Spendable:
    """One job that nobody has asked keys for yet, with all parties' in-force statements."""

    contract: Contract
    job: Job
    statements: list[str]


@dataclass
class Stage:
    """``template``: the home of the measured broker, to be copied; ``jobs``: to be spent, each once in each copy."""

    template: Path
    jobs: list[Spendable]
    nodes: list[Path]


def prepare(folder: Path, jobs: int, nodes: int) -> Stage:
    """Build both parties in memory-backed ``folder`` and let them sign what the runs need."""
    clock = FakeClock()
    clock.now = began = int(time.time())
    states = [folder / f"node{number}" for number in range(nodes)]
    ids = []
    for state in states:
        with TpmAttester.software(state, AGENT) as attester:
            ids.append(attester.attester_id)
    world = World(folder / "world", clock)
    contract_fields = world.contract_fields

    def fields(**changes: Any) -> dict[str, Any]:
        made = contract_fields(**{"not_before": began - 2 * SPREAD, "expires": began + 86_400, **changes})
        return {**made, "runs": RUNS, "lease_seconds": 3600, "platform": {**made["platform"], "attesters": sorted(ids)}}

    world.contract_fields = fields  # type: ignore[method-assign]
    world.build()
    try:
        made: list[Spendable] = []
        while len(made) < jobs:
            clock.now = began
            contract = world.sign(fields(name=f"bench-{len(made)}"))
            for _ in range(RUNS):
                # Every run asks for its own, which nobody has verified before.
                clock.now = began - len(made) % SPREAD
                statements = [_statement(world, name, contract) for name in sorted(world.parties)]
                envelope = world.hospital.broker.agreements.sign_job(contract.envelope, recipe_document(), OUTPUT)
                made.append(Spendable(contract, read_job(envelope, contract), statements))
        return Stage(folder / "world" / OWNER, made[:jobs], states)
    finally:
        world.close()


def _statement(world: World, party: str, contract: Contract) -> str:
    statement = world.parties[party].broker.agreements.status(contract.digest).statement
    if statement is None:
        raise ValueError(f"{party} makes no statement")
    return statement.to_bytes().decode()


def lengthen(home: Path, entries: int) -> None:
    """Grow the log in ``home`` to ``entries`` through its own batch append, with events like those of a release, and
    tell the state of it, as after a life without changes of state."""
    opened = open_home(Settings(home), PASSPHRASE)
    try:
        log, state = opened.record.log, opened.record.state
        details: dict[str, str | int] = {
            name: random_bytes(32).hex() for name in ("contract", "job", "attester", "measurement")
        }
        now = int(time.time())
        while (left := entries - log.size) > 0:
            body = event("attest.ok", actor=OWNER, target=random_bytes(16).hex(), details=details, now=now)
            salted = encode_event(body)
            log.append_many([salted] * min(left, _BATCH))
        head = log.receipt(log.size - 1).verify(log.origin, opened.card.keys.receipt)
        state.apply(state.intend([]), log.size - 1, head.size, head.root)
        if head.root == EMPTY_ROOT:
            raise ValueError("the log did not grow")
    finally:
        opened.close()


@dataclass
class BrokerProcess:
    """The measured broker behind its real port. ``seconds`` asks it how long its log, state and releases took."""

    process: subprocess.Popen[str]
    port: int

    def seconds(self) -> dict[str, float]:
        """Since the last call."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("tell\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))


@contextmanager
def broker_process(template: Path, home: Path) -> Iterator[BrokerProcess]:
    """A broker over a copy of ``template`` on the disk that ``home`` is on."""
    shutil.copytree(template, home)
    command = [sys.executable, "-m", "benchmarks._release_broker", str(home)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(PASSPHRASE.decode() + "\n")
        process.stdin.flush()
        yield BrokerProcess(process, int(process.stdout.readline()))
    finally:
        process.stdin.close()  # it ends with its standard input
        process.wait(60)
        process.stdout.close()


@dataclass
class Node:
    """A node's agent as far as a workload sees it: evidence for the instance that asks, and a way to the broker."""

    attester: TpmAttester
    port: int

    def link(self, instance: bytes) -> _Link:
        return _Link(self, instance)


@dataclass
class _Link:
    node: Node
    instance: bytes

    def tunnel(self, _party: str) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.node.port), timeout=30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def evidence(self, nonce: str, tee_pubkey: dict[str, str]) -> dict[str, Any]:
        return self.node.attester.evidence(self.instance, nonce, tee_pubkey)


@dataclass
class Client:
    """One workload's process would have one identity; here each client has one and brings it to every run."""

    node: Node
    identity: WorkloadIdentity = field(default_factory=WorkloadIdentity)

    def launch(self, job: Spendable) -> RunContext:
        """What the node does before the workload exists: not timed."""
        instance = random_bytes(16)
        self.node.attester.extend_launch(instance, MEASUREMENT, job.contract.digest, job.job.digest)
        link: Any = self.node.link(instance)
        run = RunContext(job.contract, job.job, instance, "tpm", self.identity, link)
        _ = run.tls  # made once for all handshakes of a run
        return run

    def release(self, run: RunContext, statements: list[str]) -> float:
        """Seconds of one whole release: connect, ask, prove, fetch the key, check its receipt, open it."""
        start = time.perf_counter()
        with AttestedSession(run, OWNER, purpose="release", sequence=0, statements=statements) as session:
            session.key("asset-key", run.job.data.hex(), run.job.data)
        return time.perf_counter() - start


def spend(stage: Stage, jobs: list[Spendable], clients: int, port: int) -> tuple[list[float], float]:
    """All ``jobs``, by so many clients at once: seconds of each release, and of all of it without the launches."""
    latencies: list[float] = []
    wall = 0.0
    nodes = -(-clients // PER_NODE)
    for start in range(0, len(jobs), LAUNCHES * nodes):
        part = jobs[start : start + LAUNCHES * nodes]
        with ExitStack() as stack:
            used = [
                Node(stack.enter_context(TpmAttester.software(state, AGENT)), port) for state in stage.nodes[:nodes]
            ]
            team = [Client(used[number % nodes]) for number in range(clients)]
            runs = [[(team[n].launch(job), job) for job in part[n::clients]] for n in range(clients)]
            found, seconds = _together(team, runs)
            latencies += found
            wall += seconds
    return latencies, wall


def _together(team: list[Client], runs: list[list[tuple[RunContext, Spendable]]]) -> tuple[list[float], float]:
    found: list[list[float]] = [[] for _ in team]
    broken: list[BaseException] = []
    ready = threading.Barrier(len(team) + 1)

    def work(number: int) -> None:
        ready.wait()
        try:
            for run, job in runs[number]:
                found[number].append(team[number].release(run, job.statements))
        except BaseException as error:  # noqa: BLE001 - told to the one who waits
            broken.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(team))]
    for thread in threads:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - start
    if broken:
        raise broken[0]
    return [seconds for each in found for seconds in each], wall
