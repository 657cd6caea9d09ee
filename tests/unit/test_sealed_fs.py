"""The fsspec view: what pandas and pyarrow need, and nothing that writes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Misuse, Untrusted
from cloister.sealed import SealedFileSystem
from tests.sealing import FILES, Made, make


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(tmp_path / "object")


@pytest.fixture
def fs(made: Made) -> Iterator[SealedFileSystem]:
    with made.open() as sealed:
        yield SealedFileSystem(sealed)


def test_listing(fs: SealedFileSystem) -> None:
    assert sorted(fs.ls("", detail=False)) == ["README.md", "data", "model"]
    assert sorted(fs.ls("/data/", detail=False)) == ["data/empty", "data/train.csv"]
    assert fs.ls("README.md") == [{"name": "README.md", "size": len(FILES["README.md"]), "type": "file"}]
    assert sorted(fs.find("")) == sorted(FILES)
    assert fs.glob("**/*.csv") == ["data/train.csv"]
    assert fs.info("data")["type"] == "directory"
    assert fs.info("")["type"] == "directory"
    assert fs.isfile("data/empty")
    assert fs.isdir("model")
    assert not fs.exists("data/other")
    assert fs.created("README.md") == fs.modified("README.md") == 1_760_000_000


def test_reading(fs: SealedFileSystem) -> None:
    for path, data in FILES.items():
        assert fs.cat(path) == data
    assert fs.cat_file("data/train.csv", start=-100) == FILES["data/train.csv"][-100:]
    with fs.open("README.md", "r") as file:
        assert file.read() == FILES["README.md"].decode()
    with fs.open("cloister://README.md") as file:
        assert file.read(4) == FILES["README.md"][:4]


def test_what_is_missing(fs: SealedFileSystem) -> None:
    for path in ("nothing", "data/nothing", "README.md/x", "../README.md"):
        with pytest.raises(FileNotFoundError):
            fs.open(path)
        with pytest.raises(FileNotFoundError):
            fs.ls(path)
    with pytest.raises(IsADirectoryError):
        fs.open("data")


@pytest.mark.parametrize(
    "call",
    [
        lambda fs: fs.open("new", "wb"),
        lambda fs: fs.open("README.md", "ab"),
        lambda fs: fs.mkdir("d"),
        lambda fs: fs.makedirs("d/e"),
        lambda fs: fs.rm("README.md"),
        lambda fs: fs.mv("README.md", "x"),
        lambda fs: fs.copy("README.md", "x"),
        lambda fs: fs.touch("x"),
        lambda fs: fs.pipe("x", b"y"),
        lambda fs: fs.put_file(__file__, "x"),
    ],
)
def test_nothing_writes(fs: SealedFileSystem, made: Made, call: Any) -> None:
    before = {place.name: place.stat().st_mtime_ns for place in made.folder.iterdir()}
    with pytest.raises(Misuse) as info:
        call(fs)
    assert info.value.code == "sealed.read_only"
    assert {place.name: place.stat().st_mtime_ns for place in made.folder.iterdir()} == before


def test_instances_are_not_shared_and_not_pickled(made: Made) -> None:
    with made.open() as sealed:
        one, two = SealedFileSystem(sealed), SealedFileSystem(sealed)
        assert one is not two
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(one)


def test_a_corrupt_file_is_refused_through_the_file_system_too(fs: SealedFileSystem, made: Made) -> None:
    place = made.folder / "0001.sealed"
    data = bytearray(place.read_bytes())
    data[1024 * 1024 + 500] ^= 1
    place.write_bytes(data)
    with pytest.raises(Untrusted) as info, fs.open("data/train.csv") as file:
        file.read()
    assert info.value.code == "stream.segment"


def test_pandas_and_pyarrow_read_tables(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    import pyarrow.dataset
    import pyarrow.fs
    import pyarrow.parquet

    rows = 60_000
    frame = pandas.DataFrame({"text": [f"query number {i}" for i in range(rows)], "label": range(rows)})
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=5000, compression=None)
    lines = "".join(json.dumps({"i": i}) + "\n" for i in range(1000)).encode()
    table = (tmp_path / "t.parquet").read_bytes()
    made = make(tmp_path / "o", {"t/part.parquet": table, "lines.jsonl": lines, "c.csv": b"a,b\n1,2\n"})
    with made.open() as sealed:
        fs = SealedFileSystem(sealed)
        with fs.open("t/part.parquet") as file:
            pandas.testing.assert_frame_equal(pandas.read_parquet(file), frame)
        with fs.open("t/part.parquet") as file:  # random access: one row group out of twelve
            group = pyarrow.parquet.ParquetFile(file).read_row_group(7, columns=["label"])
            assert group.column("label")[0].as_py() == 35_000
        arrow = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
        assert pyarrow.dataset.dataset("t", filesystem=arrow, format="parquet").count_rows() == rows
        with fs.open("lines.jsonl") as file:
            assert len(pandas.read_json(file, lines=True)) == 1000
        with fs.open("c.csv") as file:
            assert pandas.read_csv(file).to_dict("list") == {"a": [1], "b": [2]}
        sealed.check_roots()
        sealed.require_complete()
