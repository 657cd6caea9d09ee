"""One start of one job's workload, as the agent asks for it and the launcher makes it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..contracts import Contract, Job
from .sandbox import Sandbox

__all__ = ["Launch", "RunSandbox"]


@dataclass(frozen=True)
class Launch:
    """One start of one job's workload."""

    contract: Contract
    job: Job
    instance: bytes
    purpose: str
    folder: Path
    assets: dict[str, Path]
    directory: dict[str, tuple[str, int]]
    on_event: Callable[[dict[str, Any]], None]


class RunSandbox(Protocol):
    """Starts the measured workload; see ``launcher.Launcher``."""

    def __call__(self, launch: Launch) -> contextlib.AbstractContextManager[Sandbox]: ...
