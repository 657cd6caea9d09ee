"""For a data owner: what becomes of a few rows. Each token, and whether it is learned; nothing leaves the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...contracts.recipe import Recipe
from ...errors import Malformed, Misuse
from .messages import read_messages
from .plain import ENCODER_DECODERS, answer_ids, completion_ids, document_ids
from .template import choose_template, json_object
from .tokenizer import end_tokens, read_tokenizer, special_tokens
from .tokens import mark_rows, stop_token

__all__ = ["ExplainedToken", "explain_rows"]


@dataclass(frozen=True)
class ExplainedToken:
    """``text``: what the token stands for, by itself. ``learned``: training makes it more probable at its place."""

    id: int
    text: str
    learned: bool


def explain_rows(
    recipe: Recipe, files: Mapping[str, bytes], columns: Mapping[str, Sequence[str]]
) -> list[list[ExplainedToken]]:
    """One list a row of training: the very code that training uses, on the owner's side. Of a preference, the chosen
    and the rejected answer are a row each.

    ``files``: of the base's folder, by name; tokenizer.json at least. ``columns``: the sample's texts, by column name.
    Rows are cut to the recipe's ``max_length``; a base with fewer positions cuts further. Raises Misuse
    (``recipe.sample`` for a task that learns no tokens) and Malformed, as training does.
    """
    if "tokenizer.json" not in files:
        raise Malformed("model.missing", "The folder lacks tokenizer.json; name the base's own folder.")
    tokenizer = read_tokenizer(files["tokenizer.json"])
    config, generation = json_object(files, "config.json"), json_object(files, "generation_config.json")
    named = {**json_object(files, "tokenizer_config.json"), **json_object(files, "special_tokens_map.json")}
    special = special_tokens(tokenizer, named, config)
    texts = {role: columns[name] for role, name in recipe.columns.by_role}
    longest = recipe.max_length
    if recipe.task == "chat":
        template = choose_template(recipe.template or "auto", files, tokenizer.get_vocab(True))
        talks = read_messages(texts["messages"])
        stop = stop_token(tokenizer, template, talks[0], end_tokens(special, config, generation))
        rows = [(row.ids[:longest], row.learned[:longest]) for row in mark_rows(tokenizer, template, talks, stop)]
    elif recipe.task == "text":
        rows = [(ids, _after(1, ids)) for ids in document_ids(tokenizer, special, texts["text"], longest)]
    elif recipe.task == "generation" and "prompt" in texts and config.get("model_type") in ENCODER_DECODERS:
        pairs = answer_ids(tokenizer, special, texts["prompt"], texts["completion"], longest)
        rows = [((*read, *written), _after(len(read), (*read, *written))) for read, written, _ in pairs]
    elif recipe.task in ("generation", "preference"):
        rows = []
        sides = ("completion",) if recipe.task == "generation" else ("chosen", "rejected")
        for side in sides:
            found = completion_ids(tokenizer, special, texts.get("prompt"), texts[side], longest)
            rows += [(ids, _after(max(first, 1), ids)) for ids, first in found]
    else:
        raise Misuse("recipe.sample", f"A recipe of task {recipe.task} learns no tokens; there is nothing to show.")
    return [
        [
            ExplainedToken(number, tokenizer.decode([number], skip_special_tokens=False), learned)
            for number, learned in zip(ids, marks, strict=True)
        ]
        for ids, marks in rows
    ]


def _after(first: int, ids: Sequence[int]) -> tuple[bool, ...]:
    return tuple(place >= first for place in range(len(ids)))
