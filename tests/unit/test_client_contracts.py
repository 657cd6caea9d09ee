"""Contracts and jobs through the client, against a real control plane and real brokers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cloister.client import ControlClient, Step, operations
from cloister.errors import CloisterError, Denied, Misuse, Unavailable, Untrusted
from tests.client_home import CLAIM, CONTRACT, RECIPE, LocalHome, agreed_on, proposed
from tests.control_world import Party

pytest_plugins = ["tests.client_fixtures"]


def read_digest(sealed: LocalHome, name: str) -> str:
    return str(sealed.home.control(name.partition("/")[0]).assets(name)[0]["digest"])


def test_a_contract_from_proposal_to_force(sealed: LocalHome) -> None:
    made = proposed(sealed, "whole")
    assert (made.signed, made.missing) == ((), ("hospital", "lab"))
    assert made.contract.platform.measurements == (CLAIM["measurement"],)
    assert {a.name: a.use for a in made.contract.assets} == {"hospital/queries": "data", "lab/minilm": "base"}
    half = operations.sign_contract(sealed.home, made, "hospital")
    assert (half.missing, half.stored_with) == (("lab",), ())
    whole = operations.sign_contract(sealed.home, made, "lab")
    assert (whole.missing, whole.stored_with, whole.state) == ((), ("hospital", "lab"), "contract.in-force")
    again = operations.sign_contract(sealed.home, whole, "lab")
    assert again.document() == whole.document()
    for reference in ("whole", whole.contract.digest.hex(), whole.contract.digest.hex()[:8]):
        assert operations.show_contract(sealed.home, reference, "lab").contract.digest == whole.contract.digest


def test_the_next_proposal_has_the_next_serial(sealed: LocalHome) -> None:
    agreed_on(sealed, "serials")
    assert proposed(sealed, "serials", party="lab").contract.serial == 2


@pytest.mark.parametrize("reference", ["nothing", "ab" * 32, "0000", "zz"])
def test_an_unknown_contract(sealed: LocalHome, reference: str) -> None:
    with pytest.raises(Misuse) as caught:
        operations.show_contract(sealed.home, reference, "lab")
    assert caught.value.code == "contract.unknown"


def test_an_ambiguous_beginning_is_refused(sealed: LocalHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ControlClient, "contracts", lambda _: [{"digest": "abcdabcd1" + "0" * 55}, {"digest": "abcdabcd2" + "0" * 55}]
    )
    with pytest.raises(Misuse) as caught:
        operations.show_contract(sealed.home, "abcdabcd", "lab")
    assert "More than one" in caught.value.message


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("lab/minilm]", "lab/absent]", "contract.asset"),
        ("lab/minilm]", "bank/minilm]", "contract.asset"),
        ("[hospital, lab]", "[hospital, lab, bank]", "contract.unpinned"),
        ("lab/minilm]", "absent.json]", "contract.manifest"),
        ("form: adapter", "form: everything", "form.field"),
        ("unbounded_memorization: [hospital]", "unbounded_memorization: []", "contract.memorization"),
    ],
)
def test_a_proposal_that_cannot_be(sealed: LocalHome, old: str, new: str, code: str) -> None:
    text = CONTRACT.replace("name: intents", "name: wrong").replace(old, new)
    with pytest.raises(CloisterError) as caught:
        operations.new_contract(sealed.home, text, folder=sealed.folder)
    assert caught.value.code == code
    assert "wrong" not in [c["name"] for c in operations.list_contracts(sealed.home, "lab")]


def test_a_manifest_file_names_an_asset_of_another_machine(sealed: LocalHome, tmp_path: Path) -> None:
    digest = read_digest(sealed, "lab/minilm")
    (tmp_path / "minilm.json").write_bytes(sealed.home.control("lab").manifest(digest).to_bytes())
    text = CONTRACT.replace("name: intents", "name: by-file").replace("lab/minilm]", "minilm.json]")
    made = operations.new_contract(sealed.home, text, folder=tmp_path)
    assert made.contract.asset(bytes.fromhex(digest)).name == "lab/minilm"
    forged = sealed.world.seal_into(
        tmp_path / "forged", Party("lab").signing, "lab", "lab/minilm", "model", b"other weights"
    )
    (tmp_path / "minilm.json").write_bytes(forged.envelope.to_bytes())
    with pytest.raises(Untrusted):
        operations.new_contract(sealed.home, text, folder=tmp_path)


def test_a_party_signs_only_its_own_contracts(sealed: LocalHome) -> None:
    made = proposed(sealed, "others")
    with pytest.raises(Misuse) as caught:
        operations.sign_contract(sealed.home, made, "bank")
    assert caught.value.code == "contract.party"


def test_a_job_is_followed_to_its_end(sealed: LocalHome) -> None:
    agreed_on(sealed, "jobs")
    queued = operations.submit(sealed.home, RECIPE, "jobs", "hospital")
    digest = queued["digest"]
    assert operations.list_jobs(sealed.home, "lab")[0]["digest"] == digest
    control = sealed.home.control("hospital")
    assert operations.find_job(control, digest[:6])["digest"] == digest
    claimed = sealed.world.node_post("/v1/node/claim", {})
    assert claimed["job"] == queued["job"]
    steps: list[Step] = []
    codes: list[str] = []

    def node() -> None:
        path = f"/v1/node/jobs/{digest}"
        for step in (1, 2):
            event = {"kind": "progress", "stage": "train", "step": step, "total": 2, "values": {"loss": f"0.{step}"}}
            sealed.world.node_post(f"{path}/events", {"events": [{"kind": "state", "code": f"c{step}"}, event]})
        error = {"code": "job.gate", "details": {}, "kind": "denied", "message": "A gate failed."}
        sealed.world.node_post(f"{path}/state", {"state": "denied", "error": error})

    thread = threading.Thread(target=node)
    thread.start()
    outcome = operations.follow(control, digest, progress=steps.append, on_code=codes.append)
    thread.join()
    assert codes == ["c1", "c2"]
    assert [(s.stage, s.done, s.total, s.values) for s in steps] == [
        ("train", 1, 2, {"loss": "0.1"}),
        ("train", 2, 2, {"loss": "0.2"}),
    ]
    assert (outcome.succeeded, outcome.values, outcome.job["error"]["code"]) == (False, {"loss": "0.2"}, "job.gate")


def test_following_survives_a_control_plane_that_is_away_for_a_moment(sealed: LocalHome) -> None:
    control, slept = sealed.home.control("hospital"), list[float]()

    class Flaky:
        answers = 2

        def events(self, digest: str, after: int) -> Any:
            self.answers -= 1
            if self.answers >= 0:
                raise Unavailable("control.unreachable", "away")
            return {"events": [], "final": True, "state": "cancelled"}

        def job(self, digest: str) -> Any:
            return {"state": "cancelled"}

    outcome = operations.follow(Flaky(), "x", sleep=slept.append)  # type: ignore[arg-type]
    assert (outcome.job["state"], len(slept)) == ("cancelled", 2)
    gone = Flaky()
    gone.answers = 100
    with pytest.raises(Unavailable):
        operations.follow(gone, "x", sleep=slept.append)  # type: ignore[arg-type]
    assert control.jobs() is not None


def test_a_node_that_the_contract_does_not_name(sealed: LocalHome) -> None:
    """After an update, brokers would refuse the node's evidence: better said at once."""
    agreed_on(sealed, "before-update")
    before = operations.list_jobs(sealed.home, "lab")
    sealed.world.node_post("/v1/node/hello", {**CLAIM, "agent": "44" * 32})
    try:
        with pytest.raises(Denied) as caught:
            operations.submit(sealed.home, RECIPE, "before-update", "hospital")
    finally:
        sealed.report_node()
    assert caught.value.code == "appraisal.agent"
    assert operations.list_jobs(sealed.home, "lab") == before


def test_a_job_names_its_output_where_several_fit(sealed: LocalHome) -> None:
    text = CONTRACT.replace("name: intents", "name: outputs").replace(
        "outputs: [", "outputs: [{name: lab/adapter, form: adapter, recipients: [lab]}, "
    )
    made = operations.new_contract(sealed.home, text, folder=sealed.folder)
    for party in ("hospital", "lab"):
        operations.sign_contract(sealed.home, made, party)
    with pytest.raises(Misuse) as caught:
        operations.submit(sealed.home, RECIPE, "outputs", "hospital")
    assert caught.value.code == "job.output"
    assert "hospital/adapter" in caught.value.message
    queued = operations.submit(sealed.home, RECIPE, "outputs", "hospital", output="lab/adapter")
    assert queued["output"] == "lab/adapter"
    assert operations.cancel_job(sealed.home, queued["digest"], "lab")["state"] == "cancelled"


@pytest.mark.parametrize(
    ("reference", "code"), [("xyz", "job.reference"), ("0000", "job.unknown"), ("ab" * 32, "job.unknown")]
)
def test_an_unknown_job(sealed: LocalHome, reference: str, code: str) -> None:
    with pytest.raises(Misuse) as caught:
        operations.find_job(sealed.home.control("lab"), reference)
    assert caught.value.code == code


def test_revoking_is_one_partys_own_act(sealed: LocalHome) -> None:
    made = agreed_on(sealed, "revoked")
    done = operations.revoke_contract(sealed.home, made, "lab", "enough")
    assert (done["control"], done["reached"], done["unreached"]) == ("told", ["hospital"], [])
    with pytest.raises(Denied) as caught:
        operations.submit(sealed.home, RECIPE, "revoked", "hospital")
    assert caught.value.code == "contract.revoked"


def test_a_revocation_counts_though_the_control_plane_is_away(
    sealed: LocalHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = agreed_on(sealed, "revoked-alone")

    def away(*_: Any) -> None:
        raise Unavailable("control.unreachable", "The control plane does not answer.")

    monkeypatch.setattr(ControlClient, "report_revocation", away)
    done = operations.revoke_contract(sealed.home, made, "lab", "enough")
    assert done["control"] == "The control plane does not answer."
    with pytest.raises(Denied):
        sealed.home.agent("hospital").sign_job(
            made.contract.envelope, operations.check_recipe(RECIPE), "hospital/adapter"
        )
