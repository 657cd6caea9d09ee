"""A base in 4 bits: it takes a fraction of the memory, it learns, it resumes, its release opens as it was measured."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from cloister.contracts.recipe import parse_recipe
from cloister.errors import Misuse
from cloister.workload.data import read_table
from cloister.workload.training import export_files, load_base, run_training, usage_snippet
from cloister.workload.training.precision import training_precision
from cloister.workload.training.quantized import FourBitLinear, held_bytes
from tests.tiny_models import MemorySink, Recorder, banking_csv, readers, tiny_bert, tiny_llama
from tests.tiny_models import _weights as weights_of
from tests.unit.test_workload_training_export import RUNNER, ours

COMMON = {
    "method": "qlora", "data": "bank/queries", "base": "lab/tiny", "threads": 1, "precision": "fp32", "batch_size": 8,
    "epochs": 2, "learning_rate": "0.01", "checkpoint_steps": 0,
}  # fmt: skip


def wide_bert(width=64):
    """As ``tiny_bert``, with layers wide enough for 4 bits."""
    from transformers import BertConfig, BertModel

    config = BertConfig(**{**json.loads(tiny_bert()["config.json"]), "hidden_size": width, "intermediate_size": 256})
    torch.manual_seed(1)
    files = {"config.json": json.dumps(config.to_dict()).encode(), "model.safetensors": weights_of(BertModel(config))}
    return {**tiny_bert(), **files}


def wide_llama(*, tied=True):
    from transformers import LlamaConfig, LlamaForCausalLM

    given = json.loads(tiny_llama(tied=tied)["config.json"])
    given |= {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4, "head_dim": 16}
    config = LlamaConfig(**given)
    torch.manual_seed(2)
    files = {
        "config.json": json.dumps(config.to_dict()).encode(),
        "model.safetensors": weights_of(LlamaForCausalLM(config)),
    }
    return {**tiny_llama(), **files}


def wide_gpt2():
    """Its layers are transposed ones (Conv1D)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = json.loads(tiny_llama()["config.json"])["vocab_size"]
    config = GPT2Config(vocab_size=size, n_embd=64, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1)
    torch.manual_seed(2)
    files = {
        "config.json": json.dumps(config.to_dict()).encode(),
        "model.safetensors": weights_of(GPT2LMHeadModel(config)),
    }
    return {**tiny_llama(), **files}


def recipe_of(task="classification", **more):
    columns = {"completion": "text"} if task == "generation" else {"text": "text", "label": "label"}
    return parse_recipe({**COMMON, "task": task, "columns": columns, **more})


def run(recipe, files, sink=None):
    table = read_table({"q.csv": io.BytesIO(banking_csv(96))}, recipe.columns.names())
    port = Recorder()
    return run_training(recipe, load_base(readers(files)), table, sink=sink or MemorySink(), progress=port, lease=port)


def linears(model):
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize("files", [wide_bert(256), wide_llama(), wide_llama(tied=False)])
def test_the_linear_layers_take_less_than_a_fifth_of_the_memory(files):
    causal = "LlamaForCausalLM" in files["config.json"].decode()

    def built(**how):
        base = load_base(readers(files))
        return base.causal_lm(**how) if causal else base.encoder(**how)

    whole, held = built(), built(four_bits=True)
    names = {name for name, module in held.named_modules() if isinstance(module, FourBitLinear)}
    assert names == {name for name, module in whole.named_modules() if module in linears(whole)} - {"lm_head"}
    before, after = ([m for n, m in model.named_modules() if n in names] for model in (whole, held))
    # Half a byte a weight and an eighth of a bit for its scales, instead of four bytes; each layer has tables besides.
    tables = 2048 * len(names)
    assert held_bytes(after) < 0.2 * held_bytes(before) + tables
    assert not any(p.is_floating_point() and p.dim() > 1 for m in after for p in m.parameters())


def test_every_layer_stays_near_its_weights():
    base, rows = load_base(readers(wide_bert())).encoder(), torch.tensor([[5, 6, 7, 8, 9]])
    held = load_base(readers(wide_bert())).encoder(four_bits=True)
    with torch.no_grad():
        one, other = (m(input_ids=rows, attention_mask=torch.ones_like(rows)).last_hidden_state for m in (base, held))
    error = ((one - other).norm() / one.norm()).item()
    assert 0 < error < 0.1


CASES = {
    "bert": ({}, wide_bert),
    "llama": ({"task": "generation"}, wide_llama),
    "llama-bf16": ({"task": "generation", "precision": "bf16"}, lambda: wide_llama(tied=False)),
    "gpt2": ({"task": "generation", "gradient_checkpointing": True}, wide_gpt2),
}


@pytest.fixture(scope="module")
def results():
    return {case: run(recipe_of(**more), files()) for case, (more, files) in CASES.items()}


@pytest.mark.parametrize("case", CASES)
def test_it_learns_and_says_how_the_base_was_held(results, case):
    scores, facts = results[case].evaluation.scores, results[case].evaluation.facts
    if "accuracy" in scores:
        assert scores["accuracy"].tuned >= scores["accuracy"].base > 0.8
    else:
        assert scores["bits_per_byte"].gain > 0.01
    assert facts["base_held"] == "nf4"
    assert any(isinstance(module, FourBitLinear) for module in results[case].model.modules())


def test_only_the_adapter_learns_and_the_packed_weights_stay(results):
    model = results["llama"].model
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    fresh = load_base(readers(wide_llama())).causal_lm(four_bits=True)
    packed = [m.weight for m in model.modules() if isinstance(m, FourBitLinear)]
    assert all(torch.equal(a, b.weight) for a, b in zip(packed, filter(is_four_bits, fresh.modules()), strict=True))


def is_four_bits(module):
    return isinstance(module, FourBitLinear)


def test_training_in_bfloat16_leaves_what_is_packed_alone():
    model = load_base(readers(wide_llama())).causal_lm(four_bits=True)
    before = [m.weight.clone() for m in filter(is_four_bits, model.modules())]
    with training_precision(model, True):
        assert all(m.weight.dtype == torch.uint8 for m in filter(is_four_bits, model.modules()))
    assert all(torch.equal(a, m.weight) for a, m in zip(before, filter(is_four_bits, model.modules()), strict=True))


@pytest.mark.parametrize(("task", "files"), [("classification", wide_bert), ("generation", wide_llama)])
def test_a_resumed_run_is_bit_identical(task, files):
    recipe = recipe_of(task, checkpoint_steps=4, max_steps=7)
    whole, sink = run(recipe, files()), MemorySink(4)
    with pytest.raises(InterruptedError):
        run(recipe, files(), sink)
    sink.stop_at = None
    assert export_files(run(recipe, files(), sink)) == export_files(whole)


def test_the_release_opens_in_the_same_four_bits(results, tmp_path):
    """Stock libraries use a kernel in bfloat16 on some CPUs, so their logits are ours to within its rounding."""
    for case in ("bert", "llama"):
        for folder, files in (("", export_files(results[case])), ("base/", CASES[case][1]())):
            for name, data in files.items():
                target = tmp_path / case / folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
        snippet = usage_snippet(results[case])
        assert len([line for line in snippet.splitlines() if line.strip()]) <= 16
        assert "load_in_4bit" in snippet
        (tmp_path / case / "snippet.py").write_text(snippet)
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *(str(tmp_path / case) for case in ("bert", "llama"))],
        capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for case in ("bert", "llama"):
        theirs, mine = np.load(tmp_path / case / "logits.npy"), ours(results[case])
        assert np.abs(theirs - mine).max() < 0.02 * np.abs(mine).max(), case


def test_a_base_of_odd_widths_is_refused_before_it_is_loaded():
    with pytest.raises(Misuse) as caught:
        load_base(readers(tiny_bert())).encoder(four_bits=True)
    assert caught.value.code == "model.quantize"
    assert "64" in str(caught.value)


@pytest.mark.parametrize(
    ("more", "key"), [({"sharding": "fsdp"}, "sharding"), ({"qlora": {"dora": True}}, "qlora.dora")]
)
def test_combinations_that_cannot_work_are_refused(more, key):
    with pytest.raises(Misuse) as caught:
        recipe_of(**more)
    assert caught.value.code == "recipe.combination"
    assert caught.value.details["key"] == key
