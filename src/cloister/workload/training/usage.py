"""The few lines with which a recipient uses the release. The model card shows them; a test runs them as they stand."""

from __future__ import annotations

import json
from typing import Any

from .adapters import virtual_tokens
from .encoders import takes_types
from .heads import Pooling
from .quantized import FOUR_BITS
from .run import TrainingResult

__all__ = ["usage_snippet"]

_CLASSIFY = """\
import json, torch
{peft_import}from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

texts = ["first text to classify", "a second one"]
tokenizer = AutoTokenizer.from_pretrained("{tokenizer}"{padding})
model = {model}.eval()
head, labels = load_file("{folder}/head.safetensors"), json.load(open("{folder}/labels.json"))
batch = tokenizer(texts, padding=True, truncation=True, max_length={max_length}, return_tensors="pt")
with torch.no_grad():
    hidden = model(**batch).last_hidden_state{cut}
{pool}
logits = pooled @ head["weight"].T + head["bias"]
print([labels[i] for i in logits.argmax(1)])
"""
_MEAN = (
    'pooled = (hidden * batch["attention_mask"].unsqueeze(-1)).sum(1) / batch["attention_mask"].sum(1, keepdim=True)'
)
_GENERATE = """\
import torch
{peft_import}from transformers import AutoModelForCausalLM, AutoTokenizer

prompt = "the beginning of a text"
tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")
model = {model}.eval()
batch = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
with torch.no_grad():
    logits = model(**batch).logits
    tokens = model.generate(**batch, max_new_tokens=50, do_sample=False)
print(tokenizer.decode(tokens[0], skip_special_tokens=True))
"""

_EXTRACT = """\
import json, torch
{peft_import}from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

words, wanted = "words of a text to tag".split(), dict(return_offsets_mapping=True, return_tensors="pt")
tokenizer = AutoTokenizer.from_pretrained("{tokenizer}"{padding})
model = {model}.eval()
head, labels = load_file("{folder}/head.safetensors"), json.load(open("{folder}/labels.json"))
batch = tokenizer(" ".join(words), truncation=True, max_length={max_length}, return_token_type_ids=False, **wanted)
spans, text = batch.pop("offset_mapping")[0].tolist(), " ".join(words)
with torch.no_grad():
    logits = model(**batch).last_hidden_state{cut} @ head["weight"].T + head["bias"]
tags = [labels[i] for i in logits[0].argmax(1)]  # a word's tag is its first piece's
print([(text[a:b], tag) for (a, b), tag in zip(spans, tags) if b])
"""
_RANK = (
    _CLASSIFY.replace(
        'texts = ["first text to classify", "a second one"]',
        'query, texts = "a query", ["first document", "a second one"]',
    )
    .replace("tokenizer(texts,", "tokenizer([query] * len(texts), texts, return_token_type_ids={types},")
    .replace(', json.load(open("{folder}/labels.json"))', "")
    .replace("head, labels =", "head =")
    .replace("import json, torch", "import torch")
    .replace("print([labels[i] for i in logits.argmax(1)])", "print(logits[:, 0].sigmoid())")
)
_EMBED = (
    _CLASSIFY.replace(
        'head, labels = load_file("{folder}/head.safetensors"), json.load(open("{folder}/labels.json"))\n', ""
    )
    .replace("from safetensors.torch import load_file\n", "")
    .replace("import json, torch", "import torch")
    .replace('logits = pooled @ head["weight"].T + head["bias"]\n', "logits = pooled @ pooled.T\n")
    .replace("print([labels[i] for i in logits.argmax(1)])", "print(logits)  # how close the texts are")
    .replace("text to classify", "text to compare")
)
_ON_ENCODERS = {
    "classification": _CLASSIFY,
    "multilabel": _CLASSIFY.replace(
        "labels[i] for i in logits.argmax(1)]",
        "[name for name, logit in zip(labels, row) if logit > 0] for row in logits]",
    ),
    "extraction": _EXTRACT,
    "ranking": _RANK,
    "embedding": _EMBED,
}

_CHAT = """\
import torch
{peft_import}from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

messages = [{{"role": "user", "content": "a question"}}]
tokenizer = AutoTokenizer.from_pretrained("{tokenizer}")
tokenizer.chat_template = open("{folder}/chat_template.jinja").read()
model = {model}.eval()
batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
ids, stops = batch["input_ids"], GenerationConfig.from_pretrained("{folder}")
with torch.no_grad():
    logits = model(ids).logits
    tokens = model.generate(input_ids=ids, generation_config=stops, max_new_tokens=50)
print(tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True))
"""

_ANSWER = (
    _GENERATE.replace("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
    .replace('prompt = "the beginning of a text"', 'prompt = "what is to be answered"')
    .replace("tokenizer(prompt, ", "tokenizer(prompt, truncation=True, max_length={max_length}, ")
    .replace("model(**batch).logits", "model(**batch, decoder_input_ids=start).logits")
    .replace("with torch", "start = torch.tensor([[model.config.decoder_start_token_id]])\nwith torch")
)


def usage_snippet(result: TrainingResult) -> str:
    """Python of at most 15 lines (16 for a base in 4 bits), run in the folder of the release; beside an adapter its
    base lies in ``base/``."""
    adapted = result.recipe.adapter is not None
    task = result.recipe.task
    writes = "AutoModelForSeq2SeqLM" if result.base.is_encoder_decoder else "AutoModelForCausalLM"
    auto = "AutoModel" if task in _ON_ENCODERS else writes
    folder = "adapter" if adapted else "model"
    more = ', quantization_config=bits, device_map="cpu"' if result.recipe.method == "qlora" else ""
    loaded = f'{auto}.from_pretrained("{"base" if adapted else "model"}", dtype=torch.float32{more})'
    fields = {
        "peft_import": "from peft import PeftModel\n" if adapted else "",
        "tokenizer": "base" if adapted else "model",
        "model": f'PeftModel.from_pretrained({loaded}, "adapter")' if adapted else loaded,
        "folder": folder,
        "max_length": result.max_length,
        "padding": _padding(result),
        "cut": '[:, -batch["input_ids"].shape[1] :]' if virtual_tokens(result.recipe) else "",
    }
    code = _filled(result, fields)
    if more:
        # With the base as it was trained on and measured.
        code = code.replace("import Auto", "import BitsAndBytesConfig, Auto")
        code = code.replace("\nmodel =", f"\nbits = BitsAndBytesConfig(**{FOUR_BITS})\nmodel =")
    return code


def _filled(result: TrainingResult, fields: dict[str, Any]) -> str:
    task = result.recipe.task
    if task == "extraction":
        return _EXTRACT.format(**fields)
    if result.base.is_encoder_decoder:
        return _ANSWER.format(**fields)
    if result.pooling is None:
        return (_CHAT if task == "chat" else _GENERATE).format(**fields)
    fields["types"] = takes_types(result.recipe, result.base)
    return _ON_ENCODERS[task].format(**fields, pool=_pool(result.pooling))


def _padding(result: TrainingResult) -> str:
    """Decoders often come without a padding token, or pad on the left; encoders' tokenizers know their own."""
    if not result.base.is_decoder:
        return ""
    token = result.base.tokenizer.id_to_token(result.base.tokens.pad)
    return f', pad_token={json.dumps(token)}, padding_side="right"'


def _pool(pooling: Pooling) -> str:
    code = _MEAN if pooling.mode == "mean" else "pooled = hidden[:, 0]"
    return code + ("\npooled = torch.nn.functional.normalize(pooled, dim=1)" if pooling.normalize else "")
