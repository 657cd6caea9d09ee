"""What a dataset is once it has been read: named columns of text, rows in file order."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits", "Split", "Table"]


@dataclass(frozen=True)
class Limits:
    """Bounds on untrusted tables. What exceeds one is refused in a sentence, before memory runs out."""

    rows: int = 20_000_000
    columns: int = 4096
    cell_characters: int = 1 << 20
    line_bytes: int = 8 << 20  # one physical line of CSV or JSONL
    total_characters: int = 8 << 30  # of the named columns together
    parquet_metadata_bytes: int = 64 << 20


@dataclass(frozen=True)
class Table:
    """``columns`` maps each named column to its values, all of the same length."""

    columns: dict[str, list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def column(self, name: str) -> list[str]:
        return self.columns[name]


@dataclass(frozen=True)
class Split:
    """Row numbers of the parts, each in ascending order; together they are every row once.

    ``test`` is empty where nothing is chosen by the validation rows.
    """

    training: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...] = ()

    @property
    def report(self) -> tuple[int, ...]:
        """The rows that the evaluation is on: never ones by which something was chosen."""
        return self.test or self.validation
