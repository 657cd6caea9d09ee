"""Public data as rows that the recipe's tasks read. Each function gives rows, and which of them are for validation.

Where validation rows are named, they are their publisher's own part, or no text of theirs stands in a training row.
None leaves the choice to the recipe's seeded share.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["SOURCES", "Rows"]

Rows = tuple[list[dict[str, Any]], set[int] | None]
_HARD = 5  # wrong contexts beside each right one
_TERMS = 12


def banking77(data: Path) -> Rows:
    return [{"text": r["text"], "label": r["category"]} for r in _csv(data / "banking77/train.csv")], None


def mts_headers(data: Path) -> Rows:
    """Section headers from dialogues."""
    rows = _csv(data / "mts_dialog/MTS-Dialog-TrainingSet.csv")
    return [{"text": r["dialogue"], "label": r["section_header"]} for r in rows], None


def csabstruct(data: Path) -> Rows:
    """A sentence's role in its abstract; the publisher's dev part is set aside."""
    rows, held = [], set()
    for part in ("train", "dev"):
        for abstract in _jsonl(data / f"csabstruct/{part}.jsonl"):
            for text, label in zip(abstract["sentences"], abstract["labels"], strict=True):
                if part == "dev":
                    held.add(len(rows))
                rows.append({"text": text, "label": label})
    return _without_repeats(rows, held, "text")


def pubmedqa_terms(data: Path) -> Rows:
    """Which of the twelve commonest MeSH terms an article has, from its conclusion and first contexts."""
    articles = _pubmedqa(data)
    counted = Counter(term for article in articles for term in article["MESHES"])
    common = {term for term, _ in counted.most_common(_TERMS + 1)} - {"Humans"}
    return [
        {"text": " ".join([*a["CONTEXTS"][:3]]), "labels": sorted(common & set(a["MESHES"]))} for a in articles
    ], None


def wnut17(data: Path) -> Rows:
    """Train and dev parts as published; the dev part is set aside."""
    rows, held = [], set()
    for part in ("wnut17train", "emerging.dev"):
        for block in re.split(r"\n\s*\n", (data / f"ner_wnut17/{part}.conll").read_text(encoding="utf-8")):
            pairs = [line.split("\t")[:2] for line in block.splitlines() if line.strip()]
            if pairs:
                if part != "wnut17train":
                    held.add(len(rows))
                rows.append({"tokens": [p[0].strip() for p in pairs], "tags": [p[1].strip() for p in pairs]})
    return rows, held


def pubmedqa_ranking(data: Path) -> Rows:
    """Each question with its last context (mostly the results), and with the five wrong ones that BM25 finds closest.

    Every third question is set aside, and wrong contexts come from questions of the same part: no context of a
    validation row is in a training row.
    """
    rows, held = [], set()
    for part in (0, 1):
        articles = [a for place, a in enumerate(_pubmedqa(data)) if (place % 3 == 0) == bool(part)]
        owners = [(number, text) for number, article in enumerate(articles) for text in article["CONTEXTS"]]
        scores = bm25([text for _, text in owners])
        for number, article in enumerate(articles):
            found = scores(article["QUESTION"])
            best = sorted((-found[place], place) for place, (owner, _) in enumerate(owners) if owner != number)
            documents = [(article["CONTEXTS"][-1], 1), *((owners[place][1], 0) for _, place in best[:_HARD])]
            for text, relevance in documents:
                if part:
                    held.add(len(rows))
                rows.append({"query": article["QUESTION"], "document": text, "relevance": relevance})
    return rows, held


def pubmedqa_pairs(data: Path) -> Rows:
    """Questions and each of their contexts."""
    return [{"query": a["QUESTION"], "positive": text} for a in _pubmedqa(data) for text in a["CONTEXTS"]], None


def mts_notes(data: Path) -> Rows:
    """Notes from dialogues; the prompt ends with the section's header."""
    rows = _csv(data / "mts_dialog/MTS-Dialog-TrainingSet.csv")
    return [
        {"prompt": f"{r['dialogue'].strip()}\n\n{r['section_header']}: ", "completion": r["section_text"].strip()}
        for r in rows
    ], None


def gsm8k(data: Path) -> Rows:
    """The first 3,000 problems, to save time."""
    rows = _jsonl(data / "gsm8k/train.jsonl")[:3000]
    return [{"prompt": r["question"] + "\n\n", "completion": r["answer"]} for r in rows], None


def selfinstruct(data: Path) -> Rows:
    """A message of the user, who asks, and one of the assistant, for each task's first example."""
    rows = []
    for task in _jsonl(data / "selfinstruct/seed_tasks.jsonl"):
        one = task["instances"][0]
        asked = "\n\n".join(filter(None, [task["instruction"], one["input"]]))
        turns = [("user", asked), ("assistant", one["output"])]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    return rows, None


def shakespeare(data: Path) -> Rows:
    """Pieces of about 600 characters, cut between speeches; the last tenth is set aside."""
    pieces = [""]
    for speech in (data / "tinyshakespeare/first90.txt").read_text(encoding="utf-8").split("\n\n"):
        if len(pieces[-1]) > 600:
            pieces.append("")
        pieces[-1] += speech + "\n\n"
    rows = [{"text": piece} for piece in pieces if piece]
    return rows, set(range(len(rows) - len(rows) // 10, len(rows)))


SOURCES: dict[str, Callable[[Path], Rows]] = {
    "banking77": banking77,
    "mts_headers": mts_headers,
    "csabstruct": csabstruct,
    "pubmedqa_terms": pubmedqa_terms,
    "wnut17": wnut17,
    "pubmedqa_ranking": pubmedqa_ranking,
    "pubmedqa_pairs": pubmedqa_pairs,
    "mts_notes": mts_notes,
    "gsm8k": gsm8k,
    "selfinstruct": selfinstruct,
    "shakespeare": shakespeare,
}


def bm25(documents: Sequence[str], k1: float = 1.2, b: float = 0.75) -> Callable[[str], list[float]]:
    """Scores of all documents for a query (Robertson & Zaragoza 2009, "The Probabilistic Relevance Framework", §3)."""
    counts = [Counter(_words(text)) for text in documents]
    sizes = [sum(c.values()) for c in counts]
    mean = sum(sizes) / len(sizes)
    holds = Counter(word for c in counts for word in c)
    rare = {word: math.log(1 + (len(documents) - n + 0.5) / (n + 0.5)) for word, n in holds.items()}

    def scores(query: str) -> list[float]:
        words = set(_words(query))
        return [
            sum(rare[w] * c[w] * (k1 + 1) / (c[w] + k1 * (1 - b + b * size / mean)) for w in words if w in c)
            for c, size in zip(counts, sizes, strict=True)
        ]

    return scores


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _without_repeats(rows: list[dict[str, Any]], held: set[int], key: str) -> Rows:
    """Validation rows whose text stands in a training row are dropped."""
    seen = {row[key] for place, row in enumerate(rows) if place not in held}
    kept = [(row, place in held) for place, row in enumerate(rows) if place not in held or row[key] not in seen]
    return [row for row, _ in kept], {place for place, (_, aside) in enumerate(kept) if aside}


def _pubmedqa(data: Path) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((data / "pubmedqa/pqal_dev.json").read_text(encoding="utf-8"))
    return list(found.values())


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
