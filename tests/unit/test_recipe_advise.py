"""`recipe check --base` and `recipe advise`: what they say, that it follows from what was asked, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloister.cli.app import app
from cloister.client.recipe_advice import Advice, Wanted, advise_recipe
from cloister.client.recipe_checks import base_licence, examine_recipe, fitting_changes, read_rows
from cloister.client.recipes import describe_machine, forecast_lines
from cloister.contracts.forecast import Machine, Rows, read_shape
from cloister.contracts.recipe import parse_recipe
from cloister.errors import Malformed, Misuse

SEVEN = {
    "model_type": "llama", "vocab_size": 32_000, "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "intermediate_size": 11_008, "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
SMALL = {**SEVEN, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 704}
BERT = {"model_type": "bert", "vocab_size": 30_522, "hidden_size": 384, "num_hidden_layers": 6,
        "num_attention_heads": 12, "intermediate_size": 1536, "max_position_embeddings": 512}  # fmt: skip
RECIPE = "task: generation\nmethod: full\ndata: a/b\nbase: c/d\ncolumns: {completion: t}\n"
GIB = 1 << 30


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def codes(*changes: str, **given: Any) -> list[str]:
    return [warned.code for warned in examine_recipe(RECIPE, changes, **given).warnings]


def advice(task: str = "chat", rows: int = 3000, *, memory: int = 64 * GIB, config: Any = SMALL, **more: Any) -> Advice:
    return advise_recipe(Wanted(task, rows, 300, **more), read_shape(config), Machine(memory, 4))


def test_few_examples_are_named() -> None:
    assert codes(rows=Rows(500, 50.0, 0.0, 50)) == ["recipe.few"]  # a tenth is set aside
    assert codes(rows=Rows(600, 50.0, 0.0, 50)) == []


def test_a_rate_of_from_scratch_size_is_named_for_what_is_not_from_scratch() -> None:
    assert codes("learning_rate=0.0005") == ["recipe.rate"]
    assert codes("learning_rate=0.0002") == []
    assert codes("learning_rate=0.001", "method=scratch") == []
    assert codes("learning_rate=0.005", "method=lora") == ["recipe.rate"]
    assert codes("learning_rate=0.03", "method=prompt") == []


@pytest.mark.parametrize(
    ("licence", "purpose", "found"),
    [
        ("CC-BY-NC-4.0", "commercial", ["recipe.licence"]),
        ("CC-BY-NC-4.0", None, ["recipe.licence"]),
        ("CC-BY-NC-4.0", "research", []),
        ("cc-by-nc-sa-3.0", "commercial", ["recipe.licence"]),
        ("CC-BY-ND-4.0", "research", ["recipe.licence"]),
        ("Apache-2.0", "commercial", []),
        ("CC-BY-4.0", "commercial", []),
        ("LicenseRef-hospital", "commercial", ["recipe.licence_unread"]),
        ("mitsubishi", None, ["recipe.licence_unread"]),
    ],
)
def test_a_licence_that_forbids_the_use_is_named(licence: str, purpose: str | None, found: list[str]) -> None:
    assert codes(licences=[licence], purpose=purpose) == found


def test_a_purpose_is_one_of_those_that_are_known() -> None:
    with pytest.raises(Misuse) as caught:
        codes(purpose="fun")
    assert caught.value.code == "recipe.purpose"


def test_what_is_too_big_is_named_with_the_nearest_that_fits() -> None:
    rows, shape = Rows(2000, 512.0, 0.0, 512), read_shape(SEVEN)
    for memory in (110 * GIB, 60 * GIB, 48 * GIB):
        machine = Machine(memory, gpu=True, bf16=True)
        found = examine_recipe(RECIPE, (), shape=shape, rows=rows, machine=machine)
        assert found.fits is False
        assert [w.code for w in found.warnings] == ["recipe.memory"]
        again = examine_recipe(RECIPE, found.changes, shape=shape, rows=rows, machine=machine)
        assert again.fits is True
        assert again.recipe.batch_size * again.recipe.gradient_accumulation == 16
    assert not examine_recipe(RECIPE, (), shape=shape, rows=rows, machine=Machine(GIB)).changes


def test_with_memory_enough_for_the_method_it_stays_the_method() -> None:
    changes = fitting_changes(RECIPE, (), read_shape(SEVEN), Rows(2000, 512.0, 0.0, 512), Machine(140 * GIB, gpu=True))
    assert changes
    assert not any(change.startswith("method=") for change in changes)


def test_an_encoder_and_odd_widths_are_named() -> None:
    encoder, odd = read_shape(BERT), read_shape({**SMALL, "hidden_size": 288, "num_attention_heads": 6})
    assert codes(shape=encoder, machine=Machine(64 * GIB)) == ["model.task"]
    assert codes("method=qlora", shape=odd, machine=Machine(64 * GIB)) == ["model.quantize"]


def test_rows_are_read_from_lines_and_tables(tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE)
    (tmp_path / "a.jsonl").write_text('{"t": "' + "x" * 400 + '"}\n\n{"t": ["y"]}\n')
    (tmp_path / "a.csv").write_text('t,u\n"one\ntwo",3\n')
    assert (read_rows(tmp_path / "a.jsonl", recipe).count, read_rows(tmp_path / "a.jsonl", recipe).longest) == (2, 102)
    assert read_rows(tmp_path / "a.csv", recipe).count == 1
    for name, text, kind in (
        ("b.jsonl", "{", Malformed), ("c.jsonl", '{"u": 1}\n', Misuse), ("d.jsonl", "", Misuse),
        ("e.parquet", "", Misuse), ("f.jsonl", "[" * 100_000, Malformed),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(kind):
            read_rows(tmp_path / name, recipe)


def test_the_model_card_names_a_licence(tmp_path: Path) -> None:
    assert base_licence(tmp_path) is None
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: cc-by-nc-4.0\n---\n# A model\nlicense: mit\n")
    assert base_licence(tmp_path) == "cc-by-nc-4.0"
    (tmp_path / "README.md").write_text("# A model\nlicense: mit\n")
    assert base_licence(tmp_path) is None


def test_a_machine_is_described_in_words() -> None:
    assert describe_machine("16GiB", 8).memory == 16 * GIB
    assert describe_machine("1.5 GB").memory == 1_500_000_000
    assert describe_machine(gpu=True).memory is None
    for wrong in ("16", "many", "-1GiB"):
        with pytest.raises(Misuse):
            describe_machine(wrong)
    with pytest.raises(Misuse):
        describe_machine(None, 0)


@pytest.mark.parametrize("task", ["classification", "multilabel", "extraction", "ranking", "embedding", "generation",
                                  "chat", "preference", "text"])  # fmt: skip
@pytest.mark.parametrize("regulation", ["none", "hipaa", "glba", "pci"])
def test_every_draft_is_a_recipe_and_every_reason_a_sentence(task: str, regulation: str) -> None:
    for rows, memory in ((80, 64), (5000, 1), (200_000, 64)):
        found = advice(task, rows, memory=memory * GIB, regulation=regulation)
        assert parse_recipe(found.text) == found.recipe
        assert all(reason.says.endswith(".") for reason in found.reasons)
        assert found.fits == (found.forecast.memory.total <= memory * GIB)


def test_the_same_question_gets_the_same_answer() -> None:
    assert advice(regulation="pci") == advice(regulation="pci")


def test_the_method_follows_rows_and_memory() -> None:
    assert advice(rows=100_000).recipe.method == "full"
    assert advice(rows=3000).recipe.method == "lora"
    tight = advise_recipe(Wanted("chat", 3000, 300), read_shape(SEVEN), Machine(16 * GIB, gpu=True, bf16=True))
    assert (tight.recipe.method, tight.fits) == ("qlora", True)


def test_a_batch_that_fits_learns_from_as_many_rows() -> None:
    """Between what a whole batch takes and what a row takes there is a machine for which batches are cut."""
    config = {**SMALL, "vocab_size": 500}  # else what is only measured takes most
    wide = advice(rows=3000, config=config).forecast.memory
    found = advice(rows=3000, config=config, memory=wide.total - wide.above // 2)
    assert found.fits
    assert found.recipe.method == "lora"
    assert found.recipe.gradient_accumulation > 1
    assert found.recipe.batch_size * found.recipe.gradient_accumulation == 16


def test_a_regulated_party_hands_out_an_adapter_with_noise() -> None:
    found = advice(rows=200_000, regulation="hipaa")
    assert found.recipe.form == "adapter"
    assert found.recipe.privacy is not None
    assert found.recipe.privacy.delta < 1 / 200_000
    assert "officer" in found.text
    assert advice("ranking", regulation="glba").recipe.privacy is None
    assert "isn't there for task ranking" in advice("ranking", regulation="glba").text


def test_a_deadline_shortens() -> None:
    long = advice(rows=5000)
    short = advice(rows=5000, deadline=long.forecast.duration.seconds[1] * 0.6)
    assert short.recipe.epochs < long.recipe.epochs
    assert "Even one epoch" in advice(rows=5000, deadline=1.0).text


@pytest.mark.parametrize("wrong", [{"task": "script"}, {"task": "poetry"}, {"rows": 0}, {"regulation": "gdpr"}])
def test_what_nobody_can_advise_is_misuse(wrong: dict[str, Any]) -> None:
    with pytest.raises(Misuse):
        advice(**wrong)
    with pytest.raises(Misuse):
        advice("chat", config=BERT)


def _run(*words: str) -> Any:
    return CliRunner().invoke(app, ["recipe", *words])


def test_check_shows_forecast_and_warnings(base: Path) -> None:
    (base / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    options = ["--base", str(base), "--rows", "200", "--tokens", "100", "--memory", "100MiB", "--purpose", "commercial"]
    shown = _run("check", str(base / "recipe.yaml"), *options)
    assert shown.exit_code == 0, shown.output
    assert "Memory: about" in shown.output
    assert "Time: " in shown.output
    body = json.loads(_run("check", str(base / "recipe.yaml"), *options, "--json").stdout)
    assert [w["code"] for w in body["warnings"]] == ["recipe.few", "recipe.licence", "recipe.memory"]
    assert body["fits"] is False
    assert body["forecast"]["memory_bytes"]["total"] > 100 << 20
    assert isinstance(_run("check", str(base / "recipe.yaml"), "--memory", "much").exception, Misuse)
    assert isinstance(_run("check", str(base / "recipe.yaml"), "--base", str(base / "none")).exception, Misuse)


def test_check_without_a_base_is_as_before(base: Path) -> None:
    body = json.loads(_run("check", str(base / "recipe.yaml"), "--json").stdout)
    assert (body["valid"], body["forecast"], body["warnings"]) == (True, None, [])
    assert forecast_lines(None) == []


def test_advise_writes_a_draft_that_check_takes(base: Path) -> None:
    options = ["--task", "chat", "--rows", "3000", "--tokens", "300", "--base", str(base), "--memory", "16GiB"]
    out = base / "draft.yaml"
    shown = _run("advise", *options, "--deadline", "8h", "--regulation", "hipaa", "--out", str(out))
    assert shown.exit_code == 0, shown.output
    assert _run("check", str(out)).exit_code == 0
    assert json.loads(_run("advise", *options, "--json").stdout)["fits"] is True
    assert isinstance(_run("advise", *options, "--out", str(out)).exception, Misuse)  # it exists
    assert isinstance(_run("advise", *options, "--deadline", "soon").exception, Misuse)
