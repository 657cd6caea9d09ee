"""A base's tokenizer, and the tokens of it that mean begin, end and padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from ...errors import Malformed

__all__ = ["SpecialTokens", "end_tokens", "highest_token", "read_tokenizer", "special_tokens"]


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids. ``begin`` is set only if the tokenizer itself puts it before a text."""

    begin: int | None
    end: int | None
    pad: int


def read_tokenizer(raw: bytes) -> Tokenizer:
    """Of tokenizer.json, without its padding and truncation. Raises Malformed (``model.tokenizer``)."""
    try:
        tokenizer = Tokenizer.from_str(raw.decode("utf-8"))
    except Exception:  # noqa: BLE001 - the library raises plain Exception for every kind of broken tokenizer
        raise Malformed(
            "model.tokenizer", "The model's tokenizer.json can't be read; seal the published file."
        ) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def highest_token(tokenizer: Tokenizer) -> int:
    """The largest token id that the tokenizer can give."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def special_tokens(tokenizer: Tokenizer, named: Mapping[str, Any], config: Mapping[str, Any]) -> SpecialTokens:
    """``named``: tokenizer_config.json and special_tokens_map.json together; ``config``: the model's config.json."""

    def token(key: str) -> int | None:
        value = named.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        found = tokenizer.token_to_id(text) if isinstance(text, str) else None
        if found is None:
            other = config.get(f"{key}_id")
            other = other[0] if isinstance(other, list) and other else other
            found = other if isinstance(other, int) and 0 <= other <= highest_token(tokenizer) else None
        return found

    begin, end, pad = token("bos_token"), token("eos_token"), token("pad_token")
    plain, marked = (tokenizer.encode("a", add_special_tokens=flag).ids for flag in (False, True))
    begins = begin is not None and marked[:1] == [begin] and plain[:1] != [begin]
    return SpecialTokens(begin if begins else None, end, pad if pad is not None else end or 0)


def end_tokens(tokens: SpecialTokens, *configs: Mapping[str, Any]) -> frozenset[int]:
    """The token ids at which generation stops, by ``eos_token_id`` in config.json and generation_config.json, too."""
    found: set[Any] = {tokens.end}
    for config in configs:
        value = config.get("eos_token_id")
        found |= {each for each in value if isinstance(each, int)} if isinstance(value, list) else {value}
    return frozenset(number for number in found if isinstance(number, int))
