"""A party's own program: what it is given, what it may let out, and that a killed run goes on."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load

from cloister.errors import Denied, Malformed, Misuse
from tests.programs import Files, Ports, digits, example, patients, program, recipe, run

NOTHING = Files({"rows.csv": b"a,b\n1,2\n"})


def test_a_classifier_on_a_table_learns_and_is_compared():
    ports = Ports()
    result = run(example("table"), patients(), ports, epochs=12, script={"parameters": {"hidden": 16}})
    score = result.scores["accuracy"]
    assert score.tuned > 0.9
    assert abs(score.gain) < 0.1  # logistic regression is good at this table
    assert load(result.files["model/model.safetensors"])["0.weight"].shape == (16, 30)
    losses = [float(values["loss"]) for stage, _, _, values in ports.told if stage == "train"]
    assert losses[-1] < losses[0]
    assert [step for step, _ in ports.saved] == list(range(1, 13))
    assert result.evaluation.document()["figures_by"] == "program"


def test_a_network_on_images_learns():
    result = run(example("images"), digits(), epochs=10, learning_rate="0.01")
    assert result.scores["accuracy"].tuned > 0.8 > 0.3 > result.scores["accuracy"].base
    assert json.loads(result.files["model/classes.json"]) == [str(n) for n in range(10)]


def test_a_killed_program_goes_on_and_ends_in_the_same_weights():
    whole = run(example("table"), patients(), epochs=6)
    ports = Ports(killed_at=3)
    with pytest.raises(KeyboardInterrupt):
        run(example("table"), patients(), ports, epochs=6)
    resumed = run(example("table"), patients(), ports, epochs=6)
    assert resumed.resumed_from == 3
    assert resumed.files == whole.files
    assert [step for step, _ in ports.saved] == [1, 2, 3, 4, 5, 6]


def test_what_it_is_given():
    code = """
import json
from more import answer

def train(run):
    with run.data.open("a/rows.bin") as file:
        file.seek(-3, 2)
        end = file.read().decode()
        file.seek(5_000_000)
        middle = file.read(4).decode()
    told = {
        "data": run.data.paths(), "program": run.program.paths(), "parameters": dict(run.parameters), "end": end,
        "middle": middle, "rate": run.settings["learning_rate"], "epochs": run.settings["epochs"],
        "resumed": run.resumed, "answer": answer, "template": run.program.read("note.txt").decode(),
    }
    try:
        run.data.open("b")
    except FileNotFoundError:
        told["missing"] = True
    run.output("told.json", json.dumps(told).encode())
"""
    files = Files({**program(code, more="answer = 42").files, "note.txt": b"hello"})
    data = Files({"a/rows.bin": b"x" * 5_000_000 + b"mid." + b"y" * 5_000_000 + b"end"})
    result = run(files, data, script={"parameters": {"depth": 3, "name": "no"}}, epochs=7)
    assert json.loads(result.files["model/told.json"]) == {
        "answer": 42, "data": ["a/rows.bin"], "end": "end", "epochs": 7, "middle": "mid.", "missing": True,
        "parameters": {"depth": "3", "name": "no"}, "program": ["main.py", "more.py", "note.txt"], "rate": 0.001,
        "resumed": None, "template": "hello",
    }  # fmt: skip


def test_a_checkpoint_comes_back_as_it_was():
    code = """
import torch

def train(run):
    if run.resumed is None:
        run.checkpoint(5, {"w": torch.arange(3), "h": torch.ones(2, dtype=torch.bfloat16)}, {"seen": [1, 0.1, "x"]})
        raise RuntimeError
    assert run.resumed.step == 5 and run.resumed.values == {"seen": [1, 0.1, "x"]}
    run.output_tensors("w.safetensors", run.resumed.tensors)
"""
    ports = Ports()
    with pytest.raises(Misuse, match="ended with an error"):
        run(program(code), NOTHING, ports)
    result = run(program(code), NOTHING, ports)
    tensors = load(result.files["model/w.safetensors"])
    assert torch.equal(tensors["w"], torch.arange(3))
    assert tensors["h"].dtype == torch.bfloat16


REFUSED = [
    ('run.output("a.pkl", b"x")', "ends in"),
    ('run.output("../a.json", b"1")', "ends in"),
    ('run.output("a.json", b"{")', "not what its name says"),
    ('run.output("a.safetensors", b"no")', "not what its name says"),
    ('run.output("a.png", b"no")', "not what its name says"),
    ('run.output("b.txt", b"x"); run.output("b.txt", b"x")', "given once"),
    ('run.score("Accuracy", base=0, tuned=1)', "has a name"),
    ('run.score("accuracy", base=0, tuned=float("nan"))', "are numbers"),
    ("run.report(-1, 2, loss=1)", "a step"),
    ("run.report(1, 2, loss=1e300)", "smaller"),
    ("run.checkpoint(0, {})", "larger than the one before"),
    ("run.checkpoint(2, {}); run.checkpoint(2, {})", "larger than the one before"),
]


def test_what_it_can_not_let_out_is_refused_to_it_in_words():
    code = f"""
import json

def train(run):
    said = []
    for call in {[call for call, _ in REFUSED]!r}:
        try:
            exec(call)
            said.append("nothing")
        except ValueError as error:
            said.append(str(error))
    run.output("said.json", json.dumps(said).encode())
"""
    said = json.loads(run(program(code), NOTHING).files["model/said.json"])
    for (call, reason), answer in zip(REFUSED, said, strict=True):
        assert reason in answer, call


@pytest.mark.parametrize(
    "source",
    [
        "def train(run):\n    raise ValueError('row 7: the secret')",
        "import nothing_such",
        "x = (",
        "import os; os._exit(0)",
    ],
)
def test_a_program_that_fails_fails_the_run_and_says_nothing_of_why(source: str):
    with pytest.raises(Misuse) as caught:
        run(program(source), NOTHING)
    assert caught.value.code == "script.failed"
    assert "secret" not in caught.value.message


def test_a_folder_without_main():
    with pytest.raises(Misuse, match=r"main\.py"):
        run(Files({"train.py": b""}), NOTHING)


def test_a_lost_lease_ends_a_program_that_computes():
    class Lost(Ports):
        def check(self) -> None:
            super().check()
            if self.checks > 3:
                raise Denied("lease.expired", "The lease ended.")

    with pytest.raises(Denied):
        run(program("def train(run):\n    while True: pass"), NOTHING, Lost())


def test_not_a_number_is_told_as_such():
    ports = Ports()
    run(program("def train(run):\n    run.report(1, 2, loss=float('nan'))"), NOTHING, ports)
    assert ports.told[-1] == ("train", 1, 2, {"loss": "nan"})


def test_output_files_have_a_common_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cloister.workload.script.host.BODY_LIMIT", 100)
    with pytest.raises(Malformed):
        run(program("def train(run):\n    run.output('a.txt', b'x' * 101)"), NOTHING)
    code = """
def train(run):
    run.output("a.txt", b"x" * 60)
    try:
        run.output("b.txt", b"x" * 60)
    except ValueError as error:
        run.report(1, 1, refused=1)
"""
    ports = Ports()
    result = run(program(code), NOTHING, ports)
    assert list(result.files) == ["model/a.txt"]
    assert ports.told[-1][3] == {"refused": "1.000000"}


def test_the_recipe_gives_texts_and_nothing_else():
    assert recipe(script={"parameters": {"a": 1, "b": "x"}}).script.parameters == {"a": "1", "b": "x"}
    for bad in ({"A": "x"}, {"a": ""}, {"a": "x" * 1025}, {"a": "a\nb"}, {"a": [1]}, {str(n): "x" for n in range(65)}):
        with pytest.raises(Misuse):
            recipe(script={"parameters": bad})
