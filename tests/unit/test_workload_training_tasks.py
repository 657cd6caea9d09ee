"""Multilabel, extraction, ranking, embedding on a tiny model: they learn, resume bit for bit, split without leak."""

import io
import json

import numpy as np
import pytest

from cloister.contracts.recipe import parse_recipe
from cloister.errors import CloisterError, Malformed, Misuse
from cloister.workload.data import column_forms, read_table
from cloister.workload.training import export_files, load_base, run_training
from cloister.workload.training.batching import Row, collate_matches
from cloister.workload.training.extract import encode_words
from tests.tiny_models import WORDS, MemorySink, Recorder, readers, tiny_bert, tiny_llama

COMMON = {
    "method": "lora", "data": "lab/rows", "base": "lab/tiny", "threads": 1, "precision": "fp32", "batch_size": 16,
    "learning_rate": "0.01", "epochs": 4, "checkpoint_steps": 0, "lora": {"rank": 4},
}  # fmt: skip
COLUMNS = {
    "multilabel": ("text", "labels"),
    "extraction": ("tokens", "tags"),
    "ranking": ("query", "document", "relevance"),
    "embedding": ("query", "positive", "negative"),
}
MAIN = {"multilabel": "micro_f1", "extraction": "entity_f1", "ranking": "mrr", "embedding": "mrr"}


def made_rows(task: str, count: int = 160) -> list[dict[str, object]]:
    draw = np.random.default_rng(5)
    kinds = ("card", "cash", "fee", "phone")
    rows: list[dict[str, object]] = []
    for n in range(count):
        filler = [WORDS[int(i)] for i in draw.integers(20, len(WORDS), 4)]
        if task == "multilabel":
            held = [kind for kind in kinds if draw.random() < 0.4]
            rows.append({"text": " ".join([*held, *filler, str(n)]), "labels": held})
        elif task == "extraction":
            tags = {"card": "B-THING", "lost": "I-THING", "bank": "B-PLACE"}
            words = [*filler[:2], *(["card", "lost"] if n % 2 else ["bank"]), *filler[2:], str(n)]
            rows.append({"tokens": words, "tags": [tags.get(word, "O") for word in words]})
        elif task == "ranking":
            asked, offered = kinds[(n // 4) % 4], kinds[n % 4]
            document = " ".join([WORDS[12 + n % 4], *filler[:1]])  # no word in common: it must be learned
            rows.append({"query": f"{asked} {n // 4}", "document": document, "relevance": int(asked == offered)})
        else:
            kind = n % 4
            rows.append({"query": f"{kinds[kind]} {filler[0]} {n}", "positive": f"{WORDS[10 + kind]} {filler[1]} {n}",
                         "negative": f"{WORDS[10 + (kind + 1) % 4]} {filler[2]} {n}"})  # fmt: skip
    return rows


def run(task, rows=None, sink=None, base=tiny_bert, **more):
    recipe = parse_recipe({**COMMON, "task": task, "columns": {c: c for c in COLUMNS[task]}, **more})
    data = "".join(json.dumps(row) + "\n" for row in (rows or made_rows(task))).encode()
    table = read_table({"d.jsonl": io.BytesIO(data)}, recipe.columns.names(), forms=column_forms(recipe.columns))
    recorder = Recorder()
    return run_training(
        recipe, load_base(readers(base())), table, sink=sink or MemorySink(), progress=recorder, lease=recorder
    )


@pytest.mark.parametrize("task", COLUMNS)
def test_it_learns(task):
    score = run(task).evaluation.scores[MAIN[task]]
    assert score.tuned >= score.base
    assert float(score.tuned) > (0.12 if task == "embedding" else 0.6)


def test_a_decoder_tags_words_too():
    assert run("extraction", base=tiny_llama, epochs=1).evaluation.scores["token_accuracy"].tuned > 0


@pytest.mark.parametrize("task", COLUMNS)
def test_a_resumed_run_is_bit_identical(task):
    more = {"checkpoint_steps": 3, "max_steps": 5}
    whole, sink = run(task, **more), MemorySink(3)
    with pytest.raises(InterruptedError):
        run(task, sink=sink, **more)
    sink.stop_at = None
    resumed = run(task, sink=sink, **more)
    assert export_files(resumed) == export_files(whole)
    assert resumed.evaluation.document() == whole.evaluation.document()


@pytest.mark.parametrize("task", ["multilabel", "extraction", "ranking"])
def test_accumulation_equals_the_large_batch(task):
    more = {"method": "full", "lora": None, "epochs": 1, "max_gradient_norm": 0}
    large, small = (run(task, **more, batch_size=b, gradient_accumulation=16 // b) for b in (16, 4))
    for one, other in zip(large.model.parameters(), small.model.parameters(), strict=True):
        assert np.allclose(one.detach(), other.detach(), atol=2e-4)


@pytest.mark.parametrize(("task", "together"), [("multilabel", "text"), ("ranking", "query"), ("embedding", "query"),
                                                 ("embedding", "positive")])  # fmt: skip
def test_what_belongs_together_stands_on_one_side(task, together):
    rows = made_rows(task)
    for row in rows[60:]:  # each text twice
        row[together] = rows[int(rows.index(row)) - 60][together]
    held = set(run(task, rows, max_steps=1).answers["rows"].tolist())
    inside = {row[together] for n, row in enumerate(rows) if n in held}
    outside = {row[together] for n, row in enumerate(rows) if n not in held}
    if task == "embedding":  # answers name one row a distinct query
        asked = {row["query"] for n, row in enumerate(rows) if n in held}
        outside -= {row[together] for row in rows if row["query"] in asked}
    assert inside
    assert not inside & outside


def test_known_matches_are_not_pushed_away():
    rows = [Row((1,), 0, (), ((7,),)), Row((2,), 0, (), ((8,),)), Row((1,), 0, (), ((8,), (7,)))]
    known = collate_matches(rows, pad=0)["known"].int().tolist()
    assert known == [[0, 1, 1, 1], [0, 0, 1, 0], [1, 1, 0, 1]]


def test_words_are_tagged_at_their_first_piece_and_cut_words_counted():
    base = load_base(readers(tiny_bert()))
    ((row,), (kept,)) = encode_words(base, [["card", "a-pin", "lost"]], [[1, 2, 3]], 5)
    assert kept == [0, 1]
    assert [mark for mark in row.marks if mark >= 0] == [1, 2]
    assert run("extraction", epochs=1, max_length=8).evaluation.facts["words_cut"] == 0
    long = [{"tokens": ["my"] * 20 + ["card"], "tags": ["O"] * 20 + ["B-X"]}, *made_rows("extraction")]
    assert run("extraction", long, epochs=1, max_length=8).evaluation.facts["words_cut"] == 14


def changed(task, **cells):
    return [{**row, **cells} if n == 7 else row for n, row in enumerate(made_rows(task))]


BAD = [
    ("multilabel", [{"text": f"t {n}", "labels": ["a"]} for n in range(20)], "data.labels"),
    ("multilabel", [{"text": f"t {n}", "labels": []} for n in range(20)], "data.labels"),
    ("multilabel", changed("multilabel", labels=[[1]]), "data.text"),
    ("multilabel", changed("multilabel", labels=3.5), "data.text"),
    ("multilabel", changed("multilabel", labels=["card", " "]), "data.labels"),
    ("extraction", changed("extraction", tags=["O"]), "data.tags"),
    ("extraction", changed("extraction", tokens=[], tags=[]), "data.tags"),
    ("extraction", changed("extraction", tokens=["a", ""], tags=["O", "O"]), "data.blank"),
    ("extraction", changed("extraction", tokens=["a", "b"], tags=["O", "I-THING"]), "data.tags"),
    ("extraction", changed("extraction", tokens=["a"], tags=["S-THING"]), "data.tags"),
    ("extraction", [{"tokens": f"a {n}", "tags": "O O"} for n in range(20)], "data.tags"),
    ("ranking", changed("ranking", relevance="-1"), "data.number"),
    ("ranking", changed("ranking", relevance="much"), "data.number"),
    ("ranking", changed("ranking", query="alone", relevance=0), "data.relevance"),
    ("ranking", [{**row, "relevance": 1} for row in made_rows("ranking")], "data.relevance"),
    ("ranking", changed("ranking", document=""), "data.blank"),
    ("embedding", changed("embedding", positive=""), "data.blank"),
    ("embedding", changed("embedding", positive="same", negative="same"), "data.pairs"),
    ("embedding", [{**row, "positive": "one"} for row in made_rows("embedding")], "data.few"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "rows", "code"), BAD)
def test_bad_rows_are_refused_in_a_sentence(task, rows, code):
    with pytest.raises((Misuse, Malformed)) as caught:
        run(task, rows)
    assert isinstance(caught.value, CloisterError)
    assert caught.value.code == code
    assert caught.value.message.endswith(".")
