"""``seal``, ``contract``, ``job``, ``pull``, ``verify`` and ``audit``, in this process against real brokers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cloister.client import Outcome, OwnerAgent, Verified, operations
from cloister.client.pulling import Pulled
from cloister.crypto import Envelope
from tests.client_home import CONTRACT, RECIPE, LocalHome, Run
from tests.control_world import Party

pytest_plugins = ["tests.client_fixtures"]
VERIFIED = Verified(
    "hospital/adapter", "c", "j", "m", "none", ("hospital",), ("hospital",), ("one step", "another"), 1_790_000_000
)


@pytest.mark.parametrize(
    ("content", "words", "sentence"),
    [
        ("text,label\nx,y\n", ["--schema", "a,b"], "is not the schema a,b"),
        ("", [], "is empty"),
        ("text,label\nx,y\n", ["--class", "video"], "The class is dataset, model or program"),
        ("text,label\nx,y\n", ["--forms", "hologram"], "Forms are a list of"),
    ],
)
def test_bad_input_is_one_sentence(
    agreed: LocalHome, run: Run, tmp_path: Path, content: str, words: list[str], sentence: str
) -> None:
    (tmp_path / "rows.csv").write_text(content)
    ran = run("seal", "rows.csv", "--as", "hospital/bad", *words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("cloister: ")
    assert sentence in ran.err


def test_sealing_tells_digest_and_notes(agreed: LocalHome, run: Run) -> None:
    ran = run("seal", str(agreed.folder.parent / "model"), "--as", "lab/other", "--json", "--progress")
    assert ran.code == 0
    assert len(ran.document["digest"]) == 64
    assert "hidden" in ran.document["notes"][0]
    assert "upload" in ran.err
    assert "hidden" in ran.err


def test_a_contract_is_shown_before_it_is_signed(agreed: LocalHome, run: Run) -> None:
    refused = run("contract", "sign", "intents", "--as", "hospital")
    assert refused.code == 2
    assert "hospital/adapter as adapter, to hospital alone" in refused.err
    assert "add --yes" in refused.err
    shown = run("contract", "show", "intents", "--as", "lab")
    assert "in force" in shown.out
    assert run("contract", "list", "--as", "lab", "--json").document["contracts"][0]["state"] == "contract.in-force"
    signed = run("contract", "sign", "intents", "--as", "hospital", "--yes", "--json").document
    assert signed["stored_with"] == ["hospital", "lab"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("assurance: none", "asurance: none", "nearest valid key is 'assurance'"),
        ("lab/minilm]", "lab/absent]", "There is no asset lab/absent"),
        ("runs: 5", "", "lacks 'runs'"),
    ],
)
def test_a_bad_contract_file_is_one_sentence(
    agreed: LocalHome, run: Run, tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    (tmp_path / "c.yaml").write_text(CONTRACT.replace(old, new))
    ran = run("contract", "new", "c.yaml")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert sentence in ran.err


def test_revoking(agreed: LocalHome, run: Run, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONTRACT.replace("name: intents", "name: short"))
    run("contract", "new", "c.yaml")
    for party in ("hospital", "lab"):
        assert run("contract", "sign", "short", "--as", party, "--yes").code == 0
    assert run("contract", "revoke", "short", "--reason", "done", "--as", "lab").code == 2
    ran = run("contract", "revoke", "short", "--reason", "done", "--as", "lab", "--yes")
    assert ran.out == "short serial 1 is revoked; runs under it stop within 30 seconds.\n"
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    job = run("job", "submit", "recipe.yaml", "--contract", "short", "--as", "hospital", "--json")
    assert (job.code, job.document["error"]["code"]) == (3, "contract.revoked")


def test_submit_list_show_cancel(agreed: LocalHome, run: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    queued = run("job", "submit", "recipe.yaml", "--contract", "intents", "--as", "hospital")
    assert queued.code == 0
    digest = queued.out.split()[2].rstrip(".")
    assert digest in run("job", "list", "--as", "lab").out
    assert "queued" in run("job", "show", digest, "--as", "lab").out
    assert run("job", "cancel", digest, "--as", "lab", "--json").document["state"] == "cancelled"
    followed = run("job", "follow", digest, "--as", "lab")
    assert (followed.code, followed.err) == (1, "cloister: The job was cancelled by a party of its contract.\n")
    assert run("job", "show", "ffff", "--as", "lab").code == 2


def test_following_ends_with_the_jobs_own_reason(agreed: LocalHome, run: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    def node() -> None:
        claim = agreed.world.node_post("/v1/node/claim", {})
        digest = Envelope.from_bytes(claim["job"].encode()).digest.hex()
        path = f"/v1/node/jobs/{digest}"
        event = {"kind": "progress", "stage": "train", "step": 1, "total": 2, "values": {"loss": "0.25"}}
        agreed.world.node_post(f"{path}/events", {"events": [{"kind": "state", "code": "train"}, event]})
        error = {
            "code": "gate.failed",
            "details": {},
            "kind": "denied",
            "message": "The gate on accuracy did not pass.",
        }
        agreed.world.node_post(f"{path}/state", {"state": "denied", "error": error})

    thread = threading.Thread(target=node)
    thread.start()
    ran = run("job", "submit", "recipe.yaml", "--contract", "intents", "--as", "hospital", "--follow", "--progress")
    thread.join()
    assert ran.code == 3
    assert "loss 0.25" in ran.err
    assert "1/2 steps" in ran.err
    assert ran.err.rstrip().endswith("cloister: The gate on accuracy did not pass.")


def test_a_run_that_succeeds_is_summed_up(agreed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"digest": "ab" * 32, "output": "hospital/adapter", "state": "succeeded"}
    gate = {"margin": "0.0", "metric": "accuracy", "passed": True}
    outcome = Outcome(job, {"loss": "0.1"}, (gate,), ("hospital",), VERIFIED)
    seen: list[Any] = []

    def follow(*_: Any, pins: Any, **__: Any) -> Outcome:
        seen.append(sorted(pins))
        return outcome

    monkeypatch.setattr(operations, "find_job", lambda *_: job)
    monkeypatch.setattr(operations, "follow", follow)
    ran = run("job", "follow", "abab", "--as", "hospital")
    assert ran.out.splitlines() == [
        "The run succeeded: its release record verifies against the cards pinned here.",
        "gate       accuracy  at least 0.0 above the base  passed",
        "telemetry  loss      last 0.1",
        "Recipients (hospital) get the figures and the files: cloister pull hospital/adapter --to FOLDER",
    ]
    assert seen == [["hospital", "lab"]]
    document = run("job", "follow", "abab", "--as", "hospital", "--json").document
    assert (document["gates"], document["verified"]) == ([gate], True)
    outcome = Outcome(job, {}, (), ())
    assert "nothing was verified" in run("job", "follow", "abab", "--as", "hospital").out


def test_pull_and_verify_show_what_was_checked(
    agreed: LocalHome, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = VERIFIED
    asked: list[str] = []

    def pull(home: Any, output: str, to: Path, party: str, **_: Any) -> Pulled:
        asked.append(party)
        return Pulled(to, ("a",), verified, {"accuracy": ("0.90", "0.95")})

    monkeypatch.setattr(operations, "pull", pull)
    ran = run("pull", "hospital/adapter", "--to", "out")
    assert (ran.code, asked) == (0, ["hospital"])
    assert "  2. another" in ran.out
    assert "Made by job j, let out 2026-09-21 14:13:20 UTC." in ran.out
    assert "accuracy  base 0.90  tuned 0.95" in ran.out
    assert "whoever runs the machine can read its memory" in ran.out
    expected: list[str | None] = []

    def verify(folder: Path, pins: Any, *, expected_contract: str | None) -> Verified:
        assert "lab" in pins
        expected.append(expected_contract)
        return verified

    monkeypatch.setattr(operations, "verify_bundle", verify)
    assert run("verify", "out", "--json", "--contract", "intents").document["verified"] is True
    assert expected == ["intents"]
    (tmp_path / "lab.json").write_bytes(Party("lab").card.envelope.to_bytes())
    assert run("verify", "out", "--trust", "lab.json").code == 0
    assert run("verify", "out", "--as", "hospital").code == 0
    monkeypatch.setenv("CLOISTER_HOME", str(tmp_path / "none"))
    assert "give the cards" in run("verify", "out").err.lower()


def test_an_output_that_is_not_there(agreed: LocalHome, run: Run) -> None:
    ran = run("pull", "hospital/absent", "--to", "out")
    assert (ran.code, ran.err.startswith("cloister: No such output")) == (2, True)
    assert run("verify", ".").code == 2


def test_the_audit_log(agreed: LocalHome, run: Run) -> None:
    assert "first check here" in run("audit", "verify", "--as", "lab").out
    assert "checked before" in run("audit", "verify", "--as", "lab").out
    assert run("audit", "verify", "--as", "lab", "--json").document["verified"] is True
    entries = run("audit", "show", "--as", "lab", "--kind", "asset.sealed", "--last", "1", "--json").document["entries"]
    assert [e["kind"] for e in entries] == ["asset.sealed"]
    assert run("audit", "show", "--as", "lab", "--kind", "none.such").out == "No such entries.\n"


def test_a_contract_whose_approvals_are_damaged_is_listed(
    agreed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = OwnerAgent.measurements

    def damaged(self: OwnerAgent) -> dict[str, Any]:
        found = genuine(self)
        return {**found, "contracts": [{**found["contracts"][0], "damaged": True, "releases": []}]}

    assert "DAMAGED" not in run("measurement", "list", "--as", "lab").out
    monkeypatch.setattr(OwnerAgent, "measurements", damaged)
    ran = run("measurement", "list", "--as", "lab")
    assert (ran.code, "DAMAGED" in ran.out, "nothing runs under it" in ran.out) == (0, True, True)
    assert run("measurement", "list", "--as", "lab", "--json").document["contracts"][0]["damaged"] is True
