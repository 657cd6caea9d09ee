"""``key recovery``: shares of a vault's root, for people; and the day on which they are needed."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..client import operations
from ..errors import Misuse
from .options import As, HomeFolder, Json, PassphraseFile, at_home
from .passphrase import read_passphrase
from .terminal import note, result

__all__ = ["recovery"]

recovery = typer.Typer(no_args_is_help=True, help="Recovery shares of a vault's root: k of n people restore it.")

_CLEAR = "\033[2J\033[3J\033[H"  # the screen, what was scrolled away, and the cursor to its place
_MOST = 16


@recovery.command("split")
def split(
    threshold: Annotated[int, typer.Option("--threshold", min=2, max=_MOST, help="How many are needed.")],
    shares: Annotated[int, typer.Option("--shares", min=2, max=_MOST, help="How many there are.")],
    print_shares: Annotated[
        bool, typer.Option("--print-shares", help="Write them to stdout at once; whoever reads that has them.")
    ] = False,
    party: As = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Make recovery shares and show each once, one at a time. With a backup of the vault file they restore it."""
    if not print_shares and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Misuse("recovery.terminal", "Shares are shown to people at a terminal; --print-shares writes them out.")
    with at_home(home) as place:
        acting = place.choose(party)
        made = operations.split_secret_root(place, acting, threshold, shares)
    document: dict[str, object] = {"party": acting, "shares_made": len(made), "threshold": threshold}
    lines = [
        f"{len(made)} shares of the vault of {acting}; {threshold} of them and a backup of vault.json restore it.",
        "Earlier shares and an earlier copy of the file still give the vault's root: destroy whichever you can.",
    ]
    if print_shares:
        document["shares"] = made
        lines = [*(f"{number}  {share}" for number, share in enumerate(made, 1)), *lines]
    else:
        _show(made)
    result(document, lines, as_json=as_json)


def _show(made: Sequence[str]) -> None:
    """On the terminal itself, never on stdout, which might go into a file."""
    for number, share in enumerate(made, 1):
        note(f"Share {number} of {len(made)}. Let nobody but its holder read it, and write it down:")
        note("")
        note(share)
        note("")
        print("Press Enter when it is written down; it is not shown again. ", end="", file=sys.stderr, flush=True)
        sys.stdin.readline()
        print(_CLEAR, end="", file=sys.stderr, flush=True)


@recovery.command("restore")
def restore(
    vault: Annotated[
        Path,
        typer.Argument(
            help="The vault file or a backup, in the party's folder beside state.db; its broker must not run."
        ),
    ],
    driver: Annotated[
        str | None,
        typer.Option("--driver", help="The device that has the keys again; its credential is then asked for."),
    ] = None,
    driver_option: Annotated[
        list[str] | None, typer.Option("--driver-option", help="NAME=VALUE; several times.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Put a vault back in use under a new passphrase. Shares are typed, or read line by line from stdin."""
    if not vault.is_file():
        raise Misuse("file.missing", f"There is no file {vault}.")
    shares = _read_shares()
    credential = read_passphrase(str(vault), passphrase_file, twice=True)
    done = operations.restore_secret_root(vault, shares, credential, driver=driver, options=driver_option or [])
    lines = [f"The vault of {done['owner']} is restored, revision {done['revision']}.", *done["notes"]]
    result(done, lines, as_json=as_json)


def _read_shares() -> list[str]:
    if not sys.stdin.isatty():
        return [line.strip() for line in sys.stdin.read(1 << 16).splitlines() if line.strip()]
    note("Let each person type their share; an empty line ends it. Nothing is shown.")
    shares: list[str] = []
    while len(shares) < _MOST and (share := getpass.getpass(f"Share {len(shares) + 1}: ", stream=sys.stderr).strip()):
        shares.append(share)
    return shares
