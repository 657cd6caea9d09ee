"""What does differential privacy cost a training step? Private and plain steps of the same batches, in turn.

    python -m benchmarks.dp_overhead [--rounds 12] [--rows 32] [--tokens 256]

``lora_ratio``: the time of a private LoRA step over a plain one's, medians of all-MiniLM, equal batches of equally long
rows; ``llama_lora_ratio`` the same of a small Llama. ``full_ratio``: of all weights, by ghost clipping;
``full_hooks_ratio``: by gradients a row. Both sides are the product's own trainers, in float32, without packing and
without compiling, and a private step holds all that it does: clipping, drawing the noise, adding it. Memory: how far
the process's peak rose above that before the first step (``peak_*_mib``), each way in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from cloister.node.profile import DEFAULT_ENV

from . import result_line, say

NAME = "dp_overhead"
BASELINE = "the product's own trainer on the same batches without privacy, interleaved step by step"
ROOT = Path(__file__).resolve().parents[1]
# Base, method, way of clipping; None: without privacy, for its memory.
SIDES = {
    "lora": ("minilm", "lora", "hooks"),
    "llama_lora": ("llama", "lora", "hooks"),
    "full": ("minilm", "full", "ghost"),
    "full_hooks": ("minilm", "full", "hooks"),
    "full_plain": ("minilm", "full", None),
}


def _parts(base: str, method: str, rows: int, tokens: int, *, private: bool) -> tuple[Any, Any, list[Any], Any]:
    """Model, recipe, rows of one length, and how they are put together."""
    import torch

    from cloister.contracts import parse_recipe
    from cloister.workload.training.adapters import add_adapter
    from cloister.workload.training.batching import Row, collate_causal, collate_labelled

    labelled = base == "minilm"
    recipe = parse_recipe({
        "task": "classification" if labelled else "generation", "method": method, "data": "bench/rows",
        "base": f"bench/{base}", "columns": {"text": "text", "label": "label"} if labelled else {"completion": "text"},
        "batch_size": rows, "max_length": tokens, "learning_rate": "0.0001", "checkpoint_steps": 1_000_000,
        "precision": "fp32", "packing": "off", "compile": "off", "epochs": 100, "max_steps": 100,
        **({"privacy": {}} if private else {}),
    })  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(1000, 4000, (rows * 4, tokens), generator=generator).tolist()
    found = [Row(tuple(ids), place % 7 if labelled else 0) for place, ids in enumerate(drawn)]
    torch.manual_seed(0)
    model = _minilm(recipe) if labelled else _llama(tokens)
    if labelled:
        model.encoder = add_adapter(model.encoder, recipe, causal=False)
    else:
        model = add_adapter(model, recipe, causal=True)
    return model, recipe, found, partial(collate_labelled if labelled else collate_causal, pad=0)


def _minilm(recipe: Any) -> Any:
    from cloister.demo.story import base_model_folder
    from cloister.workload.training import load_base
    from cloister.workload.training.heads import PooledClassifier, choose_pooling

    from ._bare import Folder

    folder = Folder.of(base_model_folder())
    base = load_base({path: folder.open(path) for path in folder.paths()})
    encoder: Any = base.encoder()
    return PooledClassifier(encoder, encoder.config.hidden_size, 7, choose_pooling(recipe.pooling, base))


def _llama(tokens: int) -> Any:
    """The 15-million-parameter shape: 6 layers, 288 wide."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=32000, hidden_size=288, num_hidden_layers=6, num_attention_heads=6, intermediate_size=768,
        max_position_embeddings=max(256, tokens), tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(shape)


class _Outside:
    def check(self) -> None: ...

    def on_loss(self, clear: Any) -> None: ...

    def report(self, stage: str, step: int, total: int, values: Any) -> None: ...

    def latest(self) -> None: ...

    def save(self, step: int, files: Any) -> None:
        raise AssertionError(f"no checkpoint is due, but one came at step {step}: {files}")


def _steps(side: str, rows: int, tokens: int, *, private: bool) -> Iterator[float]:
    """Seconds of one step after the other: gradients, noise, optimizer."""
    from cloister.workload.training.privacy import PrivateTrainer
    from cloister.workload.training.privacy.noise import NoiseSource
    from cloister.workload.training.trainer import SealedTrainer

    base, method, way = SIDES[side]
    model, recipe, found, collate = _parts(base, method, rows, tokens, private=private)
    outside: Any = {"sink": _Outside(), "progress": _Outside(), "lease": _Outside(), "bf16": False}
    named = {"recipe": "bench"}
    if private:
        trainer: Any = PrivateTrainer(
            model, recipe, found, collate, units=range(len(found)), identity=named, way=way, **outside
        )
        trainer._noise = NoiseSource.fresh(named)
        # Equal batches: as many rows as a step expects, instead of a number drawn anew for each.
        groups = [list(range(start, start + rows)) for start in range(0, len(found), rows)]
        trainer._noise = _Fixed(trainer._noise, groups)
        attached = trainer._sums.attached()
        attached.__enter__()
    else:
        trainer = SealedTrainer(model, recipe, found, collate, identity=named, **outside)
    trainer.create_optimizer()
    number = 0
    while True:
        batch = found[number % 4 * rows : (number % 4 + 1) * rows]
        trainer.state.global_step = number
        begun = time.perf_counter()
        inputs = {} if private else dict(collate(batch))
        model.train()
        trainer.current_gradient_accumulation_steps = 1
        trainer.training_step(model, inputs, None if private or base == "llama" else len(batch))
        if not private:
            trainer._clip_grad_norm(model)
        trainer.optimizer.step()
        model.zero_grad()
        yield time.perf_counter() - begun
        number += 1


class _Fixed:
    """The real noise, for batches that are given."""

    def __init__(self, real: Any, groups: list[list[int]]) -> None:
        self._groups = groups
        self.add_to = real.add_to

    def chosen(self, step: int, units: int, rate: float) -> list[int]:
        del units, rate
        return self._groups[(step - 1) % len(self._groups)]


def _compare(side: str, options: argparse.Namespace) -> dict[str, float]:
    plain = _steps(side, options.rows, options.tokens, private=False)
    private = _steps(side, options.rows, options.tokens, private=True)
    for _ in range(3):  # warm up
        next(plain), next(private)
    pairs = []
    for turn in range(options.rounds):  # first one, then the other first: what slows the machine favours none
        order = (plain, private) if turn % 2 else (private, plain)
        took = {id(one): next(one) for one in order}
        pairs.append((took[id(plain)], took[id(private)]))
    return {
        f"{side}_ratio": median(b for _, b in pairs) / median(a for a, _ in pairs),
        f"{side}_paired_ratio": median(b / a for a, b in pairs),
        f"{side}_plain_s": median(a for a, _ in pairs),
        f"{side}_private_s": median(b for _, b in pairs),
    }


def _memory(side: str, options: argparse.Namespace) -> dict[str, float]:
    from cloister.workload.training.watch import peak_memory

    steps = _steps(side, options.rows, options.tokens, private=SIDES[side][2] is not None)
    import gc

    gc.collect()
    before = _resident()
    for _ in range(3):
        next(steps)
    return {f"peak_{side}_mib": peak_memory() - before}


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def _in_its_own_process(side: str, what: str, options: argparse.Namespace) -> dict[str, float]:
    """With the sandbox's environment: glibc and OpenMP read it only when a process begins."""
    command = [sys.executable, "-B", "-m", f"benchmarks.{NAME}", "--side", side, "--what", what]
    command += ["--rounds", str(options.rounds), "--rows", str(options.rows), "--tokens", str(options.tokens)]
    done = subprocess.run(command, env=dict(DEFAULT_ENV), cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the measurement failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    for key, value in found.items():
        say(f"  {key} {value:.4f}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12, help="steps of each side, alternating")
    parser.add_argument("--rows", type=int, default=32, help="rows of a step")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a row")
    parser.add_argument("--side", choices=SIDES, help="one measurement in this process, figures as JSON")
    parser.add_argument("--what", choices=["time", "memory"], default="time")
    options = parser.parse_args()
    if options.side:
        print(json.dumps((_compare if options.what == "time" else _memory)(options.side, options)))
        return 0
    metrics: dict[str, float] = {}
    for side in ("lora", "full", "full_hooks", "llama_lora"):
        metrics |= _in_its_own_process(side, "time", options)
    for side in ("full_plain", "full", "full_hooks"):
        metrics |= _in_its_own_process(side, "memory", options)
    print(result_line(NAME, metrics, baseline=BASELINE, n=options.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
