"""Running a piece of Python inside a real sandbox, for the tests that attack it."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError
from cloister.node import Limits, Sandbox, SandboxSpec, build_image, launch

__all__ = ["ASSET", "RUN_AS", "Box", "box", "workplace"]

ASSET = "ab" * 32
# As root the sandbox gets a user of its own; otherwise it is the caller's.
RUN_AS = (64901, 64901) if os.geteuid() == 0 else None

# Inside: call something that must fail and say how it failed.
_PRELUDE = """
import ctypes, errno, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)

def attempt(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def syscall(number, *args):
    ctypes.set_errno(0)
    return "done" if libc.syscall(number, *args) >= 0 else errno.errorcode[ctypes.get_errno()]

def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)
"""


def workplace() -> Path:
    """A folder that the sandbox's user can walk to, unlike pytest's; it is removed at the end of the run."""
    folder = Path(tempfile.mkdtemp(prefix="cloister-test-"))
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _image() -> Path:
    """One small image (no machine-learning packages) for all tests of a run."""
    return build_image(workplace() / "image", train=False)


@functools.cache
def _obstacle() -> str | None:
    """Why no sandbox can be started here, or None."""
    if not any(Path(p).exists() for p in ("/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap")):
        return "bubblewrap is not installed here"
    try:
        with launch(SandboxSpec(_image(), ("/usr/bin/python3", "-I", "-c", ""), run_as=RUN_AS)) as sandbox:
            sandbox.wait(30)
    except CloisterError as error:
        return f"no sandbox can be started here: {error}"
    return None


class Box:
    """One sandbox's folders on the host, and ways to run code in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.image = folder, _image()
        self.log = folder / "log"
        self.out, self.job, self.asset = folder / "out", folder / "job", folder / "asset"
        for path in (self.out, self.job, self.asset):
            path.mkdir()
        (self.job / "job.json").write_text("{}")
        (self.asset / "0000.sealed").write_bytes(b"ciphertext")
        if RUN_AS is not None:
            os.chown(self.out, *RUN_AS)

    def spec(self, code: str, **changes: Any) -> SandboxSpec:
        fields: dict[str, Any] = {
            "image": self.image,
            "argv": ("/usr/bin/python3", "-I", "-B", "-c", _PRELUDE + code),
            "ro_binds": {"/job": self.job, f"/assets/{ASSET}": self.asset},
            "rw_binds": {"/out": self.out},
            "run_as": RUN_AS,
            "limits": Limits(memory_bytes=512 * 2**20, tasks=64, tmp_bytes=8 * 2**20, shm_bytes=8 * 2**20),
        }
        return SandboxSpec(**{**fields, **changes})

    def start(self, code: str, **changes: Any) -> Sandbox:
        self.log.unlink(missing_ok=True)
        return launch(self.spec(code, **changes), insecure_log=self.log)

    def run(self, code: str, **changes: Any) -> str:
        """What the code printed; fails the test if it didn't end well."""
        with self.start(code, **changes) as sandbox:
            exit_code = sandbox.wait(60)
        assert exit_code == 0, self.log.read_text()
        return self.log.read_text()

    def probe(self, expression: str, **changes: Any) -> Any:
        """The value of a Python expression, evaluated inside; it must be JSON."""
        return json.loads(self.run(f"print(json.dumps({expression}))", **changes))


@contextmanager
def box() -> Iterator[Box]:
    """A fresh box; the test is skipped, saying why, where no sandbox can be started."""
    obstacle = _obstacle()
    if obstacle is not None:
        pytest.skip(obstacle)
    folder = workplace()
    try:
        yield Box(folder)
    finally:
        shutil.rmtree(folder)
