"""The lines of the table: what is trained on which data, and with which settings where they aren't the recipe's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LINES", "Line"]

_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "classification": {"text": "text", "label": "label"},
    "multilabel": {"text": "text", "labels": "labels"},
    "extraction": {"tokens": "tokens", "tags": "tags"},
    "ranking": {"query": "query", "document": "document", "relevance": "relevance"},
    "embedding": {"query": "query", "positive": "positive"},
    "generation": {"prompt": "prompt", "completion": "completion"},
    "chat": {"messages": "messages"},
    "text": {"text": "text"},
}
METRICS: Mapping[str, str] = {
    "classification": "accuracy",
    "multilabel": "micro_f1",
    "extraction": "entity_f1",
    "ranking": "mrr",
    "embedding": "mrr",
    "generation": "bits_per_byte",
    "chat": "bits_per_byte",
    "text": "bits_per_byte",
}


@dataclass(frozen=True)
class Line:
    """``source``: a function of ``_quality_data``; ``base``: minilm or stories260k; ``folds``: 1 for one split, else
    every row is answered once, by a model that didn't see it."""

    source: str
    task: str
    method: str
    says: str
    base: str = "minilm"
    folds: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """``changes`` come on top of the line's own settings."""
        return {
            "task": self.task, "method": self.method, "data": "bench/data", "base": f"bench/{self.base}",
            "columns": _COLUMNS[self.task], "checkpoint_steps": 0, **self.settings, **changes,
        }  # fmt: skip

    @property
    def metric(self) -> str:
        return METRICS[self.task]


_INTENTS = "banking77: which of 77 intents a query has; a seeded, stratified tenth"
# A base of 260,000 weights takes, and needs, larger steps than the recipe's default for bases of usual size.
_SMALL: Mapping[str, Any] = {"max_length": 512, "learning_rate": "0.002"}
LINES: Mapping[str, Line] = {
    "banking77": Line("banking77", "classification", "lora", _INTENTS),
    "banking77_full": Line("banking77", "classification", "full", _INTENTS),
    "banking77_qlora": Line("banking77", "classification", "qlora", _INTENTS),
    "mts_dialog": Line(
        "mts_headers", "classification", "lora", "mts_dialog: the section that a dialogue belongs to", folds=5
    ),
    "csabstruct": Line(
        "csabstruct", "classification", "lora", "csabstruct: a sentence's role in its abstract; the published dev part"
    ),
    "mts_notes": Line(
        "mts_notes", "generation", "full", "mts_dialog: the note of a dialogue; a seeded tenth", "stories260k",
        settings=_SMALL,
    ),
    "gsm8k": Line(
        "gsm8k", "generation", "full", "gsm8k: the worked answer to a problem; a seeded tenth", "stories260k",
        settings={**_SMALL, "epochs": 2},
    ),
    "wnut17": Line("wnut17", "extraction", "lora", "wnut17: new names in posts; the published dev part"),
    "pubmedqa": Line(
        "pubmedqa_ranking", "ranking", "lora",
        "pubmedqa: a question's context among the five closest wrong ones by BM25; every third question",
        settings={"max_length": 128},
    ),
    "pubmedqa_embedding": Line(
        "pubmedqa_pairs", "embedding", "lora", "pubmedqa: a question's contexts among all; a seeded fifth",
        settings={"validation": "0.2"},
    ),
    "pubmedqa_terms": Line(
        "pubmedqa_terms", "multilabel", "lora", "pubmedqa: which of twelve MeSH terms an article has; a seeded third",
        settings={"max_length": 128, "validation": "0.33"},
    ),
    "selfinstruct": Line(
        "selfinstruct", "chat", "full", "selfinstruct: answers to instructions", "stories260k", folds=5,
        settings=_SMALL,
    ),
    "shakespeare": Line(
        "shakespeare", "text", "full", "tinyshakespeare: plain text; its last tenth", "stories260k",
        settings={**_SMALL, "epochs": 1},
    ),
}  # fmt: skip
