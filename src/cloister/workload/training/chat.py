"""Conversations: a chat template writes them as text, and only what the assistant says is learned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...contracts.recipe import Recipe
from ...errors import Misuse
from ..data import Split, Table
from ..text import ChatTemplate, MarkedRow, Message, choose_template, mark_rows, read_messages, stop_token
from .base_model import BaseModel
from .batching import IGNORED, Row
from .generate import run_causal
from .privacy import users
from .run import Ports, TrainingResult

__all__ = ["run_chat"]


def run_chat(recipe: Recipe, base: BaseModel, table: Table, ports: Ports, split: Split | None) -> TrainingResult:
    """See ``engine.run_training``."""
    return run_causal(recipe, base, _conversations(recipe, base, table), ports, split, users(recipe, table))


@dataclass(frozen=True)
class _Conversations:
    """``stop``: the token that ends every answer. ``wholes``: the cells, as they stand."""

    base: BaseModel
    template: ChatTemplate
    stop: int
    wholes: Sequence[str]
    conversations: Sequence[Sequence[Message]]
    left_out: set[int] = field(default_factory=set)

    def encode(self, places: Sequence[int], max_length: int, *, ended: bool) -> tuple[list[Row], list[int]]:
        """A conversation that is too long loses its end; where no answer is left, the row is left out and counted."""
        wanted = [self.conversations[place] for place in places]
        marked = mark_rows(self.base.tokenizer, self.template, wanted, self.stop)
        found = [(_row(each, max_length, ended), place) for each, place in zip(marked, places, strict=True)]
        kept = [(row, place) for row, place in found if any(mark != IGNORED for mark in row.marks[1:])]
        self.left_out.update({*places} - {place for _, place in kept})
        if not kept:
            raise Misuse(
                "data.blank", "No answer of the assistant fits into max_length; raise it, or shorten the rows."
            )
        return [row for row, _ in kept], [place for _, place in kept]

    @property
    def facts(self) -> Mapping[str, str | int]:
        return {
            "template": self.template.name,
            "template_sha256": self.template.digest,
            "rows_left_out": len(self.left_out),
        }

    @property
    def files(self) -> Mapping[str, bytes]:
        """With the template that was trained with, and a configuration that stops where the answers end."""
        config = self.base.generation_config()
        stops = [self.stop, *sorted(self.base.stops - {self.stop})]
        config["eos_token_id"] = stops if len(stops) > 1 else self.stop
        return {
            "chat_template.jinja": self.template.source.encode(),
            "generation_config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        }


def _conversations(recipe: Recipe, base: BaseModel, table: Table) -> _Conversations:
    cells = table.column(recipe.columns["messages"])
    conversations = read_messages(cells)
    template = choose_template(recipe.template or "auto", base.carried, base.tokenizer.get_vocab(True))
    stop = stop_token(base.tokenizer, template, conversations[0], base.stops)
    return _Conversations(base, template, stop, cells, conversations)


def _row(marked: MarkedRow, max_length: int, ended: bool) -> Row:
    ends = frozenset() if ended else frozenset(marked.ends)
    ids, learned = marked.ids[:max_length], marked.learned[:max_length]
    marks = tuple(
        number if wanted and place not in ends else IGNORED
        for place, (number, wanted) in enumerate(zip(ids, learned, strict=True))
    )
    first = next((place for place, mark in enumerate(marks) if mark != IGNORED), len(ids))
    return Row(ids, first, marks=marks)
