"""`recipe check --sample`: what an owner sees is what training learns, without torch."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cloister.cli.app import app
from cloister.client.operations import check_recipe, sample_tokens
from cloister.errors import Misuse
from tests.tiny_models import tiny_llama

HEAD = "method: lora\ndata: a/b\nbase: c/d\n"
TALK = [{"role": "user", "content": "my card"}, {"role": "assistant", "content": "please help"}]
RECIPES = {
    "chat": "task: chat\ncolumns: {messages: talk}\n",
    "generation": "task: generation\ncolumns: {prompt: asked, completion: good}\n",
    "preference": "task: preference\ncolumns: {prompt: asked, chosen: good, rejected: bad}\n",
    "text": "task: text\ncolumns: {text: good}\n",
}
ROW = {"talk": TALK, "asked": "my card", "good": " please help", "bad": " not today"}


@pytest.fixture
def place(tmp_path):
    for name, data in tiny_llama().items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "sample.jsonl").write_text(json.dumps(ROW) + "\n")
    return tmp_path


def learned(place, task):
    recipe = check_recipe(HEAD + RECIPES[task])
    rows = sample_tokens(recipe, place, place / "sample.jsonl")
    return ["".join(f"[{t['text']}]" if t["learned"] else "." for t in row) for row in rows]


def test_each_task_shows_what_it_learns(place):
    assert learned(place, "generation") == ["...[please][help][</s>]"]
    assert learned(place, "preference") == ["...[please][help][</s>]", "...[not][today][</s>]"]
    assert learned(place, "text") == [".[please][help][</s>]"]
    (talk,) = learned(place, "chat")
    assert talk.strip(".") == "[please][help][</s>]"


def test_a_task_without_learned_tokens_says_so(place):
    recipe = check_recipe(HEAD + "task: classification\ncolumns: {text: good, label: bad}\n")
    with pytest.raises(Misuse) as caught:
        sample_tokens(recipe, place, place / "sample.jsonl")
    assert caught.value.code == "recipe.sample"


def test_the_command_shows_it_and_needs_no_torch(place):
    (place / "recipe.yaml").write_text(HEAD + RECIPES["generation"])
    options = ["--tokenizer", str(place), "--sample", str(place / "sample.jsonl")]
    shown = CliRunner().invoke(app, ["recipe", "check", str(place / "recipe.yaml"), *options])
    assert shown.exit_code == 0, shown.output
    assert "[please] [help] [</s>]" in shown.output
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, numpy=None, pyarrow=None)\n"
        "from cloister.workload.text import explain_rows"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_package_is_named_in_one_sentence(place, monkeypatch):
    for name in [n for n in sys.modules if n.startswith("cloister.workload.text")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(Misuse, match=r"cloister\[check\]") as caught:
        sample_tokens(check_recipe(HEAD + RECIPES["text"]), place, place / "sample.jsonl")
    assert caught.value.code == "extra.missing"
