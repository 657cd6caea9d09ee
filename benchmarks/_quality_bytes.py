"""What can be said of a text without any learned network: byte statistics, in bits.

An interpolated model of bytes after the last five bytes, with Witten-Bell weights (Witten & Bell 1991, "The
zero-frequency problem", method C), as PPM compressors have it. It reads what it is given first, then codes the text
byte by byte and reads each byte once it is coded. With nothing but a prompt to read it can only copy from the prompt:
the extractive baseline. With the training texts read before, it is an n-gram model of them that can copy too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["ByteModel"]

_ORDER = 5


class ByteModel:
    def __init__(self, read: Iterable[str] = ()) -> None:
        self._counts: dict[bytes, dict[int, int]] = {}
        for text in read:
            self._read(text.encode(), b"", None)

    def bits(self, prompt: str, text: str) -> float:
        """What ``text`` takes after ``prompt``. The model is as before when this returns."""
        undo: list[tuple[bytes, int]] = []
        before = prompt.encode()
        self._read(before, b"", undo)
        found = self._read(text.encode(), before[-_ORDER:], undo)
        for context, byte in reversed(undo):
            after = self._counts[context]
            after[byte] -= 1
            if not after[byte]:
                del after[byte]
        return found

    def _read(self, data: bytes, before: bytes, undo: list[tuple[bytes, int]] | None) -> float:
        bits, history = 0.0, before
        for byte in data:
            contexts = [history[len(history) - n :] for n in range(min(_ORDER, len(history)) + 1)]
            if undo is not None:
                bits -= math.log2(self._probability(contexts, byte))
            for context in contexts:
                after = self._counts.setdefault(context, {})
                after[byte] = after.get(byte, 0) + 1
                if undo is not None:
                    undo.append((context, byte))
            history = (history + bytes([byte]))[-_ORDER:]
        return bits

    def _probability(self, contexts: list[bytes], byte: int) -> float:
        found = 1 / 256
        for context in contexts:
            after = self._counts.get(context)
            if after:
                total, kinds = sum(after.values()), len(after)
                found = (after.get(byte, 0) + kinds * found) / (total + kinds)
        return found
