"""Terms: nothing is lost on the way from parents to what is derived."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.contracts import FORMS, SENSITIVITIES, Terms
from cloister.errors import Malformed, Misuse

TERMS = st.builds(
    Terms,
    licences=st.lists(st.sampled_from(["MIT", "CC-BY-4.0", "Apache-2.0"]), unique=True).map(tuple),
    sensitivity=st.sampled_from(SENSITIVITIES),
    forms=st.sets(st.sampled_from(FORMS)).map(lambda chosen: tuple(f for f in FORMS if f in chosen)),
    keep_until=st.integers(0, 2**53 - 1),
)


@given(TERMS)
def test_a_document_is_read_back(terms: Terms) -> None:
    assert Terms.read(terms.document()) == terms


@given(st.lists(TERMS, min_size=1, max_size=4))
def test_the_intersection_keeps_every_parents_obligations(parents: list[Terms]) -> None:
    derived = Terms.intersect(parents)
    for parent in parents:
        assert set(parent.licences) <= set(derived.licences)
        assert SENSITIVITIES.index(derived.sensitivity) >= SENSITIVITIES.index(parent.sensitivity)
        assert set(derived.forms) <= set(parent.forms)
        assert derived.keep_until <= parent.keep_until


@given(st.lists(TERMS, min_size=1, max_size=4), st.randoms())
def test_the_order_of_parents_and_repetition_change_nothing(parents: list[Terms], random: object) -> None:
    once = Terms.intersect(parents)
    shuffled = [*parents, *parents]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert Terms.intersect(shuffled) == once
    assert Terms.intersect([once, *parents]) == once


@given(TERMS, TERMS, TERMS)
def test_grouping_changes_nothing(a: Terms, b: Terms, c: Terms) -> None:
    assert Terms.intersect([Terms.intersect([a, b]), c]) == Terms.intersect([a, Terms.intersect([b, c])])


def test_no_parent_gives_no_terms() -> None:
    with pytest.raises(Misuse) as refused:
        Terms.intersect([])
    assert refused.value.code == "terms.parents"


GOOD = Terms(("MIT",)).document()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"forms": ["prose"]}, "terms.form"),
        ({"forms": ["metrics"] * 4}, "form.field"),
        ({"forms": "metrics"}, "form.field"),
        ({"sensitivity": "secret"}, "form.field"),
        ({"keep_until": -1}, "form.field"),
        ({"keep_until": 2**53}, "form.field"),
        ({"licences": [1]}, "form.field"),
        ({"licences": ["x" * 1025]}, "form.field"),
        ({"licences": ["x"] * 65}, "form.field"),
        ({"surprise": 1}, "form.unknown"),
    ],
)
def test_terms_of_another_form(changes: dict[str, object], code: str) -> None:
    with pytest.raises(Malformed) as refused:
        Terms.read({**GOOD, **changes})
    assert refused.value.code == code
