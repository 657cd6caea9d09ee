"""Baselines, paired tests, figures and gates."""

import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.contracts.contract import Gate
from cloister.crypto import canonical_json
from cloister.errors import Denied, Internal
from cloister.workload.evaluation import (
    Score,
    apply_gates,
    baseline,
    evaluate_classification,
    evaluate_generation,
    fit_probe,
)
from cloister.workload.evaluation.paired import bootstrap_interval, mcnemar_exact


def blobs(rows: int, kinds: int, *, scale: float = 1.0, seed: int = 0):
    generator = np.random.default_rng(seed)
    labels = np.arange(rows) % kinds
    centres = np.random.default_rng(99).normal(size=(kinds, 16)) * 2
    return ((centres[labels] + generator.normal(size=(rows, 16))) * scale).astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("kinds", [2, 5])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_probe_learns_whatever_the_scale(kinds, scale):
    rows, labels = blobs(200, kinds, scale=scale)
    held, truth = blobs(100, kinds, scale=scale, seed=1)
    probe = fit_probe(rows, labels, kinds, 0)
    assert probe.weight.shape == (kinds, 16)
    assert (probe.predict(held) == truth).mean() > 0.9
    assert baseline(probe, held, truth, labels).kind == "probe"


def test_probe_is_seeded_and_bears_rare_labels():
    rows, labels = blobs(61, 4)
    rows[-1], labels[-1] = -20.0, 4  # one row only: absent from some folds
    first, again = fit_probe(rows, labels, 5, 3), fit_probe(rows, labels, 5, 3)
    assert np.array_equal(first.weight, again.weight)
    assert first.predict(rows[-1:]).tolist() == [4]


def test_majority_is_the_baseline_where_embeddings_say_nothing():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, 16)).astype(np.float32)
    labels = (np.arange(60) % 10 == 0).astype(np.int64)
    held = generator.normal(size=(40, 16)).astype(np.float32) * 50
    truth = np.zeros(40, dtype=np.int64)
    found = baseline(fit_probe(rows, labels, 2, 0), held, truth, labels)
    assert found.kind == "majority"
    assert (found.predictions == 0).all()


@pytest.mark.parametrize(
    ("better", "worse", "expected"), [(0, 0, 1.0), (5, 5, 1.0), (10, 0, 2 / 1024), (9, 1, 22 / 1024), (1, 9, 22 / 1024)]
)
def test_mcnemar_is_the_exact_binomial(better, worse, expected):
    assert mcnemar_exact(better, worse) == pytest.approx(expected)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_by_summing(better, worse):
    n, k = better + worse, min(better, worse)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert mcnemar_exact(better, worse) == pytest.approx(min(1.0, 2 * tail))


def test_bootstrap_covers_and_is_seeded():
    values = np.random.default_rng(0).normal(0.3, 1.0, 400)
    low, high = bootstrap_interval(values, np.ones(400), 5)
    assert (low, high) == bootstrap_interval(values, np.ones(400), 5)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_classification_figures():
    truth = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    base = np.array([0, 1, 1, 0, 2, 2, 0, 0])
    tuned = np.array([0, 0, 1, 0, 2, 2, 2, 0])
    evaluation = evaluate_classification(truth, base, tuned, base_kind="probe", seed=0)
    document = evaluation.document()
    assert document["accuracy"] == "0.750000"
    assert document["base_accuracy"] == "0.500000"
    assert (document["better_rows"], document["worse_rows"], document["rows"]) == (2, 0, 8)
    assert document["mcnemar_p"] == "0.500000"
    assert document["macro_f1"] == f"{(4 / 6 + 2 / 3 + 6 / 7) / 3:.6f}"
    assert Decimal(document["difference_low"]) <= Decimal("0.25") <= Decimal(document["difference_high"])
    canonical_json(document)


def test_generation_figures():
    base, tuned = np.array([8.0, 4.0]), np.array([4.0, 4.0])
    evaluation = evaluate_generation(base, tuned, np.array([4, 2]), np.array([8, 8]), 0)
    assert evaluation.scores["loss"] == Score(Decimal("2.000000"), Decimal("1.333333"), False)
    assert evaluation.scores["bits_per_byte"].base == Decimal(repr(12 / 16 / math.log(2))).quantize(Decimal("0.000001"))
    assert evaluation.scores["bits_per_byte"].gain > 0
    canonical_json(evaluation.document())


def test_a_figure_that_is_no_number_is_never_published():
    with pytest.raises(Internal):
        evaluate_generation(np.array([1.0]), np.array([float("nan")]), np.array([1]), np.array([1]), 0)


SCORES = {
    "accuracy": Score(Decimal("0.900000"), Decimal("0.920000"), True),
    "loss": Score(Decimal("2.000000"), Decimal("1.900000"), False),
}


@pytest.mark.parametrize(
    ("metric", "margin", "passed"),
    [
        ("accuracy", "0.02", True), ("accuracy", "0.020001", False), ("accuracy", "0", True),
        ("accuracy", "-0.1", True),
        ("loss", "0.1", True), ("loss", "0.11", False),
    ],
)  # fmt: skip
def test_gate_margins(metric, margin, passed):
    (result,) = apply_gates([Gate(metric, Decimal(margin))], SCORES)
    assert result.passed is passed
    assert ("reaches" if passed else "misses") in result.reason
    document = result.document()
    assert set(document) == {"metric", "margin", "base", "tuned", "passed", "reason"}
    canonical_json(document)


def test_worse_is_worse_in_both_directions():
    worse = {
        "accuracy": Score(Decimal("0.9"), Decimal("0.8"), True),
        "loss": Score(Decimal("1.0"), Decimal("1.1"), False),
    }
    assert not any(r.passed for r in apply_gates([Gate("accuracy", Decimal(0)), Gate("loss", Decimal(0))], worse))


def test_unknown_metric_never_passes():
    with pytest.raises(Denied) as caught:
        apply_gates([Gate("charm", Decimal("-1"))], SCORES)
    assert caught.value.code == "gate.metric"
    assert "accuracy, loss" in caught.value.message


def test_no_gates_no_verdicts():
    assert apply_gates([], SCORES) == ()
