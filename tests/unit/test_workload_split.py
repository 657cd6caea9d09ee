"""Three parts of the rows: nothing leaks between them, and what is in which follows from what the rows say."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.contracts.recipe import parse_recipe
from cloister.errors import Misuse
from cloister.workload.data import Split, split_rows

TENTH, FIFTH = Decimal("0.1"), Decimal("0.2")


def texts_of(texts: list[str], rows: tuple[int, ...]) -> set[str]:
    return {texts[row] for row in rows}


@given(
    st.lists(st.tuples(st.integers(0, 60), st.sampled_from("abc")), min_size=30, max_size=120),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_no_text_stands_on_two_sides(rows: list[tuple[int, str]], seed: int, chance: Any) -> None:
    texts, labels = [f"text {number}" for number, _ in rows], [label for _, label in rows]
    with contextlib.suppress(Misuse):  # of too few texts to part
        check_parts(texts, labels, seed, split_rows(texts, labels, FIFTH, seed, TENTH), chance)


def check_parts(texts: list[str], labels: list[str], seed: int, split: Split, chance: Any) -> None:
    assert sorted((*split.training, *split.validation, *split.test)) == list(range(len(texts)))
    parts = [texts_of(texts, part) for part in (split.training, split.validation, split.test)]
    assert all(parts)
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    # The validation rows are those of a split without test rows, and no order of the file changes who is where.
    assert split_rows(texts, labels, FIFTH, seed).validation == split.validation
    if len(set(texts)) == len(texts):
        order = list(range(len(texts)))
        chance.shuffle(order)
        moved = [texts[place] for place in order]
        again = split_rows(moved, [labels[place] for place in order], FIFTH, seed, TENTH)
        assert texts_of(moved, again.test) == parts[2]
        assert texts_of(moved, again.validation) == parts[1]


def test_each_label_gives_its_share_to_both() -> None:
    labels = ["a"] * 100 + ["b"] * 50
    split = split_rows([f"t {n}" for n in range(150)], labels, FIFTH, 0, TENTH)
    for part, many in ((split.validation, (20, 10)), (split.test, (10, 5))):
        assert (sum(row < 100 for row in part), sum(row >= 100 for row in part)) == many


def test_the_report_is_on_test_rows_where_there_are_some() -> None:
    assert Split((0,), (1,), (2,)).report == (2,)
    assert Split((0,), (1,)).report == (1,)


def test_too_few_rows_for_three_parts_are_refused() -> None:
    with pytest.raises(Misuse, match="validation and test") as caught:
        split_rows([f"t {n}" for n in range(12)], None, TENTH, 0, Decimal("0.01"))
    assert caught.value.code == "data.few"


def test_a_recipe_leaves_rows_to_train_on() -> None:
    recipe = {
        "task": "text", "method": "lora", "data": "a/b", "base": "a/c", "columns": {"text": "text"},
        "select": "best", "validation": "0.5",
    }  # fmt: skip
    assert parse_recipe(recipe).test == TENTH
    with pytest.raises(Misuse) as caught:
        parse_recipe({**recipe, "test": "0.5"})
    assert (caught.value.code, caught.value.details["key"]) == ("recipe.combination", "test")
