"""A tag for each word: frozen pieces → the base's own best tags → the encoder with a head on each first piece."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...contracts.recipe import Recipe
from ...errors import Misuse
from ..data import Split, Table, items, rarest, split_rows
from ..evaluation import Probe, entity_counts, evaluate_extraction, fit_probe
from .base_model import BaseModel
from .batching import IGNORED, Row, collate_tags
from .encoders import body, equip
from .heads import TokenClassifier
from .looks import Look
from .predict import word_outputs
from .run import Ports, Timings, TrainingResult, device, train

__all__ = ["encode_words", "run_extraction", "tag_form"]

_PROBED_WORDS = 50_000  # more words change the frozen base's regression little and cost minutes


def run_extraction(recipe: Recipe, base: BaseModel, table: Table, ports: Ports, split: Split | None) -> TrainingResult:
    """See ``engine.run_training``."""
    timings = Timings()
    words, tags = (items(table.column(recipe.columns[role])) for role in ("tokens", "tags"))
    labels, iob2 = tag_form(words, tags)
    wholes = [" ".join(row) for row in words]
    split = split or split_rows(
        wholes, rarest([set(row) - {"O"} for row in tags]), recipe.validation, recipe.seed, recipe.test
    )
    encoder, width, max_length = body(recipe, base, ports)
    model = TokenClassifier(encoder, width, len(labels)).to(device())
    number = {name: place for place, name in enumerate(labels)}
    texts = _Texts(
        words, tags, labels, iob2, *encode_words(base, words, [[number[t] for t in row] for row in tags], max_length)
    )
    training = [texts.rows[r] for r in split.training if texts.kept[r]]
    if not training:
        raise Misuse("data.few", "No training row has a word that the base can read; check 'columns.tokens'.")

    def outputs(rows: Sequence[Row], *, embed: bool = False) -> list[np.ndarray]:
        return list(word_outputs(model, rows, base.tokens.pad, ports.lease, embed=embed))

    def answered(places: Sequence[int]) -> list[list[str]]:
        return texts.tagged(places, outputs([texts.rows[r] for r in places]))

    ports.progress.report("prepare", 0, 1, {})
    with timings.measure("embed"):
        seen = outputs(training, embed=True)
        held = outputs([texts.rows[r] for r in split.report], embed=True)
    with timings.measure("probe"):
        probe = _probe(seen, training, len(labels), recipe.seed)
    kind, compared = texts.base_answers(probe, held, split)
    ports.progress.report("prepare", 1, 1, {})
    probe.bias[:] = np.maximum(probe.bias, -10.0)  # a tag without a training word must not dominate the gradients
    equip(model, recipe, probe)

    def look() -> Look:
        return Look("entity_f1", _f1(texts.counts(split.validation, answered(split.validation))))

    train(model, recipe, base, training, collate_tags, ports, timings, look)
    ports.progress.report("evaluate", 0, 1, {})
    with timings.measure("predict"):
        answers = answered(split.report)
    evaluation = evaluate_extraction(
        [tags[r] for r in split.report], compared, answers,
        iob2=iob2, base_kind=kind, words_cut=texts.words_cut, seed=recipe.seed,
    )  # fmt: skip
    ports.progress.report("evaluate", 1, 1, {"entity_f1": f"{evaluation.scores['entity_f1'].tuned:f}"})
    counts = {"base": texts.counts(split.report, compared), "tuned": texts.counts(split.report, answers)}
    found = {"rows": np.array(split.report), **counts}
    return TrainingResult(recipe, base, model, evaluation, found, max_length, labels, None, timings)


@dataclass(frozen=True)
class _Texts:
    """All rows: their words and tags, and as pieces. ``kept``: which words of each row have a piece."""

    words: Sequence[Sequence[str]]
    tags: Sequence[Sequence[str]]
    labels: tuple[str, ...]
    iob2: bool
    rows: list[Row]
    kept: list[list[int]]

    @property
    def words_cut(self) -> int:
        return sum(len(row) - len(kept) for row, kept in zip(self.words, self.kept, strict=True))

    def tagged(self, places: Sequence[int], outputs: Sequence[np.ndarray]) -> list[list[str]]:
        """Words that were cut off or that have no piece are found to be nothing."""
        found = []
        for row, values in zip(places, outputs, strict=True):
            given = ["O"] * len(self.words[row])
            for word, value in zip(self.kept[row], values, strict=True):
                given[word] = self.labels[int(value.argmax())]
            found.append(given)
        return found

    def counts(self, places: Sequence[int], given: Sequence[Sequence[str]]) -> np.ndarray:
        return entity_counts([self.tags[r] for r in places], given, iob2=self.iob2)

    def base_answers(self, probe: Probe, held: Sequence[np.ndarray], split: Split) -> tuple[str, list[list[str]]]:
        """The better of the probe's tags on what is reported and each word's commonest one, and which it is."""
        common = _commonest([(self.words[r], self.tags[r]) for r in split.training])
        orders = {
            "probe": self.tagged(split.report, [probe.logits(value) if len(value) else value for value in held]),
            "majority": [[common.get(word, "O") for word in self.words[r]] for r in split.report],
        }
        kind = max(orders, key=lambda name: _f1(self.counts(split.report, orders[name])))
        return kind, orders[kind]


def _probe(seen: Sequence[np.ndarray], training: Sequence[Row], labels: int, seed: int) -> Probe:
    vectors = np.concatenate(seen)
    targets = np.array([mark for row in training for mark in row.marks if mark != IGNORED], dtype=np.int64)
    chosen = np.random.default_rng(seed).permutation(len(targets))[:_PROBED_WORDS]
    if len(set(targets[chosen].tolist())) < 2:
        raise Misuse("data.tags", "The training rows hold one tag only; extraction needs at least two.")
    return fit_probe(vectors[chosen], targets[chosen], labels, seed)


def tag_form(words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], bool]:
    """The distinct tags in order, and whether they are IOB2. Misuse (``data.tags``) where they fit no form."""
    for row, (said, given) in enumerate(zip(words, tags, strict=True), 1):
        if len(said) != len(given) or not said:
            raise Misuse(
                "data.tags", f"Row {row} has {len(said)} tokens and {len(given)} tags; give each token one tag."
            )
        if not all(said) or not all(given):
            raise Misuse("data.blank", f"Row {row} has an empty token or tag; fill or drop it.")
    names = tuple(sorted({tag for row in tags for tag in row}))
    if len(names) < 2:
        raise Misuse("data.tags", "The tags column holds one tag only; extraction needs at least two.")
    if len(names) > 1024:
        raise Misuse("data.tags", "The tags column holds more than 1024 tags; check that 'columns.tags' names it.")
    marked = [tag for tag in names if tag[:2] in ("B-", "I-")]
    if not marked:
        return names, False
    if len(marked) + ("O" in names) < len(names):
        raise Misuse(
            "data.tags", "Some tags begin with B- or I- and others don't; write IOB2 (B-, I-, O) or plain tags."
        )
    for row, given in enumerate(tags, 1):
        for before, tag in zip(["O", *given], given, strict=False):
            if tag.startswith("I-") and before[2:] != tag[2:]:
                raise Misuse("data.tags", f"Row {row} has an entity that starts with I-; in IOB2 it starts with B-.")
    return names, True


def encode_words(
    base: BaseModel, words: Sequence[Sequence[str]], tags: Sequence[Sequence[int]], max_length: int
) -> tuple[list[Row], list[list[int]]]:
    """Rows whose marks are the tags at each word's first piece, and which words of each row have one."""
    rows, kept = [], []
    base.tokenizer.enable_truncation(max_length)
    try:
        for said, given in zip(words, tags, strict=True):
            # As one text, so that every kind of tokenizer cuts it as it cuts texts; offsets tell the words apart.
            ends = np.cumsum([len(word) + 1 for word in said]) - 1
            encoding = base.tokenizer.encode(" ".join(said))
            places: list[int] = []
            marks = [IGNORED] * len(encoding.ids)
            for piece, (_, end) in enumerate(encoding.offsets):
                word = int(np.searchsorted(ends, end))
                if end and word < len(said) and encoding.special_tokens_mask[piece] == 0 and word not in places[-1:]:
                    marks[piece] = given[word]
                    places.append(word)
            rows.append(Row(tuple(encoding.ids), 0, tuple(marks)))
            kept.append(places)
    finally:
        base.tokenizer.no_truncation()
    return rows, kept


def _commonest(rows: Sequence[tuple[Sequence[str], Sequence[str]]]) -> dict[str, str]:
    counted: dict[str, Counter[str]] = {}
    for said, given in rows:
        for word, tag in zip(said, given, strict=True):
            counted.setdefault(word, Counter())[tag] += 1
    return {word: min(counts, key=lambda tag: (-counts[tag], tag)) for word, counts in counted.items()}


def _f1(counts: np.ndarray) -> float:
    shared, given, true = counts.sum(axis=0)
    return float(2 * shared / max(given + true, 1))
