"""Entities in tags, counted as the shared task counts them: border and kind must both be right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.workload.evaluation import entity_counts, evaluate_extraction
from cloister.workload.evaluation.entities import entities

IOB2 = st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"]), max_size=12)
PLAIN = st.lists(st.sampled_from(["O", "x", "y"]), max_size=12)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([], set()),
        (["O", "O"], set()),
        (["B-x"], {(0, 1, "x")}),
        (["O", "B-x", "I-x", "O"], {(1, 3, "x")}),
        (["B-x", "B-x"], {(0, 1, "x"), (1, 2, "x")}),
        (["B-x", "I-y"], {(0, 1, "x")}),
        (["I-x", "I-x"], set()),
        (["B-x", "O", "I-x"], {(0, 1, "x")}),
        (["B-x", "I-x", "B-y", "I-y", "I-y"], {(0, 2, "x"), (2, 5, "y")}),
    ],
)
def test_iob2_is_read_strictly(tags, expected):
    assert entities(tags, iob2=True) == expected


def test_plain_tags_are_runs():
    assert entities(["x", "x", "O", "x", "y"], iob2=False) == {(0, 2, "x"), (3, 4, "x"), (4, 5, "y")}
    assert entities(["B-x", "B-x"], iob2=False) == {(0, 2, "B-x")}


def spans(tags):
    """Another way to the same: every start looks for its own end."""
    found = set()
    for start, tag in enumerate(tags):
        if tag.startswith("B-"):
            end = start + 1
            while end < len(tags) and tags[end] == "I-" + tag[2:]:
                end += 1
            found.add((start, end, tag[2:]))
    return found


@given(IOB2)
def test_iob2_agrees_with_another_way(tags):
    assert entities(tags, iob2=True) == spans(tags)


@given(PLAIN)
def test_plain_entities_cover_every_tagged_word_once(tags):
    found = sorted(entities(tags, iob2=False))
    covered = [place for start, end, _ in found for place in range(start, end)]
    assert covered == [place for place, tag in enumerate(tags) if tag != "O"]
    assert all({*tags[start:end]} == {kind} for start, end, kind in found)


@given(st.lists(st.tuples(IOB2, IOB2), min_size=1, max_size=6))
def test_counts_are_bounded_and_the_same_tagging_is_perfect(pairs):
    pairs = [(a[: len(b)] + ["O"] * (len(b) - len(a)), b) for a, b in pairs]
    counts = entity_counts([a for a, _ in pairs], [b for _, b in pairs], iob2=True)
    assert (counts[:, 0] <= counts[:, 1:].min(axis=1)).all()
    alike = entity_counts([b for _, b in pairs], [b for _, b in pairs], iob2=True)
    assert (alike == alike[:, :1]).all()


def test_figures():
    truth = [["B-x", "I-x", "O"], ["B-y", "O", "O"]]
    base = [["B-x", "O", "O"], ["O", "O", "O"]]  # a wrong border: neither found nor right
    tuned = [["B-x", "I-x", "O"], ["B-x", "O", "O"]]  # a wrong kind
    found = evaluate_extraction(truth, base, tuned, iob2=True, base_kind="probe", words_cut=0, seed=0)
    figures = {name: (float(score.base), float(score.tuned)) for name, score in found.scores.items()}
    assert figures == {
        "entity_f1": (0.0, 0.5),
        "entity_precision": (0.0, 0.5),
        "entity_recall": (0.0, 0.5),
        "token_accuracy": (0.666667, 0.833333),
    }
    assert found.facts["entities"] == 2


def test_nothing_to_find_and_nothing_found_is_no_error():
    found = evaluate_extraction([["O"]], [["O"]], [["O"]], iob2=True, base_kind="majority", words_cut=0, seed=0)
    assert float(found.scores["entity_f1"].tuned) == 0.0
    assert float(found.scores["token_accuracy"].tuned) == 1.0


def test_the_interval_is_of_the_gain_and_covers_it():
    generator = np.random.default_rng(1)
    truth = [["B-x" if coin else "O"] for coin in generator.integers(0, 2, 400)]
    base = [row if lucky else ["O"] for row, lucky in zip(truth, generator.integers(0, 2, 400), strict=True)]
    found = evaluate_extraction(truth, base, truth, iob2=True, base_kind="probe", words_cut=0, seed=0)
    gain = float(found.scores["entity_f1"].gain)
    low, high = (float(found.facts[name]) for name in ("difference_low", "difference_high"))
    assert 0 < low < gain < high
