"""Recipes: strict, ranged, canonical."""

import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.contracts.recipe import METHODS, SECTIONS, TASKS, Recipe, parse_recipe, recipe_schema
from cloister.crypto import canonical_json, parse_canonical
from cloister.errors import Malformed, Misuse

TEXT = """
# comments are fine
task: classification
method: lora
data: hospital/notes
base: {party: lab, asset: minilm}
columns: {text: note, label: "yes"}
learning_rate: 5e-4
epochs: 010
lora:
  rank: 8
  targets: [value, query, query]
"""
BASE = {
    "task": "classification", "method": "lora", "data": "hospital/notes", "base": "lab/minilm",
    "columns": {"text": "note", "label": "kind"},
}  # fmt: skip


def test_yaml_is_read_without_yamls_guesses():
    recipe = parse_recipe(TEXT)
    assert recipe.learning_rate == Decimal("0.0005")
    assert recipe.epochs == 10  # not octal
    assert recipe.columns["label"] == "yes"  # not True
    assert (recipe.data, recipe.base) == ("hospital/notes", "lab/minilm")
    assert recipe.lora.targets == ("query", "value")
    assert recipe.columns.names() == ("note", "yes")


@pytest.mark.parametrize("task", ["classification", "generation"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_defaults_are_complete_and_canonical(task, method):
    columns = BASE["columns"] if task == "classification" else {"completion": "note"}
    recipe = parse_recipe({**BASE, "task": task, "method": method, "columns": columns})
    document = recipe.to_document()
    assert parse_canonical(canonical_json(document)) == document
    assert Recipe.from_document(document) == recipe
    assert (recipe.lora is None) == (method == "full")
    assert recipe.validation == Decimal("0.1")


def test_one_recipe_has_one_document():
    spelled = [{"learning_rate": v} for v in ("5e-4", "0.00050", 0.0005, "+.0005")]
    assert len({parse_recipe({**BASE, **s}).digest for s in spelled}) == 1
    assert parse_recipe({**BASE, "learning_rate": "0.0005"}).to_document()["learning_rate"] == "0.0005"
    assert parse_recipe({**BASE, "weight_decay": "0.0"}).to_document()["weight_decay"] == "0"


@pytest.mark.parametrize(
    "spoil",
    [
        {"learning_rate": "0.00050"}, {"epochs": "3"}, {"epochs": True}, {"kind": "cloister/recipe/v2"}, {"extra": 1},
        {"threads": None}, {"lora": {"rank": 16}},
    ],
)  # fmt: skip
def test_other_spellings_of_a_document_are_refused(spoil):
    document = {**parse_recipe(BASE).to_document(), **spoil}
    with pytest.raises((Malformed, Misuse)):
        Recipe.from_document(document)


@pytest.mark.parametrize("value", [None, [], "x", {}])
def test_what_is_no_document_is_refused(value):
    with pytest.raises(Malformed) as caught:
        Recipe.from_document(value)
    assert caught.value.code == "recipe.kind"


@pytest.mark.parametrize(
    ("given_key", "nearest"),
    [("learning_rte", "learning_rate"), ("batchsize", "batch_size"), ("epoch", "epochs"), ("xx", None)],
)
def test_unknown_key_names_the_nearest(given_key, nearest):
    with pytest.raises(Misuse) as caught:
        parse_recipe({**BASE, given_key: 1})
    assert caught.value.code == "recipe.key"
    assert f"'{given_key}'" in caught.value.message
    assert nearest is None or f"'{nearest}'" in caught.value.message


@pytest.mark.parametrize("nested", [{"columns": {"text": "a", "labels": "b"}}, {"lora": {"ranks": 4}}])
def test_unknown_nested_key(nested):
    with pytest.raises(Misuse) as caught:
        parse_recipe({**BASE, **nested})
    assert caught.value.code == "recipe.key"


BAD = [
    ("task", "regression"), ("method", "galore"), ("data", "notes"), ("data", "../etc/passwd"), ("base", "Lab/x"),
    ("base", {"party": "lab"}), ("validation", "0"), ("validation", "0.6"), ("epochs", 0), ("epochs", "1.5"),
    ("epochs", True), ("max_steps", 0), ("learning_rate", "fast"), ("learning_rate", "nan"), ("learning_rate", "1e99"),
    ("learning_rate", "0.00000001234567"), ("learning_rate", float("inf")), ("batch_size", -1), ("batch_size", 10**9),
    ("max_length", 1), ("warmup_ratio", "2"), ("weight_decay", "-0.1"), ("pooling", "max"), ("seed", 2**40),
    ("checkpoint_steps", -1), ("precision", "fp16"), ("threads", 0), ("columns", "text"), ("columns", {"text": "a"}),
    ("columns", {"text": "a", "label": "a"}), ("columns", {"text": "", "label": "b"}),
    ("columns", {"text": 1, "label": "b"}),
    ("lora", "big"), ("lora", {"rank": 0}), ("lora", {"dropout": "1"}), ("lora", {"targets": "query|key"}),
    ("lora", {"targets": []}), ("lora", {"targets": [".*"]}), ("lora", {"targets": ["a/b"]}),
    ("lora", {"rslora": "maybe"}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), BAD)
def test_values_out_of_range_name_their_key(key, value):
    with pytest.raises(Misuse) as caught:
        parse_recipe({**BASE, key: value})
    assert caught.value.code in ("recipe.value", "recipe.missing")
    assert key in caught.value.message


@pytest.mark.parametrize("key", ["task", "method", "data", "base", "columns"])
def test_missing_key_is_named(key):
    with pytest.raises(Misuse) as caught:
        parse_recipe({k: v for k, v in BASE.items() if k != key})
    assert caught.value.code == "recipe.missing"
    assert key in caught.value.message


def test_keys_that_do_not_belong_to_the_task_or_method():
    with pytest.raises(Misuse, match="method is full"):
        parse_recipe({**BASE, "method": "full", "lora": {"rank": 4}})
    with pytest.raises(Misuse, match="is for classification, multilabel, ranking, embedding only"):
        parse_recipe({**BASE, "task": "generation", "columns": {"completion": "c"}, "pooling": "mean"})


def test_prompt_is_optional_and_empty_values_mean_the_default():
    recipe = parse_recipe(
        "task: generation\nmethod: full\ndata: a/b\nbase: a/c\nmax_steps:\nseed: ~\n"
        "columns: {completion: c, prompt: null}\n"
    )
    assert recipe.columns.names() == ("c",)
    assert recipe.max_steps is None
    assert recipe.seed == 0


@given(st.decimals(min_value="0.00000001", max_value=1, places=10), st.integers(1, 1000), st.integers(0, 2**31 - 1))
def test_round_trip(rate, epochs, seed):
    recipe = parse_recipe({**BASE, "learning_rate": f"{rate:f}", "epochs": epochs, "seed": seed})
    document = parse_canonical(canonical_json(recipe.to_document()))
    assert Recipe.from_document(document) == recipe
    assert Recipe.from_document(document).digest == recipe.digest


@given(st.text(max_size=200))
def test_no_text_breaks_the_reader(text):
    with pytest.raises((Misuse, Malformed)):
        parse_recipe(text)


COLUMNS = {
    "classification": {"text": "note", "label": "kind"},
    "generation": {"completion": "note"},
    "text": {"text": "note"},
    "multilabel": {"text": "note", "labels": "kinds"},
    "extraction": {"tokens": "words", "tags": "kinds"},
    "ranking": {"query": "asked", "document": "note", "relevance": "fit"},
    "embedding": {"query": "asked", "positive": "note"},
    "chat": {"messages": "note"},
    "preference": {"prompt": "note", "chosen": "good", "rejected": "bad"},
    "script": {},
}
NOT_FROM_SCRATCH = ("classification", "multilabel", "extraction", "ranking", "embedding", "preference")
IMPOSSIBLE = {(task, "scratch") for task in NOT_FROM_SCRATCH}
IMPOSSIBLE |= {("script", method) for method in METHODS if method != "script"}
IMPOSSIBLE |= {(task, "script") for task in TASKS if task != "script"}
PAIRS = [(task, method) for task in TASKS for method in METHODS if (task, method) not in IMPOSSIBLE]
OF_METHODS = [name for name, section in SECTIONS.items() if section.task is None and not section.optional]
OPTIONAL = [name for name, section in SECTIONS.items() if section.optional]
NOT_ALWAYS = {"max_steps", "threads", "general", "test", *OPTIONAL}


def written(task: str, method: str, **more: object):
    return parse_recipe({**BASE, "task": task, "method": method, "columns": COLUMNS[task], **more})


def test_the_formats_page_names_every_key_and_default():
    page = (Path(__file__).resolve().parents[2] / "docs" / "spec" / "recipe.md").read_text(encoding="utf-8")
    documents = {pair: written(*pair).to_document() for pair in PAIRS}
    keys = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    assert keys == set().union(*documents.values()) - {"kind"} | NOT_ALWAYS
    rows = re.findall(r"^\| (\w+), (\w+) \| ([\d.]+) \| (\d+) \| (\d+) \|$", page, re.MULTILINE)
    assert {(task, method): tuple(rest) for task, method, *rest in rows} == {
        pair: (d["learning_rate"], str(d["batch_size"]), str(d["max_length"])) for pair, d in documents.items()
    }
    for name in ("validation", "epochs", "schedule", "gradient_accumulation", "max_gradient_norm", "warmup_ratio",
                 "weight_decay", "seed"):  # fmt: skip
        (default,) = re.findall(rf"^\| `{name}` \|.*\| (\S+) \|$", page, re.MULTILINE)
        assert {str(d[name]) for d in documents.values()} == {default}
    for method, section in SECTIONS.items():
        (row,) = re.findall(rf"^\| `{method}` \| (.*) \| (.*) \|$", page, re.MULTILINE)
        assert [name for name in re.findall(r"`(\w+)`", row[0]) if name in section.keys] == list(section.keys)
        assert row[1].split(", ") == [str(usual).lower() for _, usual, _ in section.keys.values()]


@pytest.mark.parametrize(("task", "method"), PAIRS)
def test_every_pair_of_task_and_method_has_one_canonical_document(task, method):
    recipe = written(task, method)
    assert Recipe.from_document(recipe.to_document()) == recipe
    assert recipe.form == ("weights" if method in ("full", "scratch", "script") else "adapter")
    assert (method in recipe.to_document()) == (method in SECTIONS)
    assert not set(OPTIONAL) & set(recipe.to_document())
    assert ("dpo" in recipe.to_document()) == (task == "preference")
    assert ("template" in recipe.to_document()) == (task == "chat")


def test_settings_of_another_task_are_refused():
    assert written("preference", "lora", dpo={"beta": 0.3}).dpo.beta == Decimal("0.3")
    with pytest.raises(Misuse, match="its task is text"):
        written("text", "lora", dpo={"beta": 0.3})
    with pytest.raises(Misuse, match="chat only"):
        written("text", "lora", template="chatml")


@pytest.mark.parametrize("method", OF_METHODS)
def test_settings_of_another_method_are_refused(method):
    other = "full" if method == "lora" else "lora"
    with pytest.raises(Misuse, match=f"its method is {other}"):
        written("generation", other, **{method: {}})


@pytest.mark.parametrize("name", OPTIONAL)
def test_optional_settings_stand_in_the_document_once_they_are_named(name):
    more = {"general": "a/g"} if name == "replay" else {}
    recipe = written("generation", "lora", **{name: {}}, **more)
    assert recipe.to_document()[name].keys() == SECTIONS[name].keys.keys()
    assert Recipe.from_document(recipe.to_document()) == recipe


def test_where_validation_rows_choose_other_rows_are_told_of():
    assert written("text", "full").test is None
    for choosing in ({"select": "best"}, {"patience": 2}, {"search": {}}):
        assert written("text", "full", **choosing).test == Decimal("0.1")


@pytest.mark.parametrize(
    ("task", "method", "more", "reason"),
    [
        ("script", "full", {}, "both to script"),
        ("text", "script", {}, "both to script"),
        ("script", "script", {"select": "best"}, "trains by itself"),
        ("script", "script", {"privacy": {}}, "trains by itself"),
        ("text", "full", {"test": "0.1"}, "Nothing is chosen"),
        ("text", "full", {"replay": {}}, "general text"),
        ("text", "prefix", {"gradient_checkpointing": True}, "Prefix tuning"),
        ("text", "full", {"privacy": {}, "packing": "on"}, "one a unit"),
        ("ranking", "full", {"privacy": {}}, "is there for classification"),
        ("text", "ia3", {"privacy": {}}, "is there for lora"),
        ("classification", "scratch", {}, "has none yet"),
        ("extraction", "scratch", {}, "has none yet"),
        ("embedding", "lora", {"gradient_accumulation": 2}, "don't see each other"),
        ("embedding", "lora", {"batch_size": 1}, "other rows of its batch"),
        ("preference", "scratch", {}, "has learned nothing yet"),
        ("generation", "lora", {"lora": {"dora": True, "dropout": "0.1"}}, "DoRA"),
    ],
)
def test_what_cannot_work_together_is_refused_with_the_reason(task, method, more, reason):
    with pytest.raises(Misuse, match=reason) as caught:
        written(task, method, **more)
    assert caught.value.code == "recipe.combination"


def test_the_schema_says_what_the_reader_says():
    """Every value that the reader takes or refuses, the schema does, too."""
    import jsonschema

    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for pair in PAIRS:
        document = {name: value for name, value in written(*pair).to_document().items() if name != "kind"}
        assert validator.is_valid(document), next(validator.iter_errors(document)).message
    for key, value in BAD:
        if isinstance(value, str) and key in ("learning_rate", "validation", "warmup_ratio", "weight_decay"):
            continue  # JSON Schema has no bounds for numbers that are written as text
        if (key, value) == ("columns", {"text": "a", "label": "a"}) or (key == "lora" and "dropout" in value):
            continue
        assert not validator.is_valid({**BASE, key: value}), (key, value)
    assert not validator.is_valid({**BASE, "batchsize": 3})
