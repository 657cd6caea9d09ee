"""Every command, in this process, against real brokers: results on stdout, words on stderr, exit codes, ``--json``."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cloister.cli import main
from cloister.client import Verified, operations
from cloister.client.pulling import Pulled
from cloister.errors import Unavailable
from tests.client_home import PASSPHRASE, LocalHome, local_home
from tests.control_world import Party

CONTRACT = """
name: intents
parties: [hospital, lab]
assets: [hospital/queries, lab/minilm]
purpose: tests
recipes: {tasks: [classification], methods: [lora], max_epochs: 5}
runs: 5
outputs: [{name: hospital/adapter, form: adapter, recipients: [hospital]}]
unbounded_memorization: [hospital]
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


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def local() -> Iterator[LocalHome]:
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="cc-", dir=shm if shm.is_dir() else None))
    with local_home(folder / "h") as made:
        yield made
    shutil.rmtree(folder)


@pytest.fixture
def run(local: LocalHome, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("CLOISTER_HOME", str(local.folder))
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "passphrase"
    secret.write_text(PASSPHRASE + "\n")
    secret.chmod(0o600)
    monkeypatch.setenv("CLOISTER_PASSPHRASE_FILE", str(secret))

    def call(*words: str) -> Ran:
        capsys.readouterr()
        code = main(list(words))
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return call


@pytest.fixture(scope="module")
def agreed(local: LocalHome) -> LocalHome:
    """Two parties, two assets, a contract in force: what most commands need. Made by the commands themselves."""
    local.report_node()
    folder = local.folder.parent
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    (folder / "passphrase").chmod(0o600)
    (folder / "rows.csv").write_text("text,label\nhello,a\n")
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"w" * 100)
    (folder / "model" / ".hidden").touch()
    (folder / "contract.yaml").write_text(CONTRACT)
    home = ["--home", str(local.folder)]
    for words in (
        ["org", "create", "hospital", "--passphrase-file", str(folder / "passphrase")],
        ["org", "create", "lab", "--passphrase-file", str(folder / "passphrase")],
        ["seal", str(folder / "rows.csv"), "--as", "hospital/queries", "--schema", "text,label", "--licence", "MIT"],
        ["seal", str(folder / "model"), "--as", "lab/minilm", "--manifest-to", str(folder / "minilm.json")],
        ["contract", "new", str(folder / "contract.yaml")],
        ["contract", "sign", "intents", "--as", "hospital", "--yes"],
        ["contract", "sign", "intents", "--as", "lab", "--yes"],
    ):
        assert main([*words, *home]) == 0, words
    assert (folder / "minilm.json").is_file()
    return local


# --- the machine and the parties -----------------------------------------------------------------------------------


def test_status_says_the_level_plainly(agreed: LocalHome, run: Run) -> None:
    ran = run("status")
    assert ran.code == 0
    assert "whoever runs the machine can read its memory" in ran.out
    assert "a break-in into one reaches the files of all" in ran.out
    assert run("status", "--json").document["claim"]["level"] == "none"


def test_up_changes_nothing_where_all_runs(agreed: LocalHome, run: Run) -> None:
    assert "was up already" in run("up").out
    assert run("up", "--json").document["started"] is False


def test_nothing_runs(run: Run, tmp_path: Path) -> None:
    ran = run("status", "--home", str(tmp_path / "none"))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "cloister: Cloister is not running here; start it with 'cloister up'.\n"
    assert run("down", "--home", str(tmp_path / "none"), "--json").document == {"stopped": False}


def test_the_shortcut_is_said_plainly(agreed: LocalHome, run: Run) -> None:
    ran = run("org", "create", "clinic")
    assert ran.code == 0
    assert "pinned without comparing fingerprints, because one person runs them all" in ran.out
    assert run("org", "create", "clinic").err.startswith("cloister: The party clinic exists already")
    team = run("team", "create", "clinic-ward", "--of", "clinic", "--json")
    assert team.document["paired"] == ["clinic", "hospital", "lab"]
    listed = {p["name"]: p for p in run("org", "list", "--json").document["parties"]}
    assert listed["clinic-ward"]["part_of"] == "clinic"
    assert "team of clinic" in run("org", "list").out


def test_cards_cross_machines_by_fingerprint(agreed: LocalHome, run: Run, tmp_path: Path) -> None:
    exported = run("org", "export", "--as", "lab")
    fingerprint = exported.err.split()[-1]
    assert operations.parse_card(exported.out).fingerprint == fingerprint
    assert run("org", "export", "--as", "lab", "--to", str(tmp_path / "lab.json")).out.split() == ["lab", fingerprint]
    stranger = Party("stranger").card
    (tmp_path / "card.json").write_bytes(stranger.envelope.to_bytes())
    for words, code, exit_code in (
        ([], "trust.fingerprint", 2),
        (["--fingerprint", "0000"], "pin.fingerprint", 3),
    ):
        ran = run("org", "trust", "card.json", "--as", "lab", *words, "--json")
        assert (ran.code, ran.document["error"]["code"]) == (exit_code, code)
    ran = run("org", "trust", "card.json", "--as", "lab", "--fingerprint", stranger.fingerprint)
    assert (ran.code, ran.out) == (0, f"lab has pinned stranger  {stranger.fingerprint}\n")
    assert run("org", "trust", "card.json", "--as", "lab").code == 0, "pinned already: nothing to compare"
    assert run("org", "trust", "absent.json", "--as", "lab").code == 2


def test_rotating_keys(agreed: LocalHome, run: Run) -> None:
    run("org", "create", "rotator")
    before = run("org", "export", "--as", "rotator", "--json").document["fingerprint"]
    refused = run("org", "rotate", "--as", "rotator")
    assert (refused.code, "add --yes" in refused.err) == (2, True)
    ran = run("org", "rotate", "--as", "rotator", "--yes", "--json")
    assert ran.document["fingerprint"] != before
    assert "hospital" in ran.document["told"]
    assert agreed.home.agent("hospital").pins()["rotator"][0].fingerprint == ran.document["fingerprint"]
    assert run("keys", "rotate", "--as", "rotator").out.endswith("epoch 2.\n")


def test_declaring_keys_compromised(agreed: LocalHome, run: Run, tmp_path: Path) -> None:
    run("org", "create", "leaky")
    assert run("org", "compromised", "leaky", "--as", "lab").code == 2, "nobody to ask, no --yes"
    assert agreed.home.agent("lab").pins()["leaky"][1] is False
    assert run("org", "compromised", "leaky", "--as", "lab", "--yes").code == 0
    assert agreed.home.agent("lab").pins()["leaky"][1] is True
    own = run("org", "compromised", "--as", "leaky", "--yes", "--json")
    (tmp_path / "statement.json").write_text(own.document["statement"])
    told = run("org", "compromised", "leaky", "--as", "hospital", "--statement", "statement.json", "--yes")
    assert told.code == 0
    assert "COMPROMISED" in run("org", "list").out


def test_unlocking(agreed: LocalHome, run: Run, tmp_path: Path) -> None:
    run("org", "create", "sleeper")
    agreed.lock("sleeper")
    assert "locked" in run("org", "list").out
    away = run("audit", "show", "--as", "sleeper")
    assert (away.code, "cloister org unlock sleeper" in away.err) == (1, True)
    (tmp_path / "wrong").write_text("wrong passphrase")
    assert run("org", "unlock", "sleeper", "--passphrase-file", "wrong").code == 3
    assert run("org", "unlock", "sleeper").code == 0


# --- assets and contracts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words", "sentence"),
    [
        ("text,label\nx,y\n", ["--schema", "a,b"], "is not the schema a,b"),
        ("", [], "is empty"),
        ("text,label\nx,y\n", ["--class", "video"], "The class is dataset or model"),
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
    assert ran.out == "short is revoked; runs under it stop within 30 seconds.\n"
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    job = run("job", "submit", "recipe.yaml", "--contract", "short", "--as", "hospital", "--json")
    assert (job.code, job.document["error"]["code"]) == (3, "contract.revoked")


# --- jobs and outputs ----------------------------------------------------------------------------------------------


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
        from cloister.crypto import Envelope

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
    gate = {"base": "0.90", "margin": "0.0", "metric": "accuracy", "passed": True, "tuned": "0.95"}
    job = {"digest": "ab" * 32, "output": "hospital/adapter", "state": "succeeded"}
    from cloister.client import Outcome

    monkeypatch.setattr(operations, "find_job", lambda *_: job)
    monkeypatch.setattr(operations, "follow", lambda *_, **__: Outcome(job, {"loss": "0.1"}, (gate,), ("hospital",)))
    ran = run("job", "follow", "abab", "--as", "hospital")
    assert ran.out.splitlines() == [
        "The run succeeded.",
        "accuracy  base 0.90  tuned 0.95  gate +0.0 passed",
        "Recipients (hospital) pull it: cloister pull hospital/adapter --to FOLDER",
    ]
    assert run("job", "follow", "abab", "--as", "hospital", "--json").document["gates"] == [gate]


def test_pull_and_verify_show_what_was_checked(
    agreed: LocalHome, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = Verified(
        "hospital/adapter", "c", "j", "m", "none", ("hospital",), ("hospital",), ("one step", "another")
    )
    asked: list[str] = []

    def pull(home: Any, output: str, to: Path, party: str, **_: Any) -> Pulled:
        asked.append(party)
        return Pulled(to, ("a",), verified)

    monkeypatch.setattr(operations, "pull", pull)
    ran = run("pull", "hospital/adapter", "--to", "out")
    assert (ran.code, asked) == (0, ["hospital"])
    assert "  2. another" in ran.out
    assert "whoever runs the machine can read its memory" in ran.out
    monkeypatch.setattr(operations, "verify_bundle", lambda folder, pins: verified if "lab" in pins else None)
    assert run("verify", "out", "--json").document["verified"] is True
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


# --- recipes, usage, errors ----------------------------------------------------------------------------------------


def test_a_recipe_from_nothing(run: Run, tmp_path: Path) -> None:
    assert run("recipe", "init").code == 0
    assert run("recipe", "init").code == 2, "an existing file is left alone"
    assert "must be an asset's name" in run("recipe", "check").err
    for task in ("classification", "generation"):
        assert run("recipe", "init", f"{task}.yaml", "--task", task).code == 0
        path = tmp_path / f"{task}.yaml"
        path.write_text(path.read_text().replace("PARTY/DATASET", "hospital/rows").replace("PARTY/MODEL", "lab/base"))
        checked = run("recipe", "check", str(path), "--json")
        assert checked.document["recipe"]["task"] == task
    assert "epochs" in run("recipe", "check", "generation.yaml").out
    (tmp_path / "bad.yaml").write_text("epoch: 3\n")
    assert "nearest valid key is 'epochs'" in run("recipe", "check", "bad.yaml").err
    assert run("recipe", "init", "x.yaml", "--task", "poetry").code == 2


@pytest.mark.parametrize(
    "words",
    [["nonsense"], ["seal"], ["org", "create"], ["contract", "sign", "--nope"], ["audit", "show", "--last", "0"]],
)
def test_wrong_usage_is_one_sentence(run: Run, words: list[str]) -> None:
    ran = run(*words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("cloister: ")
    assert ran.err.endswith("see --help.\n")
    assert run(*words, "--json").document["error"]["kind"] == "misuse"


def test_help_and_version(run: Run) -> None:
    assert "Usage: cloister" in run("--help").out
    assert run("--version").out.startswith("cloister 0.")
    shown = run("org")
    assert (shown.code, "create" in shown.err) == (2, True)


def test_a_bug_says_where_but_not_what(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("canary")

    monkeypatch.setattr(operations, "check_recipe", broken)
    run("recipe", "init")
    ran = run("recipe", "check", "--json")
    assert (ran.code, ran.document["error"]["code"]) == (1, "terminal.bug")
    assert "canary" not in ran.out + ran.err


@pytest.mark.parametrize(
    ("raised", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 1), (Unavailable("a.b", "Away."), 1)]
)
def test_what_ends_a_command(run: Run, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int) -> None:
    def ends(*_: Any) -> None:
        raise raised

    monkeypatch.setattr(operations, "check_recipe", ends)
    run("recipe", "init")
    assert run("recipe", "check").code == code


def test_passphrases_are_nowhere_but_in_the_request(agreed: LocalHome, run: Run) -> None:
    """Neither output nor any file of the home holds a passphrase; the supervisor's socket carried it once."""
    ran = run("org", "create", "quiet", "--json")
    assert agreed.passphrases[-1] == PASSPHRASE
    assert PASSPHRASE not in ran.out + ran.err
    holders = [p for p in agreed.folder.rglob("*") if p.is_file() and PASSPHRASE.encode() in p.read_bytes()]
    assert holders == []
    assert PASSPHRASE not in "".join(os.environ.values())
