"""Passphrases: typed without echo, or the first line of a file. Never an argument, never an environment value."""

from __future__ import annotations

import getpass
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from ..errors import Misuse
from .options import read_file
from .terminal import note

__all__ = ["read_passphrase"]

_VARIABLE = "CLOISTER_PASSPHRASE_FILE"
_LIMIT = 4096


def read_passphrase(party: str, file: Path | None, *, twice: bool, environment: Mapping[str, str] = os.environ) -> str:
    """The passphrase of ``party``'s vault. Raises Misuse where there is neither a file nor a person."""
    if file is None and environment.get(_VARIABLE):
        file = Path(environment[_VARIABLE])
    if file is not None:
        return _from_file(file)
    if not sys.stdin.isatty():
        raise Misuse(
            "passphrase.absent", f"Nobody is here to type a passphrase; give --passphrase-file or ${_VARIABLE}."
        )
    passphrase = getpass.getpass(f"Passphrase for the vault of {party}: ", stream=sys.stderr)
    if twice and getpass.getpass("The same again: ", stream=sys.stderr) != passphrase:
        raise Misuse("passphrase.differs", "The two passphrases differ; try again.")
    return _checked(passphrase)


def _from_file(path: Path) -> str:
    data = read_file(path, limit=_LIMIT)
    if path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077:
        note(f"Other users of this machine can read {path}; 'chmod 600' mends that.")
    try:
        return _checked(data.decode().partition("\n")[0].rstrip("\r"))
    except UnicodeDecodeError:
        raise Misuse("passphrase.text", "The passphrase file is not UTF-8 text.") from None


def _checked(passphrase: str) -> str:
    if not passphrase:
        raise Misuse("passphrase.empty", "The passphrase is empty; choose a long one.")
    return passphrase
