"""Options that many commands share, and how a command finds its home."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from ..client import Home, default_home
from ..errors import Misuse

__all__ = [
    "As",
    "Changes",
    "Full",
    "HomeFolder",
    "Json",
    "PassphraseFile",
    "Reason",
    "ShowProgress",
    "Yes",
    "at_home",
    "moment",
    "read_file",
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for errors too.")]
HomeFolder = Annotated[
    Path | None,
    typer.Option("--home", help="Where this machine's parts live; $CLOISTER_HOME says so too.", show_default=False),
]
As = Annotated[str | None, typer.Option("--as", help="The party that acts; needed where several live here.")]
ShowProgress = Annotated[bool, typer.Option("--progress", help="Draw progress bars even if stderr is no terminal.")]
Full = Annotated[bool, typer.Option("--full", help="Show digests and long texts in full.")]
Changes = Annotated[
    list[str] | None,
    typer.Argument(
        help="Changes to the recipe: key=value, or lora.rank=8.", metavar="[KEY=VALUE]...", show_default=False
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask.")]
Reason = Annotated[str, typer.Option("--reason", help="A few words that stand in the log for good.")]
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


def moment(text: str | None) -> int:
    """POSIX seconds of what a person wrote; now for None. Raises Misuse."""
    if text is None:
        return int(time.time())
    # Four or eight digits are rather a year, or a day without its hyphens.
    if re.fullmatch(r"[0-9]{1,12}", text) and len(text) not in (4, 8):
        return int(text)
    for form in ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d"):
        try:
            return int(datetime.strptime(text, form).replace(tzinfo=UTC).timestamp())
        except ValueError:
            continue
    raise Misuse("terminal.time", "Give the time as 2025-06-20T12:00:00Z, as 2025-06-20, or in seconds since 1970.")
