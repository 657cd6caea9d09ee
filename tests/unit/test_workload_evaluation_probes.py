"""One logistic regression a label, and the base's best at labels: on made-up embeddings."""

import numpy as np
import pytest

from cloister.workload.evaluation import evaluate_multilabel, fit_probes, multilabel_baseline


def made(rows=300, labels=4, seed=0):
    """Each label holds where its own direction is positive."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(rows, 8)).astype(np.float32)
    return vectors, (vectors[:, :labels] > 0.2).astype(np.int64)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_every_label_is_learned_whatever_the_scale(scale):
    vectors, flags = made()
    probe = fit_probes(vectors * np.float32(scale), flags, 0)
    held, truth = made(seed=1)
    given = (probe.logits(held * np.float32(scale)) > 0).astype(np.int64)
    assert ((given == truth).mean(axis=0) > 0.9).all()


def test_labels_that_all_or_no_rows_have_are_sure():
    vectors, flags = made()
    flags = np.column_stack([flags[:, 0], np.ones(len(flags)), np.zeros(len(flags))]).astype(np.int64)
    logits = fit_probes(vectors, flags, 0).logits(vectors)
    assert (logits[:, 1] > 5).all()
    assert (logits[:, 2] < -5).all()
    assert np.isfinite(logits).all()


def test_a_label_with_one_row_is_borne():
    vectors, flags = made()
    flags[:, 3] = 0
    flags[7, 3] = 1
    probe = fit_probes(vectors, flags, 0)
    assert np.isfinite(probe.weight).all()
    assert np.isfinite(probe.bias).all()


def test_it_is_seeded():
    vectors, flags = made()
    one, two = (fit_probes(vectors, flags, 3) for _ in range(2))
    assert np.array_equal(one.weight, two.weight)
    assert one.inverse_strength == two.inverse_strength


def test_the_commonest_set_is_the_baseline_where_embeddings_say_nothing():
    vectors, _ = made()
    training = np.tile(np.array([1, 0, 1], dtype=np.int64), (300, 1))
    training[:20] = [0, 1, 0]
    generator = np.random.default_rng(5)
    probe = fit_probes(vectors, training[generator.permutation(300)], 0)
    probe.weight[:] = 0.0
    probe.bias[:] = -1.0
    found = multilabel_baseline(probe, vectors, training, training)
    assert found.kind == "majority"
    assert (found.predictions == [1, 0, 1]).all()


def test_figures_of_sets():
    truth = np.array([[1, 0], [1, 1], [0, 0]])
    base, tuned = np.array([[1, 0], [1, 0], [0, 1]]), truth
    found = evaluate_multilabel(truth, base, tuned, base_kind="probe", seed=0)
    assert float(found.scores["micro_f1"].base) == pytest.approx(2 * 2 / 6, abs=1e-6)
    assert float(found.scores["exact_match"].base) == pytest.approx(1 / 3, abs=1e-6)
    assert all(float(score.tuned) == 1.0 for score in found.scores.values())
