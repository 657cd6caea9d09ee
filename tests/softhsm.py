"""A SoftHSM token of one test: its own folder and configuration, so that tests don't see each other's keys."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["MODULE", "SoftHsm"]

MODULE = "/usr/lib/softhsm/libsofthsm2.so"  # Debian's package libsofthsm2


class SoftHsm:
    """Tokens in a folder. A context manager: while it is open SoftHSM finds them through SOFTHSM2_CONF.

    SoftHSM reads its configuration when a process initializes the module, which the driver does when the first vault is
    opened and undoes when the last is closed: so close every driver before this.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tokens = folder / "tokens"
        self.tokens.mkdir()
        self.configuration = folder / "softhsm2.conf"
        self.configuration.write_text(
            f"directories.tokendir = {self.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        self.security_pin = secrets.token_hex(8)
        self._before: str | None = None

    def __enter__(self) -> SoftHsm:
        self._before = os.environ.get("SOFTHSM2_CONF")
        os.environ["SOFTHSM2_CONF"] = str(self.configuration)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = self._before

    def create(self, label: str, pin: bytes) -> Path:
        """A new token; its folder."""
        before = set(self.tokens.iterdir())
        command = ["softhsm2-util", "--init-token", "--free", "--label", label]
        self._run([*command, "--so-pin", self.security_pin, "--pin", pin.decode()])
        (folder,) = set(self.tokens.iterdir()) - before
        return folder

    @contextmanager
    def removed(self, folder: Path) -> Iterator[None]:
        """While the block runs the token of that folder is not there."""
        away = self.tokens.parent / "removed"
        folder.rename(away)
        try:
            yield
        finally:
            away.rename(folder)

    def _run(self, command: list[str]) -> None:
        environment = {**os.environ, "SOFTHSM2_CONF": str(self.configuration)}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
