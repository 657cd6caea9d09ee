"""CSV, JSONL and Parquet from seekable binary files: the named columns only, as text, streaming, bounded.

Everything here reads untrusted bytes that nobody may see. So each complaint is one sentence with a line number or a
column's name, and never carries the content of a row, not even of the row that is wrong.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from ...errors import Malformed, Misuse
from .cells import cell_text, check_columns
from .forms import Form
from .models import Limits, Table
from .parquet import parquet_rows

__all__ = ["read_table"]

_LIMITS = Limits()
_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")


def read_table(
    files: Mapping[str, BinaryIO],
    columns: Sequence[str],
    *,
    forms: Mapping[str, Form] | None = None,
    limits: Limits = _LIMITS,
) -> Table:
    """Read the named columns of all data files, in the order of their names, into one table.

    ``files`` maps a path inside the asset to a binary reader of its plaintext (seekable for Parquet). Files with
    other endings (a README, a licence) are passed over. ``forms`` names the columns that hold something else than text.
    Raises Misuse (``data.column``, ``data.format``, ``data.empty``) and Malformed (``data.*``).
    """
    wanted = tuple(dict.fromkeys(columns))
    kinds = tuple((forms or {}).get(name, Form.TEXT) for name in wanted)
    names = sorted(name for name in files if name.lower().endswith(_SUFFIXES))
    if not names:
        raise Misuse("data.format", "The dataset holds no .csv, .jsonl or .parquet file; seal one of these.")
    kept: dict[str, list[str]] = {name: [] for name in wanted}
    sinks = [kept[name] for name in wanted]
    characters = 0
    for name in names:
        for row in _rows(name, files[name], wanted, kinds, limits):
            for sink, value in zip(sinks, row, strict=True):
                sink.append(value)
                characters += len(value)
            if len(sinks[0]) > limits.rows or characters > limits.total_characters:
                raise Malformed("data.size", f"The dataset exceeds {limits.rows} rows or the text bound; split it.")
    if not sinks[0]:
        raise Misuse("data.empty", "The dataset has no rows; seal a file with data.")
    return Table(kept)


def _rows(
    name: str, stream: BinaryIO, columns: tuple[str, ...], kinds: tuple[Form, ...], limits: Limits
) -> Iterator[Sequence[str]]:
    lower = name.lower()
    if lower.endswith(".csv"):
        return _csv_rows(name, stream, columns, kinds, limits)
    if lower.endswith(".parquet"):
        return parquet_rows(name, stream, columns, kinds, limits)
    return _json_rows(name, stream, columns, kinds, limits)


def _lines(name: str, stream: BinaryIO, limits: Limits) -> Iterator[str]:
    first = True
    for number in range(1, 1 << 62):
        raw = stream.readline(limits.line_bytes + 1)
        if not raw:
            return
        if len(raw) > limits.line_bytes:
            raise Malformed(
                "data.line", f"Line {number} of {name} is longer than {limits.line_bytes} bytes; shorten it."
            )
        if first:
            raw, first = raw.removeprefix(codecs.BOM_UTF8), False
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise Malformed("data.encoding", f"Line {number} of {name} is not UTF-8; save the file as UTF-8.") from None
        if "\0" in text:
            raise Malformed("data.text", f"Line {number} of {name} holds a NUL character; it is not a text file.")
        yield text


def _csv_rows(
    name: str, stream: BinaryIO, columns: tuple[str, ...], kinds: tuple[Form, ...], limits: Limits
) -> Iterator[list[str]]:
    csv.field_size_limit(limits.cell_characters)  # per process; every caller here sets the same kind of bound
    reader = csv.reader(_lines(name, stream, limits), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise Misuse("data.empty", f"The file {name} is empty; seal a file with a header and rows.")
        if len(header) > limits.columns:
            raise Malformed("data.header", f"The file {name} has more than {limits.columns} columns; drop some.")
        check_columns(name, columns, header)
        places, width = [header.index(c) for c in columns], len(header)
        for row in reader:
            if not row:
                continue
            if len(row) != width:
                raise Malformed(
                    "data.ragged",
                    f"The row that ends in line {reader.line_num} of {name} has {len(row)} cells where the header has "
                    f"{width}; mend its commas and quotes.",
                )
            cells = [row[p] for p in places]
            if any(kind is not Form.TEXT for kind in kinds):
                line, each = reader.line_num, zip(columns, cells, kinds, strict=True)
                cells = [cell_text(name, line, c, cell, limits, kind) for c, cell, kind in each]
            yield cells
    except csv.Error as error:
        if "field larger" in str(error):
            limit = limits.cell_characters
            raise Malformed(
                "data.cell", f"A cell near line {reader.line_num} of {name} exceeds {limit} characters; shorten it."
            ) from None
        raise Malformed(
            "data.csv", f"Line {reader.line_num} of {name} is not valid CSV; mend its commas and quotes."
        ) from None


def _json_rows(
    name: str, stream: BinaryIO, columns: tuple[str, ...], kinds: tuple[Form, ...], limits: Limits
) -> Iterator[list[str]]:
    for number, line in enumerate(_lines(name, stream, limits), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_pairs, parse_int=_short_integer)
        except (ValueError, RecursionError):
            raise Malformed("data.json", f"Line {number} of {name} is not one valid JSON object; mend it.") from None
        if not isinstance(row, dict):
            raise Malformed("data.json", f"Line {number} of {name} is not a JSON object; write one object a line.")
        if any(c not in row for c in columns):
            check_columns(name, columns, [str(key) for key in row])
        yield [cell_text(name, number, c, row[c], limits, kind) for c, kind in zip(columns, kinds, strict=True)]


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("duplicate key")
    return out


def _short_integer(text: str) -> int:
    if len(text) > 18:  # Python refuses to convert huge integers only from 4,300 digits on
        raise ValueError("integer too long")
    return int(text)
