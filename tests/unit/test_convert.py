"""llama2.c → Hugging Face, against an independent reading of llama2.c's own rules in numpy."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from cloister.client.convert import convert_llama2c
from cloister.errors import Malformed, Misuse

STORIES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "stories260K"
PROMPTS = ["", "Lily and Tom  saw a big café", 'The dog said: "No!"\nThen']
STEPS = 210

needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason="shared/data/stories260K is not beside the checkout")


class Reference:
    """run.c's forward pass and tokenizer, written from its description: one token at a time with a cache."""

    def __init__(self, model: Path, tokenizer: Path) -> None:
        data = model.read_bytes()
        dim, hidden, layers, heads, kv, vocab, length = struct.unpack("<7i", data[:28])
        self.heads, self.kv, self.layers, self.length, self.size = heads, kv, layers, length, dim // heads
        floats, self.at = np.frombuffer(data, "<f4", offset=28), 0

        def take(*shape: int) -> np.ndarray:
            count = int(np.prod(shape))
            self.at += count
            return floats[self.at - count : self.at].reshape(shape)

        kv_dim = kv * self.size
        self.embedding, self.norm1 = take(abs(vocab), dim), take(layers, dim)
        self.q, self.k, self.v = take(layers, dim, dim), take(layers, kv_dim, dim), take(layers, kv_dim, dim)
        self.o, self.norm2 = take(layers, dim, dim), take(layers, dim)
        self.gate, self.down, self.up = take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
        self.last = take(dim)
        take(2, length, self.size // 2)
        self.classifier = self.embedding if vocab > 0 else take(abs(vocab), dim)
        self.pieces, self.scores = [], []
        raw, place = tokenizer.read_bytes(), 4
        for _ in range(abs(vocab)):
            score, count = struct.unpack_from("<fi", raw, place)
            self.pieces.append(raw[place + 8 : place + 8 + count])
            self.scores.append(score)
            place += 8 + count
        self.number = {piece: i for i, piece in enumerate(self.pieces)}

    def encode(self, text: str) -> list[int]:
        tokens = [self.number[b" "]] if text else []
        for character in text:
            raw = character.encode()
            tokens += [self.number[raw]] if raw in self.number else [byte + 3 for byte in raw]
        while True:
            best, where, which = -1e10, -1, -1
            for i in range(len(tokens) - 1):
                joined = self.number.get(self.pieces[tokens[i]] + self.pieces[tokens[i + 1]])
                if joined is not None and self.scores[joined] > best:
                    best, where, which = self.scores[joined], i, joined
            if where < 0:
                return [1, *tokens]
            tokens[where : where + 2] = [which]

    def decode(self, tokens: list[int]) -> bytes:
        out, previous = b"", 1
        for token in tokens:
            piece = self.pieces[token]
            if previous == 1 and piece.startswith(b" "):
                piece = piece[1:]
            out += bytes([token - 3]) if 3 <= token < 259 else piece
            previous = token
        return out

    def generate(self, prompt: list[int], steps: int) -> list[int]:
        keys, values = np.zeros((2, self.layers, self.length, self.kv, self.size), np.float32)
        tokens = list(prompt)
        for position in range(len(prompt) + steps - 1):
            logits = self.forward(tokens[position], position, keys, values)
            if position >= len(prompt) - 1:
                tokens.append(int(logits.argmax()))
        return tokens

    def forward(self, token: int, position: int, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
        x = self.embedding[token]
        angles = position / 10000.0 ** (np.arange(0, self.size, 2) / self.size)
        for layer in range(self.layers):
            h = self.rms(x, self.norm1[layer])
            q = self.rotate((self.q[layer] @ h).reshape(self.heads, self.size), angles)
            keys[layer, position] = self.rotate((self.k[layer] @ h).reshape(self.kv, self.size), angles)
            values[layer, position] = (self.v[layer] @ h).reshape(self.kv, self.size)
            out = []
            for head in range(self.heads):
                shared = head // (self.heads // self.kv)
                scores = keys[layer, : position + 1, shared] @ q[head] / np.sqrt(self.size)
                weights = np.exp(scores - scores.max())
                out.append((weights / weights.sum()) @ values[layer, : position + 1, shared])
            x = x + self.o[layer] @ np.concatenate(out)
            h = self.rms(x, self.norm2[layer])
            gate = self.gate[layer] @ h
            x = x + self.down[layer] @ (gate / (1 + np.exp(-gate)) * (self.up[layer] @ h))
        return self.classifier @ self.rms(x, self.last)

    @staticmethod
    def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return weight * x / np.sqrt((x * x).mean() + 1e-5)

    @staticmethod
    def rotate(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
        even, odd, out = x[:, 0::2], x[:, 1::2], np.empty_like(x)
        out[:, 0::2] = even * np.cos(angles) - odd * np.sin(angles)
        out[:, 1::2] = even * np.sin(angles) + odd * np.cos(angles)
        return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    dest = tmp_path_factory.mktemp("convert") / "stories"
    convert_llama2c(STORIES / "stories260K.bin", STORIES / "tok512.bin", dest)
    return dest


@needs_stories
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_llama2c(folder, prompt):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = Reference(STORIES / "stories260K.bin", STORIES / "tok512.bin")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    ids = tokenizer(prompt).input_ids
    assert ids == reference.encode(prompt)
    tokens, cache = torch.tensor([ids]), None
    ours = list(ids)
    with torch.no_grad():
        for _ in range(STEPS):
            step = model(tokens, past_key_values=cache, use_cache=True)
            cache, tokens = step.past_key_values, step.logits[:, -1:].argmax(-1)
            ours.append(int(tokens))
    theirs = reference.generate(ids, STEPS)
    assert ours == theirs
    text = tokenizer.decode([t for t in ours if t > 2])
    assert text.encode() == reference.decode([1, *[t for t in theirs if t > 2]]).removeprefix(b"\n<s>\n")


@needs_stories
@pytest.mark.parametrize("text", ["a", " two  spaces ", "ünï 🦊 \t tab", "<s> not special </s>"[3:9], "3.14 % of 100"])
def test_tokenizer_agrees_and_round_trips(folder, text):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    reference = Reference(STORIES / "stories260K.bin", STORIES / "tok512.bin")
    assert tokenizer.encode(text).ids == reference.encode(text)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@needs_stories
def test_folder_is_complete(folder):
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True


def tiny(shared: bool = True, *, dim: int = 8, heads: int = 2) -> bytes:
    vocab, hidden, layers, kv, length = 261, 12, 1, 1, 4
    size = dim // heads
    count = vocab * dim + layers * (2 * dim + 2 * dim * dim + 2 * kv * size * dim + 3 * hidden * dim) + dim
    count += length * size + (0 if shared else vocab * dim)
    header = struct.pack("<7i", dim, hidden, layers, heads, kv, vocab if shared else -vocab, length)
    return header + np.arange(count, dtype="<f4").tobytes()


def tiny_tokenizer(pieces: int = 261) -> bytes:
    names = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256)), " a", " b"][:pieces]
    body = b"".join(struct.pack("<fi", -float(i), len(n.encode())) + n.encode() for i, n in enumerate(names))
    return struct.pack("<i", 8) + body


def convert(tmp_path: Path, model: bytes, tokenizer: bytes) -> Path:
    (tmp_path / "m.bin").write_bytes(model)
    (tmp_path / "t.bin").write_bytes(tokenizer)
    convert_llama2c(tmp_path / "m.bin", tmp_path / "t.bin", tmp_path / "out")
    return tmp_path / "out"


def test_unshared_classifier_and_row_order(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = safetensors.load_file(convert(tmp_path, tiny(shared=False), tiny_tokenizer()) / "model.safetensors")
    floats = np.arange(10_000, dtype=np.float32)
    start = 261 * 8 + 8
    q = floats[start : start + 64].reshape(8, 8)
    assert np.array_equal(tensors["model.layers.0.self_attn.q_proj.weight"], q[[0, 2, 1, 3, 4, 6, 5, 7]])
    assert tensors["lm_head.weight"].shape == (261, 8)
    assert tensors["lm_head.weight"][-1, -1] == floats[: (len(tiny(shared=False)) - 28) // 4][-1]


MODELS = {
    "shorter than a header": b"\1\2\3",
    "newer layout": struct.pack("<7i", 0x616B3432, 1, 64, 172, 5, 8, 4) + b"\0" * 64,
    "impossible sizes": struct.pack("<7i", 0, 1, 1, 1, 1, 300, 4),
    "don't divide": struct.pack("<7i", 9, 12, 1, 2, 1, 261, 4),
    "asks for": tiny()[:-4],
    "it has": tiny() + b"\0",
    "NaN": tiny()[:28] + struct.pack("<f", float("nan")) + tiny()[32:],
    "infinite": tiny()[:32] + struct.pack("<f", float("inf")) + tiny()[36:],
}


@pytest.mark.parametrize("part", MODELS)
def test_foreign_or_damaged_model_is_one_sentence(tmp_path, part):
    with pytest.raises(Malformed, match=part) as caught:
        convert(tmp_path, MODELS[part], tiny_tokenizer())
    assert caught.value.code == "convert.model"
    assert not (tmp_path / "out").exists()


TOKENIZERS = {
    "first number": b"\0\0\0\0",
    "it ends before": tiny_tokenizer(260),
    "it has more": tiny_tokenizer() + struct.pack("<fi", 0.0, 1) + b"x",
    "byte tokens": tiny_tokenizer().replace(b"<0x41>", b"<0x14>"),
    "impossible length": tiny_tokenizer()[:8] + struct.pack("<i", -5) + tiny_tokenizer()[12:],
    "not UTF-8": tiny_tokenizer()[:-2] + b"\xff\xfe",
    "the same text": tiny_tokenizer()[:-2] + b" a",
}


@pytest.mark.parametrize("part", TOKENIZERS)
def test_foreign_or_damaged_tokenizer_is_one_sentence(tmp_path, part):
    with pytest.raises(Malformed, match=part) as caught:
        convert(tmp_path, tiny(), TOKENIZERS[part])
    assert caught.value.code == "convert.tokenizer"
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_not_touched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    with pytest.raises(Misuse) as caught:
        convert(tmp_path, tiny(), tiny_tokenizer())
    assert caught.value.code == "convert.exists"
    assert (tmp_path / "out" / "mine").read_text() == "keep"
