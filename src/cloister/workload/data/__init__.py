"""From decrypted bytes to rows of text: ``readers`` (CSV, JSONL, Parquet), ``split`` (training and validation).

Pure with respect to keys and places: callers hand in binary readers. No message here ever carries a row's content.
"""

from .models import Limits, Split, Table
from .readers import read_table
from .split import label_names, split_rows

__all__ = ["Limits", "Split", "Table", "label_names", "read_table", "split_rows"]
