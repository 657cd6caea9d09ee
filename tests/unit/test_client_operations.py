"""The client's operations against a real control plane and real brokers, all in this process."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.client import ControlClient, Home, SealOptions, Step, operations
from cloister.client.sealing import upload_again
from cloister.errors import CloisterError, Denied, Malformed, Misuse, Unavailable, Untrusted
from cloister.sealed import Manifest, read_envelope
from tests.client_home import CLAIM, PASSPHRASE, LocalHome, local_home
from tests.control_world import Party

CONTRACT = """
name: {name}
parties: [hospital, lab]
assets: [hospital/queries, lab/minilm]
purpose: tests
recipes: {{tasks: [classification], methods: [lora], max_epochs: 5}}
runs: 5
outputs: [{{name: hospital/adapter, form: adapter, recipients: [hospital]}}]
unbounded_memorization: [hospital]
telemetry: [loss]
assurance: none
expires: 90d
"""
RECIPE = """
task: classification
method: lora
data: hospital/queries
base: lab/minilm
columns: {text: text, label: label}
"""
OPTIONS = SealOptions(schema=("text", "label"), licences=("CC-BY-4.0",))


@pytest.fixture(scope="module")
def local() -> Iterator[LocalHome]:
    """Hospital and lab, each with a sealed asset. Tests make contracts of their own."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="cl-", dir=shm if shm.is_dir() else None))
    with local_home(folder / "h") as made:
        made.report_node()
        for name in ("hospital", "lab"):
            operations.create_party(made.home, name, PASSPHRASE)
        rows(folder)
        operations.seal(made.home, folder / "rows.csv", "hospital/queries", OPTIONS)
        model(folder)
        operations.seal(made.home, folder / "model", "lab/minilm", SealOptions(licences=("Apache-2.0",)))
        yield made
    shutil.rmtree(folder)


def rows(folder: Path) -> Path:
    (folder / "rows.csv").write_text("text,label\nhello,a\nbye,b\n")
    return folder / "rows.csv"


def model(folder: Path) -> Path:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "model.safetensors").write_bytes(b"w" * 1000)
    return folder / "model"


def proposed(local: LocalHome, name: str, **options: Any) -> Any:
    return operations.new_contract(local.home, CONTRACT.format(name=name), folder=local.folder, **options)


def agreed(local: LocalHome, name: str) -> Any:
    made = proposed(local, name)
    for party in ("hospital", "lab"):
        made = operations.sign_contract(local.home, made, party)
    return made


def test_parties_of_one_home_are_paired(local: LocalHome) -> None:
    parties = {row["name"]: row for row in operations.list_parties(local.home)}
    assert set(parties) == {"hospital", "lab"}
    assert parties["hospital"]["pins"]["lab"]["fingerprint"] == parties["lab"]["fingerprint"]
    assert parties["lab"]["pins"]["hospital"]["fingerprint"] == parties["hospital"]["fingerprint"]
    assert set(local.home.control("lab").directory()) == {"hospital", "lab"}


def test_sealing_again_makes_the_next_version(local: LocalHome, tmp_path: Path) -> None:
    seen: list[Step] = []
    path = rows(tmp_path)
    first = operations.seal(local.home, path, "hospital/twice", OPTIONS)
    second = operations.seal(local.home, path, "hospital/twice", OPTIONS, progress=seen.append)
    assert (first.version, second.version) == (1, 2)
    manifest = Manifest.from_payload(second.manifest.payload)
    assert manifest.previous is not None
    assert manifest.previous.hex() == first.digest
    assert manifest.terms["schema"] == ["text", "label"]
    assert {step.stage for step in seen} == {"seal", "upload"}
    assert list((local.folder / "outbox").iterdir()) == [], "the local ciphertext is removed once it is stored"
    assert [a["version"] for a in local.home.control("hospital").assets("hospital/twice")] == [2, 1]


def test_a_failed_upload_keeps_the_ciphertext_and_says_how_to_go_on(
    local: LocalHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: ControlClient, folder: Path, **_: Any) -> str:
        raise Unavailable("control.unreachable", "The control plane does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(ControlClient, "upload", away)
        with pytest.raises(Unavailable) as caught:
            operations.seal(local.home, rows(tmp_path), "hospital/kept", OPTIONS)
    kept = next((local.folder / "outbox").iterdir())
    assert f"cloister seal {kept} --as hospital/kept" in caught.value.message
    with pytest.raises(Misuse) as other:
        upload_again(local.home, kept, "hospital/else")
    assert other.value.code == "seal.other"
    done = operations.seal(local.home, kept, "hospital/kept")
    assert done.digest == read_digest(local, "hospital/kept")
    assert not kept.exists()


def read_digest(local: LocalHome, name: str) -> str:
    return str(local.home.control(name.partition("/")[0]).assets(name)[0]["digest"])


def test_the_data_key_is_overwritten(local: LocalHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytearray] = []
    agent = local.home.agent("hospital")
    original = type(agent).register_secret_dek

    def watch(self: Any, payload: bytes, dek: bytearray) -> Any:
        seen.append(dek)
        assert any(dek)
        return original(self, payload, dek)

    monkeypatch.setattr(type(agent), "register_secret_dek", watch)
    operations.seal(local.home, rows(tmp_path), "hospital/wiped", OPTIONS)
    assert seen == [bytearray(32)]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (SealOptions(sensitivity="secretish"), "seal.sensitivity"),
        (SealOptions(forms=("adaptor",)), "seal.forms"),
        (SealOptions(forms=()), "seal.forms"),
        (SealOptions(schema=("a",)), "seal.schema"),
    ],
)
def test_wrong_words_seal_nothing(local: LocalHome, tmp_path: Path, options: SealOptions, code: str) -> None:
    before = local.home.agent("hospital").assets()
    with pytest.raises(Misuse) as caught:
        operations.seal(local.home, rows(tmp_path), "hospital/none", options)
    assert caught.value.code == code
    assert local.home.agent("hospital").assets() == before


def test_an_assets_name_has_a_form(local: LocalHome, tmp_path: Path) -> None:
    with pytest.raises(Malformed):
        operations.seal(local.home, rows(tmp_path), "queries", OPTIONS)
    with pytest.raises(Misuse) as caught:
        operations.seal(local.home, rows(tmp_path), "nobody/queries", OPTIONS)
    assert caught.value.code == "party.unknown"


def test_a_contract_from_proposal_to_force(local: LocalHome) -> None:
    made = proposed(local, "whole")
    assert (made.signed, made.missing) == ((), ("hospital", "lab"))
    assert made.contract.platform.measurements == (CLAIM["measurement"],)
    assert {a.name: a.use for a in made.contract.assets} == {"hospital/queries": "data", "lab/minilm": "base"}
    half = operations.sign_contract(local.home, made, "hospital")
    assert (half.missing, half.stored_with) == (("lab",), ())
    whole = operations.sign_contract(local.home, made, "lab")
    assert (whole.missing, whole.stored_with, whole.state) == ((), ("hospital", "lab"), "contract.in-force")
    again = operations.sign_contract(local.home, whole, "lab")
    assert again.document() == whole.document()
    for reference in ("whole", whole.contract.digest.hex(), whole.contract.digest.hex()[:8]):
        assert operations.show_contract(local.home, reference, "lab").contract.digest == whole.contract.digest


def test_the_next_proposal_has_the_next_serial(local: LocalHome) -> None:
    agreed(local, "serials")
    assert proposed(local, "serials", party="lab").contract.serial == 2


@pytest.mark.parametrize("reference", ["nothing", "ab" * 32, "0000", "zz"])
def test_an_unknown_contract(local: LocalHome, reference: str) -> None:
    with pytest.raises(Misuse) as caught:
        operations.show_contract(local.home, reference, "lab")
    assert caught.value.code == "contract.unknown"


def test_an_ambiguous_beginning_is_refused(local: LocalHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ControlClient, "contracts", lambda _: [{"digest": "abcd1" + "0" * 59}, {"digest": "abcd2" + "0" * 59}]
    )
    with pytest.raises(Misuse) as caught:
        operations.show_contract(local.home, "abcd", "lab")
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
def test_a_proposal_that_cannot_be(local: LocalHome, old: str, new: str, code: str) -> None:
    text = CONTRACT.format(name="wrong").replace(old, new)
    with pytest.raises(CloisterError) as caught:
        operations.new_contract(local.home, text, folder=local.folder)
    assert caught.value.code == code
    assert "wrong" not in [c["name"] for c in operations.list_contracts(local.home, "lab")]


def test_a_manifest_file_names_an_asset_of_another_machine(local: LocalHome, tmp_path: Path) -> None:
    digest = read_digest(local, "lab/minilm")
    (tmp_path / "minilm.json").write_bytes(local.home.control("lab").manifest(digest).to_bytes())
    text = CONTRACT.format(name="by-file").replace("lab/minilm]", "minilm.json]")
    made = operations.new_contract(local.home, text, folder=tmp_path)
    assert made.contract.asset(bytes.fromhex(digest)).name == "lab/minilm"
    forged = local.world.seal_into(
        tmp_path / "forged", Party("lab").signing, "lab", "lab/minilm", "model", b"other weights"
    )
    (tmp_path / "minilm.json").write_bytes(forged.envelope.to_bytes())
    with pytest.raises(Untrusted):
        operations.new_contract(local.home, text, folder=tmp_path)


def test_a_party_signs_only_its_own_contracts(local: LocalHome) -> None:
    made = proposed(local, "others")
    with pytest.raises(Misuse) as caught:
        operations.sign_contract(local.home, made, "bank")
    assert caught.value.code == "contract.party"


def test_a_job_is_followed_to_its_end(local: LocalHome) -> None:
    agreed(local, "jobs")
    queued = operations.submit(local.home, RECIPE, "jobs", "hospital")
    digest = queued["digest"]
    assert operations.list_jobs(local.home, "lab")[0]["digest"] == digest
    control = local.home.control("hospital")
    assert operations.find_job(control, digest[:6])["digest"] == digest
    claimed = local.world.node_post("/v1/node/claim", {})
    assert claimed["job"] == queued["job"]
    steps: list[Step] = []
    codes: list[str] = []

    def node() -> None:
        path = f"/v1/node/jobs/{digest}"
        for step in (1, 2):
            event = {"kind": "progress", "stage": "train", "step": step, "total": 2, "values": {"loss": f"0.{step}"}}
            local.world.node_post(f"{path}/events", {"events": [{"kind": "state", "code": f"c{step}"}, event]})
        error = {"code": "job.gate", "details": {}, "kind": "denied", "message": "A gate failed."}
        local.world.node_post(f"{path}/state", {"state": "denied", "error": error})

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


def test_following_survives_a_control_plane_that_is_away_for_a_moment(local: LocalHome) -> None:
    control, slept = local.home.control("hospital"), list[float]()

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


def test_a_job_names_its_output_where_several_fit(local: LocalHome) -> None:
    text = CONTRACT.format(name="outputs").replace(
        "outputs: [", "outputs: [{name: lab/adapter, form: adapter, recipients: [lab]}, "
    )
    made = operations.new_contract(local.home, text, folder=local.folder)
    for party in ("hospital", "lab"):
        operations.sign_contract(local.home, made, party)
    with pytest.raises(Misuse) as caught:
        operations.submit(local.home, RECIPE, "outputs", "hospital")
    assert caught.value.code == "job.output"
    assert "hospital/adapter" in caught.value.message
    queued = operations.submit(local.home, RECIPE, "outputs", "hospital", output="lab/adapter")
    assert queued["output"] == "lab/adapter"
    assert operations.cancel_job(local.home, queued["digest"], "lab")["state"] == "cancelled"


@pytest.mark.parametrize(
    ("reference", "code"), [("xyz", "job.reference"), ("0000", "job.unknown"), ("ab" * 32, "job.unknown")]
)
def test_an_unknown_job(local: LocalHome, reference: str, code: str) -> None:
    with pytest.raises(Misuse) as caught:
        operations.find_job(local.home.control("lab"), reference)
    assert caught.value.code == code


def test_revoking_is_one_partys_own_act(local: LocalHome) -> None:
    made = agreed(local, "revoked")
    done = operations.revoke_contract(local.home, made, "lab", "enough")
    assert (done["control"], done["reached"], done["unreached"]) == ("told", ["hospital"], [])
    with pytest.raises(Denied) as caught:
        operations.submit(local.home, RECIPE, "revoked", "hospital")
    assert caught.value.code == "contract.revoked"


def test_a_revocation_counts_though_the_control_plane_is_away(
    local: LocalHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = agreed(local, "revoked-alone")

    def away(*_: Any) -> None:
        raise Unavailable("control.unreachable", "The control plane does not answer.")

    monkeypatch.setattr(ControlClient, "report_revocation", away)
    done = operations.revoke_contract(local.home, made, "lab", "enough")
    assert done["control"] == "The control plane does not answer."
    with pytest.raises(Denied):
        local.home.agent("hospital").sign_job(
            made.contract.envelope, operations.check_recipe(RECIPE), "hospital/adapter"
        )


def test_trusting_needs_the_compared_fingerprint(local: LocalHome) -> None:
    stranger = Party("clinic").card
    with pytest.raises(Denied) as caught:
        operations.trust(local.home, "lab", stranger, "0000-0000")
    assert caught.value.code == "pin.fingerprint"
    operations.trust(local.home, "lab", stranger, stranger.fingerprint)
    assert local.home.agent("lab").pins()["clinic"][0].fingerprint == stranger.fingerprint
    assert "clinic" not in local.home.agent("hospital").pins()


def test_cards_are_parsed_with_one_sentence_for_what_is_none() -> None:
    card = Party("clinic").card
    assert operations.parse_card(card.envelope.to_bytes() + b"\n").name == "clinic"
    with pytest.raises(Malformed) as caught:
        operations.parse_card("hello")
    assert caught.value.code == "card.form"


def test_a_log_is_checked_and_compared_with_the_last_time(local: LocalHome) -> None:
    first = operations.verify_log(local.home, "hospital")
    again = operations.verify_log(local.home, "hospital")
    assert (again.compared, again.size, again.root) == (first.size, first.size, first.root)
    local.home.agent("hospital").next_version("hospital/queries")
    operations.seal(local.home, rows(local.folder), "hospital/logged", OPTIONS)
    grown = operations.verify_log(local.home, "hospital")
    assert grown.compared == first.size < grown.size
    assert grown.kinds["asset.sealed"] == again.kinds["asset.sealed"] + 1
    shown = operations.show_log(local.home, "hospital", last=2, kind="asset.sealed")
    assert [e["kind"] for e in shown] == ["asset.sealed", "asset.sealed"]
    assert shown[-1]["index"] == grown.size - 1
    assert "leaf" not in shown[0]


def test_an_unlocked_party_works_again(local: LocalHome) -> None:
    local.lock("lab")
    with pytest.raises(Unavailable) as caught:
        local.home.agent("lab")
    assert caught.value.code == "party.locked"
    rows_now = {row["name"]: row for row in operations.list_parties(local.home)}
    assert "fingerprint" not in rows_now["lab"]
    with pytest.raises(Denied):
        operations.unlock(local.home, "lab", "wrong passphrase")
    opened = operations.unlock(local.home, "lab", PASSPHRASE)
    assert opened.paired == ("hospital",)
    assert local.home.agent("lab").status()["party"] == "lab"


def test_choosing_a_party(local: LocalHome) -> None:
    assert local.home.choose("lab") == "lab"
    with pytest.raises(Misuse) as unknown:
        local.home.choose("bank")
    assert unknown.value.code == "party.unknown"
    with pytest.raises(Misuse) as several:
        local.home.choose(None)
    assert several.value.code == "party.choose"
    assert local.home.choose(None, among=("lab",)) == "lab"
    with pytest.raises(Misuse) as nobody:
        local.home.choose(None, among=("bank",))
    assert nobody.value.code == "party.none"


def test_nothing_runs_here(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert not home.running()
    with pytest.raises(Unavailable) as caught:
        home.status()
    assert caught.value.code == "home.down"
    assert "cloister up" in caught.value.message


def test_a_control_plane_that_is_away(tmp_path: Path) -> None:
    client = ControlClient("http://127.0.0.1:1")
    with pytest.raises(Unavailable) as caught:
        client.info()
    assert caught.value.code == "control.unreachable"
    client.close()
    with pytest.raises(Misuse) as unsigned:
        client._headers("GET", "/", None)
    assert unsigned.value.code == "control.signer"


def test_sealed_folders_are_what_read_envelope_reads(local: LocalHome, tmp_path: Path) -> None:
    digest = read_digest(local, "hospital/queries")
    local.home.control("hospital").download(digest, tmp_path / "d")
    assert read_envelope(tmp_path / "d").digest.hex() == digest
