"""Base models made to run code, exhaust memory or train on nonsense. One clear sentence each, and nothing is built."""

import io
import json
import pickle
import struct

import pytest
import torch

from cloister.errors import CloisterError, Malformed
from cloister.workload.training import load_base
from cloister.workload.training.tensors import read_tensors, write_tensors
from tests.tiny_models import readers, tiny_bert, tiny_llama


class Exploit:
    ran = False

    def __reduce__(self):
        return (setattr, (Exploit, "ran", True))


def config(**changed) -> bytes:
    return json.dumps({**json.loads(tiny_bert()["config.json"]), **changed}).encode()


def tokenizer(**changed) -> bytes:
    return json.dumps({**json.loads(tiny_bert()["tokenizer_config.json"]), **changed}).encode()


def weights(**changed) -> bytes:
    data = tiny_bert()["model.safetensors"]
    tensors = read_tensors("m", io.BytesIO(data), len(data))
    for name, tensor in changed.items():
        name = name.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    return write_tensors(tensors)


def raw(header, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape, offsets, dtype="F32"):
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


EMBEDDING = "embeddings__word_embeddings__weight"
FOLDER = {
    "pickle beside safetensors": ({"pytorch_model.bin": pickle.dumps(Exploit())}, "model.pickle"),
    "pickle by another name": ({"sub/optimizer.PT": pickle.dumps(Exploit())}, "model.pickle"),
    "pickle called safetensors": ({"model.safetensors": pickle.dumps(Exploit())}, "model.safetensors"),
    "code in the folder": ({"modeling_evil.py": b"raise SystemExit"}, "model.code"),
    "shared object": ({"kernels/fast.so": b"\x7fELF"}, "model.code"),
    "auto_map": ({"config.json": config(auto_map={"AutoModel": "modeling_evil.Evil"})}, "model.code"),
    "auto_map of the tokenizer": ({"tokenizer_config.json": tokenizer(auto_map={"AutoTokenizer": ["e.E", None]})}, "model.code"),
    "nested auto_map": ({"config.json": config(text_config={"auto_map": {"AutoModel": "e.E"}})}, "model.code"),
    "trust_remote_code": ({"config.json": config(trust_remote_code=True)}, "model.code"),
    "kernel from a hub": ({"config.json": config(attn_implementation="kernels-community/evil")}, "model.config"),
    "kernel from a hub, privately": ({"config.json": config(_attn_implementation="evil/evil")}, "model.config"),
    "quantizer": ({"config.json": config(quantization_config={"quant_method": "bitsandbytes"})}, "model.config"),
    "other weights file": ({"config.json": config(transformers_weights="/etc/passwd")}, "model.config"),
    "unknown architecture": ({"config.json": config(model_type="timm_wrapper")}, "model.architecture"),
    "no architecture": ({"config.json": b"{}"}, "model.config"),
    "config is a list": ({"config.json": b"[]"}, "model.config"),
    "config is not JSON": ({"config.json": b"{"}, "model.json"),
    "config nested deeply": ({"config.json": b'{"model_type": "bert", "a": ' + b"[" * 50 + b"]" * 50 + b"}"}, "model.config"),
    "config nested to the stack's end": ({"config.json": b"[" * 200_000}, "model.json"),
    "a billion layers": ({"config.json": config(num_hidden_layers=10**9)}, "model.config"),
    "numbers beyond reason": ({"config.json": config(vocab_size=10**15)}, "model.config"),
    "config of a huge model, small file": ({"config.json": config(hidden_size=65536, intermediate_size=262144)}, "model.weights"),
    "config of another width": ({"config.json": config(hidden_size=16)}, "model.weights"),
    "config with text for a number": ({"config.json": config(hidden_size="wide")}, "model.weights"),
    "a weight is missing": ({"model.safetensors": weights(encoder__layer__0__output__dense__bias=None)}, "model.weights"),
    "a weight of another shape": ({"model.safetensors": weights(encoder__layer__0__output__dense__bias=torch.zeros(3))}, "model.weights"),
    "NaN weight": ({"model.safetensors": weights(**{EMBEDDING: torch.full((44, 32), float("nan"))})}, "model.nan"),
    "infinite weight": ({"model.safetensors": weights(extra=torch.tensor([float("inf")]).bfloat16())}, "model.nan"),
    "no weights": ({"model.safetensors": None}, "model.missing"),
    "no tokenizer": ({"tokenizer.json": None}, "model.missing"),
    "broken tokenizer": ({"tokenizer.json": b'{"model": {}}'}, "model.tokenizer"),
    "tokenizer of a bigger vocabulary": ({"tokenizer.json": None}, "model.vocabulary"),
    "index to a pickle": (
        {"model.safetensors.index.json": b'{"weight_map": {"a": "evil.dat"}}', "evil.dat": b""}, "model.missing",
    ),
    "index out of the folder": ({"model.safetensors.index.json": b'{"weight_map": {"a": "../../x.safetensors"}}'}, "model.missing"),
    "index without map": ({"model.safetensors.index.json": b"{}"}, "model.index"),
    "header longer than the file": ({"model.safetensors": struct.pack("<Q", 2**60) + b"{}"}, "model.safetensors"),
    "header of two bytes less": ({"model.safetensors": b"\2\0"}, "model.safetensors"),
    "header not JSON": ({"model.safetensors": raw(b"nonsense")}, "model.safetensors"),
    "header is a list": ({"model.safetensors": raw([])}, "model.safetensors"),
    "header with a key twice": ({"model.safetensors": raw(b'{"t": 1, "t": 1}')}, "model.safetensors"),
    "huge shape, few bytes": ({"model.safetensors": raw(entry([2**40, 2**40], [0, 4]), b"1234")}, "model.safetensors"),
    "shape that overflows to 4": ({"model.safetensors": raw(entry([2**62 + 1, 4], [0, 16]), b"1" * 16)}, "model.safetensors"),
    "negative shape": ({"model.safetensors": raw(entry([-1, -1], [0, 4]), b"1234")}, "model.safetensors"),
    "true as a size": ({"model.safetensors": raw(entry([True], [0, 4]), b"1234")}, "model.safetensors"),
    "many dimensions": ({"model.safetensors": raw(entry([1] * 9, [0, 4]), b"1234")}, "model.safetensors"),
    "offsets beyond the file": ({"model.safetensors": raw(entry([2], [0, 8]), b"1234")}, "model.safetensors"),
    "gap before a tensor": ({"model.safetensors": raw(entry([1], [4, 8]), b"12345678")}, "model.safetensors"),
    "bytes after the tensors": ({"model.safetensors": raw(entry([1], [0, 4]), b"12345")}, "model.safetensors"),
    "unknown dtype": ({"model.safetensors": raw(entry([1], [0, 4], "F4"), b"1234")}, "model.safetensors"),
    "dtype is a list": ({"model.safetensors": raw(entry([1], [0, 4], ["F32"]), b"1234")}, "model.safetensors"),
    "entry without shape": ({"model.safetensors": raw({"t": {"dtype": "F32"}}, b"")}, "model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("attack", FOLDER)
def test_model_is_refused_in_one_sentence(attack):
    changed, code = FOLDER[attack]
    files = {**tiny_bert(), **changed}
    if code == "model.vocabulary":
        vocabulary = json.loads(tiny_bert()["tokenizer.json"])
        vocabulary["model"]["vocab"]["beyond"] = 5000
        files["tokenizer.json"] = json.dumps(vocabulary).encode()
    with pytest.raises(CloisterError) as caught:
        load_base(readers(files)).encoder()
    assert caught.value.code == code
    assert caught.value.message.endswith(".")
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 350
    assert not Exploit.ran


def test_overlapping_tensors():
    header = {**entry([1], [0, 4]), "u": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    data = raw(header, b"1234")
    with pytest.raises(Malformed, match="overlap"):
        read_tensors("m", io.BytesIO(data), len(data))


def test_a_stream_that_ends_before_its_stated_size():
    data = write_tensors({"t": torch.ones(100)})
    with pytest.raises(Malformed, match="ends too early"):
        read_tensors("m", io.BytesIO(data[:-4]), len(data))


def test_two_shards_with_the_same_weight():
    shard = write_tensors({"t": torch.ones(1)})
    index = b'{"weight_map": {"t": "a.safetensors", "u": "b.safetensors"}}'
    files = {**tiny_bert(), "model.safetensors.index.json": index, "a.safetensors": shard, "b.safetensors": shard}
    with pytest.raises(Malformed) as caught:
        load_base(readers(files))
    assert caught.value.code == "model.index"


def test_chat_template_is_data_and_never_rendered():
    template = b"{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in range(10**12) %}x{% endfor %}"
    base = load_base(readers({**tiny_llama(), "chat_template.jinja": template}))
    assert base.carried["chat_template.jinja"] == template
    base.causal_lm()


def test_ten_thousand_files():
    files = {f"{number}.txt": b"" for number in range(5000)}
    with pytest.raises(Malformed) as caught:
        load_base(readers({**tiny_bert(), **files}))
    assert caught.value.code == "model.files"
