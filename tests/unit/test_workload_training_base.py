"""Reading a base model from bytes."""

import io
import json
import math

import pytest
import torch

from cloister.contracts.recipe import parse_recipe
from cloister.errors import Malformed, Misuse
from cloister.workload.training import load_base
from cloister.workload.training.adapters import add_adapter, lora_targets
from cloister.workload.training.architectures import DECODERS, ENCODERS
from cloister.workload.training.heads import choose_pooling
from cloister.workload.training.tensors import read_tensors, write_tensors
from tests.tiny_models import readers, tiny_bert, tiny_llama


def test_weights_are_those_of_the_file():
    files = tiny_bert()
    model = load_base(readers(files)).encoder()
    stored = read_tensors("m", io.BytesIO(files["model.safetensors"]), len(files["model.safetensors"]))
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    assert not model.training


def test_sharded_weights_and_half_precision():
    files = dict(tiny_bert())
    tensors = read_tensors("m", io.BytesIO(files["model.safetensors"]), len(files.pop("model.safetensors")))
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):
        files[f"model-{number}.safetensors"] = write_tensors({n: tensors[n].bfloat16() for n in part})
    index = {name: f"model-{place % 2}.safetensors" for place, name in enumerate(names)}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()
    model = load_base(readers(files)).encoder()
    assert torch.equal(model.state_dict()[names[0]], tensors[names[0]].bfloat16().float())
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_special_tokens():
    assert load_base(readers(tiny_llama())).tokens.begin == 0
    assert load_base(readers(tiny_llama())).tokens.end == 1
    bert = load_base(readers(tiny_bert())).tokens
    assert (bert.begin, bert.end, bert.pad) == (None, None, 0)


def test_a_base_is_built_once():
    base = load_base(readers(tiny_bert()))
    base.encoder()
    with pytest.raises(Misuse) as caught:
        base.encoder()
    assert caught.value.code == "model.consumed"


def test_an_encoder_cannot_generate():
    with pytest.raises(Misuse) as caught:
        load_base(readers(tiny_bert())).causal_lm()
    assert caught.value.code == "model.task"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ("mean", True)),
        (
            {"1_Pooling/config.json": b'{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}'},
            ("first", True),
        ),
        ({"1_Pooling/config.json": b'{"pooling_mode": "mean"}'}, ("mean", True)),
        ({"1_Pooling/config.json": None}, ("first", False)),
        ({"1_Pooling/config.json": b'{"pooling_mode": "cls"}', "modules.json": None}, ("first", False)),
    ],
)
def test_pooling_is_the_one_it_was_trained_with(changed, expected):
    base = load_base(readers(tiny_bert(), **changed))
    chosen = choose_pooling("auto", base)
    assert (chosen.mode, chosen.normalize) == expected


def test_unknown_pooling_must_be_chosen():
    with pytest.raises(Misuse) as caught:
        load_base(readers(tiny_bert(), **{"1_Pooling/config.json": b'{"pooling_mode_max_tokens": true}'}))
    assert caught.value.code == "model.pooling"


def test_explicit_pooling_and_decoders():
    assert choose_pooling("first", load_base(readers(tiny_bert()))).mode == "first"
    assert choose_pooling("auto", load_base(readers(tiny_llama()))).mode == "mean"


def test_lora_targets_are_attention_and_mlp():
    assert lora_targets(load_base(readers(tiny_bert())).encoder()) == [
        "attention.output.dense", "attention.self.key", "attention.self.query", "attention.self.value",
        "intermediate.dense", "output.dense",
    ]  # fmt: skip
    assert lora_targets(load_base(readers(tiny_llama())).causal_lm()) == [
        "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj",
        "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj",
    ]  # fmt: skip


def test_named_targets_are_checked():
    text = "task: generation\nmethod: lora\ndata: a/b\nbase: a/c\ncolumns: {completion: t}\nlora: {targets: [q_proj]}"
    recipe = parse_recipe(text)
    model = add_adapter(load_base(readers(tiny_llama())).causal_lm(), recipe, causal=True)
    adapted = {name for name, p in model.named_parameters() if p.requires_grad}
    assert adapted
    assert all("q_proj.lora_" in name for name in adapted)
    with pytest.raises(Misuse) as caught:
        add_adapter(load_base(readers(tiny_bert())).encoder(), recipe, causal=False)  # a BERT has no q_proj
    assert caught.value.code == "recipe.targets"


def test_every_supported_architecture_exists_in_the_library():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    assert set(MODEL_MAPPING_NAMES) >= ENCODERS | DECODERS
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) >= DECODERS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_tensors_round_trip(dtype):
    tensors = {
        "b": torch.arange(6).reshape(2, 3).to(dtype),
        "a": torch.zeros(0, 4, dtype=dtype),
        "c": torch.ones((), dtype=dtype),
    }
    data = write_tensors(tensors, {"format": "pt"})
    found = read_tensors("t", io.BytesIO(data), len(data))
    assert set(found) == set(tensors)
    assert all(torch.equal(found[n], t) and found[n].dtype == dtype for n, t in tensors.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_no_weight_that_is_not_finite_is_overlooked(dtype):
    """In either half, and at each edge of what is searched at a time; and no finite one is refused."""
    size = 600_001
    limits = torch.finfo(dtype)
    sound = torch.linspace(limits.min / 2, limits.max / 2, size, dtype=torch.float64).to(dtype)
    sound[:4] = torch.tensor([limits.min, limits.max, limits.smallest_normal, -0.0], dtype=dtype)

    def read(tensor):
        data = write_tensors({"w": tensor})
        return read_tensors("m", io.BytesIO(data), len(data))["w"]

    assert torch.equal(read(sound), sound)
    for number, at in enumerate([0, size - 1, size // 2 - 1, size // 2, (1 << 19) // dtype.itemsize - 1]):
        bad = sound.clone()
        bad[at] = [math.nan, math.inf, -math.inf][number % 3]
        with pytest.raises(Malformed) as info:
            read(bad)
        assert info.value.code == "model.nan"
    with pytest.raises(Malformed):
        read(torch.tensor(-math.nan, dtype=dtype))


def test_trainer_hooks_still_exist_in_the_library():
    """SealedTrainer overrides these: were one renamed by an update, the plain Trainer's pickling one would run."""
    from transformers import Trainer

    from cloister.workload.training.trainer import SealedTrainer

    own = {"train_sealed", "facts", "_autocast", "_resume", "_state", "_prepare_checkpoints"}
    defined = {n for n, v in vars(SealedTrainer).items() if callable(v) and n != "__init__"}
    hooks = defined - own
    assert {"_inner_training_loop", "_save", "_save_checkpoint", "_load_rng_state"} <= hooks <= set(dir(Trainer))
    assert own <= defined
    assert not own & set(dir(Trainer))  # and none of ours takes the place of one of the library's
