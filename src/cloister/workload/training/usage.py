"""The few lines with which a recipient uses the release. The model card shows them; a test runs them as they stand."""

from __future__ import annotations

import json

from .adapters import virtual_tokens
from .heads import Pooling
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


def usage_snippet(result: TrainingResult) -> str:
    """Python of at most 15 lines, run in the folder of the release; beside an adapter its base lies in ``base/``."""
    adapted = result.recipe.adapter is not None
    auto = "AutoModel" if result.pooling is not None else "AutoModelForCausalLM"
    folder = "adapter" if adapted else "model"
    loaded = f'{auto}.from_pretrained("{"base" if adapted else "model"}", dtype=torch.float32)'
    fields = {
        "peft_import": "from peft import PeftModel\n" if adapted else "",
        "tokenizer": "base" if adapted else "model",
        "model": f'PeftModel.from_pretrained({loaded}, "adapter")' if adapted else loaded,
        "folder": folder,
        "max_length": result.max_length,
        "padding": _padding(result),
        "cut": '[:, -batch["input_ids"].shape[1] :]' if virtual_tokens(result.recipe) else "",
    }
    if result.pooling is None:
        return _GENERATE.format(**fields)
    return _CLASSIFY.format(**fields, pool=_pool(result.pooling))


def _padding(result: TrainingResult) -> str:
    """Decoders often come without a padding token, or pad on the left; encoders' tokenizers know their own."""
    if not result.base.is_decoder:
        return ""
    token = result.base.tokenizer.id_to_token(result.base.tokens.pad)
    return f', pad_token={json.dumps(token)}, padding_side="right"'


def _pool(pooling: Pooling) -> str:
    code = _MEAN if pooling.mode == "mean" else "pooled = hidden[:, 0]"
    return code + ("\npooled = torch.nn.functional.normalize(pooled, dim=1)" if pooling.normalize else "")
