"""One side of the training benchmark, as a process of its own: ours, transformers' Trainer, or TRL's SFTTrainer.

All train by a loop of transformers' Trainer, whose ``training_step`` is where the turns are taken: after every few
steps a side writes what it did to stdout, and waits for a line on stdin before it goes on. The clock runs from the
line until the first step of the next turn would begin, so everything that a step costs is in it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ._training_data import LENGTH, Work, opened, table

__all__ = ["main"]

SIDES = ("ours", "trainer", "trl")
TRL_BATCH_TOKENS = LENGTH  # of one packed row


@dataclass
class Turns:
    """Counts real tokens (all but padding) and takes turns of ``steps`` steps."""

    steps: int
    out: Any
    done: int = 0
    tokens: int = 0
    started: float = 0.0
    worked: float = 0.0
    before: float = 0.0  # what was spent on compiling before the first step

    def step(self, inputs: Mapping[str, Any]) -> None:
        if self.done % self.steps == 0:
            now = time.perf_counter()
            if self.done:
                cpu = time.process_time() - self.worked
                self.say(seconds=now - self.started, cpu=cpu, tokens=self.tokens, before=self.before)
            self.tokens = 0
            sys.stdin.readline()
            self.started, self.worked = time.perf_counter(), time.process_time()
        self.done += 1
        mask = inputs.get("attention_mask")
        ids = inputs["input_ids"]
        self.tokens += int(mask.sum()) if mask is not None and mask.shape == ids.shape else ids.numel()

    def say(self, **what: Any) -> None:
        print(json.dumps(what), file=self.out, flush=True)


def hook(cls: Any, turns: Turns) -> None:
    """Every step of a trainer of class ``cls`` goes through ``turns``."""
    plain = cls.training_step

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        turns.step(inputs)
        return plain(self, model, inputs, *args, **kwargs)

    cls.training_step = training_step


class Silent:
    """Ports that keep nothing and lose nothing."""

    def save(self, *told: Any) -> None:
        raise AssertionError(f"no checkpoints were asked for, but one came: {told}")

    def latest(self) -> None:
        return None

    def report(self, *told: Any) -> None: ...

    def check(self) -> None: ...

    def on_loss(self, clear: Any) -> None: ...


def ours(work: Work, turns: Turns, compiled: bool) -> Any:
    from cloister.workload.data import Split
    from cloister.workload.training import compiled as compiling
    from cloister.workload.training import load_base, run_training
    from cloister.workload.training.trainer import SealedTrainer

    hook(SealedTrainer, turns)
    tried = compiling._tried

    def timed(step: Any) -> bool:
        began = time.perf_counter()
        works = tried(step)
        turns.before = time.perf_counter() - began
        return works

    compiling._tried = timed
    recipe = work.recipe(compiled=compiled)
    rows = table(work, "training.csv", recipe.columns.names())
    base = load_base(opened(work.base), weights=work.kind != "scratch")
    numbers = range(len(rows.column(recipe.columns.names()[0])))
    split = Split(tuple(numbers), tuple(numbers[:20]))  # the loss that counts is measured by ``loss``, for all alike
    quiet = Silent()
    result = run_training(recipe, base, rows, sink=quiet, progress=quiet, lease=quiet, split=split)
    return result.model


def language_rows(work: Work, name: str, *, ended: bool) -> Any:
    """The base, and the rows of a file as Cloister encodes them."""
    from cloister.workload.training import load_base
    from cloister.workload.training.tokenize import encode_documents

    recipe = work.recipe(compiled=False)
    base = load_base(opened(work.base), weights=work.kind != "scratch")
    texts = table(work, name, recipe.columns.names()).column("dialogue")
    return base, encode_documents(base.tokenizer, base.tokens, texts, LENGTH, ended=ended)


def arguments(work: Work, steps: int, compiled: bool) -> dict[str, Any]:
    recipe = work.recipe(compiled=compiled)
    return {
        "output_dir": os.environ["TMPDIR"], "max_steps": steps, "per_device_train_batch_size": work.batch,
        "learning_rate": float(recipe.learning_rate), "weight_decay": float(recipe.weight_decay),
        "lr_scheduler_type": "linear", "warmup_steps": -(-steps * 6 // 100), "max_grad_norm": 1.0, "seed": work.seed,
        "save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, "torch_compile": compiled,
        "logging_steps": 10,
    }  # fmt: skip


def start(work: Work, base: Any) -> Any:
    """The model as ours begins: the same weights, the same adapter."""
    import torch

    from cloister.workload.training.adapters import add_adapter

    recipe = work.recipe(compiled=False)
    model = base.fresh_causal_lm(work.seed) if work.kind == "scratch" else base.causal_lm()
    torch.manual_seed(work.seed)
    return add_adapter(model, recipe, causal=True)


def trainer(work: Work, turns: Turns, compiled: bool) -> Any:
    """transformers' Trainer with dynamic padding in float32."""
    from transformers import Trainer, TrainingArguments

    from cloister.workload.training.batching import Rows, collate_causal

    base, rows = language_rows(work, "training.csv", ended=True)
    steps = work.epochs * -(-len(rows) // work.batch)
    hook(Trainer, turns)
    model = start(work, base)
    Trainer(
        model, TrainingArguments(**arguments(work, steps, compiled), remove_unused_columns=False),
        partial(collate_causal, pad=base.tokens.pad), Rows(rows),
    ).train()  # fmt: skip
    return model


def trl(work: Work, turns: Turns, compiled: bool) -> Any:
    """TRL's SFTTrainer with its packing, in bfloat16 as ours. Its rows are packed ones, about as many tokens a step."""
    import transformers
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    base, rows = language_rows(work, "training.csv", ended=True)
    tokens = sum(len(row.ids) for row in rows)
    batch = max(1, round(tokens / len(rows) * work.batch / TRL_BATCH_TOKENS))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=base.tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    steps = work.epochs * -(-tokens // (batch * TRL_BATCH_TOKENS))
    own = arguments(work, steps, compiled) | {"per_device_train_batch_size": batch}
    config = SFTConfig(**own, bf16=True, packing=True, max_length=LENGTH, dataset_num_proc=None)
    hook(SFTTrainer, turns)
    model = start(work, base)
    SFTTrainer(
        model, args=config, train_dataset=Dataset.from_dict({"input_ids": [list(row.ids) for row in rows]}),
        processing_class=tokenizer,
    ).train()  # fmt: skip
    return model


def classifier(work: Work, turns: Turns, compiled: bool) -> Any:
    """transformers' Trainer on a classifier of its own, with dynamic padding in float32."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    from cloister.workload.training import load_base
    from cloister.workload.training.adapters import lora_targets
    from cloister.workload.training.batching import Rows, collate_labelled
    from cloister.workload.training.tokenize import encode_labelled

    recipe = work.recipe(compiled=False)
    base = load_base(opened(work.base))
    found = table(work, "training.csv", recipe.columns.names())
    names = found.column("section_header")
    kinds = sorted(set(names))
    rows = encode_labelled(base.tokenizer, found.column("dialogue"), [kinds.index(n) for n in names], recipe.max_length)
    torch.manual_seed(work.seed)
    model: Any = AutoModelForSequenceClassification.from_pretrained(work.base, num_labels=len(kinds), dtype="float32")
    if recipe.method == "lora":
        settings = recipe.adapter
        model = get_peft_model(model, LoraConfig(
            r=settings.rank, lora_alpha=settings.alpha, lora_dropout=float(settings.dropout),
            target_modules=lora_targets(model), modules_to_save=["classifier"],
        ))  # fmt: skip
    hook(Trainer, turns)
    steps = work.epochs * -(-len(rows) // work.batch)
    Trainer(
        model, TrainingArguments(**arguments(work, steps, compiled), remove_unused_columns=False),
        partial(collate_labelled, pad=base.tokens.pad), Rows(rows),
    ).train()  # fmt: skip
    return model


def loss(work: Work, model: Any) -> float:
    """Nats a token on the validation rows, in float32, by the same code for all."""
    from cloister.workload.training.predict import completion_losses

    base, rows = language_rows(work, "validation.csv", ended=True)
    found = completion_losses(model, rows, base.tokens.pad, Silent())
    return float(found.nats.sum() / found.tokens.sum())


def main(order: str) -> None:
    plan = json.loads(order)
    work, side, compiled = Work(**plan["work"]), plan["side"], plan["compiled"]
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print
    turns = Turns(plan["steps"], out)
    if side == "trainer" and work.classifies:
        model = classifier(work, turns, compiled)
    else:
        model = {"ours": ours, "trainer": trainer, "trl": trl}[side](work, turns, compiled)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    turns.say(ended=True, peak=peak, loss=None if work.classifies else loss(work, model))


if __name__ == "__main__":
    main(sys.argv[1])
