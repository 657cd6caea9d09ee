"""``up``, ``status``, ``org``, ``team``, ``keys`` and the rules of usage, in this process against real brokers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cloister.client import operations
from cloister.errors import Unavailable
from tests.client_home import PASSPHRASE, LocalHome, Run
from tests.control_world import Party

pytest_plugins = ["tests.client_fixtures"]


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
    assert "epoch 2: 0 wrapped." in run("key", "rotate", "--as", "rotator").out


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


def test_a_recipe_from_nothing(run: Run, tmp_path: Path) -> None:
    assert run("recipe", "init").code == 0
    assert run("recipe", "init").code == 2, "an existing file is left alone"
    assert "must be an asset's name" in run("recipe", "check").err
    for task, method in (("classification", "lora"), ("generation", "ptuning"), ("script", "script")):
        assert run("recipe", "init", f"{task}.yaml", "--task", task, "--method", method).code == 0
        path = tmp_path / f"{task}.yaml"
        path.write_text(path.read_text().replace("PARTY/DATASET", "hospital/rows").replace("PARTY/MODEL", "lab/base"))
        checked = run("recipe", "check", str(path), "--json")
        assert (checked.document["recipe"]["task"], checked.document["recipe"]["method"]) == (task, method)
    assert "epochs" in run("recipe", "check", "generation.yaml").out
    (tmp_path / "bad.yaml").write_text("epoch: 3\n")
    assert "nearest valid key is 'epochs'" in run("recipe", "check", "bad.yaml").err
    assert run("recipe", "init", "x.yaml", "--task", "poetry").code == 2
    assert "there are: lora" in run("recipe", "init", "x.yaml", "--method", "magic").err


def test_a_recipe_is_changed_on_the_command_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "task: text\nmethod: lora\ndata: hospital/rows\nbase: lab/base\ncolumns: {text: note}\nepochs: 9\n"
    )
    changed = run("recipe", "check", "r.yaml", "epochs=2", "lora.rank=4", "lora.dora=true", "--json").document["recipe"]
    assert (changed["epochs"], changed["lora"]["rank"], changed["lora"]["dora"]) == (2, 4, True)
    assert run("recipe", "check", "r.yaml", "epochs=", "--json").document["recipe"]["epochs"] == 3  # the default
    for wrong in ("epochs", "=3", "lora.rank.more=3", "lora.=3", "lora.ranks=3", "epochs=many"):
        assert run("recipe", "check", "r.yaml", wrong).code == 2, wrong


def test_the_keys_of_a_recipe_are_explained(run: Run) -> None:
    shown = run("recipe", "explain", "--json").document["keys"]
    assert {"task", "columns", "learning_rate", "lora.rank", "ptuning.hidden"} <= {key["key"] for key in shown}
    assert all(key["says"] and key["takes"] and key["default"] for key in shown)
    assert "from 1 to 512" in run("recipe", "explain", "lora.rank").out
    assert [key["key"] for key in run("recipe", "explain", "ptuning", "--json").document["keys"]] == [
        "ptuning.tokens", "ptuning.hidden",
    ]  # fmt: skip
    assert "the nearest is 'epochs'" in run("recipe", "explain", "epoch").err
    assert json.loads(run("recipe", "schema").out)["properties"]["epochs"]["minimum"] == 1


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
