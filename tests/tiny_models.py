"""Very small random models in the published layout, as bytes: fast to load, and every code path is the real one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, BinaryIO

WORDS = [
    "card", "lost", "stolen", "money", "transfer", "arrived", "late", "pin", "wrong", "app", "phone", "bank",
    "account", "fee", "charged", "exchange", "rate", "top", "up", "cash", "machine", "limit", "the", "my", "is", "was",
    "i", "to", "a", "in", "not", "why", "when", "how", "please", "help", "today", "there", "and", "it",
]  # fmt: skip


def _tokenizer(special: list[str], begin: str | None, end: str | None = None) -> bytes:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab = {word: place for place, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    around = [token for token in (begin, end) if token is not None]
    if around:
        single = " ".join(token for token in (begin, "$A", end) if token is not None)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(token, vocab[token]) for token in around]
        )
    return tokenizer.to_str().encode()


def _named(**special: str) -> bytes:
    named = {f"{kind}_token": token for kind, token in special.items()}
    return json.dumps({**named, "tokenizer_class": "PreTrainedTokenizerFast"}).encode()


def _weights(model: Any) -> bytes:
    from safetensors.torch import save

    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:  # tied weights once, as the hub stores them
            seen.add(tensor.data_ptr())
            state[name] = tensor.contiguous()
    return save(state, {"format": "pt"})


@cache
def tiny_bert() -> Mapping[str, bytes]:
    """A sentence encoder of two layers with mean pooling and a normalized output."""
    import torch
    from transformers import BertConfig, BertModel

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    config = BertConfig(
        vocab_size=len(special) + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=40, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    return {
        "config.json": json.dumps(config.to_dict()).encode(),
        "model.safetensors": _weights(BertModel(config)),
        "tokenizer.json": _tokenizer(special, "[CLS]"),
        "tokenizer_config.json": _named(pad="[PAD]", unk="[UNK]", cls="[CLS]"),
        "modules.json": b'[{"type": "sentence_transformers.models.Normalize"}]',
        "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
        "README.md": b"a model card",
    }  # fmt: skip


@cache
def tiny_llama(*, tied: bool = True) -> Mapping[str, bytes]:
    """A decoder of two layers with grouped keys."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    special = ["<s>", "</s>", "[UNK]"]
    config = LlamaConfig(
        vocab_size=len(special) + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
        pad_token_id=1, tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(2)
    return {
        "config.json": json.dumps(config.to_dict()).encode(),
        "model.safetensors": _weights(LlamaForCausalLM(config)),
        "tokenizer.json": _tokenizer(special, "<s>"),
        "tokenizer_config.json": _named(bos="<s>", eos="</s>", unk="[UNK]"),
        "generation_config.json": b'{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}',
    }  # fmt: skip


@cache
def tiny_t5(*, tied: bool = True, kind: str = "t5") -> Mapping[str, bytes]:
    """An encoder-decoder of two layers and one, whose heads are wider than the model. ``tied`` False: as T5 v1.1."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    special = ["<pad>", "</s>", "[UNK]"]
    config = AutoConfig.for_model(
        kind, vocab_size=len(special) + len(WORDS), d_model=32, d_kv=12, d_ff=48, num_layers=2, num_decoder_layers=1,
        num_heads=4, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, tie_word_embeddings=tied,
        feed_forward_proj="relu" if tied else "gated-gelu",
    )  # fmt: skip
    torch.manual_seed(3)
    model = AutoModelForSeq2SeqLM.from_config(config)
    if not tied:  # the library ties what is made anew, and leaves files alone that hold both
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    return {
        "config.json": json.dumps({**config.to_dict(), "tie_word_embeddings": tied}).encode(),
        "model.safetensors": _weights(model),
        "tokenizer.json": _tokenizer(special, None, "</s>"),
        "tokenizer_config.json": _named(pad="<pad>", eos="</s>", unk="[UNK]"),
        "generation_config.json": b'{"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}',
    }  # fmt: skip


@cache
def tiny_bart() -> Mapping[str, bytes]:
    """An encoder-decoder whose texts have a begin and an end token, saved without its head as the hub's are."""
    import torch
    from transformers import BartConfig, BartModel

    special = ["<s>", "<pad>", "</s>", "[UNK]"]
    config = BartConfig(
        vocab_size=len(special) + len(WORDS), d_model=32, encoder_layers=2, decoder_layers=1, encoder_ffn_dim=48,
        decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=2, max_position_embeddings=40,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    torch.manual_seed(4)
    return {
        "config.json": json.dumps(config.to_dict()).encode(),
        "model.safetensors": _weights(BartModel(config)),
        "tokenizer.json": _tokenizer(special, "<s>", "</s>"),
        "tokenizer_config.json": _named(bos="<s>", pad="<pad>", eos="</s>", unk="[UNK]"),
    }  # fmt: skip


def readers(files: Mapping[str, bytes], **changed: bytes | None) -> dict[str, io.BytesIO]:
    """Fresh binary readers; ``changed`` replaces files (``__`` for ``.``), None leaves one out."""
    merged: dict[str, bytes | None] = {**files, **{name.replace("__", "."): data for name, data in changed.items()}}
    return {name: io.BytesIO(data) for name, data in merged.items() if data is not None}


def banking_csv(rows: int = 120) -> bytes:
    """Made-up queries of four kinds that a tiny model can learn."""
    kinds = {"card": "card lost", "cash": "cash machine", "fee": "fee charged", "top_up": "top up"}
    lines = ["text,label"]
    for row in range(rows):
        label = list(kinds)[row % 4]
        extra = " ".join(WORDS[(row * 7 + k * 5) % len(WORDS)] for k in range(1 + row % 6))
        lines.append(f"{kinds[label]} {extra} {row % 3},{label}")
    return ("\n".join(lines) + "\n").encode()


class MemoryFiles:
    """Files of a checkpoint in memory, as a sink gives them back."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    def paths(self) -> list[str]:
        return list(self._files)

    def open(self, path: str) -> io.BytesIO:
        return io.BytesIO(self._files[path])

    def close(self) -> None: ...


class MemorySink:
    """A checkpoint sink that keeps everything. ``stop_at``: raise once that step is saved, as a killed run ends."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.saved: dict[int, dict[str, bytes]] = {}
        self.stop_at = stop_at

    def save(self, step: int, files: Iterable[tuple[str, BinaryIO]]) -> None:
        self.saved[step] = {name: file.read() for name, file in files}
        if step == self.stop_at:
            raise InterruptedError("killed")

    def latest(self) -> tuple[int, MemoryFiles] | None:
        if not self.saved:
            return None
        step, files = max(self.saved.items())
        return step, MemoryFiles(files)


class Recorder:
    """Progress and lease in one: keeps the reports, counts the checks, ends the lease at a given check."""

    def __init__(self, lose_at: int | None = None) -> None:
        self.reports: list[tuple[str, int, int, dict[str, str]]] = []
        self.checks = 0
        self.lose_at = lose_at
        self.copies: list[Callable[[], None]] = []

    def report(self, stage: str, step: int, total: int, values: Mapping[str, str]) -> None:
        self.reports.append((stage, step, total, dict(values)))

    def check(self) -> None:
        from cloister.errors import Denied

        self.checks += 1
        if self.lose_at is not None and self.checks >= self.lose_at:
            raise Denied("lease.expired", "A key lease ended before it was renewed.")

    def on_loss(self, clear: Callable[[], None]) -> None:
        self.copies.append(clear)
