"""Parts of ``sealed_io``: a Parquet column scan, loading a model, memory, reads at random; sealed and plain."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cloister.sealed import SealedFileSystem, SealedObject
from cloister.sealed.folder import FolderSource, MemberFile
from cloister.workload.training.tensors import read_tensors

from ._sealed_sides import MIB, Object

__all__ = ["Counting", "Random", "Scan", "load_plain", "load_sealed", "peak_rss_mb", "write_model", "write_table"]

_COLUMNS = ["label", "amount", "note"]  # of eight


def write_table(path: Path, rows: int, group: int | None = None) -> None:
    """Eight columns of figures and text, ``group`` rows in a row group; by default as many as pyarrow takes."""
    rng = np.random.default_rng(1)
    words = np.array(["refund", "card", "transfer", "balance", "limit", "top-up", "cash", "exchange", "fee", "pin"])
    table = {
        "label": rng.integers(0, 77, rows),
        "amount": rng.normal(100, 25, rows),
        "note": [" ".join(row) for row in words[rng.integers(0, 10, (rows, 6))]],
        **{f"other{i}": rng.normal(0, 1, rows) for i in range(4)},
        "text": [" ".join(row) for row in words[rng.integers(0, 10, (rows, 12))]],
    }
    pq.write_table(pa.table(table), path, row_group_size=group)


class Scan:
    """Three of the columns, all rows, into memory; by the same call from the plain file and through our file system."""

    def __init__(self, plain: Path, sealed: SealedObject) -> None:
        self._plain, self._path = plain, sealed.paths()[0]
        self._fs = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(SealedFileSystem(sealed)))

    def plain(self) -> pa.Table:
        return pq.read_table(str(self._plain), columns=_COLUMNS)

    def sealed(self) -> pa.Table:
        return pq.read_table(self._path, columns=_COLUMNS, filesystem=self._fs)

    def asked_share(self) -> float:
        """The asked columns' bytes over the file's."""
        meta = pq.read_metadata(self._plain)
        asked = sum(
            meta.row_group(g).column(c).total_compressed_size
            for g in range(meta.num_row_groups)
            for c in range(meta.num_columns)
            if meta.schema.column(c).path in _COLUMNS
        )
        return asked / self._plain.stat().st_size


class Counting(FolderSource):
    """Remembers which blocks of ciphertext were read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.blocks: set[int] = set()

    def open(self, name: str, size: int) -> MemberFile:
        file, seen = super().open(name, size), self.blocks
        read_at = file.read_at

        def counted(offset: int, buffer: memoryview) -> int:
            seen.add(offset // MIB)
            return read_at(offset, buffer)

        file.read_at = counted  # type: ignore[method-assign]
        return file


def write_model(path: Path, size: int) -> None:
    """Tensors of a transformer's usual sizes: large matrices in bfloat16, small vectors in float32."""
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    total = 0
    while total < size:
        layer = len(tensors) // 4
        for name, shape, dtype in (
            ("attention", (2048, 2048), torch.bfloat16),
            ("up", (8192, 2048), torch.bfloat16),
            ("down", (2048, 4096), torch.float32),
            ("norm", (2048,), torch.float32),
        ):
            tensor = torch.randn(shape, generator=generator).to(dtype)
            tensors[f"layers.{layer}.{name}"] = tensor
            total += tensor.numel() * tensor.element_size()
    save_file(tensors, path)


def load_plain(path: Path) -> dict[str, torch.Tensor]:
    """safetensors' own reader from the page cache, and each tensor copied into memory of its own."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def load_sealed(sealed: SealedObject) -> dict[str, torch.Tensor]:
    """As a job loads its base model: decrypted into each tensor's memory, and searched for NaN and infinity."""
    path = sealed.paths()[0]
    with sealed.open(path) as file:
        return read_tensors(path, file, file.size)


class Random:
    """Reads of one size at random positions of one file; the same positions for both sides."""

    def __init__(self, sealed: SealedObject, plain: Path, length: int, count: int) -> None:
        self._sealed, self._plain, self._length = sealed, plain, length
        rng = random.Random(length)
        size = min(plain.stat().st_size, sealed.entry(sealed.paths()[0]).plaintext_size)
        self._positions = [rng.randrange(size - length) for _ in range(count)]

    def plain(self) -> None:
        with self._plain.open("rb", buffering=0) as file:
            for position in self._positions:
                os.pread(file.fileno(), self._length, position)

    def sealed(self) -> None:
        with self._sealed.open(self._sealed.paths()[0]) as file:
            for position in self._positions:
                file.seek(position)
                file.read(self._length)


_CHILD = """
import sys
from pathlib import Path
from benchmarks._sealed_formats import seal_read_and_measure
print(seal_read_and_measure(Path(sys.argv[1]), int(sys.argv[2])))
"""


def peak_rss_mb(folder: Path, size: int) -> float:
    """The most memory that a new process held while it sealed, read and checked an object of ``size`` bytes."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder), str(size)], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


class _Endless:
    """A source of ``size`` bytes that holds one megabyte."""

    def __init__(self, size: int) -> None:
        self._left, self._part = size, os.urandom(MIB)

    def read(self, n: int) -> bytes:
        n = min(n, self._left, MIB)
        self._left -= n
        return self._part[:n]


def seal_read_and_measure(folder: Path, size: int) -> float:
    made = Object.seal(folder, [("large", _Endless(size))])  # type: ignore[list-item]
    made.stream(own=False, threads=2, roots=True)
    made.stream(own=True, threads=2)
    # Not getrusage: its figure begins with the memory of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
