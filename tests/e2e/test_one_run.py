"""The whole path of one job, and that nothing of what it protects is found anywhere but where it belongs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.client import Pulled, operations
from cloister.contracts import permit_envelope
from cloister.crypto import Envelope, parse_json
from cloister.errors import Denied, Untrusted
from tests.e2e.operator import frozen, workload_pid
from tests.e2e.search import places, search
from tests.e2e.story import DATA, OUTPUT, Run, Story, until
from tests.e2e.story import story as story
from tests.readme import fenced

_WITHOUT_CLOISTER = "import sys; sys.modules['cloister'] = None; exec(sys.stdin.read())"


@pytest.fixture(scope="module")
def finished(story: Story) -> Run:
    """A run of some length that ended well, with a search while it trained."""
    agreement = story.agree(lease_seconds=120)
    run = story.submit(agreement, epochs=60, checkpoint_steps=30)
    until("a checkpoint", run.checkpoints)
    pid = workload_pid(story)
    assert pid is not None
    with frozen(pid):  # a search takes seconds: what is looked at must not be over before
        assert search(story) == []
        assert any("/out/checkpoints/" in place for place, _ in places(story))
    assert run.ended() == ("succeeded", None)
    return run


@pytest.fixture(scope="module")
def pulled(story: Story, finished: Run) -> Pulled:
    return story.pull("pulled")


def test_an_adapter_comes_out_and_the_bundle_verifies_offline(story: Story, finished: Run, pulled: Pulled) -> None:
    pins = story.home.agent("hospital").pinned_cards()
    verified = operations.verify_bundle(pulled.folder, pins)
    assert verified.job == finished.digest
    assert verified.assurance == "none"
    assert verified.recipients == ("hospital",)
    assert {"adapter/adapter_model.safetensors", "evaluation.json", "README.md"} <= set(pulled.files)
    evaluation = json.loads((pulled.folder / "evaluation.json").read_text())
    assert evaluation["resumed_from"] == 0
    stages = [code for code in finished.codes() if code != "keys"]
    assert stages == ["launched", "prepare", "train", "evaluate", "gate", "release"]


def test_every_key_was_logged_before_the_output_and_once(story: Story, finished: Run) -> None:
    for party in ("hospital", "lab"):
        operations.verify_log(story.home, party)
        kinds = [
            entry["kind"]
            for entry in operations.show_log(story.home, party, last=100_000)
            if entry["details"].get("job") == finished.digest
        ]
        # One asset and one share of the checkpoints' key from each owner.
        assert kinds.count("key.released") == 2
        assert kinds.count("permit.issued") == 1
        assert kinds.index("permit.issued") > max(i for i, kind in enumerate(kinds) if kind == "key.released")


def test_the_card_s_own_lines_open_the_adapter_without_cloister(story: Story, pulled: Pulled, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(story.model)
    for name in pulled.folder.iterdir():
        (tmp_path / name.name).symlink_to(name)
    (code,) = [body for language, body in fenced((tmp_path / "README.md").read_text()) if language == "python"]
    command = [sys.executable, "-c", _WITHOUT_CLOISTER]
    done = subprocess.run(command, input=code, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    labels = json.loads((tmp_path / "adapter" / "labels.json").read_text())
    assert re.findall(r"'(\w+)'", done.stdout)[0] in labels


def test_rows_weights_keys_and_passphrases_are_found_nowhere(story: Story, pulled: Pulled) -> None:
    assert search(story) == []
    # The search itself works: it knows the owner's table, and it looked at what matters.
    assert story.canary.encode() in story.table.read_bytes()
    seen = [place for place, _ in places(story)]
    for part in (
        "catalogue.db-wal",
        "0000.sealed",
        "state.db",
        "vault.json",
        "supervisor.json",
        "control.log",
        "cmdline",
    ):
        assert any(part in place for place in seen), part


def test_the_search_finds_every_form(story: Story) -> None:
    from tests.e2e.search import forms

    found = forms(story.canary.encode())
    for text in (
        f"..{story.canary}..".encode(),
        f"x{story.canary}".encode("utf-16-le"),
        story.canary.encode().hex().encode(),
    ):
        assert any(form in text for form in found)
    import base64

    for shift in range(4):
        assert any(form in base64.b64encode(b"p" * shift + story.canary.encode() + b"tail") for form in found)
        assert any(form in base64.urlsafe_b64encode(b"p" * shift + b"\xff" + story.canary.encode()) for form in found)


def test_a_bundle_with_one_changed_weight_does_not_verify(story: Story, pulled: Pulled, tmp_path: Path) -> None:
    for path in pulled.folder.rglob("*"):
        if path.is_file():
            place = tmp_path / path.relative_to(pulled.folder)
            place.parent.mkdir(exist_ok=True, parents=True)
            place.write_bytes(path.read_bytes())
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(Untrusted):
        operations.verify_bundle(tmp_path, story.home.agent("hospital").pinned_cards())


def test_who_is_no_recipient_pulls_nothing(story: Story, pulled: Pulled) -> None:
    before = story.log("lab", "output.unwrapped")
    with pytest.raises(Denied) as caught:
        operations.pull(story.home, OUTPUT, story.folder / "stolen", "lab")
    assert caught.value.code == "output.recipient"
    assert not (story.folder / "stolen").exists()
    assert story.log("lab", "output.unwrapped") == before


def test_an_output_stays_closed_without_every_owner_s_permit(story: Story, finished: Run) -> None:
    """The lab's permit can't be left out, nor made by the hospital, which receives the output and has its own key."""
    record = json.loads(story.home.control("hospital").release(finished.digest))
    request = {name: record[name] for name in ("contract", "job", "manifest")}
    request["wrap"] = record["wraps"]["hospital"]["sealed"]
    true = {owner: entry["permit"] for owner, entry in record["permits"].items()}
    manifest, contract = (Envelope.from_bytes(record[name].encode()) for name in ("manifest", "contract"))
    instance = bytes.fromhex(parse_json(manifest.payload)["terms"]["instance"])
    digests = (contract.digest, bytes.fromhex(finished.digest), manifest.digest, instance)
    forged = permit_envelope("lab", *digests, story.signing_key("hospital"), now=1_700_000_000).to_bytes().decode()
    agent = story.home.agent("hospital")
    before = story.log("hospital", "output.unwrapped")
    for permits, code in (
        ([], "permit.missing"),
        ([true["hospital"], true["hospital"]], "permit.missing"),
        ([true["hospital"], forged], "dsse.unsigned"),
    ):
        with pytest.raises((Denied, Untrusted)) as caught:
            agent.open_secret_output({**request, "permits": permits})
        assert caught.value.code == code
    assert story.log("hospital", "output.unwrapped") == before
    assert len(agent.open_secret_output({**request, "permits": sorted(true.values())})) == 32


def test_telemetry_is_what_the_contract_names_and_nothing_else(finished: Run) -> None:
    events = finished.events()
    values = {name for event in events for name in event.get("values", {})}
    assert "loss" in values
    assert values <= {"loss", "accuracy"}
    assert len([e for e in events if e["kind"] == "progress" and e["stage"] == "train"]) <= 101


def test_the_data_is_of_the_named_asset(story: Story, finished: Run) -> None:
    asset = [a for a in story.home.agent("hospital").assets() if a["name"] == DATA]
    assert [a["digest"] for a in asset] == [story.data.digest]
