"""How near is the forecast of memory? Every method is trained on Llama shapes of three sizes, each run in a process of
its own under the sandbox's settings, and its highest resident size above the bare process compared with what
``cloister.contracts.forecast`` said from the config.json alone.

    python -m benchmarks.memory_forecast [--sizes 5M,15M,60M] [--methods lora,full] [--measured FILE]

``worst_error`` is the largest |forecast / measured - 1|, ``forecast_ratio`` the median of forecast over measured.
Beside them: the forecast for a base of Llama-2-7B's shape, 2,048 tokens a batch, with 8-bit optimizer states, gradient
checkpointing where the method allows it and the fused loss, in GB of GPU memory. That formula was not measured: no GPU
was there. ``--measured`` keeps the measurements, one a line, and takes those that are there already.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from cloister.contracts.forecast import Machine, Rows, forecast, read_shape
from cloister.contracts.recipe import parse_recipe
from cloister.node.profile import DEFAULT_ENV

from . import result_line, say
from ._memory_run import text

NAME = "memory_forecast"
BASELINE = "the highest resident size of the real training above the bare process, VmHWM of Linux"
ROOT = Path(__file__).resolve().parents[1]
TOKENS, BATCH, ROWS, STEPS = 64, 8, 36, 4
GENERAL = 100  # tokens of a general text; half of ten are measured in one batch

METHODS: Mapping[str, Mapping[str, Any]] = {
    **{name: {"method": name} for name in ("scratch", "full", "lora", "qlora", "ia3", "prefix", "prompt", "ptuning")},
    "dora": {"method": "lora", "lora": {"dora": True}},
    "rslora": {"method": "lora", "lora": {"rslora": True}},
}
# Bytes of the field's own tables for 7 billion parameters, (least, most).
FIELD = {"full": (160, 320), "lora": (16, 24), "qlora": (8, 12), "prefix": (14, 18), "prompt": (14, 18)}


def _config(
    width: int, layers: int, inner: int, heads: int, vocabulary: int = 4096, *, tied: bool = True
) -> dict[str, Any]:
    return {
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads, "intermediate_size": inner,
        "max_position_embeddings": 1024, "tie_word_embeddings": tied, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip


TINY = _config(64, 2, 64, 2, 128)
SIZES = {"5M": _config(256, 6, 704, 8), "15M": _config(384, 8, 1024, 6), "60M": _config(640, 12, 1728, 10)}
SEVEN = {**_config(4096, 32, 11_008, 32, 32_000, tied=False), "max_position_embeddings": 4096}


def recipe_of(method: str, **more: Any) -> dict[str, Any]:
    return {
        "task": "generation", "data": "bench/rows", "base": "bench/base", "columns": {"completion": "text"},
        "batch_size": BATCH, "max_steps": STEPS, "max_length": 1024, "precision": "fp32", "threads": 2,
        **METHODS[method], **more,
    }  # fmt: skip


def foretold(size: str, method: str) -> int:
    """Bytes above the bare process."""
    rows = Rows(ROWS, TOKENS, 0.0, TOKENS, measured=GENERAL * 5)
    return forecast(parse_recipe(recipe_of(method)), read_shape(SIZES[size]), rows, Machine()).memory.above


def of_seven_billion(method: str) -> float:
    """GB of a GPU's memory, everything in it."""
    more = {"batch_size": 1, "max_length": 2048, "precision": "bf16", "optimizer": "adamw_8bit"}
    recipe = parse_recipe(recipe_of(method, **more, gradient_checkpointing=method != "prefix"))
    rows = Rows(10_000, 2048.0, 0.0, 2048)
    return forecast(recipe, read_shape(SEVEN), rows, Machine(gpu=True, bf16=True)).memory.above / 1e9


@contextmanager
def _runner() -> Iterator[Any]:
    command = [sys.executable, "-B", "-m", "benchmarks._memory_run"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=dict(DEFAULT_ENV), cwd=ROOT, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        written, read = process.stdin, process.stdout

        def ask(order: Mapping[str, Any]) -> Any:
            written.write(json.dumps(order) + "\n")
            written.flush()
            line = read.readline()
            if not line:
                raise RuntimeError("the training that was to be measured failed; its error stands above")
            return json.loads(line)

        yield ask
        written.close()


def _measure(cases: list[tuple[str, str]], kept: Path | None) -> dict[tuple[str, str], int]:
    lines = kept.read_text().splitlines() if kept is not None and kept.exists() else []
    known = {(d["size"], d["method"]): d["peak_bytes"] for d in map(json.loads, lines)}
    missing = [case for case in cases if case not in known]
    if missing:
        with tempfile.TemporaryDirectory() as place, _runner() as ask:
            for name, config in {"tiny": TINY, **{size: SIZES[size] for size, _ in missing}}.items():
                ask({"build": config, "folder": f"{place}/{name}"})
            for size, method in missing:
                peak = _one(ask, place, size, method)
                known[size, method] = peak
                if kept is not None:
                    with kept.open("a") as file:
                        file.write(json.dumps({"size": size, "method": method, "peak_bytes": peak}) + "\n")
    return {case: known[case] for case in cases}


def _one(ask: Any, place: str, size: str, method: str) -> int:
    order = {
        "recipe": recipe_of(method),
        "base": f"{place}/{size}",
        "tiny": f"{place}/tiny",
        "rows": [text(TOKENS - 2, seed) for seed in range(ROWS)],  # a beginning and an end come with each
        "few": [text(8, seed) for seed in range(20)],
        "general": [text(GENERAL, seed) for seed in range(100, 110)],
    }
    peak = int(ask(order)["peak"])
    say(f"  {size} {method}: measured {peak / 2**20:.0f} MiB, forecast {foretold(size, method) / 2**20:.0f}")
    return peak


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--measured", type=Path, help="a file that keeps what was measured")
    options = parser.parse_args()
    cases = [(size, method) for size in options.sizes.split(",") for method in options.methods.split(",")]
    found = _measure(cases, options.measured)
    ratios = {case: foretold(*case) / peak for case, peak in found.items()}
    metrics = {
        "forecast_ratio": median(ratios.values()),
        "worst_error": max(abs(ratio - 1) for ratio in ratios.values()),
        "median_error": median(abs(ratio - 1) for ratio in ratios.values()),
    }
    metrics |= {f"{size}_{method}_of_measured": ratio for (size, method), ratio in ratios.items()}
    metrics |= {f"{size}_{method}_mib": peak / 2**20 for (size, method), peak in found.items()}
    for method, (least, most) in FIELD.items():
        metrics |= {
            f"7b_{method}_gb": of_seven_billion(method),
            f"7b_{method}_field_least_gb": least,
            f"7b_{method}_field_most_gb": most,
        }
    print(result_line(NAME, metrics, baseline=BASELINE, n=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
