"""What a party's program sees: ``main.py`` defines ``train(run)``, and ``run`` is a ``Run``. docs/spec/script.md."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from .channel import BODY_LIMIT, Channel

__all__ = ["Checkpoint", "Folder", "Run"]

_BLOCK = 1 << 22  # bytes that are asked for at a time


@dataclass(frozen=True)
class Checkpoint:
    """What ``Run.checkpoint`` kept: ``tensors`` by name, and ``values``, which are JSON's."""

    step: int
    tensors: Mapping[str, Any]
    values: Any


class Folder:
    """Files of a sealed asset. They are decrypted as they are read; nothing of them lies on a disk."""

    def __init__(self, channel: Channel, name: str, sizes: Mapping[str, int]) -> None:
        self._channel, self._name, self._sizes = channel, name, dict(sizes)

    def paths(self) -> tuple[str, ...]:
        return tuple(sorted(self._sizes))

    def open(self, path: str) -> BinaryIO:
        """A file to read from, seekable. Raises FileNotFoundError."""
        if path not in self._sizes:
            raise FileNotFoundError(path)
        return io.BufferedReader(_File(self._channel, self._name, path, self._sizes[path]), _BLOCK)

    def read(self, path: str) -> bytes:
        with self.open(path) as file:
            return file.read()


class _File(io.RawIOBase):
    def __init__(self, channel: Channel, folder: str, path: str, size: int) -> None:
        self._ask = (channel, folder, path)
        self._size, self._place = size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("before the file's beginning")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        channel, folder, path = self._ask
        length = max(0, min(len(buffer), _BLOCK, self._size - self._place))
        if length:
            channel.send({"folder": folder, "length": length, "offset": self._place, "op": "read", "path": path})
            _, data = channel.receive(body_limit=length)
            buffer[: len(data)] = data
            length = len(data)
        self._place += length
        return length


class Run:
    """One run of a program.

    ``data``: the dataset's files. ``program``: the program's own. ``parameters``: what the recipe gives the program.
    ``settings``: the recipe's other keys (``epochs``, ``learning_rate``, ``seed`` …) as numbers and texts, which a
    program need not heed. ``resumed``: the newest checkpoint, or None.
    """

    def __init__(self, channel: Channel, opening: Mapping[str, Any], saved: bytes) -> None:
        self._channel = channel
        self.data = Folder(channel, "data", opening["data"])
        self.program = Folder(channel, "program", opening["program"])
        self.parameters: Mapping[str, Any] = opening["parameters"]
        self.settings: Mapping[str, Any] = {name: _plain(value) for name, value in opening["settings"].items()}
        self.resumed = _unpacked(opening["step"], saved) if opening["step"] else None

    def report(self, step: int, total: int, **figures: float) -> None:
        """Progress. What leaves of ``figures`` while the run goes on are those that the contract's telemetry names."""
        self._tell({"op": "report", "step": step, "total": total, "values": _texts(figures)})

    def checkpoint(self, step: int, tensors: Mapping[str, Any], values: Any = None) -> None:
        """Keep a state (from step 1 on, growing): torch tensors or numpy arrays by name, and JSON values. It is sealed;
        when this returns, a killed run goes on from here."""
        self._tell({"op": "checkpoint", "step": step}, _packed(tensors, values))

    def score(self, metric: str, *, base: float, tuned: float, higher_is_better: bool = True) -> None:
        """A figure of the result, beside that of what it is to be better than: the contract's gates compare them."""
        scores = _texts({"base": base, "tuned": tuned})
        self._tell({"higher_is_better": higher_is_better, "metric": metric, "op": "score", **scores})

    def output(self, name: str, content: bytes) -> None:
        """A file of the output: ``.safetensors``, ``.json``, ``.txt`` or ``.png``; nothing that runs when opened."""
        self._tell({"name": name, "op": "output"}, content)

    def output_tensors(self, name: str, tensors: Mapping[str, Any]) -> None:
        self.output(name, _packed(tensors, None))

    def _tell(self, head: Mapping[str, Any], body: bytes = b"") -> None:
        self._channel.send(head, body)
        answer, _ = self._channel.receive(body_limit=0)
        if "refused" in answer:
            raise ValueError(answer["refused"])


def _plain(value: Any) -> Any:
    """A decimal of the recipe, which is text in its document, as a float."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _texts(figures: Mapping[str, float]) -> dict[str, str]:
    """Floats go as text: canonical JSON has none."""
    return {name: repr(float(value)) for name, value in figures.items()}


def _packed(tensors: Mapping[str, Any], values: Any) -> bytes:
    import torch
    from safetensors.torch import save

    plain = {name: torch.as_tensor(tensor).detach().cpu().contiguous() for name, tensor in tensors.items()}
    data: bytes = save(plain, {"values": json.dumps(values)})
    if len(data) > BODY_LIMIT:
        raise ValueError(f"a checkpoint or a file of tensors has at most {BODY_LIMIT} bytes")
    return data


def _unpacked(step: int, data: bytes) -> Checkpoint:
    from safetensors.torch import load

    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    return Checkpoint(step, load(data), json.loads(metadata["values"]))
