"""The fused loss is the plain one; compiling changes neither what is learned nor how a run resumes."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cloister.contracts.recipe import parse_recipe
from cloister.errors import Misuse
from cloister.workload.data import read_table
from cloister.workload.training import compiled, load_base, losses, run_training
from cloister.workload.training.batching import IGNORED, Row, collate_causal
from cloister.workload.training.losses import fused_loss, has_plain_head, head_loss
from cloister.workload.training.state import SavedState, capture, restore_optimizer
from tests.tiny_models import MemorySink, Recorder, banking_csv, readers, tiny_llama

TEXT = {
    "task": "generation", "method": "full", "data": "bank/queries", "base": "lab/tiny", "threads": 1,
    "columns": {"prompt": "label", "completion": "text"}, "batch_size": 8, "epochs": 2, "learning_rate": "0.01",
    "checkpoint_steps": 5, "precision": "fp32",
}  # fmt: skip
ROWS = [Row((3, 4, 5, 6, 7), 2), Row((8, 9), 0), Row((11, 12, 13), 1, marks=(IGNORED, 12, IGNORED))]


def run(recipe: dict[str, Any], sink: MemorySink | None = None) -> Any:
    parsed = parse_recipe(recipe)
    table = read_table({"q.csv": io.BytesIO(banking_csv(90))}, parsed.columns.names())
    recorder, base = Recorder(), load_base(readers(tiny_llama()))
    return run_training(parsed, base, table, sink=sink or MemorySink(), progress=recorder, lease=recorder)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tokens", [1, 64, 150])  # a chunk takes 64 at least
def test_the_fused_loss_and_its_gradients_are_the_plain_ones(biased, tokens, monkeypatch):
    monkeypatch.setattr(losses, "_LOGITS", 1)
    torch.manual_seed(0)
    given = [torch.randn(tokens, 12), torch.randn(40, 12), torch.randn(40) if biased else None]
    targets = torch.randint(0, 40, (tokens,))

    def gradients(loss: Any) -> list[torch.Tensor]:
        leaves = [None if t is None else t.clone().requires_grad_() for t in given]
        value = loss(*leaves) / tokens
        value.backward()
        return [value.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]

    fused = gradients(lambda h, w, b: head_loss(h, w, b, targets))
    plain = gradients(lambda h, w, b: F.cross_entropy(F.linear(h, w, b), targets, reduction="sum"))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(fused, plain, strict=True))


def test_the_fused_loss_stays_finite_for_extreme_logits():
    hidden = torch.full((2, 4), 1e4).requires_grad_()
    weight = torch.stack([torch.ones(4), -torch.ones(4)]).requires_grad_()
    loss = head_loss(hidden, weight, None, torch.tensor([0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(hidden.grad).all()


def test_a_frozen_head_gets_no_gradient():
    weight = torch.randn(40, 12)
    hidden = torch.randn(5, 12, requires_grad=True)
    head_loss(hidden, weight, None, torch.arange(5)).backward()
    assert weight.grad is None
    assert hidden.grad.abs().sum() > 0


def test_a_model_computes_the_same_loss_fused_and_gives_logits_where_nothing_is_labelled():
    model: Any = load_base(readers(tiny_llama())).causal_lm()
    batch = collate_causal(ROWS, 0)
    assert has_plain_head(model, batch)
    plain = model(**batch).loss
    with fused_loss(model):
        assert torch.allclose(model(**batch)["loss"], plain)
        assert torch.allclose(model(**batch, num_items_in_batch=14)["loss"] * 14, plain * 5)
        assert model(input_ids=batch["input_ids"]).logits.shape == (3, 5, 43)
    assert "forward" not in vars(model)


def test_a_head_that_caps_its_logits_is_left_alone():
    model: Any = load_base(readers(tiny_llama())).causal_lm()
    plain = model.forward

    class Capped(type(model)):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = plain(*args, **kwargs)
            return {"loss": out.loss * 1.01, "logits": out.logits}

    model.__class__ = Capped
    assert not has_plain_head(model, collate_causal(ROWS, 0))


@pytest.mark.parametrize("method", ["full", "lora", "prefix"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_language_models_are_trained_with_the_fused_loss(method, precision, monkeypatch):
    called = []

    def counted(*given: Any) -> torch.Tensor:
        called.append(given)
        return head_loss(*given)

    monkeypatch.setattr(losses, "head_loss", counted)
    result = run({**TEXT, "method": method, "precision": precision, "max_steps": 3, "checkpoint_steps": 0})
    assert len(called) == 4  # one to try whether it is the same
    assert result.evaluation.scores["loss"].tuned > 0


def test_short_trainings_are_not_compiled():
    assert run(TEXT).timings.training["compile"] == "off"


def test_auto_compiles_a_long_training_and_trains_without_a_compiler(monkeypatch):
    recipe, model = parse_recipe(TEXT), load_base(readers(tiny_llama())).causal_lm()
    monkeypatch.setattr(compiled, "_has_compiler", lambda: True)
    assert compiled.pays(recipe, model, 10**12)
    assert not compiled.pays(recipe, model, 10**6)
    monkeypatch.setattr(compiled, "_has_compiler", lambda: False)
    assert not compiled.pays(recipe, model, 10**12)


def test_compile_on_is_refused_in_words_where_nothing_can_be_compiled(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Misuse, match="compiler"):
        run({**TEXT, "compile": "on"})


def test_a_compiler_that_fails_leaves_auto_to_train_without(monkeypatch):
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no code may be loaded here")

    monkeypatch.setattr(compiled, "pays", lambda *args: True)
    monkeypatch.setattr("cloister.workload.training.fast.pays", lambda *args: True)
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: fail)
    result = run(TEXT)
    assert result.timings.training["compile"] == "off"
    assert result.evaluation.scores["loss"].gain > 0


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "adafactor"])
def test_every_optimizer_learns_and_resumes_bit_for_bit(optimizer):
    recipe = {**TEXT, "optimizer": optimizer}
    whole, killed = run(recipe), MemorySink(stop_at=10)
    with pytest.raises(InterruptedError):
        run(recipe, killed)
    states = [whole.model.state_dict(), run(recipe, killed).model.state_dict()]
    assert whole.evaluation.scores["loss"].gain > 0
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_compiled_training_resumes_bit_for_bit(method):
    recipe = {**TEXT, "method": method, "compile": "on"}
    whole, killed = run(recipe), MemorySink(stop_at=10)
    assert whole.timings.training["compile"] == "on"
    with pytest.raises(InterruptedError):
        run(recipe, killed)
    states = [whole.model.state_dict(), run(recipe, killed).model.state_dict()]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    plain = run({**recipe, "compile": "off"}).model.state_dict()
    assert all(torch.allclose(plain[name], states[0][name], atol=1e-2) for name in plain)


def test_an_8_bit_optimizer_goes_on_from_a_checkpoint_as_if_nothing_had_been():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    # It remembers by the numbers of objects which weights another training kept in 32 bits; new ones get old numbers.
    bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()
    torch.manual_seed(0)
    steps = [torch.randn(16, 512) for _ in range(4)]  # enough numbers for 8 bits

    def made(start: torch.Tensor) -> tuple[Any, Any, Any]:
        weight = torch.nn.Parameter(start.clone())
        optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=0.01)
        return weight, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def learn(made: tuple[Any, Any, Any], gradients: list[torch.Tensor]) -> torch.Tensor:
        weight, optimizer, scheduler = made
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
            scheduler.step()
        return weight.detach().clone()

    first = made(torch.randn(16, 512))
    learn(first, steps[:2])
    parts, header = capture({"weight": first[0]}, *first[1:], step=2, identity={})
    assert any(tensor.dtype == torch.uint8 for tensor in parts["optimizer"].values())
    second = made(first[0].detach())
    kept = {name: tensor.clone() for name, tensor in parts["optimizer"].items()}
    restore_optimizer(*second[1:], SavedState(header, kept, {}, {}))
    assert torch.equal(learn(first, steps[2:]), learn(second, steps[2:]))
