"""The fsspec view: what pandas and pyarrow need, and nothing that writes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Misuse, Untrusted
from cloister.sealed import SealedFileSystem, open_sealed
from tests.sealing import DEK, FILES, MIB, OWNER_KEY, CountingSource, Made, make


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


def test_ranges(fs: SealedFileSystem) -> None:
    data, name = FILES["data/train.csv"], "data/train.csv"
    assert fs.cat_file(name, start=5, end=-7) == data[5:-7]
    assert fs.cat_file(name, start=100, end=50) == b""
    assert fs.cat_file(name, end=10**9) == data
    found = fs.cat_ranges([name, "README.md", name], [MIB, 0, 3], [MIB + 10, 4, 2 * MIB])
    assert found == [data[MIB : MIB + 10], FILES["README.md"][:4], data[3 : 2 * MIB]]
    assert fs.cat_ranges([name], None, 4) == [data[:4]]
    missing = fs.cat_ranges(["nothing", name], [0, 0], [1, 1])
    assert isinstance(missing[0], FileNotFoundError)
    assert missing[1] == data[:1]
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["nothing"], [0], [1], on_error="raise")
    for bad in (lambda: fs.cat_ranges([name], [0], [1], max_gap=5), lambda: fs.cat_ranges([name], [0, 1], [1])):
        with pytest.raises(Misuse):
            bad()


def test_a_range_that_is_not_authentic_is_raised_whatever_was_asked(fs: SealedFileSystem, made: Made) -> None:
    place = made.folder / "0001.sealed"
    data = bytearray(place.read_bytes())
    data[MIB + 500] ^= 1
    place.write_bytes(data)
    with pytest.raises(Untrusted) as info:
        fs.cat_ranges(["data/train.csv"], [MIB], [MIB + 10], on_error="return")
    assert info.value.code == "stream.segment"


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


def test_parquet_reads_only_the_columns_and_row_groups_asked_for(tmp_path: Path) -> None:
    import numpy
    import pyarrow
    import pyarrow.fs
    import pyarrow.parquet

    rng, rows = numpy.random.default_rng(1), 400_000  # 3 MiB in each of eight columns, two row groups
    columns = {f"c{i}": rng.integers(0, 2**62, rows) for i in range(8)}
    pyarrow.parquet.write_table(
        pyarrow.table(columns), tmp_path / "t.parquet", row_group_size=rows // 2, compression=None, use_dictionary=False
    )
    made = make(tmp_path / "o", {"t.parquet": (tmp_path / "t.parquet").read_bytes()})
    source = CountingSource(made.folder)
    with open_sealed(
        source, dek=DEK, expected_digest=made.sealed.digest, signer_keys=[OWNER_KEY.public], threads=1
    ) as sealed:
        arrow = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(SealedFileSystem(sealed)))
        whole = -(-(made.folder / "0000.sealed").stat().st_size // MIB)
        assert whole >= 24
        found = pyarrow.parquet.read_table("t.parquet", columns=["c3"], filesystem=arrow)
        assert found["c3"].to_pylist()[::1000] == columns["c3"].tolist()[::1000]
        # The first and last block, which opening checks, and for each of two chunks of 1.5 MiB at most three.
        assert len(source.blocks) <= 8
        source.blocks.clear()
        with sealed.open("t.parquet") as file:
            group = pyarrow.parquet.ParquetFile(file).read_row_group(1, columns=["c5"])
        assert group["c5"][0].as_py() == int(columns["c5"][rows // 2])
        assert len(source.blocks) <= 5


def test_safetensors_are_read_into_their_own_memory(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save

    from cloister.workload.training.tensors import read_tensors

    tensors = {"a": torch.arange(600_000, dtype=torch.float32), "b": torch.ones(3, 7, dtype=torch.bfloat16)}
    made = make(tmp_path / "o", {"model.safetensors": save(tensors)})
    with made.open() as sealed, sealed.open("model.safetensors") as file:
        found = read_tensors("model.safetensors", file, file.size)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_buffers_are_what_a_read_gives(fs: SealedFileSystem) -> None:
    """pyarrow takes them instead of bytes; what was decrypted beyond the end of one is neither shown nor skipped."""
    plain = FILES["data/train.csv"]
    moves = [(0, 10), (5, 0), (7, 16 * 1024), (3, 16 * 1024 + 1), (100, MIB), (MIB - 50, 3 * MIB), (len(plain) - 3, 9)]
    with fs.open("data/train.csv") as file:
        for at, size in moves:
            file.seek(at)
            found = file.read_buffer(size)
            assert isinstance(found, memoryview)
            assert bytes(found) == plain[at : at + size]
            assert file.tell() == min(at + size, len(plain))
            assert file.read(5) == plain[at + size : at + size + 5]
        file.seek(11)
        assert bytes(file.read_buffer(-1)) == plain[11:]
        assert bytes(file.read_buffer(100)) == b""
