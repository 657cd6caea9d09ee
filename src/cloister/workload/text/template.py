"""Which chat template a run takes, and what of its text an assistant says.

Nothing but the template knows where an answer begins, so it is asked twice for each: for the conversation before the
answer, with the prompt for it, and for the conversation up to the answer's end. What the second text has more is what
the model would have had to write. That holds only if each of these texts begins with the one before, and this is
checked for every conversation, instead of learning from text that no prompt leads to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...crypto import sha256
from ...errors import Malformed, Misuse
from .messages import Message
from .sandbox import Renderer

__all__ = ["ChatTemplate", "Rendered", "choose_template", "json_object"]

# The format of OpenAI's ChatML: https://github.com/openai/openai-python/blob/v0.28.1/chatml.md
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + <END> + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CHATML_END = "<|im_end|>"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Rendered:
    """A conversation's text and, in order, the [start, end) of its characters that the assistant wrote."""

    text: str
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ChatTemplate:
    """``name``: base or chatml. ``tokens``: texts of the special tokens that a template may use."""

    name: str
    source: str
    tokens: Mapping[str, str]
    _renderer: Renderer = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_renderer", Renderer(self.source, self.tokens))

    @property
    def digest(self) -> str:
        """SHA-256 of the template's UTF-8 bytes, in hexadecimal. It pins what ran."""
        return sha256(self.source.encode()).hex()

    def text(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """See ``sandbox.Renderer.render``. ``prompt``: with what asks the assistant to answer."""
        return self._renderer.render([message.plain() for message in messages], prompt=prompt)

    def rendered(self, messages: Sequence[Message]) -> Rendered:
        """Raises Malformed (``template.prefix`` where an answer's place isn't certain; the others of ``text``)."""
        whole, answers, end = self.text(messages), [], 0
        for place, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self.text(messages[:place], prompt=True)
            until = whole if place == len(messages) - 1 else self.text(messages[: place + 1])
            if len(before) < end or not (whole.startswith(until) and until.startswith(before)) or until == before:
                raise Malformed(
                    "template.prefix",
                    "The chat template writes the beginning of a conversation differently when it goes on, so what the"
                    " assistant says can't be told apart; give single answers, or use template chatml.",
                )
            answers.append((len(before), end := len(until)))
        return Rendered(whole, tuple(answers))


def choose_template(wanted: str, files: Mapping[str, bytes], vocabulary: Mapping[str, int]) -> ChatTemplate:
    """``wanted``: the recipe's auto, base or chatml. ``files``: the base's tokenizer files by name. ``vocabulary``: all
    of its tokens.

    The base's own template is chat_template.jinja, else ``chat_template`` in tokenizer_config.json, as in
    transformers. Raises Misuse (``template.missing``, ``template.stop``) and Malformed (``template.syntax``).
    """
    config = json_object(files, "tokenizer_config.json")
    tokens = _special_texts(config, json_object(files, "special_tokens_map.json"))
    own = None if wanted == "chatml" else _own(files, config)
    if own is not None:
        return ChatTemplate("base", own, tokens)
    if wanted == "base":
        raise Misuse("template.missing", "The base has no chat template; use template chatml, or leave it to auto.")
    if _CHATML_END in vocabulary:
        return ChatTemplate("chatml", _CHATML.replace("<END>", repr(_CHATML_END)), tokens)
    if "eos_token" not in tokens:
        raise Misuse(
            "template.stop",
            f"The base has no end token and no {_CHATML_END}, so no answer could end; take another base.",
        )
    return ChatTemplate("chatml", _CHATML.replace("<END>", "eos_token"), tokens)


def _special_texts(*sources: Mapping[str, Any]) -> dict[str, str]:
    """By the names that templates know special tokens by."""
    found = {}
    for source in sources:
        for name in _SPECIAL:
            value = source.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[name] = text
    return found


def _own(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    if "chat_template.jinja" in files:
        try:
            return files["chat_template.jinja"].decode("utf-8")
        except UnicodeDecodeError:
            raise Malformed("template.syntax", "The base's chat template is not UTF-8; use template chatml.") from None
    found = config.get("chat_template")
    if isinstance(found, list):  # several, of which the one called default is for conversations
        named = {str(t.get("name")): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def json_object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """One of ``files``, or an empty object where it is missing. Raises Malformed (``model.json``)."""
    try:
        value = json.loads(files[name].decode("utf-8")) if name in files else {}
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Malformed("model.json", f"The base's {name} is not a JSON object; give the published file.")
    return value
