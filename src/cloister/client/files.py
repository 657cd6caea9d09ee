"""What is to be sealed: which files, of which class, and whether they are what the owner says they are."""

from __future__ import annotations

import csv
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import Misuse

__all__ = ["Source", "gather"]

_PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
_CODE = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh", ".exe"})
_TABLES = frozenset({".csv", ".jsonl", ".parquet"})
_MAX_FIELD = 16 * 1024 * 1024  # bytes of one CSV field


@dataclass(frozen=True)
class Source:
    """``files``: (path in the object, place on disk). ``notes``: what was left out or not checked, for people."""

    files: tuple[tuple[str, Path], ...]
    asset_class: str
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        return sum(place.stat().st_size for _, place in self.files)


def gather(path: Path, *, schema: tuple[str, ...], asset_class: str | None = None) -> Source:
    """A file, or every regular file under a folder. Raises Misuse for links, pickles, code, and wrong or empty data."""
    if path.is_symlink() or not path.exists():
        raise Misuse("seal.path", f"There is no file or folder {path.name} here, or it is a link; name the real one.")
    if path.is_dir():
        files, notes = _walk(path)
    else:
        files, notes = [(path.name, path)], []
    if not files:
        raise Misuse("seal.empty", f"The folder {path.name} holds no files to seal.")
    for name, place in files:
        _check_kind(name, place, program=asset_class == "program")
    if asset_class == "program" and "main.py" not in dict(files):
        raise Misuse("seal.program", f"The program {path.name} has no main.py; write one that defines train(run).")
    found = asset_class or _class_of([name for name, _ in files])
    if schema and found != "dataset":
        raise Misuse("seal.schema", "A schema is for datasets; leave out --schema.")
    for name, place in files:
        notes += _check_table(name, place, schema) if found == "dataset" else []
    return Source(tuple(files), found, tuple(notes))


def _walk(root: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    files: list[tuple[str, Path]] = []
    hidden = 0
    for folder, folders, names in os.walk(root):
        hidden += sum(1 for n in (*folders, *names) if n.startswith("."))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in (*folders, *sorted(n for n in names if not n.startswith("."))):
            place = Path(folder, name)
            mode = place.lstat().st_mode
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                shown = place.relative_to(root).as_posix()
                raise Misuse("seal.link", f"{shown} is a link or a special file; copy the real file into the folder.")
            files.append((place.relative_to(root).as_posix(), place))
    notes = [f"{hidden} hidden files and folders were left out."] if hidden else []
    return sorted(files), notes


def _check_kind(name: str, place: Path, *, program: bool) -> None:
    suffix = place.suffix.lower()
    if suffix in _CODE and not (program and suffix == ".py"):
        raise Misuse("seal.code", f"{name} is code, which is never run; take it out of the folder.")
    with _opened(place) as file:
        head = file.read(2)
    if suffix in _PICKLES or (len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5):
        raise Misuse("seal.pickle", f"{name} may be a pickle, which can run code; convert the weights to safetensors.")


def _class_of(names: list[str]) -> str:
    suffixes = {Path(n).suffix.lower() for n in names}
    if ".safetensors" in suffixes:
        return "model"
    if suffixes <= _TABLES:
        return "dataset"
    raise Misuse("seal.class", "It is neither a table (csv, jsonl, parquet) nor a model with safetensors; say --class.")


def _check_table(name: str, place: Path, schema: tuple[str, ...]) -> list[str]:
    """Notes on what was not checked. Messages never quote the file: its first line may be data, not a header."""
    suffix = place.suffix.lower()
    if place.stat().st_size == 0:
        raise Misuse("seal.empty", f"{name} is empty.")
    if suffix == ".csv":
        _check_csv(name, place, schema)
    elif suffix == ".jsonl":
        _check_jsonl(name, place, schema)
    elif schema:
        return [f"The columns of {name} are not checked here; a run checks them."]
    return []


def _check_csv(name: str, place: Path, schema: tuple[str, ...]) -> None:
    csv.field_size_limit(_MAX_FIELD)
    try:
        with place.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            first = next(rows, None)
    except (UnicodeDecodeError, csv.Error):
        raise Misuse("seal.csv", f"{name} is not a CSV file in UTF-8; save it as one.") from None
    except OSError:
        raise _unreadable(place) from None
    if schema and tuple(header) != schema:
        wanted = ",".join(schema)
        raise Misuse("seal.schema", f"The first line of {name} is not the schema {wanted}; mend the file or --schema.")
    if first is None:
        raise Misuse("seal.empty", f"{name} has no rows below its first line.")


def _check_jsonl(name: str, place: Path, schema: tuple[str, ...]) -> None:
    with _opened(place) as file:
        line = file.readline(_MAX_FIELD)
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise Misuse("seal.jsonl", f"The first line of {name} is not a JSON object; save one object a line.")
    if schema and set(record) != set(schema):
        wanted = ",".join(schema)
        raise Misuse("seal.schema", f"The first record of {name} has not the keys {wanted}; mend the file or --schema.")


def _opened(place: Path) -> BinaryIO:
    try:
        return place.open("rb")
    except OSError:
        raise _unreadable(place) from None


def _unreadable(place: Path) -> Misuse:
    return Misuse("seal.read", f"{place.name} can't be read; check its permissions.")
