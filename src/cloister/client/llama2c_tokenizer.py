"""llama2.c's tokenizer.bin as a Hugging Face tokenizer.json: BPE with byte fallback, merges taken from the scores."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Malformed

__all__ = ["Piece", "read_pieces", "tokenizer_documents"]

_MAX_PIECE = 512
_SPECIAL = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2; then 256 byte tokens
_FIRST_PIECE = 3 + 256
_SPACE = "\u2581"  # how BPE vocabularies write a space


@dataclass(frozen=True)
class Piece:
    text: str
    score: float


def _bad(why: str) -> Malformed:
    return Malformed("convert.tokenizer", f"The tokenizer file is not one of llama2.c for this model: {why}.")


def read_pieces(path: Path, vocabulary: int) -> list[Piece]:
    """Exactly ``vocabulary`` scored pieces: int32 longest length, then for each float32 score, int32 length, bytes."""
    data = path.read_bytes()
    if len(data) < 4 or not 1 <= int.from_bytes(data[:4], "little") <= _MAX_PIECE:
        raise _bad("its first number is no piece length")
    pieces, place = [], 4
    for _ in range(vocabulary):
        if len(data) - place < 8:
            raise _bad(f"it ends before {vocabulary} pieces")
        score, length = struct.unpack_from("<fi", data, place)
        place += 8
        if not 0 <= length <= min(_MAX_PIECE, len(data) - place) or not math.isfinite(score):
            raise _bad("a piece has an impossible length or score")
        try:
            text = data[place : place + length].decode("utf-8")
        except UnicodeDecodeError:
            raise _bad("a piece is not UTF-8") from None
        pieces.append(Piece(text, score))
        place += length
    if place != len(data):
        raise _bad(f"it has more than {vocabulary} pieces")
    if [p.text for p in pieces[3:_FIRST_PIECE]] != [f"<0x{byte:02X}>" for byte in range(256)]:
        raise _bad("its byte tokens are not where they should be")
    return pieces


def tokenizer_documents(pieces: list[Piece], length: int) -> dict[str, Any]:
    """``tokenizer.json`` and ``tokenizer_config.json``. The begin token goes before every text, as llama2.c does it."""
    names = [*_SPECIAL, *(p.text.replace(" ", _SPACE) for p in pieces[3:])]
    if len(set(names)) != len(names):
        raise _bad("two pieces are the same text")
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>",
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {name: number for number, name in enumerate(names)},
        "merges": _merges(names, pieces),
    }
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(number, name) for number, name in enumerate(_SPECIAL)],
        "normalizer": _sequence(
            "normalizers",
            {"type": "Prepend", "prepend": _SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        ),
        "pre_tokenizer": None,
        "post_processor": _begin(),
        "decoder": _sequence(
            "decoders",
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ),
        "model": model,
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
    }
    return {"tokenizer.json": document, "tokenizer_config.json": config}


def _merges(names: list[str], pieces: list[Piece]) -> list[list[str]]:
    """llama2.c joins, again and again, the neighbours whose joint piece scores highest. So every way to split a piece
    into two others is a merge, ranked by the piece's score; of equal ones the piece that comes first."""
    number = {name: place for place, name in enumerate(names)}
    merges: list[tuple[float, int, int, str, str]] = []
    for place in range(_FIRST_PIECE, len(names)):
        name = names[place]
        for cut in range(1, len(name)):
            left, right = name[:cut], name[cut:]
            if min(number.get(left, 0), number.get(right, 0)) >= _FIRST_PIECE:
                merges.append((-pieces[place].score, place, cut, left, right))
    return [[left, right] for _, _, _, left, right in sorted(merges)]


def _added(number: int, name: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": name, **flags}


def _sequence(key: str, *steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", key: list(steps)}


def _begin() -> dict[str, Any]:
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": part, "type_id": place}} for place, part in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, begin, second],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
