"""Parquet by record batches: the named columns only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import Malformed
from .cells import cell_text, check_columns
from .forms import Form
from .models import Limits

__all__ = ["parquet_rows"]

_BATCH = 4096


def parquet_rows(
    name: str, stream: BinaryIO, columns: tuple[str, ...], kinds: tuple[Form, ...], limits: Limits
) -> Iterator[tuple[str, ...]]:
    """Rows of ``columns``; text or whole-number columns, or what their form allows. Malformed or Misuse otherwise."""
    try:
        file = pq.ParquetFile(
            stream,
            memory_map=False,
            thrift_string_size_limit=limits.parquet_metadata_bytes,
            thrift_container_size_limit=limits.columns * 1000,
        )
        schema = file.schema_arrow
        check_columns(name, columns, schema.names)
        _bounded(name, file, columns, limits)
        for column, kind in zip(columns, kinds, strict=True):
            _check_type(name, column, schema.field(column).type, kind)
        first = 1
        for batch in file.iter_batches(batch_size=_BATCH, columns=list(columns), use_threads=False):
            texts = [_texts(name, c, batch.column(c), first, limits, k) for c, k in zip(columns, kinds, strict=True)]
            yield from zip(*texts, strict=True)
            first += batch.num_rows
    except (pa.ArrowException, OSError, ValueError):
        # OSError too: pyarrow reports a broken page as one. What the reader of the sealed file raises is our own type.
        raise Malformed("data.parquet", f"The file {name} is not valid Parquet; write it again.") from None


def _bounded(name: str, file: pq.ParquetFile, columns: tuple[str, ...], limits: Limits) -> None:
    """Refuse by what the footer claims, before a page is decompressed; batches bound what a lying footer could do."""
    meta = file.metadata
    # A column of lists has a longer path: the column's name comes first.
    paths = [meta.schema.column(c).path for c in range(meta.num_columns)]
    wanted = {c for c, path in enumerate(paths) if path in columns or path.split(".")[0] in columns}
    size = sum(meta.row_group(g).column(c).total_uncompressed_size for g in range(meta.num_row_groups) for c in wanted)
    if meta.num_rows > limits.rows or size > 4 * limits.total_characters:
        raise Malformed("data.size", f"The file {name} exceeds {limits.rows} rows or the text bound; split it.")


def _check_type(name: str, column: str, kind: pa.DataType, form: Form) -> None:
    if form is Form.MESSAGES and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return  # each message is checked when it is read
    listed = form in (Form.WORDS, Form.LABELS) and (pa.types.is_list(kind) or pa.types.is_large_list(kind))
    value = kind.value_type if listed or pa.types.is_dictionary(kind) else kind
    number = form is Form.NUMBER and (pa.types.is_floating(value) or pa.types.is_decimal(value))
    if not (number or pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_integer(value)):
        raise Malformed("data.text", f"The column '{column}' of {name} holds no text; convert it to text.")


def _texts(name: str, column: str, array: pa.Array, first: int, limits: Limits, form: Form) -> list[str]:
    if array.null_count:
        row = first + array.is_null().to_pylist().index(True)
        raise Malformed("data.text", f"Row {row} of {name} has no text in column '{column}'; give text there.")
    return [cell_text(name, first + i, column, value, limits, form) for i, value in enumerate(array.to_pylist())]
