"""Bases of two parts: the encoder reads the prompt, the decoder learns the completion."""

import json

import numpy as np
import pytest
import torch

from cloister.contracts.forecast import read_shape
from cloister.contracts.recipe import parse_recipe
from cloister.errors import Malformed, Misuse
from cloister.workload.data import Table
from cloister.workload.evaluation import Evaluation
from cloister.workload.text import explain_rows
from cloister.workload.training import export_files, load_base, run_training, usage_snippet
from cloister.workload.training.adapters import add_adapter
from cloister.workload.training.architectures import ENCODER_DECODERS
from cloister.workload.training.batching import IGNORED, Row, collate_answers, text_collate
from cloister.workload.training.precision import autocast, training_precision
from cloister.workload.training.predict import completion_losses
from cloister.workload.training.run import Timings, TrainingResult
from cloister.workload.training.seq2seq import answer_loss, halved
from cloister.workload.training.state import trainable_weights
from cloister.workload.training.tokenize import encode_answers, text_bytes
from tests.tiny_models import WORDS, MemorySink, Recorder, readers, tiny_bart, tiny_llama, tiny_t5

RECIPE = {
    "task": "generation", "method": "full", "data": "bank/queries", "base": "lab/tiny", "threads": 1,
    "columns": {"prompt": "ask", "completion": "answer"}, "batch_size": 8, "epochs": 2, "learning_rate": "0.01",
    "checkpoint_steps": 0, "precision": "fp32", "validation": "0.2",
}  # fmt: skip
GENERAL = [f"the {word} is late and the bank is not there" for word in WORDS[:20]]
ASK = [f"why was my {WORDS[k % 16]} {WORDS[(k * 5) % 20]} late {k}" for k in range(30)]
TABLE = Table({"ask": ASK, "answer": [f"please help {WORDS[k % 4]}" + " today" * (k % 3) for k in range(30)]})
BASES = {"t5": tiny_t5, "t5 v1.1": lambda: tiny_t5(tied=False), "bart": tiny_bart}


def recipe(**more):
    return parse_recipe({**RECIPE, **more})


def run(base, *, sink=None, **more):
    port = Recorder()
    return run_training(
        recipe(**more), load_base(readers(base)), TABLE, sink=sink or MemorySink(), progress=port, lease=port,
        general=GENERAL,
    )  # fmt: skip


def weights(result):
    return trainable_weights(result.model)


@pytest.mark.parametrize("base", BASES)
def test_completions_are_learned(base):
    result = run(BASES[base]())
    bits = result.evaluation.scores["bits_per_byte"]
    assert float(bits.tuned) < 0.8 * float(bits.base)
    assert {"packing": "off", "compile": "off"}.items() <= result.timings.training.items()
    assert result.evaluation.scores["general_loss"].base > 0  # a model that writes has such a loss


def test_an_answer_ends_where_it_was_seen_to_end():
    result = run(tiny_t5(), epochs=15)
    ids = result.base.tokenizer.encode(ASK[0]).ids
    written = result.model.generate(input_ids=torch.tensor([ids]), max_new_tokens=12)[0].tolist()
    assert (written[0], written[-1]) == (0, 1)  # the start and the end
    assert result.base.tokenizer.decode(written).startswith("please help")


def test_rows_are_a_prompt_that_is_read_and_a_completion_that_is_written():
    t5, bart = load_base(readers(tiny_t5())), load_base(readers(tiny_bart()))
    word = t5.tokenizer.token_to_id
    (row,) = encode_answers(t5, ["card lost"], ["bank fee"], 8)
    assert row == Row((word("card"), word("lost"), 1), 0, others=((word("bank"), word("fee"), 1),))
    (row,) = encode_answers(t5, ["card lost"], ["bank fee"], 8, ended=False)
    assert (row.others, row.target) == (((word("bank"), word("fee")),), 0)
    word = bart.tokenizer.token_to_id
    (row,) = encode_answers(bart, ["card"], ["fee"], 8)  # BART writes a begin token first, which it must learn
    assert row == Row((0, word("card"), 2), 0, others=((0, word("fee"), 2),))
    (row,) = encode_answers(bart, ["card"], ["fee"], 8, ended=False)  # but it is no part of the text
    assert (row.others, row.target) == (((0, word("fee")),), 1)
    assert text_bytes(bart, [row]).tolist() == [3]


def test_long_prompts_and_completions_are_cut_and_empty_ones_refused():
    base = load_base(readers(tiny_t5()))
    (row,) = encode_answers(base, ["card " * 50], ["fee " * 50], 8)
    assert (len(row.ids), row.ids[-1], len(row.others[0])) == (8, 1, 8)
    assert base.tokenizer.truncation is None
    with pytest.raises(Misuse) as caught:
        encode_answers(base, ["card"], [""], 8)
    assert caught.value.code == "data.blank"


def test_a_batch_hides_padding_and_what_is_not_learned():
    rows = [Row((5, 6, 1), 0, others=((7, 1),)), Row((5,), 1, others=((0, 7, 8, 1),))]
    batch = {name: tensor.tolist() for name, tensor in collate_answers(rows, 9, start=3).items()}
    assert batch == {
        "input_ids": [[5, 6, 1], [5, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "decoder_input_ids": [[3, 7, 1, 9], [3, 0, 7, 8]],
        "labels": [[7, 1, IGNORED, IGNORED], [IGNORED, 7, 8, 1]],
    }


@pytest.mark.parametrize("base", BASES)
def test_losses_are_those_of_the_library_row_by_row(base):
    """With the library's own shift of labels, one row at a time: no padding, no prediction of this project's."""
    loaded = load_base(readers(BASES[base]()))
    model = loaded.encoder_decoder()
    rows = encode_answers(loaded, TABLE.column("ask")[:6], TABLE.column("answer")[:6], 16)
    found = completion_losses(model, rows, loaded.tokens.pad, Recorder())
    for place, row in enumerate(rows):
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.others[0]])).loss
        assert found.nats[place] == pytest.approx(float(loss) * len(row.others[0]), rel=1e-4)
    assert found.tokens.tolist() == [len(row.others[0]) for row in rows]


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("lora", {}), ("lora", {"dora": True}), ("lora", {"rslora": True}), ("ia3", {}), ("prefix", {"tokens": 3}),
        ("prompt", {"tokens": 3}), ("ptuning", {"tokens": 3, "hidden": 8}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["t5", "umt5", "bart"])
def test_every_method_reaches_the_loss(kind, method, more):
    loaded = load_base(readers(tiny_bart() if kind == "bart" else tiny_t5(tied=kind == "t5", kind=kind)))
    torch.manual_seed(0)
    model = add_adapter(
        loaded.encoder_decoder(), recipe(method=method, **({method: more} if more else {})), causal=True
    )
    batch = text_collate(model)(encode_answers(loaded, ASK[:3], TABLE.column("answer")[:3], 16), loaded.tokens.pad)
    labels = batch.pop("labels")
    answer_loss(model(**batch), labels).backward()
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert learned
    # LoRA's A has no gradient before B moved, and nothing of the base has any.
    reached = [name for name, p in learned.items() if p.grad is not None and bool(p.grad.abs().sum() > 0)]
    assert len(reached) >= len(learned) / 2
    assert all(p.grad is None for name, p in model.named_parameters() if name not in learned)


def test_a_step_is_the_mean_over_all_its_tokens_however_it_is_cut():
    # All 24 training rows in one step: else other rows would share one, since each batch size has its own order.
    whole = run(tiny_t5(), max_steps=1, batch_size=24)
    cut = run(tiny_t5(), max_steps=1, batch_size=5, gradient_accumulation=5)
    first, second = weights(whole), weights(cut)
    assert all(torch.allclose(first[name], second[name], atol=1e-5) for name in first)


def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one():
    settings = {"method": "lora", "checkpoint_steps": 2, "max_steps": 3, "lora": {"dropout": "0.1"}}
    whole, sink = run(tiny_t5(), **settings), MemorySink(stop_at=2)
    with pytest.raises(InterruptedError):
        run(tiny_t5(), sink=sink, **settings)
    sink.stop_at = None
    resumed = run(tiny_t5(), sink=sink, **settings)
    assert resumed.timings.resumed_from == 2
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(whole).items())
    assert whole.evaluation.scores == resumed.evaluation.scores


def test_bfloat16_gradients_point_where_float32_gradients_do():
    loaded = load_base(readers(tiny_t5()))
    model = loaded.encoder_decoder()
    batch = text_collate(model)(encode_answers(loaded, ASK[:8], TABLE.column("answer")[:8], 16), 0)
    labels, found = batch.pop("labels"), []
    for bf16 in (False, True):
        model.zero_grad()
        with training_precision(model, bf16), autocast(torch.device("cpu"), bf16):
            answer_loss(model(**batch), labels).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.cosine_similarity(*found, dim=0) > 0.999


def test_general_text_is_read_by_halves_and_can_be_replayed():
    bart = load_base(readers(tiny_bart())).tokens
    assert halved([Row((0, 5, 6, 7), 0)], bart) == [Row((0, 5, 2), 1, others=((0, 6, 7),))]
    facts = run(tiny_bart(), max_steps=2, general="lab/prose", replay={"share": "0.25"}).evaluation.facts
    assert facts["replay_rows"] == 4


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"columns": {"completion": "answer"}}, "model.task"),
        ({"task": "text", "columns": {"text": "answer"}}, "model.task"),
        ({"task": "chat", "columns": {"messages": "answer"}}, "model.task"),
        (
            {"task": "preference", "columns": {"prompt": "ask", "chosen": "answer", "rejected": "general"}},
            "model.task",
        ),
        ({"task": "classification", "columns": {"text": "ask", "label": "answer"}}, "model.task"),
        ({"method": "qlora"}, "recipe.combination"),
        ({"privacy": {}, "checkpoint_steps": 1, "precision": "auto"}, "recipe.combination"),
        ({"packing": "on"}, "recipe.combination"),
        ({"compile": "on"}, "recipe.combination"),
        ({"general": "lab/prose", "ewc": {"strength": 1}}, "recipe.combination"),
    ],
)
def test_what_an_encoder_decoder_cannot_do_is_refused_before_anything_is_done(more, code):
    with pytest.raises(Misuse) as caught:
        run(tiny_t5(), **more)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "change", [{"is_encoder_decoder": False}, {"decoder_start_token_id": 999}, {"decoder_layers": 9999}]
)
def test_configs_that_deny_what_they_are_are_refused(change):
    config = {**json.loads(tiny_bart()["config.json"]), **change}
    with pytest.raises(Malformed) as caught:
        load_base(readers(tiny_bart(), config__json=json.dumps(config).encode())).encoder_decoder()
    assert caught.value.code == "model.config"


def test_a_decoder_that_calls_itself_an_encoder_decoder_is_treated_as_what_it_is():
    config = {**json.loads(tiny_llama()["config.json"]), "is_encoder_decoder": True}
    base = load_base(readers(tiny_llama(), config__json=json.dumps(config).encode()))
    assert not base.is_encoder_decoder
    assert "decoder_input_ids" not in text_collate(base.causal_lm())([Row((1, 2), 1)], 0)


def test_an_owner_sees_which_tokens_are_learned():
    columns = {"ask": ["card lost"], "answer": ["bank fee"]}
    (row,) = explain_rows(recipe(), tiny_t5(), columns)
    assert [(token.text, token.learned) for token in row] == [
        ("card", False), ("lost", False), ("</s>", False), ("bank", True), ("fee", True), ("</s>", True),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # PEFT uses the older name
@pytest.mark.parametrize(
    ("method", "more", "base"),
    [
        ("full", {}, lambda: tiny_t5(tied=False)), ("ia3", {}, lambda: tiny_t5(tied=False, kind="umt5")),
        ("prefix", {"tokens": 4}, tiny_t5), ("prefix", {"tokens": 4}, tiny_bart), ("prompt", {"tokens": 4}, tiny_bart),
        ("ptuning", {"tokens": 4, "hidden": 8}, tiny_t5),
    ],
)  # fmt: skip
def test_what_is_released_opens_by_the_cards_lines(method, more, base, tmp_path, monkeypatch):
    """Those of other methods run without this project, in ``test_workload_training_export``."""
    loaded = load_base(readers(base()))
    asked = recipe(method=method, **({method: more} if more else {}))
    model = add_adapter(loaded.encoder_decoder(), asked, causal=True)
    with torch.no_grad():
        for parameter in trainable_weights(model).values():
            parameter.add_(torch.randn_like(parameter) / 50)  # as if it had learned
    none = np.zeros(0)
    result = TrainingResult(asked, loaded, model.eval(), Evaluation({}, {}), {"rows": none}, 16, None, None, Timings())
    for folder, files in (("", export_files(result)), ("base/", base())):
        for name, data in files.items():
            target = tmp_path / folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(usage_snippet(result), names)
    ids = torch.tensor([loaded.tokenizer.encode("what is to be answered").ids])
    with torch.no_grad():
        ours = model(ids, torch.ones_like(ids), decoder_input_ids=names["start"]).logits
        untuned = load_base(readers(base())).encoder_decoder()(ids, decoder_input_ids=names["start"]).logits
    assert torch.allclose(names["logits"], ours, atol=1e-5)
    assert not torch.allclose(names["logits"], untuned, atol=1e-5)


def test_no_forecast_is_made_of_what_was_not_measured():
    for kind in ENCODER_DECODERS:
        with pytest.raises(Misuse, match="not forecast") as caught:
            read_shape({"model_type": kind})
        assert caught.value.code == "model.architecture"


def test_the_architectures_exist_in_the_library():
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

    assert set(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES) >= ENCODER_DECODERS
