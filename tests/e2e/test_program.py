"""A party's own program through contract, brokers, node and sandbox; and what it is denied where it is never root."""

from __future__ import annotations

import json
from pathlib import Path

from cloister.client import operations
from tests.e2e.story import Story, refused
from tests.e2e.story import story as story

PROGRAM, WEIGHTS = "lab/program", "hospital/program-weights"
SOURCE = """
import json, os

def train(run):
    parent = f"/proc/{os.getppid()}"
    wanted = [f"{parent}/mem", f"{parent}/environ", f"{parent}/maps", "/run/cloister.sock", "/job/job.json"]
    opened = []
    for path in wanted[:3]:
        try:
            open(path, "rb").read(1)
            opened.append(path)
        except OSError:
            pass
    try:
        os.listdir(f"{parent}/fd")
        opened.append("descriptors")
    except OSError:
        pass
    try:
        open("/out/row", "wb")
        opened.append("out")
    except OSError:
        pass
    try:
        import socket
        socket.socket(socket.AF_UNIX).connect("/run/cloister.sock")
        opened.append("node")
    except OSError:
        pass
    import pandas
    rows = sum(len(pandas.read_csv(run.data.open(path))) for path in run.data.paths())
    run.checkpoint(1, {"w": __import__("torch").zeros(2)})
    run.report(1, 1, loss=0.5)
    run.score("accuracy", base=0.5, tuned=1.0)
    run.output("told.json", json.dumps({"opened": opened, "rows": rows, "uid": os.getuid()}).encode())
    run.output_tensors("model.safetensors", {"w": __import__("torch").ones(2)})
"""


def test_a_program_is_sealed_agreed_on_run_and_its_output_is_verified(story: Story, tmp_path: Path) -> None:
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "main.py").write_text(SOURCE)
    story.seal(tmp_path / "program", PROGRAM, asset_class="program")
    agreement = story.agree(
        base=PROGRAM,
        recipes={"tasks": ["script"], "methods": ["script"], "max_epochs": 10},
        outputs=[{"name": WEIGHTS, "form": "weights", "recipients": ["hospital"]}],
    )
    changes = {"task": "script", "method": "script", "base": PROGRAM, "columns": None}
    run = story.submit(agreement, **changes)
    assert run.ended() == ("succeeded", None)
    assert [e["values"] for e in run.events() if e["kind"] == "progress" and e["stage"] == "train"] == [
        {"loss": "0.5000"}
    ]
    story.pulled.append(story.folder / "program-weights")
    pulled = operations.pull(story.home, WEIGHTS, story.folder / "program-weights", "hospital")
    told = json.loads((pulled.folder / "model" / "told.json").read_text())
    assert told["opened"] == []
    assert told["rows"] == 200
    assert told["uid"] != 0
    pins = story.home.agent("hospital").pinned_cards()
    assert operations.verify_bundle(pulled.folder, pins).job == run.digest
    assert "figures_by | program" in (pulled.folder / "README.md").read_text()
    assert json.loads((pulled.folder / "evaluation.json").read_text())["figures_by"] == "program"


def test_code_that_the_contract_does_not_name_as_a_program_is_never_run(story: Story) -> None:
    changes = {"task": "script", "method": "script", "columns": None}
    agreement = story.agree(
        recipes={"tasks": ["script"], "methods": ["script"], "max_epochs": 10},
        outputs=[{"name": WEIGHTS, "form": "weights", "recipients": ["hospital"]}],
    )
    assert refused(lambda: story.submit(agreement, **changes)) == ("Denied", "job.use")
