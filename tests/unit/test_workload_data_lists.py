"""List cells in every format, numbers, and rows that belong together."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, Malformed
from cloister.workload.data import joined_groups, read_table
from cloister.workload.data.forms import Form, items, list_cell, number_cell

FORMS = {"words": Form.WORDS, "labels": Form.LABELS}
ROWS = [{"words": ["A", "b,c", "3"], "labels": ["x y", "z"]}, {"words": ["one"], "labels": []}]
# What a text can't hold that is split at spaces or bars.
PIECE = st.text(st.characters(exclude_characters="|", exclude_categories=["Z", "C"]), min_size=1, max_size=5)


def csv_bytes():
    lines = ["words,labels"]
    for row in ROWS:
        lines.append(f'"{" ".join(row["words"])}","{" | ".join(row["labels"])}"')
    return "\n".join(lines).encode()


def parquet_bytes(rows):
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("q.csv", csv_bytes()),
        ("q.jsonl", "\n".join(map(json.dumps, ROWS)).encode()),
        ("q.parquet", parquet_bytes(ROWS)),
        (
            "q.parquet",
            parquet_bytes([{"words": " ".join(r["words"]), "labels": "|".join(r["labels"])} for r in ROWS]),
        ),
    ],
)
def test_every_format_gives_the_same_lists(name, data):
    table = read_table({name: io.BytesIO(data)}, ("words", "labels"), forms=FORMS)
    assert items(table.column("words")) == [row["words"] for row in ROWS]
    assert items(table.column("labels")) == [row["labels"] for row in ROWS]


@given(st.lists(PIECE, max_size=6))
def test_a_list_and_its_text_are_the_same_cell(parts):
    assert list_cell("q", 1, "c", " ".join(parts), Form.WORDS) == list_cell("q", 1, "c", parts, Form.WORDS)
    assert list_cell("q", 1, "c", "|".join(parts), Form.LABELS) == list_cell("q", 1, "c", parts, Form.LABELS)
    assert items([list_cell("q", 1, "c", parts, Form.WORDS)]) == [parts]


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def tried(call):
    """The code of our own error, or what came back. Anything else is raised."""
    try:
        return None, call()
    except CloisterError as error:
        return error.code, None


@given(ANY, st.sampled_from([Form.WORDS, Form.LABELS]))
def test_any_value_is_a_list_or_malformed(value, form):
    code, found = tried(lambda: items([list_cell("q", 1, "c", value, form)])[0])
    assert code == "data.list" or all(isinstance(part, str) for part in found)


@given(ANY)
def test_any_value_is_a_number_or_malformed(value):
    code, found = tried(lambda: number_cell("q", 1, "c", value))
    assert code == "data.number" or 0 <= float(found) < 1e9


@pytest.mark.parametrize("value", [[["nested"]], [1.5], [None], [True], {"a": 1}, 7])
def test_what_is_no_list_of_texts_is_refused_by_its_row(value):
    data = json.dumps({"words": value, "labels": []}).encode()
    with pytest.raises(Malformed) as caught:
        read_table({"q.jsonl": io.BytesIO(data)}, ("words", "labels"), forms=FORMS)
    assert "Row 1" in str(caught.value) or "Line 1" in str(caught.value)
    assert "nested" not in str(caught.value)


PAIRS = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("uvwxyz")), min_size=1, max_size=14)


@given(PAIRS)
def test_groups_are_the_connected_parts(rows):
    """Another way: labels spread until nothing changes."""
    names = joined_groups([a for a, _ in rows], [b for _, b in rows])
    mark = list(range(len(rows)))
    changed = True
    while changed:
        changed = False
        for i, one in enumerate(rows):
            for j, other in enumerate(rows):
                if (one[0] == other[0] or one[1] == other[1]) and mark[i] != mark[j]:
                    mark[i] = mark[j] = min(mark[i], mark[j])
                    changed = True
    assert [[a == b for b in names] for a in names] == [[a == b for b in mark] for a in mark]


@given(PAIRS, st.randoms(use_true_random=False))
def test_a_groups_name_does_not_depend_on_the_order_of_rows(rows, shuffler):
    order = list(range(len(rows)))
    shuffler.shuffle(order)
    names = joined_groups([a for a, _ in rows], [b for _, b in rows])
    moved = joined_groups([rows[i][0] for i in order], [rows[i][1] for i in order])
    assert moved == [names[i] for i in order]


def test_the_same_text_in_two_columns_joins_nothing():
    assert joined_groups(["a", "b"], ["b", "a"]) == ["a", "b"]


def test_a_long_chain_stays_cheap():
    many = 20_000
    first = [str(n) for n in range(many)]
    second = [str((n + 1) // 2) for n in range(many)]
    chained = joined_groups([f"{n // 2:05}" for n in range(many)], [f"{(n + 1) // 2:05}" for n in range(many)])
    assert set(chained) == {"00000"}
    assert len(set(joined_groups(first, second))) == len(set(second))
