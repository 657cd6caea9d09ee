"""The node agent: takes jobs, measures the workload, starts it in the sandbox, hands its sealed output over.

Below the TEE levels the agent is trusted to measure honestly (docs/attestation.md says what that costs). It
never holds a key: brokers give keys to the workload's own keys, through a tunnel that the agent can't read.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..contracts import Contract, Job, read_contract, read_job
from ..crypto import Envelope
from ..errors import CloisterError, Unavailable
from .control_link import ControlLink
from .sandbox import Sandbox

__all__ = ["Agent", "Launch", "RunSandbox"]

_MAX_LAUNCHES = 4  # the first, and three resumptions after a kill
_STATE_OF_EXIT = {0: "succeeded", 3: "denied", 4: "denied", 20: "revoked"}


@dataclass(frozen=True)
class Launch:
    """One start of one job's workload."""

    contract: Contract
    job: Job
    instance: bytes
    purpose: str
    folder: Path
    assets: dict[str, Path]
    directory: dict[str, tuple[str, int]]
    on_event: Callable[[dict[str, Any]], None]


class RunSandbox(Protocol):
    """Starts the measured workload; see ``launcher.Launcher``."""

    def __call__(self, launch: Launch) -> contextlib.AbstractContextManager[Sandbox]: ...


class Agent:
    """Serves one control plane, one job at a time."""

    def __init__(self, home: Path, control: ControlLink, run: RunSandbox) -> None:
        self._control, self._run = control, run
        self._cache, self._jobs = home / "cache", home / "jobs"
        for folder in (self._cache, self._jobs):
            folder.mkdir(parents=True, exist_ok=True)

    def serve(self, stop: Callable[[], bool]) -> None:
        """Claim and run jobs until ``stop``. A control plane that is away is asked again."""
        while not stop():
            try:
                claim = self._control.post("/v1/node/claim", {})
            except Unavailable:
                time.sleep(1.0)
                continue
            if claim.get("job"):
                self.handle(claim)

    def handle(self, claim: dict[str, Any]) -> None:
        """One claimed job, from download to upload. Whatever goes wrong ends as the job's state, with its reason."""
        contract = read_contract(Envelope.from_bytes(claim["contract"].encode()))
        job = read_job(Envelope.from_bytes(claim["job"].encode()), contract)
        digest = job.digest.hex()
        try:
            state, error = self._execute(contract, job, claim["directory"])
        except CloisterError as fault:
            state, error = "failed", fault.to_wire()
        self._control.post(f"/v1/node/jobs/{digest}/state", {"state": state, **({"error": error} if error else {})})

    def _execute(self, contract: Contract, job: Job, directory: dict[str, Any]) -> tuple[str, Any]:
        folder = self._jobs / job.digest.hex()
        (folder / "out" / "checkpoints").mkdir(parents=True, exist_ok=True)
        for digest in (job.data, job.base):
            self._control.download(digest.hex(), self._cache)
        last: dict[str, Any] = {}

        def on_event(event: dict[str, Any]) -> None:
            if event.get("kind") == "state" and event.get("code") == "failed":
                last["error"] = event.get("error")
            self._control.post(f"/v1/node/jobs/{job.digest.hex()}/events", {"events": [event]})

        code = self._launch_until_done(contract, job, folder, directory, on_event)
        if code == 0:
            self._hand_over(job, folder)
            shutil.rmtree(folder)
            return "succeeded", None
        return _STATE_OF_EXIT.get(code, "failed"), last.get("error")

    def _launch_until_done(
        self,
        contract: Contract,
        job: Job,
        folder: Path,
        directory: dict[str, Any],
        on_event: Callable[[dict[str, Any]], None],
    ) -> int:
        """A workload that was killed is started again and resumes; one that ended by itself is not."""
        code, admitted = 137, False

        def watch(event: dict[str, Any]) -> None:
            nonlocal admitted
            # Before any key came, there is nothing to resume: brokers know no such run yet.
            admitted = admitted or event == {"code": "keys", "kind": "state"}
            on_event(event)

        for attempt in range(_MAX_LAUNCHES):
            launch = Launch(
                contract=contract,
                job=job,
                instance=secrets.token_bytes(16),
                purpose="resume" if admitted else "release",
                folder=folder,
                assets={d.hex(): self._cache / d.hex() for d in (job.data, job.base)},
                directory={name: _address(entry["address"]) for name, entry in directory.items()},
                on_event=watch,
            )
            on_event({"kind": "state", "code": "launched" if attempt == 0 else "relaunched"})
            with self._run(launch) as sandbox:
                code = sandbox.wait()
            if 0 <= code < 128:
                return code
        return code

    def _hand_over(self, job: Job, folder: Path) -> None:
        record = (folder / "out" / "release.json").read_bytes()
        manifest = Envelope.from_bytes(json.loads(record)["manifest"].encode())
        self._control.upload(manifest.digest.hex(), folder / "out" / "output")
        self._control.put(f"/v1/jobs/{job.digest.hex()}/release", record)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)
