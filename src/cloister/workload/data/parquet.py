"""Parquet by record batches: the named columns only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import Malformed
from .cells import cell_text, check_columns
from .models import Limits

__all__ = ["parquet_rows"]

_BATCH = 4096


def parquet_rows(name: str, stream: BinaryIO, columns: tuple[str, ...], limits: Limits) -> Iterator[tuple[str, ...]]:
    """Rows of ``columns``; text or whole-number columns only. Malformed or Misuse in one sentence otherwise."""
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
        for column in columns:
            _check_type(name, column, schema.field(column).type)
        first = 1
        for batch in file.iter_batches(batch_size=_BATCH, columns=list(columns), use_threads=False):
            texts = [_texts(name, column, batch.column(column), first, limits) for column in columns]
            yield from zip(*texts, strict=True)
            first += batch.num_rows
    except (pa.ArrowException, OSError, ValueError):
        # OSError too: pyarrow reports a broken page as one. What the reader of the sealed file raises is our own type.
        raise Malformed("data.parquet", f"The file {name} is not valid Parquet; write it again.") from None


def _bounded(name: str, file: pq.ParquetFile, columns: tuple[str, ...], limits: Limits) -> None:
    """Refuse by what the footer claims, before a page is decompressed; batches bound what a lying footer could do."""
    meta = file.metadata
    wanted = {c for c in range(meta.num_columns) if meta.schema.column(c).path in columns}
    size = sum(meta.row_group(g).column(c).total_uncompressed_size for g in range(meta.num_row_groups) for c in wanted)
    if meta.num_rows > limits.rows or size > 4 * limits.total_characters:
        raise Malformed("data.size", f"The file {name} exceeds {limits.rows} rows or the text bound; split it.")


def _check_type(name: str, column: str, kind: pa.DataType) -> None:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_integer(value)):
        raise Malformed("data.text", f"The column '{column}' of {name} holds no text; convert it to text.")


def _texts(name: str, column: str, array: pa.Array, first: int, limits: Limits) -> list[str]:
    if array.null_count:
        row = first + array.is_null().to_pylist().index(True)
        raise Malformed("data.text", f"Row {row} of {name} has no text in column '{column}'; give text there.")
    return [cell_text(name, first + i, column, value, limits) for i, value in enumerate(array.to_pylist())]
