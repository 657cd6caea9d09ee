"""The forecast against what transformers builds, what is stored, and what can be said without measuring: larger takes
more, and what a recipe asks for shows in the part that it is about."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.contracts.forecast import Forecast, Machine, Rows, Shape, forecast, read_shape, trained
from cloister.contracts.recipe import parse_recipe
from cloister.errors import CloisterError, Malformed, Misuse

LLAMA = {
    "model_type": "llama", "vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8,
    "intermediate_size": 704, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
SEVEN = {**LLAMA, "vocab_size": 32_000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
         "intermediate_size": 11_008, "max_position_embeddings": 4096, "tie_word_embeddings": False}  # fmt: skip
ROWS = Rows(1000, 64.0, 0.0, 64, measured=500)
METHODS = ("scratch", "full", "lora", "qlora", "ia3", "prefix", "prompt", "ptuning")


def recipe(method: str = "lora", **more: Any) -> Any:
    head = {"task": "generation", "data": "a/b", "base": "c/d", "columns": {"completion": "text"}, "precision": "fp32"}
    return parse_recipe({**head, "method": method, **more})


def seen(method: str = "lora", config: dict[str, Any] = LLAMA, machine: Machine | None = None, **more: Any) -> Forecast:
    return forecast(recipe(method, **more), read_shape(config), ROWS, machine or Machine())


FAMILIES = """gemma gemma2 gpt2 gpt_neox granite llama mistral olmo2 opt phi phi3 qwen2 qwen3 smollm3 starcoder2 bert
deberta-v2 distilbert electra modernbert mpnet roberta"""


@pytest.mark.parametrize("family", FAMILIES.split())
def test_the_parameters_are_those_that_transformers_builds(family: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = AutoConfig.for_model(family)
    shape = read_shape(json.loads(config.to_json_string(use_diff=True)))
    with torch.device("meta"):
        built = (AutoModel if shape.block == "encoder" else AutoModelForCausalLM).from_config(config)
    assert shape.total == pytest.approx(sum(p.numel() for p in built.parameters()), rel=0.01)
    assert sum(shape.parts().values()) == shape.total


@pytest.mark.parametrize("method", ["lora", "ia3", "prefix", "prompt", "ptuning"])
def test_what_is_trained_is_what_peft_trains(method: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    from cloister.workload.training.adapters import add_adapter

    config = {**LLAMA, "num_hidden_layers": 2}
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        model = add_adapter(base, recipe(method), causal=True)
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained(recipe(method), read_shape(config)) == pytest.approx(learned, rel=0.02)


def test_parts_are_what_is_known_of_them() -> None:
    shape = read_shape(LLAMA)
    full = seen("full").memory.parts
    assert full["weights"] == 4 * shape.total
    assert full["optimizer"] == 8 * shape.total
    assert full["checkpoint"] == 12 * shape.total
    assert seen("full", checkpoint_steps=0).memory.parts["checkpoint"] == 0
    assert seen("full", optimizer="adamw_8bit").memory.parts["optimizer"] < full["optimizer"] / 3.9
    assert seen("qlora").memory.parts["quantization"] < shape.linear * 0.55
    assert seen("qlora").memory.parts["weights"] < 2 * 4 * shape.embeddings


@pytest.mark.parametrize("method", METHODS)
def test_more_of_anything_never_takes_less(method: str) -> None:
    usual = seen(method)
    wider = seen(method, {**LLAMA, "hidden_size": 512})
    longer = forecast(recipe(method), read_shape(LLAMA), Rows(1000, 128.0, 0.0, 128), Machine())
    assert wider.memory.total > usual.memory.total
    assert longer.memory.total >= usual.memory.total
    assert longer.duration.flops > usual.duration.flops
    assert seen(method, batch_size=64).memory.total > usual.memory.total
    assert usual.memory.total - usual.memory.above == usual.memory.parts["process"]


def test_smaller_batches_in_one_step_take_less_and_learn_from_as_much() -> None:
    whole, pieces = seen(batch_size=32), seen(batch_size=4, gradient_accumulation=8)
    assert pieces.memory.total < whole.memory.total
    assert (pieces.duration.tokens, pieces.duration.steps) == (whole.duration.tokens, whole.duration.steps)


def test_checkpointing_takes_less_memory_and_more_time() -> None:
    kept, twice = seen(batch_size=64), seen(batch_size=64, gradient_checkpointing=True)
    assert twice.memory.parts["activations"] < kept.memory.parts["activations"] / 2
    assert twice.duration.flops > kept.duration.flops * 1.2


def test_seven_billion_lie_where_the_parts_say() -> None:
    """8-bit states, checkpointing and the fused loss: weights and gradients in float32 are what is left of full."""
    more = {"batch_size": 1, "max_length": 2048, "optimizer": "adamw_8bit", "gradient_checkpointing": True}
    gpu = Machine(gpu=True, bf16=True)
    size = {m: seen(m, SEVEN, gpu, **more).memory.above / 1e9 for m in ("full", "qlora")}
    assert 60 < size["full"] < 160
    assert 4 < size["qlora"] < 12


def test_time_is_a_range_that_a_measured_speed_narrows() -> None:
    least, most = seen().duration.seconds
    near = seen(machine=Machine(flops=1e11)).duration.seconds
    assert 0 < least < most
    assert near[1] / near[0] < most / least * 1.01
    assert seen(max_steps=1).duration.tokens < seen().duration.tokens


def test_a_partys_own_program_has_no_forecast() -> None:
    script = parse_recipe({"task": "script", "method": "script", "data": "a/b", "base": "c/d"})
    with pytest.raises(Misuse) as caught:
        forecast(script, read_shape(LLAMA), ROWS, Machine())
    assert caught.value.code == "recipe.forecast"


BROKEN = (None, [], {}, {"model_type": 3}, {"model_type": "llama"}, {**LLAMA, "vocab_size": 0},
          {**LLAMA, "hidden_size": True}, {**LLAMA, "head_dim": "x"})  # fmt: skip


@pytest.mark.parametrize("config", BROKEN)
def test_a_config_that_is_none_is_malformed(config: Any) -> None:
    with pytest.raises(Malformed):
        read_shape(config)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*LLAMA, "head_dim", "num_key_value_heads", "dtype"]),
        st.none()
        | st.booleans()
        | st.integers(-5, 1 << 40)
        | st.text(max_size=5)
        | st.lists(st.integers(), max_size=2),
    )
)
def test_any_config_gives_a_shape_or_our_error(changed: dict[str, Any]) -> None:
    try:
        shape = read_shape({**LLAMA, **changed})
    except CloisterError:
        return
    assert isinstance(shape, Shape)
    assert forecast(recipe(), shape, ROWS, Machine()).memory.total > 0


def test_rows_are_counted_cut_and_packed() -> None:
    rows = Rows.of([10, 20, 30])
    assert (rows.count, rows.mean, rows.longest) == (3, 20.0, 30)
    assert rows.cut(15).longest == 15
    assert rows.cut(15).mean == 15
    assert Rows(9, 20.0, 0.0, 30).together(3, 30) == 60
    assert rows.together(3, 30) <= 90


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, numpy=None)\n"
        "import cloister.contracts.forecast, cloister.client.recipes"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_benchmark_knows_every_method_and_the_fields_table() -> None:
    from benchmarks import memory_forecast as bench

    assert {m["method"] for m in bench.METHODS.values()} == set(METHODS)
    for method in bench.METHODS:
        assert bench.foretold("5M", method) > 0
    for method in bench.FIELD:
        assert bench.of_seven_billion(method) > 0
