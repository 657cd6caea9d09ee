"""The demo's rows: the same everywhere, even, decided by the last question, and easy to trace when they leak."""

from __future__ import annotations

import csv
import re
import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.demo.data import CANARY_EVERY, CATEGORIES, DEFAULT_ROWS, generate, write_csv
from cloister.demo.phrases import SLOTS, TOPICS
from cloister.errors import Misuse

CANARY = "zebra-quartz-71c4"


def template_pattern(template: str) -> re.Pattern[str]:
    parts = [
        re.escape(literal) + ("(.+?)" if slot else "") for literal, slot, _, _ in string.Formatter().parse(template)
    ]
    return re.compile("".join(parts))


QUESTIONS = [(topic, template_pattern(q)) for topic, words in TOPICS.items() for q in words.questions]


def topics_asked(text: str) -> list[str]:
    """The topics of the questions in ``text``, in order."""
    sentences = re.findall(r"[^.?]*(?:\.\d[^.?]*)*\?", text)
    found = [{topic for topic, pattern in QUESTIONS if pattern.search(sentence)} for sentence in sentences]
    assert all(len(topics) == 1 for topics in found), (sentences, found)
    return [topics.pop() for topics in found]


def test_the_last_question_decides() -> None:
    for row in generate(400, seed=3):
        assert topics_asked(row.text)[-1] == row.category, row.text


def test_earlier_questions_mislead_often_enough() -> None:
    misled = sum(topics_asked(row.text)[0] != row.category for row in generate(400, seed=3))
    assert 60 <= misled <= 160


def test_eight_categories_or_more_evenly() -> None:
    counts = Counter(row.category for row in generate())
    assert len(CATEGORIES) >= 8
    assert set(counts) == set(CATEGORIES)
    assert sum(counts.values()) == DEFAULT_ROWS
    assert max(counts.values()) - min(counts.values()) <= 1


@settings(max_examples=25, deadline=None)
@given(st.integers(len(CATEGORIES), 60), st.integers(0, 2**32))
def test_a_seed_gives_the_same_rows_and_no_slot_stays_open(rows: int, seed: int) -> None:
    made = generate(rows, seed=seed)
    assert made == generate(rows, seed=seed)
    assert len(made) == rows
    assert not any(set("{}\n") & set(row.text) for row in made)


def test_another_seed_gives_other_rows() -> None:
    assert not {row.text for row in generate(200, seed=1)} & {row.text for row in generate(200, seed=2)}


def test_rows_are_distinct_and_look_like_records() -> None:
    made = generate()
    assert len({row.text for row in made}) == len(made)
    identified = re.compile(r"\(\d{3}\) 555-01\d\d|(?:MRN|record|Chart) \d{4}[- ]?\d{3}\b")
    assert all(identified.search(row.text) for row in made)


def test_every_slot_is_used_and_known() -> None:
    templates = [t for topic in TOPICS.values() for t in (*topic.statements, *topic.questions)]
    used = {slot for t in templates for _, slot, _, _ in string.Formatter().parse(t) if slot}
    assert set(SLOTS) <= used
    assert all(len(choices) == len(set(choices)) >= 2 for choices in SLOTS.values())


def test_the_canary_stands_in_the_stated_rows_and_changes_nothing_else() -> None:
    plain, marked = generate(250), generate(250, canary=CANARY)
    with_canary = [index for index, row in enumerate(marked) if CANARY in row.text]
    assert with_canary == list(range(0, 250, CANARY_EVERY))
    assert [r for i, r in enumerate(marked) if i not in with_canary] == [
        r for i, r in enumerate(plain) if i not in with_canary
    ]
    assert all(marked[i].text.endswith(plain[i].text) and marked[i].category == plain[i].category for i in with_canary)


@pytest.mark.parametrize("canary", ["", "  ", "two\nlines"])
def test_a_canary_that_could_not_be_found_is_refused(canary: str) -> None:
    with pytest.raises(Misuse, match="one line") as refused:
        generate(20, canary=canary)
    assert refused.value.code == "demo.canary"


def test_fewer_rows_than_categories_are_refused() -> None:
    with pytest.raises(Misuse, match="at least") as refused:
        generate(len(CATEGORIES) - 1)
    assert refused.value.code == "demo.rows"


def test_the_file_reads_back(tmp_path: Path) -> None:
    made, path = generate(50, canary='quote " and, comma'), tmp_path / "queries.csv"
    write_csv(path, made)
    assert path.read_bytes().startswith(b"text,category\n")
    assert b"\r" not in path.read_bytes()
    with path.open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [(r["text"], r["category"]) for r in read] == [(r.text, r.category) for r in made]
