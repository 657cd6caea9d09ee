"""safetensors, read strictly from a stream and written to bytes. The only form in which tensors cross our borders.

The format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length N, N bytes of JSON
that maps names to dtype, shape and offsets into what follows. The library reads whole files or paths; here the bytes
come decrypted from a stream, so each tensor is read straight into its own memory and no second copy is made.
"""

from __future__ import annotations

import json
import math
from contextlib import closing
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import save as _save

from ...crypto.buffers import on_huge_pages
from ...crypto.helper import Helper
from ...errors import Malformed

__all__ = ["MAX_HEADER", "read_tensors", "write_tensors"]

MAX_HEADER = 32 << 20
_MAX_DIMENSIONS = 8
_CHUNK = 1 << 26
_SEARCHED = 1 << 19  # bytes at a time, which stay in a processor's cache
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_tensors(name: str, stream: BinaryIO, size: int) -> dict[str, torch.Tensor]:
    """Tensors of one safetensors file of ``size`` bytes. Malformed (``model.safetensors``, ``model.nan``) otherwise.

    Checked before a byte of tensor memory is reserved: the header's length, every dtype, shape and offset, that the
    tensors fill the file without gap or overlap. Then, that no weight is NaN or infinite.
    """
    entries = _entries(name, stream, size)
    out: dict[str, torch.Tensor] = {}
    with closing(Helper()) as helper:
        for tensor_name, dtype, shape, length in entries:
            tensor = torch.empty(shape, dtype=dtype)
            if length:
                _fill(name, stream, tensor)
            if dtype.is_floating_point and not _finite(tensor, helper):
                raise Malformed(
                    "model.nan", f"The file {name} holds weights that are NaN or infinite; seal a sound model."
                )
            out[tensor_name] = tensor
    return out


def write_tensors(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The tensors as one safetensors file. Views and device tensors are made plain first; names are sorted inside."""
    plain = {k: v.detach().to("cpu").contiguous() for k, v in sorted(tensors.items())}
    return bytes(_save(plain, metadata))


def _bad(name: str, why: str) -> Malformed:
    return Malformed("model.safetensors", f"The file {name} is not valid safetensors: {why}; save the model again.")


def _entries(name: str, stream: BinaryIO, size: int) -> list[tuple[str, torch.dtype, list[int], int]]:
    prefix = stream.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) != 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
        raise _bad(name, "its header's length is impossible")
    raw = stream.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        raise _bad(name, "its header is not JSON") from None
    if len(raw) != length or not isinstance(header, dict):
        raise _bad(name, "its header is not an object")
    header.pop("__metadata__", None)
    found = sorted((_entry(name, key, value) for key, value in header.items()), key=lambda entry: (entry[3], entry[4]))
    end = 0
    for _, _, _, begin, stop in found:
        if begin != end:
            raise _bad(name, "its tensors overlap or leave a gap")
        end = stop
    if end != size - 8 - length:
        raise _bad(name, "its tensors and its size disagree")
    return [(key, dtype, shape, stop - begin) for key, dtype, shape, begin, stop in found]


def _entry(name: str, key: str, value: Any) -> tuple[str, torch.dtype, list[int], int, int]:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _bad(name, "an entry lacks dtype, shape or data_offsets")
    dtype = _DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None
    shape, offsets = value["shape"], value["data_offsets"]
    if dtype is None:
        raise _bad(name, "it uses a data type that is not supported here")
    if not _naturals(shape, _MAX_DIMENSIONS) or not _naturals(offsets, 2) or len(offsets) != 2:
        raise _bad(name, "a shape or an offset is not a list of whole numbers")
    # Python's integers don't overflow, so a product of huge dimensions can't wrap round to a plausible size.
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise _bad(name, "a tensor's shape and its bytes disagree")
    return key, dtype, shape, offsets[0], offsets[1]


def _naturals(value: Any, limit: int) -> bool:
    if not isinstance(value, list) or len(value) > limit:
        return False
    return all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**60 for v in value)


def _fill(name: str, stream: BinaryIO, tensor: torch.Tensor) -> None:
    """Straight into the tensor's own memory: a large read of a sealed file is decrypted there, without a copy."""
    view = memoryview(_bytes(tensor))  # type: ignore[arg-type]  # numpy arrays are buffers
    on_huge_pages(view)
    readinto = getattr(stream, "readinto", None)
    while view:
        if readinto is not None:
            n = readinto(view[:_CHUNK]) or 0
        else:
            chunk = stream.read(min(len(view), _CHUNK))
            n = len(chunk)
            view[:n] = chunk
        if not n:
            raise _bad(name, "it ends too early")
        view = view[n:]


def _finite(tensor: torch.Tensor, helper: Helper) -> bool:
    """Without a NaN or an infinite weight. Those alone have an exponent of all ones (IEEE 754 §3.4; bfloat16 alike), so
    read as whole numbers they are the largest: the positive ones among signed numbers, the negative among unsigned.

    That is ten times as fast as asking each weight. Both threads take half, before the next tensor is decrypted: torch
    would keep its threads spinning beside the decryption.
    """
    size = tensor.element_size()
    edges = _bytes(torch.tensor([math.inf, -math.inf], dtype=tensor.dtype))
    readings = [(_bytes(tensor).view(f"{kind}{size}"), edges.view(f"{kind}{size}")[at]) for at, kind in enumerate("iu")]
    step, end = _SEARCHED // size, tensor.numel()
    bad: list[int] = []

    def search(first: int, last: int) -> None:
        for at in range(first, last, step):
            if any(np.max(numbers[at : min(at + step, last)]) >= edge for numbers, edge in readings):
                bad.append(at)
                return

    helper.both(partial(search, 0, end // 2), partial(search, end // 2, end))
    return not bad


def _bytes(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor's own memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("duplicate key")
    return out
