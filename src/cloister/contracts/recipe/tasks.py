"""What a base is trained for: the tasks, and which columns of the data each reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["TASKS", "Columns", "Task"]


@dataclass(frozen=True)
class Task:
    """``required`` and ``optional``: what columns stand for, by the recipe's words. ``says``: one line for people."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    says: str

    @property
    def roles(self) -> tuple[str, ...]:
        return (*self.optional, *self.required)


TASKS: Mapping[str, Task] = {
    "classification": Task(("text", "label"), ("user",), "one label for a text"),
    "multilabel": Task(("text", "labels"), (), "any number of labels for a text"),
    "extraction": Task(("tokens", "tags"), (), "a tag for each word: names, places, amounts"),
    "ranking": Task(("query", "document", "relevance"), (), "how well a document answers a query, read together"),
    "embedding": Task(("query", "positive"), ("negative",), "vectors that lie close where texts belong together"),
    "generation": Task(("completion",), ("prompt", "user"), "a text that follows a prompt, or none"),
    "chat": Task(("messages",), ("user",), "the assistant's answers in conversations"),
    "preference": Task(("prompt", "chosen", "rejected"), (), "which of two answers is better (DPO)"),
    "text": Task(("text",), ("user",), "plain text: continued pre-training, or a model from scratch"),
    "script": Task((), (), "what a party's own program does; it reads the data's files itself"),
}


@dataclass(frozen=True)
class Columns:
    """Which column stands for what. In the order of the task's roles."""

    by_role: tuple[tuple[str, str], ...]

    def __getitem__(self, role: str) -> str:
        """KeyError for a role that the task has and the recipe did not name."""
        return dict(self.by_role)[role]

    def get(self, role: str) -> str | None:
        return dict(self.by_role).get(role)

    def names(self) -> tuple[str, ...]:
        return tuple(name for _, name in self.by_role)
