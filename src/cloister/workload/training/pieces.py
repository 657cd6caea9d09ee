"""Out of memory: the step is made again, its batches in smaller pieces. The gradient is that of the large batch.

Nothing was learned yet when memory ran out, since the optimizer moves only after all of a step's batches. What their
backward passes left is thrown away, and the step's rows go through the model again.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch

from ...errors import Malformed
from .batching import Row
from .health import is_out_of_memory, no_memory

__all__ = ["ROWS", "Pieces"]

ROWS = "rows"  # under this name a batch carries the rows that it was made of
_MOST = 4  # halvings; a model that needs more would crawl
Pass = Callable[[Sequence[Row], float], torch.Tensor]


class Pieces:
    """``count``: in how many pieces each batch goes through the model."""

    def __init__(self, *, allowed: bool, clear: Callable[[], None]) -> None:
        """``allowed``: a row's loss doesn't depend on the others of its batch. ``clear`` throws gradients away."""
        self.count = 1
        self._allowed, self._clear = allowed, clear
        self._step: int = -1
        self._seen: list[Sequence[Row]] = []

    def restore(self, count: object) -> None:
        """Go on as a run that had to make its pieces smaller; so its sums are added in the same order."""
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 2**_MOST:
            raise Malformed("checkpoint.state", "The checkpoint's state is not of the known form.")
        self.count = count

    def learn(self, step: int, rows: Sequence[Row], whole: Callable[[], torch.Tensor], each: Pass) -> torch.Tensor:
        """The loss of the batch ``rows``, its gradient added. ``whole`` passes it at once; ``each`` a piece of it, of
        which it is told what share of the batch it is. Misuse (``training.memory``) where it can't be made smaller.
        """
        if step != self._step:
            self._step, self._seen = step, []
        self._seen.append(rows)
        loss = _tried(whole if self.count == 1 else lambda: self._pieces(rows, each))
        while loss is None:
            self._halve(max(map(len, self._seen)))
            loss = _tried(lambda: [self._pieces(batch, each) for batch in self._seen][-1])
        return loss

    def _pieces(self, rows: Sequence[Row], each: Pass) -> torch.Tensor:
        size = -(-len(rows) // self.count)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return torch.stack([each(part, len(part) / len(rows)) for part in parts]).sum()

    def _halve(self, largest: int) -> None:
        if not self._allowed or self.count >= min(2**_MOST, largest):
            raise no_memory()
        self.count *= 2
        self._clear()
        gc.collect()  # the failed pass's tensors may hang on each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _tried(work: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """None if it ran out of memory. The error ends here: its frames hold on to the tensors that filled the memory."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None
