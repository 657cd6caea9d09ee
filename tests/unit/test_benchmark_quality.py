"""The parts of the quality table that compute: byte statistics, tests on pairs, splits and the page. Nothing trains."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks._quality_bytes import ByteModel
from benchmarks._quality_data import SOURCES, bm25
from benchmarks._quality_lines import LINES
from benchmarks._quality_page import page
from benchmarks._quality_tests import Sides, randomization_p
from benchmarks.quality import dealt, gain, last_line, recipe_of

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@given(st.text(max_size=30), st.text(max_size=10))
def test_the_byte_model_gives_probabilities(read, prompt):
    model, context = ByteModel([read]), prompt.encode()[-5:]
    contexts = [context[len(context) - n :] for n in range(len(context) + 1)]
    assert sum(model._probability(contexts, byte) for byte in range(256)) == pytest.approx(1.0)


@given(st.lists(st.text(max_size=12), max_size=3), st.text(max_size=12), st.text(max_size=12))
def test_the_byte_model_forgets_a_row_once_it_is_coded(read, prompt, text):
    model = ByteModel(read)
    before = {context: dict(after) for context, after in model._counts.items() if after}
    bits = model.bits(prompt, text)
    assert {context: after for context, after in model._counts.items() if after} == before
    assert model.bits(prompt, text) == bits >= 0


def test_the_byte_model_copies_and_learns():
    note = "The patient takes lisinopril for hypertension."
    alone, copied, learned = (
        model.bits(prompt, note)
        for model, prompt in ((ByteModel(), ""), (ByteModel(), f"Doctor: {note}"), (ByteModel([note] * 3), ""))
    )
    assert max(copied, learned) < alone / 2


def test_bm25_finds_rare_words_first():
    scores = bm25(["the card was lost", "the fee was charged", "the the the"])("the lost card")
    assert scores.index(max(scores)) == 0
    assert scores[0] > scores[1]


def test_no_difference_is_no_finding_and_a_clear_one_is():
    generator = np.random.default_rng(0)
    values = generator.random(200)
    assert randomization_p(Sides.of_values(values, values)) == 1.0
    assert randomization_p(Sides.of_values(values, values + 0.3)) < 0.001
    assert randomization_p(Sides.of_values(values, values[generator.permutation(200)])) > 0.01


def test_chance_is_called_significant_as_seldom_as_it_should():
    generator = np.random.default_rng(1)
    found = [
        randomization_p(Sides.of_values(*(generator.integers(0, 2, 40).astype(float) for _ in range(2))), seed)
        for seed in range(40)
    ]
    assert sum(p < 0.05 for p in found) <= 6


def test_a_ratio_of_sums_is_tested_as_one():
    base = np.tile([[1.0, 4.0]], (60, 1))
    tuned = np.tile([[3.0, 4.0]], (60, 1))
    assert Sides(base, tuned).figures() == (0.25, 0.75)
    assert randomization_p(Sides(base, tuned)) < 0.001


@given(st.lists(st.sampled_from("abc"), min_size=6, max_size=40), st.integers(2, 5))
def test_folds_answer_every_row_once(labels, folds):
    parts = list(dealt(labels, folds))
    assert sorted(row for part in parts for row in part.validation) == list(range(len(labels)))
    for label in set(labels):
        sizes = [sum(labels[row] == label for row in part.validation) for part in parts]
        assert max(sizes) - min(sizes) <= 1
    assert all(not set(part.training) & set(part.validation) for part in parts)


@pytest.mark.parametrize("name", LINES)
def test_every_line_is_a_recipe(name):
    line = LINES[name]
    assert recipe_of(line, {"epochs": "1"}).epochs == 1
    assert line.source in SOURCES


@pytest.mark.parametrize("name", [name for name in SOURCES if "ranking" not in name])
def test_sources_give_rows_and_set_none_of_their_texts_on_both_sides(name):
    if not DATA.is_dir():
        pytest.skip("../shared/data is missing")
    rows, held = SOURCES[name](DATA)
    assert len(rows) > 100
    if held is not None:
        texts = [str(row.get("text", row.get("tokens"))) for row in rows]
        assert not {texts[r] for r in held} & {t for r, t in enumerate(texts) if r not in held}


def made(name, base, tuned):
    line = LINES[name]
    beside = {"training texts": 2.0} if line.metric == "bits_per_byte" else {}
    recipe = {"epochs": 3, "learning_rate": "0.1", "batch_size": 2, "max_length": 8}
    figures = {"metric": line.metric, "base": base, "tuned": tuned, "low": -0.1, "high": 0.2, "p": 0.01, "n": 9}
    more = {"unit": "rows", "base_kind": "probe", "train_seconds": 1.0, "seconds": 2.0, "machine": "a machine, load 9"}
    return {**figures, **more, "beside": beside, "recipe": recipe}


def test_the_page_has_a_row_for_what_was_measured_and_names_what_was_not():
    found = {"banking77": made("banking77", 0.8, 0.9), "shakespeare": made("shakespeare", 3.0, 2.0)}
    text = page(found)
    assert "| `banking77` | classification, lora | accuracy | 9 rows | 0.8000 (probe) | 0.9000 | +0.1000" in text
    assert "| `shakespeare` | 3.0000 | 2.0000 | – | 2.0000 |" in text
    assert "Not measured yet: " in text
    assert "`wnut17`" in text
    assert "load 9" not in text


def test_fewer_bits_are_a_gain():
    found = {"banking77": made("banking77", 0.8, 0.9), "shakespeare": made("shakespeare", 3.0, 2.0)}
    assert gain(found["shakespeare"]) == pytest.approx(1.0)
    line = last_line(found)
    assert line["metrics"]["significant_ratio"] == 1.0
    assert line["metrics"]["banking77_gain"] == 0.1
