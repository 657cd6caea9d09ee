"""Reciprocal ranks, discounted gains, recall: by hand, and against another way to compute them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.workload.evaluation import evaluate_queries, pool_figures, ranking_figures

SCORES = st.floats(-5, 5, allow_nan=False).map(lambda value: round(value, 1))
QUERY = st.lists(st.tuples(SCORES, st.integers(0, 3)), min_size=1, max_size=8).filter(lambda q: any(g for _, g in q))


def test_by_hand():
    scores, grades = np.array([0.9, 0.8, 0.7, 0.1, 0.2]), np.array([0.0, 1.0, 0.0, 1.0, 0.0])
    found = ranking_figures(scores, grades, [[0, 1, 2], [3, 4]])
    assert found["mrr"] == pytest.approx([1 / 2, 1 / 2])
    assert found["ndcg_at_10"] == pytest.approx([1 / np.log2(3), 1 / np.log2(3)])


def test_grades_count_by_their_height():
    found = ranking_figures(np.array([2.0, 1.0]), np.array([1.0, 3.0]), [[0, 1]])
    best = 3 / np.log2(2) + 1 / np.log2(3)
    assert found["ndcg_at_10"] == pytest.approx([(1 / np.log2(2) + 3 / np.log2(3)) / best])
    assert found["mrr"] == pytest.approx([1.0])


def test_only_the_first_ten_gain():
    scores, grades = -np.arange(12.0), np.zeros(12)
    grades[11] = 1.0
    found = ranking_figures(scores, grades, [range(12)])
    assert found["ndcg_at_10"] == pytest.approx([0.0])
    assert found["mrr"] == pytest.approx([1 / 12])


@given(QUERY)
def test_ties_stand_in_the_worst_order(query):
    scores, grades = (np.array(column, dtype=np.float64) for column in zip(*query, strict=True))
    found = ranking_figures(scores, grades, [range(len(query))])["mrr"][0]
    top = max(score for score, grade in query if grade)
    before = sum(score > top or (score == top and not grade) for score, grade in query)
    assert found == pytest.approx(1 / (1 + before))


@given(QUERY, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_says_nothing(query, shuffler):
    groups = [list(range(len(query)))]
    other = [*groups[0]]
    shuffler.shuffle(other)
    scores, grades = (np.array(column, dtype=np.float64) for column in zip(*query, strict=True))
    one, two = ranking_figures(scores, grades, groups), ranking_figures(scores, grades, [other])
    assert all(np.allclose(one[name], two[name]) for name in one)
    assert all(0 <= one[name][0] <= 1 + 1e-12 for name in one)


def test_a_pool_is_searched_whole():
    pool = np.eye(12, dtype=np.float32)
    queries = np.stack([pool[0], (pool[1] + 2 * pool[2]) / 5**0.5])
    found = pool_figures(queries, pool, [[0], [1]])
    assert found["mrr"] == pytest.approx([1.0, 1 / 2])
    assert found["recall_at_1"] == pytest.approx([1.0, 0.0])
    assert found["recall_at_10"] == pytest.approx([1.0, 1.0])


def test_recall_is_of_as_many_as_fit():
    pool = np.eye(4, dtype=np.float32)
    found = pool_figures((pool[0] + pool[1])[None] / 2**0.5, pool, [[0, 1]])
    assert found["recall_at_1"] == pytest.approx([1.0])
    assert found["recall_at_10"] == pytest.approx([1.0])


def test_figures_are_means_with_an_interval_of_the_difference():
    base, tuned = np.linspace(0.2, 0.6, 50), np.linspace(0.5, 0.9, 50)
    found = evaluate_queries({"mrr": base}, {"mrr": tuned}, base_kind="cosine", rows=200, seed=0)
    assert (float(found.scores["mrr"].base), float(found.scores["mrr"].tuned)) == (0.4, 0.7)
    assert (found.facts["queries"], found.facts["rows"], found.facts["base_kind"]) == (50, 200, "cosine")
    assert float(found.facts["difference_low"]) == pytest.approx(0.3)
