"""The node agent's loop against a control plane and a sandbox that the test plays."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Denied, Unavailable
from cloister.node import agent as agent_module
from cloister.node.agent import Agent
from cloister.node.order import Launch
from tests.broker_world import World

pytest_plugins = ["tests.broker_fixtures"]


class Control:
    """Remembers what the node reports. ``away``: how many requests in a row find nobody."""

    def __init__(self, claims: list[Any]) -> None:
        self.claims, self.away = claims, 0
        self.events: list[dict[str, Any]] = []
        self.states: list[tuple[str, dict[str, Any]]] = []
        self.stop: str | None = None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        if self.away > 0:
            self.away -= 1
            raise Unavailable("control.unreachable", "The control plane does not answer; is it running?")
        if path == "/v1/node/claim":
            claim = self.claims.pop(0)
            if isinstance(claim, Exception):
                raise claim
            return claim
        if path.endswith("/events"):
            self.events += body["events"]
            return {"stop": self.stop}
        self.states.append((path.split("/")[-2], body))
        return {"ok": True}

    def download(self, digest: str, into: Path) -> None:
        self.post("/download/events", {"events": []})

    def upload(self, digest: str, folder: Path) -> None:
        raise AssertionError("nothing was released here")


class Sandbox:
    """Ends at once with ``code``."""

    def __init__(self, code: int | None) -> None:
        self.code = code

    def wait(self, timeout: float) -> int | None:
        return self.code

    def kill(self) -> int:
        return 137


class Node:
    """An agent, the codes with which its sandboxes end, and how they were launched."""

    def __init__(self, home: Path, control: Control, codes: list[int | None]) -> None:
        self.control, self.codes = control, codes
        self.launches: list[Launch] = []
        self.tell: list[dict[str, Any]] = []
        self.agent = Agent(home, control, self._run)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def _run(self, launch: Launch) -> Iterator[Any]:
        self.launches.append(launch)
        for event in self.tell:
            launch.on_event(event)
        yield Sandbox(self.codes.pop(0))

    def serve(self) -> None:
        """Until every claim was taken."""
        self.agent.serve(lambda: not self.control.claims)


@pytest.fixture
def claim(calm: World) -> dict[str, Any]:
    return {
        "contract": calm.contract.envelope.to_bytes().decode(),
        "directory": {name: {"address": "127.0.0.1:1", "card": ""} for name in calm.parties},
        "job": calm.job.envelope.to_bytes().decode(),
    }


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "_RETRY_SECONDS", 0.0)


def _ended(control: Control) -> list[tuple[str, str | None]]:
    return [(body["state"], body.get("error", {}).get("code")) for _, body in control.states]


@pytest.mark.parametrize(
    ("code", "state", "error"),
    [
        (1, "failed", "workload.silent"),
        (2, "failed", "workload.silent"),
        (3, "denied", "workload.silent"),
        (4, "denied", "workload.silent"),
        (20, "revoked", "workload.silent"),
    ],
)
def test_the_exit_status_is_the_job_s_state(
    tmp_path: Path, claim: dict[str, Any], code: int, state: str, error: str
) -> None:
    node = Node(tmp_path, Control([claim]), [code])
    node.serve()
    assert _ended(node.control) == [(state, error)]
    assert len(node.launches) == 1


def test_the_workload_s_own_reason_is_passed_on(tmp_path: Path, claim: dict[str, Any]) -> None:
    node = Node(tmp_path, Control([claim]), [3])
    reason = Denied("gate.failed", "The gate on accuracy was not passed.").to_wire()
    node.tell = [{"code": "failed", "error": reason, "kind": "state"}]
    node.serve()
    assert _ended(node.control) == [("denied", "gate.failed")]


def test_a_killed_workload_is_started_again_and_a_few_times_only(tmp_path: Path, claim: dict[str, Any]) -> None:
    node = Node(tmp_path, Control([claim]), [137] * 10)
    node.tell = [{"code": "keys", "kind": "state"}]
    node.serve()
    assert _ended(node.control) == [("failed", "workload.killed")]
    assert [launch.purpose for launch in node.launches] == ["release", "resume", "resume", "resume"]
    assert len({launch.instance for launch in node.launches}) == 4


def test_before_any_key_came_there_is_nothing_to_resume(tmp_path: Path, claim: dict[str, Any]) -> None:
    node = Node(tmp_path, Control([claim]), [137, 1])
    node.serve()
    assert [launch.purpose for launch in node.launches] == ["release", "release"]


def test_a_run_goes_on_after_the_agent_itself_was_restarted(tmp_path: Path, claim: dict[str, Any], calm: World) -> None:
    """The control plane queues the job anew; the checkpoint in its folder shows that brokers have admitted it. They may
    come up after the node: it waits for them."""
    checkpoints = tmp_path / "jobs" / calm.job.digest.hex() / "out" / "checkpoints"
    (checkpoints / "00000010").mkdir(parents=True)
    node = Node(tmp_path, Control([claim]), [1])
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    late: list[socket.socket] = []

    def tell(path: str, body: dict[str, Any]) -> Any:
        if {"code": "waiting", "kind": "state"} in body.get("events", ()) and not late:
            late.append(socket.create_server(("127.0.0.1", port)))
        return Control.post(node.control, path, body)

    node.control.post = tell  # type: ignore[method-assign]
    for entry in claim["directory"].values():
        entry["address"] = f"127.0.0.1:{port}"
    node.serve()
    late[0].close()
    assert [launch.purpose for launch in node.launches] == ["resume"]
    assert (checkpoints / "00000010").is_dir()


def test_a_run_that_waits_for_its_brokers_can_be_cancelled(tmp_path: Path, claim: dict[str, Any], calm: World) -> None:
    (tmp_path / "jobs" / calm.job.digest.hex() / "out" / "checkpoints" / "00000010").mkdir(parents=True)
    node = Node(tmp_path, Control([claim]), [])
    node.control.stop = "cancelled"
    node.serve()
    assert _ended(node.control) == [("cancelled", None)]
    assert node.launches == []


def test_a_cancelled_run_is_killed_and_no_failure(tmp_path: Path, claim: dict[str, Any]) -> None:
    node = Node(tmp_path, Control([claim]), [None])
    node.control.stop = "cancelled"
    node.serve()
    assert _ended(node.control) == [("cancelled", None)]


def test_what_is_no_job_ends_that_job_and_not_the_agent(
    tmp_path: Path, claim: dict[str, Any], calm: World, capsys: pytest.CaptureFixture[str]
) -> None:
    unsigned = {**claim, "job": claim["job"].replace('"sig":"', '"sig":"AAAA')}
    rubbish = {**claim, "contract": "rubbish"}
    refusal = Denied("request.party", "No such node.")
    node = Node(tmp_path, Control([unsigned, rubbish, refusal, claim]), [1])
    node.serve()
    states = _ended(node.control)
    assert [state for state, _ in states] == ["failed", "failed"]
    assert {digest for digest, _ in node.control.states} == {calm.job.digest.hex()}
    assert len(node.launches) == 1
    assert "request.party" in capsys.readouterr().err


def test_a_control_plane_that_is_away_is_asked_again(tmp_path: Path, claim: dict[str, Any]) -> None:
    """For the claim, for the download, and for taking the result: a run that ended is not lost."""
    control = Control([claim])
    node = Node(tmp_path, control, [1])
    control.away = 2
    original = node._run

    @contextlib.contextmanager
    def leaving(launch: Launch) -> Iterator[Any]:
        with original(launch) as sandbox:
            yield sandbox
        control.away = 3

    node.agent._run = leaving
    node.serve()
    assert _ended(control) == [("failed", "workload.silent")]
