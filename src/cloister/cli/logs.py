"""``audit``: a party's log."""

from __future__ import annotations

import datetime
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated

import typer

from ..client import Wanted, operations
from ..errors import Misuse
from .options import As, HomeFolder, Json, ShowProgress, at_home, moment
from .terminal import Bars, columns, note, result

__all__ = ["audit"]

audit = typer.Typer(no_args_is_help=True, help="The audit log of a party: what was released, permitted and refused.")


@audit.command("verify")
def verify(party: As = None, progress: ShowProgress = False, home: HomeFolder = None, as_json: Json = False) -> None:
    """Check every entry against the signed head, and the head against the one that was kept here the last time."""
    with at_home(home) as place, Bars(progress) as bars:
        check = operations.verify_log(place, place.choose(party), progress=bars)
    before = (
        f"it contains the {check.compared} entries that were checked before" if check.compared else "first check here"
    )
    lines = [f"The log of {check.party} is whole: {check.size} entries, {before}."]
    result(check.document(), [*lines, *columns([(k, n) for k, n in check.kinds.items()])], as_json=as_json)


@audit.command("show")
def show(
    last: Annotated[int, typer.Option("--last", min=1, max=10_000, help="How many of the newest entries.")] = 20,
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind, for example key.released.")] = None,
    party: As = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """The newest entries of a party's log."""
    with at_home(home) as place:
        acting = place.choose(party)
        entries = operations.show_log(place, acting, last=last, kind=kind)
    rows = [
        (e["index"], _when(int(e["time"])), e["kind"], e["outcome"], str(e["target"])[:24], _details(e["details"]))
        for e in entries
    ]
    result({"entries": entries, "party": acting}, columns(rows) or ["No such entries."], as_json=as_json)


@audit.command("export")
def export(
    to: Annotated[
        Path | None, typer.Option("--to", help="File to write, whole or not at all; stdout otherwise.")
    ] = None,
    first: Annotated[int, typer.Option("--from-index", min=0, help="Index of the first entry.")] = 0,
    last: Annotated[int | None, typer.Option("--to-index", min=0, help="Index of the last entry.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="From this time on: 2025-06-20T12:00:00Z, a day, or seconds.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Up to this time, without it.")] = None,
    kind: Annotated[str | None, typer.Option("--kind", help="Only this kind, for example key.released.")] = None,
    progress: ShowProgress = False,
    party: As = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Write a log's entries for a SIEM: OCSF events, one JSON object a line, as they were logged. The whole log is
    checked first; of one that is not right nothing is written."""
    if to is None and as_json:
        raise Misuse("audit.stdout", "With --json stdout is for the answer; name a file with --to.")
    wanted = Wanted(
        first,
        last,
        None if since is None else moment(since),
        None if until is None else moment(until),
        kind,
    )
    with at_home(home) as place, Bars(progress) as bars, _written(to) as out:
        done = operations.export_events(place, place.choose(party), out, wanted, progress=bars)
    line = f"{done.written} of {done.check.size} entries of {done.check.party}, whose log is whole."
    if to is None:
        note(line)
    else:
        result({**done.document(), "file": str(to)}, [f"{to}: {line}"], as_json=as_json)


@contextmanager
def _written(path: Path | None) -> Iterator[IO[bytes]]:
    """stdout, or a file for its owner alone that appears whole, at the end, or not at all."""
    if path is None:
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise  # whoever read it has seen enough
        except OSError:
            raise Misuse("file.write", "The entries can't be written to stdout; free disk space.") from None
        return
    try:
        _check_replaceable(path)
        descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError:
        raise _unwritable(path) from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the name: else a loss of power may leave the name and not what it is of
        os.rename(draft, path)
    except OSError:
        raise _unwritable(path) from None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(draft)


def _check_replaceable(path: Path) -> None:
    """A rename puts the export in the place of whatever is there: of /dev/null, too, for root."""
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise Misuse("file.write", f"{path} is no plain file, and would be replaced by one; name another.")


def _unwritable(path: Path) -> Misuse:
    return Misuse("file.write", f"{path} can't be written; name another file, or free disk space.")


def _details(details: dict[str, object]) -> str:
    return " ".join(f"{name}={str(value)[:24]}" for name, value in sorted(details.items()))


def _when(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
