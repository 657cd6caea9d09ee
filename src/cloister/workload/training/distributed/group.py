"""The processes as a group: joining it, and what of the training's state lies where.

Address and order of the group are in anonymous memory that the processes share; what they exchange goes over loopback
sockets (gloo) or between GPUs (nccl). Both are without encryption, so a group never leaves its machine.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ....errors import Malformed

__all__ = ["Group", "joined", "shard"]

_PATIENCE = timedelta(minutes=30)  # for the slowest process's step; one that ends is noticed at once
_GENERATORS = "generators"


@dataclass(frozen=True)
class Group:
    """``rank`` from 0 (the process that has keys and ports) to ``size`` - 1."""

    rank: int
    size: int
    sharded: bool

    @property
    def first(self) -> bool:
        return self.rank == 0

    def environment(self, threads: int) -> dict[str, str]:
        """What torchrun would set, for the libraries that read it, and gloo's one interface."""
        rank, size = str(self.rank), str(self.size)
        return {
            "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",  # never used: the group is there before they look
            "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": str(threads),
        }  # fmt: skip

    def agree(self, *choices: bool) -> tuple[bool, ...]:
        """What the first process chose: clocks and measurements differ, and all must take the same way."""
        said = torch.tensor(choices, dtype=torch.uint8, device=_device())
        dist.broadcast(said, src=0)
        return tuple(bool(choice) for choice in said.tolist())

    def whole(self, parts: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, Mapping[str, torch.Tensor]]:
        """A checkpoint's parts with every tensor whole and everybody's generators, in the first process; elsewhere
        empty ones. All call it. The others hold one whole tensor at a time."""
        found = {part: self._gathered(tensors) for part, tensors in parts.items()}
        found[_GENERATORS] = self._all_generators(parts[_GENERATORS])
        return found

    def take_back(self, parts: nn.Module, model: nn.Module) -> None:
        """Copy what was trained in ``parts`` over the first process's whole ``model``. All call it."""
        whole = dict(model.named_parameters())
        for name, parameter in parts.named_parameters():
            if parameter.requires_grad:
                full = _full(parameter)
                if self.first:
                    whole[name].data.copy_(full)

    def _gathered(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        if not self.sharded:
            return tensors
        kept = {}
        for name, tensor in tensors.items():
            full = _full(tensor)
            if self.first:
                kept[name] = full
        return kept

    def _all_generators(self, own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The others' torch generators beside the first one's; numpy's and Python's are not used by training."""
        all_of = dict(own)
        for name in ("torch", "cuda"):
            if name in own:
                state = own[name].to(_device())
                found = [torch.empty_like(state) for _ in range(self.size)]
                dist.all_gather(found, state)
                all_of.update({f"{name}.{rank}": found[rank].cpu() for rank in range(1, self.size)})
        return all_of

    def own_generators(self, saved: Mapping[str, torch.Tensor]) -> None:
        """Put back what ``whole`` kept of this process's generators. Raises Malformed if there are none of it."""
        if self.first:
            return
        if f"torch.{self.rank}" not in saved:
            raise Malformed("checkpoint.generators", "The checkpoint is of another number of processes; start afresh.")
        torch.set_rng_state(saved[f"torch.{self.rank}"])
        if f"cuda.{self.rank}" in saved and torch.cuda.is_available():
            torch.cuda.set_rng_state(saved[f"cuda.{self.rank}"])


@contextlib.contextmanager
def joined(group: Group, store: int, threads: int) -> Iterator[None]:
    """Within, this process is a member. ``store``: the descriptor of the memory in which they find each other."""
    before = {name: os.environ.get(name) for name in group.environment(threads)}
    threads_before = torch.get_num_threads()
    os.environ.update(group.environment(threads))
    torch.set_num_threads(threads)
    _forget_accelerate()
    try:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(group.rank)
        # A descriptor's own path: what is opened is the anonymous memory, and nothing appears in any folder.
        found = dist.FileStore(f"/proc/self/fd/{store}", group.size)  # type: ignore[attr-defined]
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", store=found, rank=group.rank, world_size=group.size,
            timeout=_PATIENCE,
        )  # fmt: skip
        try:
            yield
        finally:
            dist.destroy_process_group()
    finally:
        _forget_accelerate()
        torch.set_num_threads(threads_before)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def shard(model: nn.Module) -> None:
    """FSDP2: each process keeps its part of every tensor; a layer is whole only while it is computed."""
    for layers in _outermost(model, nn.ModuleList):
        for layer in layers.children():
            fully_shard(layer)
    fully_shard(model)


def _full(tensor: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu()


def _outermost(module: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, kind):
            yield child
        else:
            yield from _outermost(child, kind)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _forget_accelerate() -> None:
    """Accelerate remembers for the whole process whether it is alone."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
