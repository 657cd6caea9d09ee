"""Reading tables and splitting them."""

import io
import json
import random
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto.segments import AES256_GCM_HKDF_1MB
from cloister.errors import Malformed, Misuse
from cloister.workload.data import Limits, Table, label_names, read_table, split_rows
from tests.sealing import CountingSource, make, opened

ROWS = [("hello, world", "greeting"), ('she said "no"\nand left', "story"), ("çé 🦊", "greeting")]


def parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def as_csv() -> bytes:
    return b"id,text,label\r\n" + b"".join(
        f'{i},"{t.replace(chr(34), chr(34) * 2)}",{label}\r\n'.encode() for i, (t, label) in enumerate(ROWS)
    )


def as_jsonl() -> bytes:
    return b"".join(json.dumps({"label": label, "x": 1, "text": t}).encode() + b"\n\n" for t, label in ROWS)


def as_parquet() -> bytes:
    texts, labels = zip(*ROWS, strict=True)
    return parquet(pa.table({"n": [1.5, 2.5, 3.5], "text": list(texts), "label": pa.array(labels).dictionary_encode()}))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", as_csv()), ("a.CSV", b"\xef\xbb\xbf" + as_csv()), ("a.jsonl", as_jsonl()),
        ("a.ndjson", as_jsonl().rstrip()), ("a.parquet", as_parquet()),
    ],
)  # fmt: skip
def test_every_format_gives_the_same_rows(name, data):
    table = read_table({name: io.BytesIO(data), "README.md": io.BytesIO(b"\xff")}, ["text", "label"])
    assert list(zip(table.column("text"), table.column("label"), strict=True)) == ROWS
    assert set(table.columns) == {"text", "label"}
    assert len(table) == 3


def test_files_are_joined_in_the_order_of_their_names():
    files = {"b.jsonl": io.BytesIO(b'{"t": "3"}\n'), "a.csv": io.BytesIO(b"t\n1\n2\n")}
    assert read_table(files, ["t"]).column("t") == ["1", "2", "3"]


def test_whole_numbers_are_labels():
    lines = io.BytesIO(b'{"t": "a", "l": 0}\n{"t": "b", "l": 12}\n')
    assert read_table({"a.jsonl": lines}, ["t", "l"]).column("l") == ["0", "12"]
    table = io.BytesIO(parquet(pa.table({"l": pa.array([3, 4], pa.int8())})))
    assert read_table({"a.parquet": table}, ["l"]).column("l") == ["3", "4"]


def sealed_parquet(folder) -> tuple[CountingSource, Any, dict[str, set[int]]]:
    """A table of eight columns in two row groups, sealed: its source, the object, and each column's blocks in it."""
    rng = random.Random(1)
    columns = {f"c{n}": [f"{rng.getrandbits(64):016x}" for _ in range(160_000)] for n in range(8)}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=80_000, compression="none", use_dictionary=False)
    meta, form = pq.ParquetFile(out).metadata, AES256_GCM_HKDF_1MB
    blocks: dict[str, set[int]] = {name: set() for name in columns}
    for group in range(meta.num_row_groups):
        for number, name in enumerate(columns):
            chunk = meta.row_group(group).column(number)
            first, length = chunk.data_page_offset, chunk.total_compressed_size
            blocks[name] |= set(range(form.segment_at(first), form.segment_at(first + length - 1) + 1))
    made = make(folder, {"t.parquet": out.getvalue()})
    source = CountingSource(made.folder)
    return source, opened(source, made, threads=1), blocks


def test_only_the_contracted_columns_of_a_sealed_table_are_decrypted(tmp_path):
    """Counted in blocks of ciphertext: no other column's is even fetched, but for the ends, where the footer is and
    which opening checks."""
    source, sealed, blocks = sealed_parquet(tmp_path / "o")
    last = max(set().union(*blocks.values()))
    with sealed, sealed.open("t.parquet") as file:
        table = read_table({"t.parquet": file}, ["c6", "c2"])
    assert (len(table), set(table.columns)) == (160_000, {"c2", "c6"})
    ends = {0, last - 1, last, last + 1}
    assert blocks["c2"] | blocks["c6"] <= source.blocks <= blocks["c2"] | blocks["c6"] | ends
    assert len(source.blocks) < last * 0.6


def test_a_sealed_table_that_is_refused_by_its_footer_is_not_decrypted(tmp_path):
    source, sealed, blocks = sealed_parquet(tmp_path / "o")
    last = max(set().union(*blocks.values()))
    with sealed, sealed.open("t.parquet") as file:
        for columns, limits in ((["c0"], Limits(rows=159_999)), (["c0", "absent"], Limits())):
            with pytest.raises((Malformed, Misuse)):
                read_table({"t.parquet": file}, columns, limits=limits)
    assert source.blocks <= {0, last - 1, last, last + 1}


def labelled(rows: int, kinds: int = 3) -> tuple[list[str], list[str]]:
    return [f"text {i}" for i in range(rows)], [f"kind {i % kinds}" for i in range(rows)]


def test_split_is_stratified_and_complete():
    texts, labels = labelled(300)
    split = split_rows(texts, labels, Decimal("0.1"), 0)
    assert sorted(split.training + split.validation) == list(range(300))
    assert [sum(labels[r] == f"kind {k}" for r in split.validation) for k in range(3)] == [10, 10, 10]


@given(st.integers(0, 100), st.randoms(use_true_random=False))
def test_split_does_not_depend_on_the_order_of_the_file(seed, shuffler: random.Random):
    texts, labels = labelled(60)
    order = list(range(60))
    shuffler.shuffle(order)
    split = split_rows(texts, labels, Decimal("0.2"), seed)
    moved = split_rows([texts[i] for i in order], [labels[i] for i in order], Decimal("0.2"), seed)
    assert {texts[r] for r in split.validation} == {texts[order[r]] for r in moved.validation}


def test_seeds_differ():
    texts, labels = labelled(300)
    assert split_rows(texts, labels, Decimal("0.1"), 0) != split_rows(texts, labels, Decimal("0.1"), 1)


def test_the_same_text_never_stands_on_both_sides():
    texts = [f"text {i // 4}" for i in range(200)]
    split = split_rows(texts, None, Decimal("0.2"), 3)
    assert not {texts[r] for r in split.training} & {texts[r] for r in split.validation}


def test_a_rare_label_stays_in_training():
    texts, labels = labelled(40)
    split = split_rows([*texts, "only"], [*labels, "rare"], Decimal("0.5"), 0)
    assert 40 in split.training


def test_label_names_are_sorted():
    assert label_names(["b", "a", "b", "a"]) == ("a", "b")


@pytest.mark.parametrize("labels", [["a"] * 10, [str(i) for i in range(10)], ["a", "b", " "] * 5])
def test_columns_that_are_no_labels(labels):
    with pytest.raises(Misuse) as caught:
        label_names(labels)
    assert caught.value.code == "data.labels"


@pytest.mark.parametrize("texts", [["a"] * 50, ["a", "b", "c"]])
def test_too_little_to_set_aside(texts):
    with pytest.raises(Misuse) as caught:
        split_rows(texts, None, Decimal("0.1"), 0)
    assert caught.value.code == "data.few"


def test_table_length():
    assert len(Table({"a": ["1", "2"]})) == 2
