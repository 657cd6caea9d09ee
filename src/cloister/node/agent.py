"""The node agent: takes jobs, measures the workload, starts it in the sandbox, hands its sealed output over.

Below the TEE levels the agent is trusted to measure honestly (docs/attestation.md says what that costs). It
never holds a key: brokers give keys to the workload's own keys, through a tunnel that the agent can't read.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..contracts import Contract, Job, read_contract, read_job
from ..crypto import Envelope, parse_json
from ..errors import CloisterError, Internal, Unavailable
from ..fields import Fields
from .control_link import ControlLink
from .order import Launch, RunSandbox
from .output import plain_tree, read_plain
from .reporter import Reporter

__all__ = ["Agent"]

T = TypeVar("T")
_MAX_LAUNCHES = 4  # the first, and three resumptions after a kill
_POLL_SECONDS = 0.5
_RECORD_LIMIT = 16 * 1024 * 1024
_RETRY_SECONDS = 1.0
_PROBE_SECONDS = 5.0
_UNLOCK_SECONDS = 600.0
_AWAY = "control.unreachable"
_KILLED_FROM = 128  # an exit status of 128 + n: ended by signal n
_KILLED = 137
_STATE_OF_EXIT = {0: "succeeded", 3: "denied", 4: "denied", 20: "revoked"}


@dataclass(frozen=True)
class _Ended:
    state: str
    error: dict[str, Any] | None
    timings: dict[str, str]


class _Watch:
    """What the agent learns about a run from its telemetry, before it passes it on."""

    def __init__(self, pass_on: Callable[[dict[str, Any]], None]) -> None:
        self._pass_on = pass_on
        self._marks: list[tuple[str, float]] = []
        self.admitted = self.cancelled = False
        self.error: dict[str, Any] | None = None

    def __call__(self, event: dict[str, Any]) -> None:
        if event["kind"] == "state":
            self._marks.append((event["code"], time.monotonic()))
            self.admitted = self.admitted or event["code"] == "keys"
            self.error = event.get("error", self.error)
        self._pass_on(event)

    def heed(self, stop: str | None) -> None:
        """What the control plane answered to events: whether it wants the run to stop."""
        self.cancelled = self.cancelled or stop == "cancelled"

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        self._marks.append((name, time.monotonic()))
        yield

    def timings(self) -> dict[str, str]:
        """Seconds from each state to the next, as decimal text; ``attest`` is from the launch to the keys."""
        out: dict[str, float] = {}
        for (name, start), (_, end) in zip(self._marks, [*self._marks[1:], ("", time.monotonic())], strict=True):
            name = {"launched": "attest", "relaunched": "attest"}.get(name, name)
            out[name] = out.get(name, 0.0) + end - start
        return {name: f"{seconds:.3f}" for name, seconds in out.items()}


class Agent:
    """Serves one control plane, one job at a time."""

    def __init__(self, home: Path, control: ControlLink, run: RunSandbox) -> None:
        self._control, self._run = control, run
        self._cache, self._jobs = home / "cache", home / "jobs"
        for folder in (self._cache, self._jobs):
            folder.mkdir(parents=True, exist_ok=True)

    def serve(self, stop: Callable[[], bool]) -> None:
        """Claim and run jobs until ``stop``. A control plane that is away is asked again; one that hands out what is no
        job, or refuses a report, ends that job and not this agent."""
        while not stop():
            try:
                claim = self._control.post("/v1/node/claim", {})
                if claim.get("job"):
                    self.handle(claim)
            except CloisterError as fault:
                if fault.code != _AWAY:
                    print(f"{fault.code}: {fault.message}", file=sys.stderr, flush=True)
                time.sleep(_RETRY_SECONDS)

    def handle(self, claim: dict[str, Any]) -> None:
        """One claimed job, from download to upload. Whatever goes wrong ends as the job's state, with its reason."""
        contract = read_contract(Envelope.from_bytes(claim["contract"].encode()))
        digest = Envelope.from_bytes(claim["job"].encode()).digest.hex()
        try:
            job = read_job(Envelope.from_bytes(claim["job"].encode()), contract)
            with self._watch(contract, job) as watch:
                ended = self._execute(contract, job, claim["directory"], watch)
        except CloisterError as fault:
            ended = _Ended("failed", fault.to_wire(), {})
        body: dict[str, Any] = {"state": ended.state, "timings": ended.timings}
        if ended.error is not None:
            body["error"] = ended.error
        _until_heard(lambda: self._control.post(f"/v1/node/jobs/{digest}/state", body))

    @contextlib.contextmanager
    def _watch(self, contract: Contract, job: Job) -> Iterator[_Watch]:
        """Leaving it waits until every event was passed on: the control plane takes none after a run's last state."""
        with Reporter(lambda events: watch.heed(self._tell(job, events))) as reporter:
            watch = _Watch(lambda event: reporter.put(_contracted(event, contract)))
            yield watch

    def _execute(self, contract: Contract, job: Job, directory: dict[str, Any], watch: _Watch) -> _Ended:
        folder = self._jobs / job.digest.hex()
        (folder / "out" / "checkpoints").mkdir(parents=True, exist_ok=True)
        with watch.measure("download"):
            for digest in job.assets:
                _until_heard(lambda d=digest: self._control.download(d.hex(), self._cache))  # type: ignore[misc]
        # Only a run that brokers admitted leaves a checkpoint: this agent was itself restarted in the middle of it.
        watch.admitted = any((folder / "out" / "checkpoints").iterdir())
        addresses = reached(contract, directory)
        if watch.admitted:
            _await_brokers(addresses, watch)
        code = _KILLED if watch.cancelled else self._launch_until_done(contract, job, folder, addresses, watch)
        if code == 0:
            with watch.measure("upload"):
                _until_heard(lambda: self._hand_over(job, folder))
            shutil.rmtree(folder)
        state = "cancelled" if watch.cancelled else _STATE_OF_EXIT.get(code, "failed")
        return _Ended(state, watch.error or (None if watch.cancelled else _silent_end(code)), watch.timings())

    def _tell(self, job: Job, events: list[dict[str, Any]]) -> str | None:
        """Pass events on; the answer says whether to stop. A control plane that is away is no reason to."""
        try:
            answer = self._control.post(f"/v1/node/jobs/{job.digest.hex()}/events", {"events": events})
        except Unavailable:
            return None
        return str(answer.get("stop"))

    def _launch_until_done(
        self, contract: Contract, job: Job, folder: Path, directory: dict[str, tuple[str, int]], watch: _Watch
    ) -> int:
        """A workload that was killed is started again and resumes; one that ended by itself is not."""
        code = _KILLED
        for attempt in range(_MAX_LAUNCHES):
            launch = Launch(
                contract=contract,
                job=job,
                instance=secrets.token_bytes(16),
                # Before any key came there is nothing to resume: brokers know no such run yet.
                purpose="resume" if watch.admitted else "release",
                folder=folder,
                assets={d.hex(): self._cache / d.hex() for d in job.assets},
                directory=directory,
                on_event=watch,
            )
            watch({"kind": "state", "code": "launched" if attempt == 0 else "relaunched"})
            with self._run(launch) as sandbox:
                while (ended := sandbox.wait(_POLL_SECONDS)) is None:
                    if watch.cancelled:
                        return sandbox.kill()
                code = ended
            if code < _KILLED_FROM:
                break
        return code

    def _hand_over(self, job: Job, folder: Path) -> None:
        plain_tree(folder / "out")
        record = read_plain(folder / "out" / "release.json", _RECORD_LIMIT)
        fields = Fields(parse_json(record, limit=_RECORD_LIMIT), "release record")
        manifest = Envelope.from_bytes(fields.text("manifest", limit=_RECORD_LIMIT).encode())
        self._control.upload(manifest.digest.hex(), folder / "out" / "output")
        self._control.put(f"/v1/jobs/{job.digest.hex()}/release", record)


def _contracted(event: dict[str, Any], contract: Contract) -> dict[str, Any]:
    """The event with the contract's figures only. The workload filters them itself; this holds if it were broken."""
    if event["kind"] != "progress":
        return event
    return {**event, "values": {name: v for name, v in event["values"].items() if name in contract.telemetry}}


def _until_heard(call: Callable[[], T]) -> T:
    """``call``, again while the control plane is away: a finished run is not lost because nobody took it at once."""
    while True:
        try:
            return call()
        except Unavailable as fault:
            if fault.code != _AWAY:
                raise
            time.sleep(_RETRY_SECONDS)


def _await_brokers(addresses: dict[str, tuple[str, int]], watch: _Watch) -> None:
    """Give the brokers of a run that began before this machine stopped the time to be unlocked again. Whoever is still
    away after it is named by the launch, as always."""
    end = time.monotonic() + _UNLOCK_SECONDS
    while not all(_answers(address) for address in addresses.values()) and time.monotonic() < end:
        watch({"kind": "state", "code": "waiting"})
        if watch.cancelled:
            return
        time.sleep(_RETRY_SECONDS)


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, _PROBE_SECONDS).close()
    except OSError:
        return False
    return True


def _silent_end(code: int) -> dict[str, Any] | None:
    """The reason to give for a workload that gave none."""
    if code == 0:
        return None
    if code >= _KILLED_FROM:
        said = f"The workload was killed {_MAX_LAUNCHES} times; the machine may lack memory for this recipe."
        return Internal("workload.killed", said, signal=code - _KILLED_FROM).to_wire()
    return Internal("workload.silent", "The workload ended without giving a reason.", status=code).to_wire()


def reached(contract: Contract, directory: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Where each party's broker answers: as the directory says, or the contract for one that has a stock key broker."""
    found = {name: _address(directory[name]["address"]) for name in contract.parties if name in directory}
    return found | {name: _address(entry.address) for name, entry in contract.trustees.items()}


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
