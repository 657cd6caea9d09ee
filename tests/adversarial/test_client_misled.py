"""The operator, or another party, misleads a person's own client: names, answers, figures, what a terminal shows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.client import ControlClient, operations
from cloister.client.agreements import contract_to_run
from cloister.client.drafts import drafts
from cloister.client.jobs import Outcome
from cloister.client.known import known_contracts
from cloister.client.references import choose
from cloister.client.verify import verify_bundle
from cloister.contracts import CONTRACT_TYPE, Contract, read_contract
from cloister.control.processes import Part, PartProcess
from cloister.crypto import Envelope, canonical_json
from cloister.errors import CloisterError, Malformed, Misuse, Untrusted
from tests.bundles import PINS, Bundle, contract_fields, make_contract
from tests.client_home import CLAIM, RECIPE, LocalHome, Run, agreed_on, proposed

pytest_plugins = ["tests.client_fixtures"]


def slipped_in(sealed: LocalHome, model: Contract, serial: int) -> Contract:
    """The lab alone proposes another contract under the same name: its own platform, itself as the recipient."""
    document = json.loads(model.envelope.payload)
    document |= {"serial": serial, "outputs": [{"name": "lab/grab", "form": "adapter", "recipients": ["lab"]}]}
    document["platform"] |= {"measurements": ["ee" * 32], "attesters": ["ff" * 32]}
    envelope = Envelope(CONTRACT_TYPE, canonical_json(document))
    sealed.home.control("lab").offer(envelope)
    return read_contract(envelope)


def signed_by(sealed: LocalHome, party: str) -> set[bytes]:
    return {known.contract.digest for known in known_contracts(sealed.home.agent(party)) if known.signed}


def code_of(error: pytest.ExceptionInfo[CloisterError]) -> str:
    return error.value.code


@pytest.fixture
def forgetful(sealed: LocalHome) -> Iterator[Path]:
    """A home that drafted nothing: proposals come from elsewhere."""
    path = sealed.home.path / "drafts.json"
    kept = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)
    if kept is not None:
        path.write_bytes(kept)


# --- names -----------------------------------------------------------------------------------------------------------


def test_another_contract_is_slipped_in_under_a_drafted_name(sealed: LocalHome, run: Run) -> None:
    mine = proposed(sealed, "slip").contract
    evil = slipped_in(sealed, mine, 2)
    done = run("contract", "sign", "slip", "--as", "hospital", "--yes")
    assert done.code == 0
    assert mine.digest.hex() in done.out
    assert mine.digest in signed_by(sealed, "hospital")
    # Once it is signed, the name alone is no way to the newer one either.
    again = run("contract", "sign", "slip", "--as", "hospital", "--yes", "--json")
    assert (again.code, again.document["error"]["code"]) == (2, "contract.compare")
    assert evil.digest not in signed_by(sealed, "hospital")


def test_what_others_proposed_is_signed_by_its_whole_digest_only(sealed: LocalHome, run: Run, forgetful: Path) -> None:
    theirs = slipped_in(sealed, make_like(sealed, "theirs"), 1)
    digest = theirs.digest.hex()
    for reference in ("theirs", digest[:8], digest[:63]):
        refused = run("contract", "sign", reference, "--as", "hospital", "--yes", "--json")
        assert (refused.code, refused.document["error"]["code"]) == (2, "contract.compare")
        assert digest in refused.err
        # Nor is a contract that was merely looked at by such a reference signed.
        shown = operations.show_contract(sealed.home, reference, "hospital")
        with pytest.raises(Misuse) as caught:
            operations.sign_contract(sealed.home, shown, "hospital")
        assert code_of(caught) == "contract.compare"
    assert theirs.digest not in signed_by(sealed, "hospital")
    assert run("contract", "sign", digest, "--as", "hospital", "--yes").code == 0
    assert theirs.digest in signed_by(sealed, "hospital")


def make_like(sealed: LocalHome, name: str) -> Contract:
    """A contract that would be valid here, not offered to anybody."""
    model = agreed_on(sealed, f"{name}-model").contract
    return read_contract(Envelope(CONTRACT_TYPE, canonical_json({**json.loads(model.envelope.payload), "name": name})))


def test_a_newer_proposal_keeps_a_party_from_revoking(sealed: LocalHome, run: Run) -> None:
    force = agreed_on(sealed, "ward").contract
    slipped_in(sealed, force, 7)
    assert run("contract", "revoke", "ward", "--reason", "stop", "--as", "hospital", "--yes").code == 0
    assert operations.show_contract(sealed.home, force.digest.hex(), "hospital").state == "contract.revoked"
    revoked = {k.contract.digest: k.revoked_by for k in known_contracts(sealed.home.agent("hospital"))}
    assert revoked[force.digest] == "hospital"


def test_a_half_signed_successor_hides_the_contract_in_force(sealed: LocalHome, run: Run) -> None:
    """By name the newest that the party signed is revoked; what stays in force is said, by its digest."""
    force = agreed_on(sealed, "heir").contract
    heir = proposed(sealed, "heir")
    operations.sign_contract(sealed.home, heir, "hospital")
    done = run("contract", "revoke", "heir", "--reason", "stop", "--as", "hospital", "--yes", "--json").document
    assert (done["contract"], done["in_force"]) == (heir.contract.digest.hex(), [force.digest.hex()])
    rest = run("contract", "revoke", force.digest.hex()[:8], "--reason", "stop", "--as", "hospital", "--yes", "--json")
    assert (rest.document["contract"], rest.document["in_force"]) == (force.digest.hex(), [])


def test_revoking_what_the_own_broker_does_not_know(sealed: LocalHome, run: Run) -> None:
    slipped_in(sealed, make_like(sealed, "unknown-here"), 1)
    ran = run("contract", "revoke", "unknown-here", "--reason", "x", "--as", "hospital", "--yes", "--json")
    assert ran.document["error"]["code"] == "contract.unknown"


def test_a_job_runs_under_what_the_own_broker_has_complete(sealed: LocalHome) -> None:
    force = agreed_on(sealed, "jobs-by-name").contract
    slipped_in(sealed, force, 9)
    queued = operations.submit(sealed.home, RECIPE, "jobs-by-name", "hospital")
    assert queued["contract"] == force.digest.hex()
    with pytest.raises(Misuse) as caught:
        contract_to_run(sealed.home, "never-agreed", "hospital")
    assert code_of(caught) == "contract.unknown"


def test_what_the_others_signed_since_is_given_to_the_own_broker(sealed: LocalHome) -> None:
    """The lab signs in a home of its own: the hospital's broker learns it when a job needs it."""
    made = proposed(sealed, "elsewhere")
    operations.sign_contract(sealed.home, made, "hospital")
    assert contract_to_run(sealed.home, "elsewhere", "hospital").digest == made.contract.digest
    sealed.home.control("lab").offer(sealed.home.agent("lab").sign_contract(made.contract.envelope))
    (before,) = (k for k in known_contracts(sealed.home.agent("hospital")) if k.name == "elsewhere")
    assert not before.complete
    assert contract_to_run(sealed.home, "elsewhere", "hospital").digest == made.contract.digest
    (after,) = (k for k in known_contracts(sealed.home.agent("hospital")) if k.name == "elsewhere")
    assert after.complete


def test_a_name_that_looks_like_a_digest() -> None:
    class Known:
        def __init__(self, digest: str, name: str, serial: int) -> None:
            self.digest, self.name, self.serial = digest, name, serial

    honest = Known("deadbeef" + "0" * 56, "intents", 1)
    impostor = Known("ab" * 32, "deadbeef", 99)
    assert choose([impostor, honest], "deadbeef") is honest
    assert choose([impostor], "deadbeef") is impostor
    assert choose([impostor, honest], "dead") is None, "less than eight digits name nothing"
    with pytest.raises(Misuse) as caught:
        choose([honest, Known("deadbeef" + "1" * 56, "other", 1)], "deadbeef")
    assert code_of(caught) == "contract.ambiguous"
    with pytest.raises(Misuse):
        choose([honest, Known("cd" * 32, "intents", 1)], "intents")


# --- answers ---------------------------------------------------------------------------------------------------------


def test_the_operator_answers_with_another_contract(
    sealed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    important, other = agreed_on(sealed, "important").contract, agreed_on(sealed, "other").contract
    real = ControlClient.contract
    before = signed_by(sealed, "hospital")
    monkeypatch.setattr(ControlClient, "contract", lambda self, _: real(self, "other"))
    for reference in ("important", important.digest.hex(), important.digest.hex()[:8]):
        with pytest.raises(Untrusted) as caught:
            operations.show_contract(sealed.home, reference, "hospital")
        assert code_of(caught) == "contract.answer"
        signing = run("contract", "sign", reference, "--as", "hospital", "--yes", "--json")
        assert (signing.code, signing.document["error"]["code"]) == (4, "contract.answer")
    assert signed_by(sealed, "hospital") == before
    # What ends a contract doesn't ask the operator which one.
    assert run("contract", "revoke", "important", "--reason", "x", "--as", "hospital", "--yes").code == 0
    states = {k.contract.digest: k.revoked_by for k in known_contracts(sealed.home.agent("hospital"))}
    assert (states[important.digest], states[other.digest]) == ("hospital", None)


def test_the_operator_answers_a_proposal_with_another(sealed: LocalHome, monkeypatch: pytest.MonkeyPatch) -> None:
    other = agreed_on(sealed, "decoy").contract
    monkeypatch.setattr(ControlClient, "offer", lambda self, _: self.contract(other.digest.hex()))
    known = [draft.digest for draft in drafts(sealed.home.path)]
    with pytest.raises(Untrusted) as caught:
        proposed(sealed, "swapped")
    assert code_of(caught) == "contract.answer"
    assert [draft.digest for draft in drafts(sealed.home.path)] == known


def test_the_operator_says_that_everybody_signed(sealed: LocalHome, monkeypatch: pytest.MonkeyPatch) -> None:
    made = proposed(sealed, "claimed")
    real = ControlClient.offer
    claim = {"signed": ["hospital", "lab"], "missing": [], "state": "contract.in-force", "reason": None}
    monkeypatch.setattr(ControlClient, "offer", lambda self, envelope: {**real(self, envelope), **claim})
    signed = operations.sign_contract(sealed.home, made, "hospital")
    assert (signed.signed, signed.missing, signed.stored_with) == (("hospital",), ("lab",), ())


def test_the_operator_answers_with_another_asset(sealed: LocalHome, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = sealed.home.agent("hospital").assets()[0]["digest"]
    real = ControlClient.manifest
    monkeypatch.setattr(
        sealed.home.agent("hospital"), "assets", lambda: [{"name": "hospital/best", "digest": manifest, "version": 1}]
    )
    monkeypatch.setattr(ControlClient, "manifest", lambda self, digest: real(self, digest))
    text = Path(sealed.folder.parent / "unused")
    with pytest.raises(Untrusted) as caught:
        operations.new_contract(
            sealed.home,
            json.dumps(
                {
                    "name": "assets",
                    "parties": ["hospital", "lab"],
                    "assets": ["hospital/best"],
                    "purpose": "x",
                    "recipes": {"tasks": [], "methods": [], "max_epochs": "1"},
                    "runs": "1",
                    "outputs": [],
                    "expires": "1d",
                }
            ),
            folder=text,
        )
    assert code_of(caught) == "contract.answer"


def test_the_operator_answers_with_another_job(sealed: LocalHome, monkeypatch: pytest.MonkeyPatch) -> None:
    agreed_on(sealed, "jobs-answered")
    digest = operations.submit(sealed.home, RECIPE, "jobs-answered", "hospital")["digest"]
    monkeypatch.setattr(ControlClient, "submit", lambda *_: {"digest": digest})
    with pytest.raises(Untrusted) as caught:
        operations.submit(sealed.home, RECIPE, "jobs-answered", "hospital")
    assert code_of(caught) == "job.answer"
    monkeypatch.setattr(ControlClient, "job", lambda *_: {"digest": digest})
    with pytest.raises(Untrusted) as asked:
        operations.find_job(sealed.home.control("hospital"), "ab" * 32)
    assert code_of(asked) == "job.answer"


def test_this_platform_is_another_one(sealed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """``platform: this`` comes from the control plane; what the supervisor heard from its own node is set beside it."""
    honest = proposed(sealed, "here").contract
    lie = {**CLAIM, "measurement": "66" * 32}
    with monkeypatch.context() as patch:
        patch.setattr(ControlClient, "info", lambda self: {"id": sealed.world.plane.id, "node": lie})
        misled = proposed(sealed, "away").contract
    shown = run("contract", "show", misled.digest.hex(), "--as", "hospital")
    assert "6666666666666666…, does NOT match this installation" in shown.out
    assert "2222222222222222…, matches this installation" in shown.out
    document = run("contract", "show", "away", "--as", "hospital", "--json").document
    assert document["this_installation"] == {"agent": True, "measurement": False}
    assert "66" * 32 in json.dumps(document["summary"])
    assert "66" * 32 in run("contract", "show", "away", "--as", "hospital", "--full").out
    asked = run("contract", "sign", "here", "--as", "hospital")
    assert "does NOT match" not in asked.err
    assert asked.err.count("matches this installation") == 2
    assert honest.digest not in signed_by(sealed, "hospital")


# --- figures ---------------------------------------------------------------------------------------------------------


class Told:
    """What a control plane says of one finished job."""

    def __init__(self, bundle: Bundle, record: dict[str, Any]) -> None:
        self.bundle, self.record = bundle, record

    def events(self, *_: Any) -> Any:
        values = {"loss": "0.1", "accuracy": "0.999999"}
        event = {"kind": "progress", "stage": "train", "step": 1, "total": 1, "values": values}
        return {"events": [{"seq": 1, "event": event}], "final": True, "state": "succeeded"}

    def job(self, digest: str) -> Any:
        return {"digest": digest, "output": "hospital/queries-adapter", "state": "succeeded"}

    def release(self, _: str) -> bytes:
        return json.dumps(self.record).encode()

    def follow(self, digest: str | None = None) -> Outcome:
        return operations.follow(self, digest or self.bundle.job.digest.hex(), pins=PINS)  # type: ignore[arg-type]


@pytest.fixture
def told(tmp_path: Path) -> Told:
    bundle = Bundle(tmp_path / "logs")
    return Told(bundle, bundle.record(bundle.manifest(tmp_path / "sealed")))


def test_only_a_release_that_verifies_is_a_success(told: Told) -> None:
    outcome = told.follow()
    assert outcome.verified is not None
    assert outcome.values == {"loss": "0.1"}, "a figure that the contract does not let out is the operator's invention"
    assert outcome.gates == ({"metric": "accuracy", "margin": "0.01", "passed": True},)
    with pytest.raises(Untrusted) as other:
        told.follow("ab" * 32)
    assert code_of(other) == "job.release"
    manifest = Envelope.from_bytes(told.record["manifest"].encode())
    terms = json.loads(manifest.payload)
    terms["terms"]["gates"][0]["metric"] = "quality"
    told.record["manifest"] = (
        Envelope(manifest.payload_type, canonical_json(terms), manifest.signatures).to_bytes().decode()
    )
    with pytest.raises(Untrusted) as forged:
        told.follow()
    assert code_of(forged) == "dsse.unsigned"


def test_a_bundle_of_another_contract(told: Told, tmp_path: Path) -> None:
    out = told.bundle.write(tmp_path / "out")
    digest = told.bundle.contract.digest.hex()
    for expected in ("intents", digest, digest[:8]):
        assert verify_bundle(out, PINS, expected_contract=expected).contract == digest
    for expected in ("intent", digest[:7], "ab" * 32, ""):
        with pytest.raises(Untrusted) as caught:
            verify_bundle(out, PINS, expected_contract=expected)
        assert code_of(caught) == "verify.contract"


def test_a_folder_that_can_be_entered_but_not_listed(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = told.bundle.write(tmp_path / "out")
    extra = out / "extra"
    extra.mkdir()
    (extra / "evil.safetensors").write_bytes(b"not from the workload")
    real = os.scandir

    def closed(path: Any) -> Any:  # root, who may run this test, is let in everywhere
        if Path(path) == extra:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(Untrusted) as caught:
        verify_bundle(out, PINS)
    assert code_of(caught) == "verify.unreadable"
    assert "extra" in caught.value.message


# --- what a terminal shows --------------------------------------------------------------------------------------------

FAKE = "local" + "\n" * 60 + "contract   intents, serial 1\nworkload   <the measurement you expect>"
_FIELDS = contract_fields()


@pytest.mark.parametrize("text", [FAKE, "a\rb", "a\x1b[2Jb", "a\u202eb", "a\u2028b", "a\u2066b", "a\x85b", "\ud800"])
@pytest.mark.parametrize(
    "field",
    [
        lambda text: {"purpose": text},
        lambda text: {"platform": {**_FIELDS["platform"], "regions": [text]}},
        lambda text: {"telemetry": [text]},
        lambda text: {"gates": [{"metric": text, "better_than_base_by": "0"}]},
        lambda text: {"recipes": {**_FIELDS["recipes"], "tasks": [text]}},
        lambda text: {"unbounded_memorization": ["hospital", text]},
        lambda text: {
            "assets": [
                {**asset, "terms": {**asset["terms"], "licences": [text]}} for asset in contract_fields()["assets"]
            ]
        },
        lambda text: {"outputs": [{"name": f"hospital/{text}", "form": "adapter", "recipients": ["hospital"]}]},
    ],
)
def test_a_contract_that_draws_another_one(text: str, field: Any) -> None:
    with pytest.raises(Malformed) as caught:
        make_contract(**field(text))
    assert code_of(caught) in ("contract.text", "json.text")  # no reader of JSON takes half a surrogate pair


def test_a_contract_between_parties_that_draw() -> None:
    with pytest.raises(Malformed) as caught:
        make_contract(cards={**PINS, "lab\nhospital": PINS["lab"]})
    assert code_of(caught) == "contract.text"
    with pytest.raises(Malformed) as named:
        make_contract(cards={**PINS, "the lab": PINS["lab"]})
    assert code_of(named) == "name.party"


def test_an_output_under_a_name_of_nobody() -> None:
    with pytest.raises(Malformed) as caught:
        make_contract(outputs=[{"name": "clinic/adapter", "form": "adapter", "recipients": ["hospital"]}])
    assert code_of(caught) == "contract.outputs"


def test_the_operators_words_stay_in_their_cell(sealed: LocalHome, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "name": "x", "serial": 1, "digest": "ab" * 32, "parties": ["hospital"],
        "reason": "in force\n\u202eintents  serial 1  in force\x1b[2J",
    }  # fmt: skip
    monkeypatch.setattr(ControlClient, "contracts", lambda _: [row])
    shown = run("contract", "list", "--as", "hospital")
    assert shown.out.count("\n") == 1
    assert all(c.isprintable() for c in shown.out.rstrip("\n"))
    assert run("contract", "list", "--as", "hospital", "--json").out.isascii()


# --- the home --------------------------------------------------------------------------------------------------------


def test_the_list_of_drafts_is_the_owners_alone(sealed: LocalHome, forgetful: Path, tmp_path: Path) -> None:
    made = proposed(sealed, "drafted").contract
    assert forgetful.stat().st_mode & 0o777 == 0o600
    assert [(d.digest, d.name) for d in drafts(sealed.home.path)] == [(made.digest.hex(), "drafted")]
    theirs = tmp_path / "theirs.json"
    theirs.write_bytes(forgetful.read_bytes())
    forgetful.unlink()
    forgetful.symlink_to(theirs)
    for broken in (b"", b"{}", b'{"drafts":[{"digest":"x"}]}'):
        with pytest.raises(Misuse) as caught:
            drafts(sealed.home.path)
        assert code_of(caught) == "home.drafts"
        forgetful.unlink()
        forgetful.write_bytes(broken)


def test_a_log_of_a_part_leads_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    part = Part("party/x", "cloister.no_such_module", (), None)
    log = tmp_path / part.log_name
    log.symlink_to(tmp_path / "victim")
    with pytest.raises(Misuse) as caught:
        PartProcess.start(part, tmp_path)
    assert (code_of(caught), (tmp_path / "victim").read_text()) == ("home.log", "precious")
    log.unlink()
    log.touch(mode=0o644)
    with pytest.raises(CloisterError) as failed:
        PartProcess.start(part, tmp_path)
    assert code_of(failed) == "embedded.start"
    assert log.stat().st_mode & 0o777 == 0o600
