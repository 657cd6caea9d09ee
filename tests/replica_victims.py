"""A replica of the hospital's broker that releases one key and is killed on the way. See ``deaths``."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from cloister.contracts import read_contract, read_job
from cloister.crypto import Envelope
from tests.broker_party import FakeClock, insecure_judges
from tests.broker_world import Workload
from tests.deaths import Say
from tests.replicas import SharedParty, SharedWorld

__all__ = ["order", "victim"]


def order(folder: Path, workload: Workload, party: SharedParty, resource: bytes) -> None:
    """Write down what the victim is to do, in the folder that it gets."""
    words = {
        "contract": workload.contract.envelope.to_bytes().decode(),
        "home": str(party.home),
        "job": workload.job.envelope.to_bytes().decode(),
        "resource": resource.hex(),
        "statements": workload.statements(),
    }
    (folder / "order.json").write_text(json.dumps(words))


def _die_at(number: int, say: Say) -> None:
    """SIGKILL at the ``number``-th statement from now on: odd ones before it is sent, even ones after its answer.

    Begin and commit of a transaction are statements as well.
    """
    passed = 0

    def before(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        nonlocal passed
        passed += 1
        if 2 * passed - 1 == number:
            say("dies before", statement.split()[0])
            os.kill(os.getpid(), signal.SIGKILL)

    def after(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        if 2 * passed == number:
            say("dies after", statement.split()[0])
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", before)
    event.listen(Engine, "after_cursor_execute", after)


def victim(say: Say, folder: Path, seed: int) -> None:
    words = json.loads((folder / "order.json").read_text())
    clock = FakeClock()
    party = SharedParty("hospital", Path(words["home"]), clock, insecure_judges())
    world = SharedWorld(folder, clock, parties={"hospital": party})
    contract = read_contract(Envelope.from_bytes(words["contract"].encode()))
    job = read_job(Envelope.from_bytes(words["job"].encode()), contract)
    workload = Workload(world, contract, job)
    releases = party.broker.releases
    cookie, challenge = releases.challenge(workload.request(statements=words["statements"]))
    releases.attest(cookie, workload.attestation(challenge["nonce"]))
    resource = bytes.fromhex(words["resource"])
    _die_at(seed, say)
    key, body = workload.open(workload.fetch(party, cookie, resource), resource)
    say("key", len(key), body["receipt"]["index"])
    os.kill(os.getpid(), signal.SIGKILL)  # it got through, and dies with the key delivered
