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


def bigger_vocabulary() -> bytes:
    document = json.loads(tiny_bert()["tokenizer.json"])
    document["model"]["vocab"]["beyond"] = 5000
    return json.dumps(document).encode()


def raw(header, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape, offsets, dtype="F32"):
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


FFN = "encoder__layer__0__output__dense__bias"
EMBEDDING = "embeddings__word_embeddings__weight"
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"

FOLDER = {
    "pickle beside safetensors": ({"pytorch_model.bin": pickle.dumps(Exploit())}, "model.pickle"),
    "pickle by another name": ({"sub/optimizer.PT": pickle.dumps(Exploit())}, "model.pickle"),
    "code in the folder": ({"modeling_evil.py": b"raise SystemExit"}, "model.code"),
    "shared object": ({"kernels/fast.so": b"\x7fELF"}, "model.code"),
    "auto_map, tokenizer": ({"tokenizer_config.json": tokenizer(auto_map={"AutoTokenizer": "e.E"})}, "model.code"),
    "no architecture": ({"config.json": b"{}"}, "model.config"),
    "config is a list": ({"config.json": b"[]"}, "model.config"),
    "config is not JSON": ({"config.json": b"{"}, "model.json"),
    "config nested to the stack's end": ({"config.json": b"[" * 200_000}, "model.json"),
    "a weight is missing": ({MODEL: weights(**{FFN: None})}, "model.weights"),
    "a weight of another shape": ({MODEL: weights(**{FFN: torch.zeros(3)})}, "model.weights"),
    "NaN weight": ({MODEL: weights(**{EMBEDDING: torch.full((44, 32), float("nan"))})}, "model.nan"),
    "infinite weight": ({MODEL: weights(extra=torch.tensor([float("inf")]).bfloat16())}, "model.nan"),
    "no weights": ({MODEL: None}, "model.missing"),
    "no tokenizer": ({"tokenizer.json": None}, "model.missing"),
    "broken tokenizer": ({"tokenizer.json": b'{"model": {}}'}, "model.tokenizer"),
    "tokenizer of a bigger vocabulary": ({"tokenizer.json": bigger_vocabulary()}, "model.vocabulary"),
    "index to a pickle": ({INDEX: b'{"weight_map": {"a": "evil.dat"}}', "evil.dat": b""}, "model.missing"),
    "index out of the folder": ({INDEX: b'{"weight_map": {"a": "../../x.safetensors"}}'}, "model.missing"),
    "index without map": ({INDEX: b"{}"}, "model.index"),
}  # fmt: skip
CONFIGS = {
    "auto_map": ({"auto_map": {"AutoModel": "modeling_evil.Evil"}}, "model.code"),
    "nested auto_map": ({"text_config": {"auto_map": {"AutoModel": "e.E"}}}, "model.code"),
    "trust_remote_code": ({"trust_remote_code": True}, "model.code"),
    "kernel from a hub": ({"attn_implementation": "kernels-community/evil"}, "model.config"),
    "kernel from a hub, privately": ({"_attn_implementation": "evil/evil"}, "model.config"),
    "quantizer": ({"quantization_config": {"quant_method": "bitsandbytes"}}, "model.config"),
    "other weights file": ({"transformers_weights": "/etc/passwd"}, "model.config"),
    "unknown architecture": ({"model_type": "timm_wrapper"}, "model.architecture"),
    "config nested deeply": ({"a": [[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]}, "model.config"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "model.config"),
    "numbers beyond reason": ({"vocab_size": 10**15}, "model.config"),
    "huge model, small file": ({"hidden_size": 65536, "intermediate_size": 262144}, "model.weights"),
    "another width": ({"hidden_size": 16}, "model.weights"),
    "text for a number": ({"hidden_size": "wide"}, "model.weights"),
}
HEADERS = {
    "pickle called safetensors": pickle.dumps(Exploit()),
    "header longer than the file": struct.pack("<Q", 2**60) + b"{}",
    "two bytes": b"\2\0",
    "header not JSON": raw(b"nonsense"),
    "header is a list": raw([]),
    "header with a key twice": raw(b'{"t": 1, "t": 1}'),
    "huge shape, few bytes": raw(entry([2**40, 2**40], [0, 4]), b"1234"),
    "shape that overflows to 4": raw(entry([2**62 + 1, 4], [0, 16]), b"1" * 16),
    "negative shape": raw(entry([-1, -1], [0, 4]), b"1234"),
    "true as a size": raw(entry([True], [0, 4]), b"1234"),
    "many dimensions": raw(entry([1] * 9, [0, 4]), b"1234"),
    "offsets beyond the file": raw(entry([2], [0, 8]), b"1234"),
    "gap before a tensor": raw(entry([1], [4, 8]), b"12345678"),
    "bytes after the tensors": raw(entry([1], [0, 4]), b"12345"),
    "unknown dtype": raw(entry([1], [0, 4], "F4"), b"1234"),
    "dtype is a list": raw(entry([1], [0, 4], ["F32"]), b"1234"),
    "entry without shape": raw({"t": {"dtype": "F32"}}),
}
ATTACKS = {
    **FOLDER,
    **{name: ({"config.json": config(**changed)}, code) for name, (changed, code) in CONFIGS.items()},
    **{name: ({MODEL: data}, "model.safetensors") for name, data in HEADERS.items()},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_model_is_refused_in_one_sentence(attack):
    changed, code = ATTACKS[attack]
    files = {**tiny_bert(), **changed}
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
