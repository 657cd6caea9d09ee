"""Private training: the budget, the draw, the bound on every unit, and whole runs that are killed and go on."""

import io
import json
import math
from decimal import Decimal
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant
from scipy import stats

from cloister.contracts.recipe import PrivacySettings, parse_recipe
from cloister.errors import Misuse
from cloister.workload.data import read_table
from cloister.workload.training import export_files, load_base, run_training
from cloister.workload.training.adapters import add_adapter
from cloister.workload.training.batching import Row, collate_causal, collate_labelled
from cloister.workload.training.heads import PooledClassifier, choose_pooling
from cloister.workload.training.privacy import noise as noise_module
from cloister.workload.training.privacy.accountant import plan_noise, spent_until
from cloister.workload.training.privacy.clipping import ClippedSums
from cloister.workload.training.privacy.losses import row_losses
from cloister.workload.training.privacy.noise import NoiseSource
from cloister.workload.training.privacy.units import numbered, split_units
from cloister.workload.training.privacy.ways import choose_way, without_unused
from tests.dp_audit import CanaryTrainer, audit, canary_rows, lower_bound
from tests.tiny_models import MemorySink, Recorder, banking_csv, readers, tiny_bert, tiny_llama

CLASSIFY = {
    "task": "classification", "method": "lora", "data": "bank/queries", "base": "lab/tiny", "threads": 1,
    "columns": {"text": "text", "label": "label"}, "batch_size": 8, "max_steps": 8, "learning_rate": "0.01",
    "checkpoint_steps": 5, "lora": {"rank": 4}, "privacy": {"epsilon": 20, "delta": "0.001"},
}  # fmt: skip
GENERATE = {**CLASSIFY, "task": "generation", "columns": {"completion": "text"}}


def full(recipe):
    return {**{k: v for k, v in recipe.items() if k != "lora"}, "method": "full"}


def run(recipe, sink=None, recorder=None, data=None):
    recipe = parse_recipe(recipe)
    base = load_base(readers(tiny_bert() if recipe.task == "classification" else tiny_llama()))
    table = read_table({"q.csv": io.BytesIO(data or banking_csv())}, recipe.columns.names())
    recorder = recorder or Recorder()
    return run_training(recipe, base, table, sink=sink or MemorySink(), progress=recorder, lease=recorder)


def model_of(task, method, tied=True):
    """A model as training begins with it, its recipe, and how its rows are put together."""
    recipe = parse_recipe({**(CLASSIFY if task == "classification" else GENERATE), "method": method, "lora": None})
    base = load_base(readers(tiny_bert() if task == "classification" else tiny_llama(tied=tied)))
    torch.manual_seed(0)
    if task == "classification":
        model = PooledClassifier(base.encoder(), 32, 4, choose_pooling("auto", base))
        model.encoder = add_adapter(model.encoder, recipe, causal=False)
        collate = partial(collate_labelled, pad=0)
    else:
        model, collate = add_adapter(base.causal_lm(), recipe, causal=True), partial(collate_causal, pad=1)
    without_unused(model, collate)
    return model.train(), recipe, collate


@cache
def some_rows():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 12, (9,), generator=generator).tolist()
    return [Row(tuple(torch.randint(4, 40, (n,), generator=generator).tolist()), 1) for n in lengths]


def summed(model, collate, way, units, *, physical=4, clip=0.5, losses=row_losses):
    sums = ClippedSums(model, collate, clip_norm=clip, physical=physical, way=way, losses=losses)
    with sums.attached():
        return torch.cat([total.reshape(-1) for total in sums.of(units)])


def plain(model, collate, unit):
    """A unit's gradient, the mean over its rows, by nothing but autograd."""
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(row_losses(model, collate(unit)).mean(), trained)
    return torch.cat([gradient.reshape(-1) for gradient in found])


# Task, method, whether the language head shares the embedding's weight, and the way that is found.
MODELS = [
    ("classification", "lora", True, "hooks"),
    ("classification", "full", True, "ghost"),
    ("generation", "lora", True, "hooks"),
    ("generation", "full", False, "ghost"),
    ("generation", "full", True, "whole"),
]


@pytest.mark.parametrize(("task", "method", "tied", "fastest"), MODELS)
def test_hooks_ghost_and_plain_gradients_agree(task, method, tied, fastest):
    model, recipe, collate = model_of(task, method, tied)
    assert choose_way(model, collate, recipe) == fastest
    rows = some_rows()
    units = [[rows[0]], rows[1:3], [rows[3]], rows[4:8], [rows[8]]]
    gradients = [plain(model, collate, unit) for unit in units]
    wanted = sum(g * min(1.0, 0.5 / float(g.norm())) for g in gradients)
    for way in ("whole", "hooks", *(["ghost"] if fastest == "ghost" else [])):
        for physical in (2, 100):  # units are cut anywhere between their rows
            found = summed(model, collate, way, units, physical=physical)
            assert float((found - wanted).norm() / wanted.norm()) < 1e-5, (way, physical)
    assert not any(hasattr(p, "grad_sample") or hasattr(p, "_norm_sample") for p in model.parameters())


def test_layers_that_mix_rows_are_found_out():
    model, recipe, collate = model_of("generation", "full", tied=False)
    inner = model.forward

    def mixing(**given):
        out = inner(**given)
        out.logits = out.logits + out.logits.mean(0, keepdim=True)
        return out

    assert choose_way(model, collate, recipe) == "ghost"
    model.forward = mixing
    assert choose_way(model, collate, recipe) == "whole"


@pytest.mark.parametrize("way", ["whole", "hooks", "ghost"])
def test_an_outlier_gives_the_clip_norm_and_no_more(way):
    model, _, collate = model_of("generation", "full", tied=False)
    rows = some_rows()

    def steep(model, batch):
        return row_losses(model, batch) * 1e6

    for unit in ([rows[0]], [rows[1]] * 5):
        length = float(summed(model, collate, way, [unit], clip=0.25, losses=steep).norm())
        assert 0.25 * (1 - 1e-3) < length <= 0.25 * (1 + 2**-10)


@pytest.mark.parametrize("way", ["whole", "hooks", "ghost"])
def test_a_row_without_a_finite_gradient_gives_nothing(way):
    model, _, collate = model_of("generation", "full", tied=False)
    rows = some_rows()

    def broken(model, batch):
        return row_losses(model, batch) * torch.where(batch["input_ids"][:, 0] == rows[0].ids[0], math.inf, 1.0)

    others = [[row] for row in rows if row.ids[0] != rows[0].ids[0]]
    with_it = summed(model, collate, way, [[rows[0]], *others], losses=broken)
    assert torch.allclose(with_it, summed(model, collate, way, others), atol=1e-5)


@pytest.mark.parametrize("way", ["whole", "hooks", "ghost"])
def test_an_empty_batch_is_a_step_of_noise_alone(way):
    model, _, collate = model_of("generation", "full", tied=False)
    assert not summed(model, collate, way, []).any()


def test_a_run_whose_steps_draw_nobody_ends_with_noise_alone():
    source = NoiseSource(b"s" * 32, b"run")
    empty = [step for step in range(1, 200) if not len(source.chosen(step, 30, 0.05))]
    assert 20 < len(empty) < 70  # 0.95 ** 30 is 0.21
    trainer = CanaryTrainer(canary_rows(range(12)), size=1, count=12, epsilon=8)
    trainer.budget = plan_noise(trainer._settings, rate=1e-9, steps=2, units=12)
    trainer.train_sealed()
    assert trainer.seen.all()


def test_noise_is_standard_normal_and_the_same_for_the_same_seed():
    def drawn(seed=b"s" * 32, step=3, deviation=2.0):
        source = NoiseSource(seed, b"run")
        return torch.cat(list(source.add_to(step, [torch.zeros(150_000), torch.zeros(50_001)], deviation)))

    values = drawn().double()
    assert abs(float(values.mean())) < 0.02
    assert abs(float(values.std()) - 2) < 0.01
    assert stats.kstest(values.numpy() / 2, "norm").pvalue > 0.01
    assert abs(float(np.corrcoef(values[:-1], values[1:])[0, 1])) < 0.01
    assert torch.equal(values, drawn().double())
    for other in (drawn(seed=b"t" * 32), drawn(step=4)):
        assert abs(float(np.corrcoef(values, other)[0, 1])) < 0.01


def test_noised_sums_lie_on_one_grid_whatever_was_summed():
    source = NoiseSource(b"s" * 32, b"run")
    for summed_value in (0.0, 1 / 3, 1e-20):
        (found,) = source.add_to(1, [torch.full((1000,), summed_value, dtype=torch.float64)], 0.75)
        steps = found.double() / 2.0**-25
        assert torch.equal(steps, steps.round())


def test_units_are_drawn_each_by_itself_at_the_rate():
    source = NoiseSource(b"s" * 32, b"run")
    taken = np.zeros((400, 50))
    for step in range(400):
        taken[step, source.chosen(step, 50, 0.3)] = 1
    assert abs(taken.mean() - 0.3) < 0.01
    assert abs(taken.sum(1).var() - 50 * 0.3 * 0.7) < 2.5
    assert not np.array_equal(taken[0], taken[1])


@pytest.mark.filterwarnings("ignore:Optimal order is the")  # of the peer: the product sees to its own
@pytest.mark.parametrize(("epsilon", "rate", "steps"), [("8", 0.05, 60), ("0.5", 0.9, 3), ("1", 0.001, 300)])
def test_the_noise_keeps_within_the_budget_and_uses_it(epsilon, rate, steps):
    settings = PrivacySettings(Decimal(epsilon), Decimal("0.00001"), "example", Decimal(1))
    budget = plan_noise(settings, rate=rate, steps=steps, units=1000)
    assert settings.epsilon * Decimal("0.9") < budget.epsilon <= settings.epsilon
    assert budget.accountant == "prv"
    assert budget.epsilon_rdp > budget.epsilon
    peer = PRVAccountant()
    peer.history = [(budget.noise_multiplier, rate, steps)]
    assert peer.get_epsilon(1e-5, eps_error=float(epsilon) / 50) <= float(epsilon)
    spent = [spent_until(budget, step) for step in (1, steps // 2, steps)]
    assert spent == sorted(spent)
    assert spent[-1] == budget.epsilon


@pytest.mark.parametrize(
    ("settings", "rate", "units", "code"),
    [
        (("8", "0.00001"), 1.0, 50, "privacy.few"),
        (("8", "0.01"), 0.1, 100, "privacy.delta"),
        (("0.01", "0.000000000001"), 0.001, 100, "privacy.unreachable"),
    ],
)
def test_a_budget_that_no_noise_keeps_is_refused(settings, rate, units, code):
    settings = PrivacySettings(Decimal(settings[0]), Decimal(settings[1]), "example", Decimal(1))
    steps = 10**9 if code == "privacy.unreachable" else 10
    with pytest.raises(Misuse) as caught:
        plan_noise(settings, rate=rate, steps=steps, units=units)
    assert caught.value.code == code


@given(st.lists(st.text(max_size=3), min_size=30, max_size=40, unique=True), st.integers(0, 29))
def test_no_unit_pushes_another_over_the_border(texts, place):
    others = texts[:place] + texts[place + 1 :]
    try:
        whole, without = (split_units(part, None, Decimal("0.3"), 0) for part in (texts, others))
    except Misuse:
        return
    assert {texts[r] for r in whole.training} - {texts[place]} == {others[r] for r in without.training}


def test_rows_of_a_user_stand_on_one_side_and_are_one_unit():
    users = [f"u{row % 9}" for row in range(60)]
    split = split_units([str(row) for row in range(60)], users, Decimal("0.3"), 1)
    assert not {users[r] for r in split.training} & {users[r] for r in split.validation}
    units = numbered(split.training, users)
    assert len(set(units)) == len({users[r] for r in split.training})
    assert numbered([5, 5, 7], None) == (0, 0, 1)  # pieces of one document


@pytest.mark.parametrize("recipe", [full(CLASSIFY), GENERATE], ids=["classification", "generation"])
def test_a_private_run_moves_its_weights_and_tells_what_it_costs(recipe):
    recorder, sink = Recorder(), MemorySink()
    result = run({**recipe, "checkpoint_steps": 1}, sink, recorder)
    first, last = (sink.saved[step]["model-0000.safetensors"] for step in (1, max(sink.saved)))
    changed = np.frombuffer(first, np.uint8) != np.frombuffer(last, np.uint8)
    assert changed.mean() > 0.4
    facts = result.timings.training
    assert Decimal(facts["epsilon"]) <= 20
    assert Decimal(facts["epsilon_rdp"]) >= Decimal(facts["epsilon"])
    assert facts["privacy_steps"] == result.timings.steps
    assert (facts["privacy_unit"], facts["packing"]) == ("example", "off")
    assert float(facts["noise_multiplier"]) > 0.1
    told = [values for stage, _, _, values in recorder.reports if stage == "train"]
    assert told
    assert all(set(values) <= {"learning_rate", "epsilon", "eta_seconds"} for values in told)


@pytest.mark.slow
def test_private_runs_learn():
    result = run({**CLASSIFY, "max_steps": 80, "epochs": 6, "privacy": {"epsilon": 100, "delta": "0.001"}})
    assert result.evaluation.scores["accuracy"].gain > 0


@pytest.mark.parametrize(
    "recipe", [CLASSIFY, pytest.param(full(GENERATE), marks=pytest.mark.slow)], ids=["lora", "full"]
)
def test_a_killed_run_replays_its_noise_bit_for_bit(recipe, monkeypatch):
    sink = MemorySink(5)
    with pytest.raises(InterruptedError):
        run(recipe, sink)
    seed = _seed(sink)
    sink.stop_at = None
    resumed = run(recipe, sink)
    assert resumed.timings.resumed_from == 5
    monkeypatch.setattr(noise_module, "random_bytes", lambda n: seed)
    whole = run(recipe)
    assert export_files(resumed) == export_files(whole)
    monkeypatch.setattr(noise_module, "random_bytes", lambda n: bytes(n))
    assert export_files(run(recipe)) != export_files(whole)


def _seed(sink):
    return bytes.fromhex(json.loads(sink.saved[5]["state.json"])["privacy"]["seed"])


def test_what_was_guessed_never_proves_more_than_is_claimed():
    bound, claimed = audit(count=1000, seed=1)
    assert 0 < bound <= claimed  # the attack sees something
    bound, claimed = audit(count=1000, seed=0, quiet=True)
    assert bound > claimed  # and without noise it proves that the claim is wrong


def test_the_audit_s_bound_is_that_of_its_paper():
    assert lower_bound(1000, 1000, 500) == 0
    assert lower_bound(1000, 400, 400) > 4
    # Without delta it is the binomial's: 60 of 100 rule out that each is right with 0.5, not with 0.55.
    assert 0 < lower_bound(100, 100, 60) < math.log(0.6 / 0.4)
