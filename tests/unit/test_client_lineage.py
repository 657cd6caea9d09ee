"""Which versions a re-encryption may shred, from numbers alone."""

from __future__ import annotations

import pytest

from cloister.client.lineage import Lineage
from cloister.errors import Malformed, Unavailable


def line(*alive: int, newest: int, sources: dict[int, int]) -> Lineage:
    return Lineage("hospital/queries", alive, newest, sources)


@pytest.mark.parametrize(
    ("alive", "sources", "shredded", "kept"),
    [
        ((1, 2), {2: 1}, [1], ()),
        ((1, 2, 3), {3: 2}, [1, 2], ()),
        ((1, 2, 3), {3: 1}, [1], (2,)),
        ((2, 3), {3: 1}, [], (2,)),  # only what exists is named
        ((1, 2, 3, 4), {3: 1, 4: 3}, [1, 3], (2,)),  # what was passed over stays so
        ((1, 2, 3, 4), {3: 1, 4: 2}, [1, 2], (3,)),  # until it is what was read
        ((1, 2, 3, 5), {3: 1, 4: 2, 5: 3}, [1, 3], (2,)),  # the copy of 2 is gone, so 2 may be all that there is
        ((1, 2, 3, 4, 5), {3: 1, 5: 4}, [1, 3, 4], (2,)),  # 4 was sealed by itself
    ],
)
def test_what_is_shredded_and_what_is_kept(
    alive: tuple[int, ...], sources: dict[int, int], shredded: list[int], kept: tuple[int, ...]
) -> None:
    assert line(*alive, newest=alive[-1], sources=sources).older(alive[-1]) == (shredded, kept)


def test_a_broker_that_names_a_version_as_its_own_source() -> None:
    assert line(1, 2, newest=2, sources={2: 2}).older(2) == ([1], ())


def test_on_behalf_of_which_version() -> None:
    line(1, 2, newest=2, sources={2: 1}).check_newest(2)
    with pytest.raises(Unavailable) as gone:
        line(1, newest=2, sources={2: 1}).check_newest(2)
    assert gone.value.code == "reencrypt.shredded"
    for alive in ((1, 2, 3), (1, 2)):  # also where the newest one was shredded
        with pytest.raises(Unavailable) as older:
            line(*alive, newest=3, sources={2: 1}).check_newest(2)
        assert older.value.code == "reencrypt.older"


def test_a_version_that_no_re_encryption_made() -> None:
    found = line(1, 2, newest=2, sources={2: 1})
    assert found.source(2) == 1
    with pytest.raises(Malformed) as unknown:
        found.source(1)
    assert unknown.value.code == "broker.answer"
