"""Options that many commands share, and how a command finds its home."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ..client import Home, default_home
from ..errors import Misuse

__all__ = ["As", "Full", "HomeFolder", "Json", "PassphraseFile", "ShowProgress", "Yes", "at_home", "read_file"]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for errors too.")]
HomeFolder = Annotated[
    Path | None,
    typer.Option("--home", help="Where this machine's parts live; $CLOISTER_HOME says so too.", show_default=False),
]
As = Annotated[str | None, typer.Option("--as", help="The party that acts; needed where several live here.")]
ShowProgress = Annotated[bool, typer.Option("--progress", help="Draw progress bars even if stderr is no terminal.")]
Full = Annotated[bool, typer.Option("--full", help="Show digests and long texts in full.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        help="File whose first line is the passphrase; $CLOISTER_PASSPHRASE_FILE may name it. Else it is asked for.",
    ),
]


@contextmanager
def at_home(folder: Path | None) -> Iterator[Home]:
    """The home for one command; its connections end with it."""
    home = Home(folder.absolute() if folder else default_home())
    try:
        yield home
    finally:
        home.close()


def read_file(path: Path, *, limit: int = 1 << 20) -> bytes:
    """A small file that the user named. Raises Misuse in one sentence."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise Misuse("file.missing", f"There is no file {path}.") from None
    except OSError:
        raise Misuse("file.read", f"The file {path} can't be read; check its permissions.") from None
    if len(data) > limit:
        raise Misuse("file.size", f"The file {path} is too large to be one of these.")
    return data
