"""Datasets made to break, exhaust or leak through their reader. No complaint may carry a row's content."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloister.errors import CloisterError
from cloister.workload.data import Limits, read_table

SECRET = "patient Jane Roe 1970"
SMALL = Limits(rows=50, columns=10, cell_characters=100, line_bytes=400, total_characters=2000)


def parquet(**columns) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


CASES = {
    "missing column": ("a.csv", f"text,kind\n{SECRET},x\n", "data.column", "compare it with the sealed file"),
    "empty file": ("a.csv", "", "data.empty", "empty"),
    "header only": ("a.csv", "text,label\n", "data.empty", "no rows"),
    "no table at all": ("a.txt", "x", "data.format", ".csv"),
    "duplicate header": ("a.csv", f"text,label,text\n{SECRET},a,b\n", "data.header", "two columns alike"),
    "ragged row": ("a.csv", f"text,label\na,b\n{SECRET}\n", "data.ragged", "line 3"),
    "one cell too many": ("a.csv", f"text,label\n{SECRET},b,c\n", "data.ragged", "has 3 cells"),
    "bare quote": ("a.csv", f'text,label\n"{SECRET}"x,b\n', "data.csv", "Line 2"),
    "quote never closed": ("a.csv", 'text,label\n"' + f"{SECRET}\n" * 3, "data.csv", "not valid CSV"),
    "broken encoding": ("a.csv", f"text,label\na,b\n{SECRET}\udcff,c\n", "data.encoding", "Line 3"),
    "NUL": ("a.csv", f"text,label\n{SECRET}\0,c\n", "data.text", "Line 2"),
    "cell bomb": ("a.csv", "text,label\n" + "x" * 101 + ",a\n", "data.cell", "exceeds 100"),
    "quoted cell over many lines": ("a.csv", 'text,label\n"' + "x\n" * 200 + '",a\n', "data.cell", "exceeds 100"),
    "line bomb": ("a.csv", "text,label\n" + "x" * 1000, "data.line", "longer than 400"),
    "column bomb": ("a.csv", ",".join(map(str, range(11))) + "\n", "data.header", "more than 10"),
    "row bomb": ("a.csv", "text,label\n" + "a,b\n" * 60, "data.size", "split it"),
    "text bomb": ("a.csv", "text,label\n" + ("y" * 90 + ",b\n") * 30, "data.size", "split it"),
    "not JSON": ("a.jsonl", f'{{"text": "{SECRET}", \n', "data.json", "Line 1"),
    "not an object": ("a.jsonl", f'["{SECRET}"]\n', "data.json", "Line 1"),
    "duplicate key": ("a.jsonl", '{"text": "a", "text": "b", "label": "c"}\n', "data.json", "Line 1"),
    "deep JSON": ("a.jsonl", "[" * 390 + "\n", "data.json", "Line 1"),
    "huge integer": ("a.jsonl", '{"text": "a", "label": ' + "9" * 300 + "}\n", "data.json", "Line 1"),
    "key missing in one row": ("a.jsonl", f'{{"text": "{SECRET}"}}\n', "data.column", "label"),
    "null": ("a.jsonl", '{"text": null, "label": "a"}\n', "data.text", "Row 1"),
    "float label": ("a.jsonl", '{"text": "a", "label": 1.5}\n', "data.text", "'label'"),
    "list as text": ("a.jsonl", f'{{"text": ["{SECRET}"], "label": "a"}}\n', "data.text", "'text'"),
    "true as label": ("a.jsonl", '{"text": "a", "label": true}\n', "data.text", "'label'"),
    "lone surrogate": ("a.jsonl", '{"text": "\\ud800", "label": "a"}\n', "data.text", "broken character"),
    "long JSON cell": ("a.jsonl", json.dumps({"text": "x" * 101, "label": "a"}), "data.cell", "exceeds 100"),
    "not Parquet": ("a.parquet", f"PAR1{SECRET}PAR1", "data.parquet", "not valid Parquet"),
    "empty Parquet file": ("a.parquet", "", "data.parquet", "not valid Parquet"),
    "Parquet of floats": ("a.parquet", parquet(text=[1.5], label=["a"]), "data.text", "holds no text"),
    "Parquet of lists": ("a.parquet", parquet(text=[[SECRET]], label=["a"]), "data.text", "holds no text"),
    "Parquet with null": ("a.parquet", parquet(text=["a", None], label=["a", "b"]), "data.text", "Row 2"),
    "Parquet without column": ("a.parquet", parquet(text=["a"]), "data.column", "compare it with the sealed file"),
    "Parquet row bomb": ("a.parquet", parquet(text=["a"] * 60, label=["b"] * 60), "data.size", "split it"),
    "Parquet long cell": ("a.parquet", parquet(text=["x" * 101], label=["b"]), "data.cell", "exceeds 100"),
    "Parquet cut": ("a.parquet", parquet(text=["a"], label=["b"])[:-9], "data.parquet", "not valid Parquet"),
    "Parquet page damaged": (
        "a.parquet",
        b"PAR1" + b"\xff" * 40 + parquet(text=["abc"] * 9, label=["b"] * 9)[44:],
        "data.parquet",
        "not valid Parquet",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_sentence_without_content(case):
    name, content, code, part = CASES[case]
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
    with pytest.raises(CloisterError) as caught:
        read_table({name: io.BytesIO(data)}, ["text", "label"], limits=SMALL)
    assert caught.value.code == code
    assert part in caught.value.message
    assert SECRET not in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.message.endswith(".")
    # What was being handled must not travel along either: it may quote the row.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
