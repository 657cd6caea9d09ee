"""What is refused, each tried for real against the running parts."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable
from pathlib import Path

from ..client import operations
from ..crypto.tls import connect_pinned
from ..errors import CloisterError, Internal
from .stage import Stage
from .story import CONTRACT, RECIPE, Told

__all__ = ["play_refusals"]

_WORKLOAD = "opt/cloister/lib/cloister/workload/job.py"


def play_refusals(stage: Stage, told: Told) -> list[str]:
    """The names of the attempts that were refused. Raises Internal if one of them succeeds."""
    stage.act("And what is refused:")
    return [
        _operator_asks_for_a_key(stage, told),
        _one_byte_changed(stage, told),
        _signature_missing(stage),
        _revoked_while_running(stage, told),
    ]


def _operator_asks_for_a_key(stage: Stage, told: Told) -> str:
    """The operator knows every address and document; it has no evidence of a workload."""
    port = stage.home.parties()["hospital"]["port"]
    pin = stage.home.agent("hospital").card.keys.tls_pin
    connection = http.client.HTTPConnection("broker")
    connection.sock = connect_pinned(socket.create_connection(("127.0.0.1", port), timeout=10), pin)
    connection.request("GET", f"/kbs/v0/resource/hospital/asset-key/{told.data_digest}")
    status = connection.getresponse().status
    connection.close()
    if status != 401:
        raise Internal("demo.refusal", f"The broker answered {status} to a request without evidence.")
    stage.good("the operator asks the hospital's broker for the data's key: 401, no evidence")
    return "operator asks for a key"


def _one_byte_changed(stage: Stage, told: Told) -> str:
    """The operator edits the workload on its own disk. Measurement at launch gives it away."""
    path = stage.home.path / "image" / _WORKLOAD
    original = path.read_bytes()
    changed = original.replace(b"Start reading here", b"Start reading herE", 1)
    if changed == original:
        raise Internal("demo.refusal", "The workload's file does not hold the text that the demo changes.")
    _replace(path, changed)
    try:
        state, code = _submit_and_wait(stage, told.contract)
    finally:
        _replace(path, original)
    if (state, code) != ("denied", "appraisal.measurement"):
        raise Internal("demo.refusal", f"A changed workload ended as {state} ({code}).")
    stage.good("one byte of the workload is changed: the brokers don't know this measurement, no key")
    return "workload with one changed byte"


def _replace(path: Path, content: bytes) -> None:
    """A new file in the old one's place: the image may share its files with the installation."""
    draft = path.with_suffix(".draft")
    draft.write_bytes(content)
    draft.chmod(path.stat().st_mode & 0o777)
    draft.rename(path)


def _signature_missing(stage: Stage) -> str:
    agreement = operations.new_contract(
        stage.home, CONTRACT.format(name="unsigned"), folder=stage.folder, party="hospital"
    )
    operations.sign_contract(stage.home, agreement, "hospital")
    code = _refusal(lambda: operations.submit(stage.home, RECIPE.format(epochs=1), "unsigned", "hospital"))
    if code != "contract.unsigned":
        raise Internal("demo.refusal", f"A contract without the lab's signature was answered with {code}.")
    stage.good("a contract that the lab did not sign: nothing runs under it")
    return "contract with a missing signature"


def _revoked_while_running(stage: Stage, told: Told) -> str:
    submitted = operations.submit(stage.home, RECIPE.format(epochs=20), told.contract, "hospital")
    client = stage.home.control("hospital")
    revoked: list[float] = []

    def on_code(code: str) -> None:
        if code == "train" and not revoked:
            agreement = operations.show_contract(stage.home, told.contract, "lab")
            operations.revoke_contract(stage.home, agreement, "lab", "the demo shows how")
            revoked.append(time.monotonic())

    outcome = operations.follow(client, str(submitted["digest"]), on_code=on_code)
    took = time.monotonic() - revoked[0] if revoked else -1.0
    if outcome.job["state"] != "revoked":
        raise Internal("demo.refusal", f"A run under a revoked contract ended as {outcome.job['state']}.")
    stage.good(f"the lab, alone, revokes the contract while a job runs: it stopped {took:.1f} s later (lease: 15 s)")
    return "contract revoked while the job runs"


def _submit_and_wait(stage: Stage, contract: str) -> tuple[str, str]:
    submitted = operations.submit(stage.home, RECIPE.format(epochs=1), contract, "hospital")
    outcome = operations.follow(stage.home.control("hospital"), str(submitted["digest"]))
    error = outcome.job.get("error") or {}
    return str(outcome.job["state"]), str(error.get("code"))


def _refusal(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except CloisterError as refusal:
        return refusal.code
    return "success"
