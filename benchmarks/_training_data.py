"""What all sides of the training benchmark train: the same rows of the same base, from the same first weights."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["LENGTH", "WORDS", "Work", "make_base", "opened", "table"]

# stories15M of llama2.c: 6 layers, 288 wide, 6 heads, 32,000 words; 15.2 million weights, the embedding shared.
WORDS, LENGTH = 32_000, 512
SHAPE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": WORDS, "hidden_size": 288,
    "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6,
    "max_position_embeddings": 1024, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 2,
}  # fmt: skip
SPECIAL = ["<s>", "</s>", "<pad>"]


@dataclass(frozen=True)
class Work:
    """What one side does. ``kind``: scratch, lora, or cls-lora, cls-full. ``batch``: rows of a step."""

    kind: str
    base: str
    data: str
    rows: int
    epochs: int
    batch: int
    seed: int = 0

    @property
    def classifies(self) -> bool:
        return self.kind.startswith("cls-")

    def recipe(self, *, compiled: bool) -> Any:
        from cloister.contracts.recipe import parse_recipe

        if self.classifies:
            own: dict[str, Any] = {
                "task": "classification", "method": self.kind[4:],
                "columns": {"text": "dialogue", "label": "section_header"},
            }  # fmt: skip
        else:
            own = {"task": "text", "method": self.kind, "columns": {"text": "dialogue"}, "max_length": LENGTH}
        rest = {
            "data": "bench/data", "base": "bench/base", "batch_size": self.batch, "epochs": self.epochs,
            "checkpoint_steps": 0, "seed": self.seed, "precision": "bf16", "compile": "on" if compiled else "off",
        }  # fmt: skip
        return parse_recipe({**own, **rest})


def table(work: Work, name: str, columns: Any) -> Any:
    from cloister.workload.data import read_table

    path = Path(work.data) / name
    with path.open("rb") as stream:
        return read_table({path.name: stream}, columns)


def opened(folder: str) -> dict[str, BinaryIO]:
    root = Path(folder)
    return {str(path.relative_to(root)): path.open("rb") for path in sorted(root.rglob("*")) if path.is_file()}


def make_base(folder: Path, texts: Sequence[str]) -> None:
    """A folder without weights: the shape, and a byte-level BPE learned from ``texts``. They give far fewer than
    32,000 words; the rest of the embedding is computed with all the same, by every side."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=WORDS, special_tokens=SPECIAL, min_frequency=2, show_progress=False)
    )
    named: Mapping[str, str] = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL, strict=True))
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "config.json").write_text(json.dumps(SHAPE))


def column(path: Path, name: str) -> list[str]:
    with path.open(encoding="utf-8", newline="") as stream:
        return [row[name] for row in csv.DictReader(stream)]
