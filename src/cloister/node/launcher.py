"""One launch of the workload: measure the image, tell the TPM, open the socket, start the sandbox."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..attestation import Attester
from ..attestation.guests import StockAttester
from .measure import measure_tree, measurement
from .order import Launch
from .output import plain_tree
from .sandbox import Sandbox, SandboxSpec, launch_spec, workload_argv
from .sandbox import launch as start_sandbox
from .socket_server import SocketServer

__all__ = ["WORKLOAD_ARGV", "Launcher", "image_measurement"]

WORKLOAD_ARGV = workload_argv("cloister.workload")


def image_measurement(image: Path) -> bytes:
    """What this image measures as when it is started the way that ``Launcher`` starts it, 32 bytes."""
    return measurement(measure_tree(image), launch_spec(SandboxSpec(image, WORKLOAD_ARGV)))


class Launcher:
    """The agent's ``RunSandbox``. ``run_as`` is only for an agent that is root (development on one machine)."""

    def __init__(self, image: Path, attester: Attester, *, run_as: tuple[int, int] | None = None) -> None:
        self._image, self._attester, self._run_as = image, attester, run_as

    @contextlib.contextmanager
    def __call__(self, launch: Launch) -> Iterator[Sandbox]:
        """The running sandbox; it and its socket are gone when the context ends."""
        # Measured at every launch: what runs now counts, not what was on disk when the agent started.
        measured = image_measurement(self._image)
        alone = launch.contract.platform.tenancy == "exclusive"
        self._attester.extend_launch(
            launch.instance, measured, launch.contract.digest, launch.job.digest, exclusive=alone
        )
        job = self._write_order(launch)
        socket_path = launch.folder / "node.sock"
        try:
            with SocketServer(
                socket_path,
                parties=launch.directory,
                evidence=lambda nonce, key: self._attester.evidence(launch.instance, nonce, key),
                telemetry=launch.on_event,
                # Only where the contract says that a party's keys come from a stock key broker: nobody else needs it.
                stock_evidence=self._attester.stock_evidence
                if launch.contract.trustees and isinstance(self._attester, StockAttester)
                else None,
                owner=self._run_as,
            ):
                spec = SandboxSpec(
                    self._image,
                    WORKLOAD_ARGV,
                    ro_binds={"/job": job, **{f"/assets/{name}": path for name, path in launch.assets.items()}},
                    rw_binds={"/out": launch.folder / "out"},
                    socket_path=socket_path,
                    run_as=self._run_as,
                    loopback=launch.job.recipe.processes > 1,
                )
                with start_sandbox(spec) as sandbox:
                    yield sandbox
        finally:
            self._attester.retire(launch.instance)
            shutil.rmtree(job)

    def _write_order(self, order: Launch) -> Path:
        folder = order.folder / "job"
        shutil.rmtree(folder, ignore_errors=True)  # what a crash of the agent left
        folder.mkdir()
        body: dict[str, Any] = {
            "assets": {name: f"/assets/{name}" for name in order.assets},
            "contract": order.contract.envelope.to_bytes().decode(),
            "instance": order.instance.hex(),
            "job": order.job.envelope.to_bytes().decode(),
            "purpose": order.purpose,
            "tee": self._attester.tee,
        }
        (folder / "job.json").write_text(json.dumps(body))
        if self._run_as is not None:
            # What an earlier, killed sandbox of this job left could be a link to somebody else's file.
            for path in (folder, folder / "job.json", *plain_tree(order.folder / "out")):
                os.chown(path, *self._run_as, follow_symlinks=False)
        return folder
