"""What the supervisor starts a party's broker with: what keeps its keys, and where its record lies.

It keeps the place of the file with a database's URL, never what is in it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from ..errors import Misuse
from ..fields import Fields

__all__ = ["SWITCHES", "broker_arguments", "broker_secrets", "read_switches", "read_vault"]

_MOST = 4096
# None of them makes a broker believe more than vendors' roots say: development evidence can't be let in from here.
SWITCHES = ("fetch_collateral", "stock_guests")


def read_vault(f: Fields) -> dict[str, Any]:
    """What keeps a party's KEKs. The broker judges names and values; here they only must be texts."""
    vault = {"name": f.text("name", limit=32), "options": f.mapping("options", lambda _, value: str(value), limit=16)}
    f.done()
    return vault


def read_switches(f: Fields) -> dict[str, bool]:
    """Those of ``SWITCHES`` that are named; others are refused."""
    found = {name: f.boolean(name) for name in SWITCHES if f.raw(name, optional=True) is not None}
    f.done()
    return found


def broker_arguments(
    vault: dict[str, Any] | None, database: str | None, switches: dict[str, bool] | None = None
) -> tuple[str, ...]:
    """Of ``python -m cloister.broker``. ``vault``: a driver's ``name`` and ``options``, None for the vault's own file.
    ``database``: the path of the file with the URL, None for a record in the home. ``switches``: which of
    ``SWITCHES`` are on.

    The URL follows the passphrase through the pipe: a broker with a user of its own couldn't read a file that is its
    owner's alone.
    """
    vault = vault or {"name": "file", "options": {}}
    options = (f"--vault-option={key}={value}" for key, value in sorted(vault["options"].items()))
    on = (f"--{name.replace('_', '-')}" for name in SWITCHES if (switches or {}).get(name))
    return ("--vault-driver", vault["name"], *options, *(() if database is None else ("--database", "-")), *on)


def broker_secrets(passphrase: str, file: str | None) -> str:
    """For the broker's pipe: the passphrase, and the database's URL in a line of its own. Raises as ``_read_url``, and
    Misuse for a passphrase of several lines: the broker would take its second one for the URL."""
    if "\n" in passphrase:
        raise Misuse("broker.passphrase", "A passphrase or credential is one line; choose one without line breaks.")
    return passphrase if file is None else f"{passphrase}\n{_read_url(Path(file))}"


def _read_url(path: Path) -> str:
    """The one line of ``path``, read anew at each start. What it may be, the broker says.

    Raises Misuse for a file that isn't there, isn't this user's alone or has more than one line.
    """
    try:
        # Without waiting: somebody's pipe in its place must not hold everything up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        raise _unreadable() from None
    try:
        found = os.fstat(descriptor)  # before anything is read: a pipe would answer what no file does
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid != os.geteuid():
            raise Misuse(
                "state.address_mode",
                "The file with the database's URL may hold a password: make it yours alone, mode 0600.",
            )
        text = os.read(descriptor, _MOST + 1).decode().strip()
    except (OSError, UnicodeDecodeError):
        raise _unreadable() from None
    finally:
        os.close(descriptor)
    if not text or len(text) > _MOST or not text.isprintable():
        raise Misuse("state.address", "The file needs one line: postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    return text


def _unreadable() -> Misuse:
    return Misuse("state.address", "The file with the database's URL can't be read.")
