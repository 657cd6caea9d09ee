"""From decrypted bytes to rows of text: ``readers`` (CSV, JSONL, Parquet), ``cells`` and ``forms`` (of columns),
``split`` (training and validation).

Pure with respect to keys and places: callers hand in binary readers. No message here ever carries a row's content.
"""

from .forms import Form, column_forms, items
from .models import Limits, Split, Table
from .readers import read_table
from .split import joined_groups, label_names, rarest, split_rows

__all__ = [
    "Form",
    "Limits",
    "Split",
    "Table",
    "column_forms",
    "items",
    "joined_groups",
    "label_names",
    "rarest",
    "read_table",
    "split_rows",
]
