"""One training in a process of its own, and the most memory that it took. Part of ``memory_forecast``.

What counts is what comes on top of the bare process: one that has imported everything and trained a model of two tiny
layers by the same method, so that no library is loaded and no thread begun while the real one trains. Linux keeps the
highest resident size of a process (``VmHWM``) and begins anew when told (proc(5), ``clear_refs``).
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._bare import Folder

WORDS = 61  # different ones; the rows are of these, each one token


class _Watched:
    """Ports that keep nothing, and what each stage took at most."""

    def __init__(self) -> None:
        self.peaks: dict[str, int] = {}
        self._stage = "load"

    def check(self) -> None: ...

    def on_loss(self, clear: Callable[[], None]) -> None: ...

    def save(self, _: int, files: Any) -> None:
        for _, file in files:
            while file.read(1 << 20):
                pass

    def latest(self) -> None:
        return None

    def report(self, stage: str, step: int, *_: Any) -> None:
        self.end()
        self._stage = f"{stage} {step}" if stage == "prepare" else stage

    def end(self) -> None:
        self.peaks[self._stage] = max(self.peaks.get(self._stage, 0), _status("VmHWM"))


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Bytes: ``bare``, ``peak`` above it, and ``stages``, each stage's own above it."""
    _train(order, order["tiny"], rows=order["few"])
    bare = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    watched = _train(order, order["base"], rows=order["rows"])
    watched.end()
    return {
        "bare": bare,
        "peak": _status("VmHWM") - bare,
        "stages": {k: v - bare for k, v in watched.peaks.items()},
    }


def _train(order: dict[str, Any], base: str, rows: list[str]) -> _Watched:
    import io

    from cloister.contracts import parse_recipe
    from cloister.workload.data import read_table
    from cloister.workload.training import load_base, run_training

    recipe = parse_recipe(order["recipe"])
    folder = Folder.of(Path(base))
    data = "".join(json.dumps({"text": row, "label": f"l{n % 4}"}) + "\n" for n, row in enumerate(rows))
    table = read_table({"rows.jsonl": io.BytesIO(data.encode())}, recipe.columns.names())
    watched = _Watched()
    loaded = load_base({path: folder.open(path) for path in folder.paths()}, weights=recipe.method != "scratch")
    general = None if base == order["tiny"] else order["general"]
    run_training(recipe, loaded, table, sink=watched, progress=watched, lease=watched, general=general)
    return watched


def build(config: dict[str, Any], folder: Path) -> None:
    """A Hugging Face folder with random weights, float32, and a tokenizer that makes one token of each word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True)
    made = AutoConfig.for_model(**config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made)
    model.save_pretrained(folder)
    special = ["<s>", "</s>", "<unk>"]
    vocab = {word: n for n, word in enumerate([*special, *(f"w{n}" for n in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def text(length: int, seed: int) -> str:
    """``length`` words, another text for each seed."""
    return " ".join(f"w{(seed * 7919 + n * (seed % 13 + 1)) % WORDS}" for n in range(length))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _forked(order: dict[str, Any]) -> dict[str, Any] | None:
    """In a process of its own, which has imported everything and computed nothing: torch's threads don't survive a
    fork, so the parent must not have begun any."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            if "build" in order:
                build(order["build"], Path(order["folder"]))
            else:
                os.write(writer, json.dumps(measure(order)).encode())
            os._exit(0)
        except BaseException:  # noqa: BLE001  the parent tells of it
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as file:
        found = file.read()
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit(1)
    return dict(json.loads(found)) if found else None


def main() -> None:
    """Orders on stdin, one JSON a line; what was measured on stdout, likewise."""
    import bitsandbytes  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import cloister.workload.training  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(_forked(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
