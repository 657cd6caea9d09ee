"""A consistent copy of a training's tensors, from which a checkpoint is written while training goes on.

Training stands still only for the copy, which runs at the speed of memory. The copy has the layout of safetensors files
(https://github.com/huggingface/safetensors#format: 8 bytes little-endian header length, JSON header padded with spaces
to 8, then the tensors' bytes), so writing is reading memory from front to back: nothing is serialized or joined.

Cost: once the memory of what is trained (weights and optimizer state), reserved once and used again for every
checkpoint. There is one snapshot, so there is never more than that, however slow the disk is.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import torch

from ...errors import Internal, Malformed

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["SHARD_BYTES", "Parts", "Snapshot", "shard_name"]

SHARD_BYTES = 512 << 20
# Part of a checkpoint (a word) → its tensors by name.
Parts = Mapping[str, Mapping[str, torch.Tensor]]

# The order in which safetensors lays tensors out: by type in this order, then by name. Wide types come first, so every
# tensor lies at a multiple of its own width.
_TYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_RANK = {dtype: rank for rank, dtype in enumerate(_TYPES)}


def shard_name(part: str, number: int) -> str:
    """``model-0000.safetensors`` for the first file of the part ``model``."""
    return f"{part}-{number:04d}.safetensors"


@dataclass(frozen=True)
class _Shard:
    """One file to be: its name, its header, its data, and where in the data each tensor lies."""

    name: str
    header: bytes
    data: torch.Tensor
    places: Mapping[str, torch.Tensor]


class Snapshot:
    """``lay_out`` once (``take`` does it if it was not), then ``take`` and read ``files``, again and again.

    ``take`` and ``files`` must not overlap: whoever calls them sees to that. ``cut`` may come from any thread.
    """

    def __init__(self, shard_bytes: int = SHARD_BYTES) -> None:
        self._limit = shard_bytes
        self._shards: dict[str, list[_Shard]] = {}
        self._fitting: dict[str, Mapping[str, torch.Tensor]] = {}
        self._copied: list[torch.cuda.Event] = []
        self._cut = False

    @property
    def counts(self) -> dict[str, int]:
        """How many files each part has."""
        return {part: len(shards) for part, shards in self._shards.items()}

    def lay_out(self, parts: Parts) -> None:
        """Reserve the memory for tensors of these names, types and shapes. Malformed for a type without a form."""
        self._shards = {part: self._shard(part, tensors) for part, tensors in parts.items()}
        self._fitting = dict(parts)

    def touch(self) -> None:
        """Have the kernel really give the memory, so that the first ``take`` need not wait for that."""
        for data in self._data():
            data[:] = 0

    def take(self, parts: Parts) -> None:
        """Copy the tensors. On a GPU the copies are queued behind the work before and ahead of the work after them.

        Raises Internal (``checkpoint.cut``) once ``cut`` was called.
        """
        if not self._fits(parts):
            self.lay_out(parts)
        places: list[torch.Tensor] = []
        sources: list[torch.Tensor] = []
        for part, tensors in parts.items():
            for shard in self._shards[part]:
                places += shard.places.values()
                sources += [tensors[name] for name in shard.places]
        if sources:
            with torch.no_grad():
                torch._foreach_copy_(places, sources, non_blocking=True)  # one call: there may be thousands of them
        self._copied = [_event(device) for device in {t.device for t in sources} if device.type == "cuda"]
        self._require_whole()

    def files(self) -> Iterator[tuple[str, BinaryIO]]:
        """Names and readers of the safetensors files, part by part. Reading raises Internal after ``cut``."""
        for event in self._copied:
            event.synchronize()
        for shards in self._shards.values():
            for shard in shards:
                yield shard.name, cast(BinaryIO, _Reader(self, shard))

    def cut(self) -> None:
        """Overwrite the copy, for good. What is being read from it meanwhile ends in an error, never in a file.

        The mark is set first and looked at after every read: whoever read a byte of the overwriting sees the mark.
        """
        self._cut = True
        self.touch()

    def release(self) -> None:
        """Overwrite the copy and give its memory back."""
        self.touch()
        self._shards, self._fitting = {}, {}

    def _require_whole(self) -> None:
        if self._cut:
            raise Internal("checkpoint.cut", "The run is ending, so the checkpoint that was being written is given up.")

    def _data(self) -> Iterator[Any]:
        # numpy, not torch: it gives the interpreter free as well, but starts no second pool of threads in this thread.
        for shards in self._shards.values():
            for shard in shards:
                yield shard.data.numpy()

    def _fits(self, parts: Parts) -> bool:
        if set(parts) != set(self._fitting):
            return False
        for part, tensors in parts.items():
            if not _alike(self._fitting[part], tensors):
                return False
            self._fitting[part] = tensors
        return True

    def _shard(self, part: str, tensors: Mapping[str, torch.Tensor]) -> list[_Shard]:
        """At least one file, and a new one wherever the next tensor would make it longer than the limit."""
        groups: list[dict[str, torch.Tensor]] = [{}]
        filled = 0
        for name, tensor in tensors.items():
            if groups[-1] and filled + tensor.nbytes > self._limit:
                groups.append({})
                filled = 0
            groups[-1][name] = tensor
            filled += tensor.nbytes
        return [_lay_out(shard_name(part, number), group) for number, group in enumerate(groups)]


def _alike(before: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> bool:
    """The same names, types and shapes. Mostly they are the very same tensors: training changes only their values."""
    if before.keys() != now.keys():
        return False
    pairs = ((before[name], tensor) for name, tensor in now.items())
    return all(a is b or (a.dtype == b.dtype and a.shape == b.shape) for a, b in pairs)


def _lay_out(file: str, tensors: Mapping[str, torch.Tensor]) -> _Shard:
    if any(tensor.dtype not in _TYPES for tensor in tensors.values()):
        raise Malformed("checkpoint.type", "A tensor of the training has a type that no checkpoint can hold.")
    ordered = sorted(tensors.items(), key=lambda item: (_RANK[item[1].dtype], item[0]))
    pinned = any(tensor.is_cuda for tensor in tensors.values())
    data = torch.empty(sum(tensor.nbytes for tensor in tensors.values()), dtype=torch.uint8, pin_memory=pinned)
    entries: dict[str, Any] = {}
    places: dict[str, torch.Tensor] = {}
    start = 0
    for name, tensor in ordered:
        end = start + tensor.nbytes
        entries[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        places[name] = data[start:end].view(tensor.dtype).view(tensor.shape)
        start = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return _Shard(file, len(text).to_bytes(8, "little") + text, data, places)


class _Reader(io.RawIOBase):
    """One file, front to back: the header, then the memory of the snapshot."""

    def __init__(self, snapshot: Snapshot, shard: _Shard) -> None:
        super().__init__()
        self._snapshot = snapshot
        self._rest = [np.frombuffer(shard.header, dtype=np.uint8), shard.data.numpy()]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        out = np.frombuffer(memoryview(buffer), dtype=np.uint8)
        done = 0
        while self._rest and done < len(out):
            piece = self._rest[0][: len(out) - done]
            # numpy lets other threads run while it copies; assigning to a memoryview would stop training meanwhile.
            out[done : done + len(piece)] = piece
            done += len(piece)
            self._rest[0] = self._rest[0][len(piece) :]
            if not len(self._rest[0]):
                del self._rest[0]
        self._snapshot._require_whole()
        return done


def _event(device: torch.device) -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event
