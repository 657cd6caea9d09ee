"""All commands, and the one place where an error becomes an exit code."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from .. import __version__
from ..errors import CloisterError, Internal, Misuse
from . import bundle, machine, seal
from .attester import attester
from .collateral import collateral
from .contract import contract
from .data import data
from .evidence import evidence
from .job import job
from .key import key
from .logs import audit
from .measurement import measurement
from .model import model
from .org import org, team
from .policy import policy
from .recipe import recipe
from .reference_values import reference_values
from .terminal import fail, note

__all__ = ["app", "main"]

_NO_ARGUMENTS = "NoArgsIsHelpError"
_INTERRUPTED = 130  # what shells expect of a program that a person interrupted; Typer turns Ctrl-C into it


def _make() -> typer.Typer:
    made = typer.Typer(
        name="cloister",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    made.callback()(_root)
    machine.register(made)
    for name, group in (("org", org), ("team", team)):
        made.add_typer(group, name=name)
    seal.register(made)
    for name, group in (("data", data), ("contract", contract), ("job", job)):
        made.add_typer(group, name=name)
    bundle.register(made)
    for name, group in (("audit", audit), ("key", key), ("model", model), ("recipe", recipe)):
        made.add_typer(group, name=name)
    for name, group in (("policy", policy), ("measurement", measurement), ("reference-values", reference_values)):
        made.add_typer(group, name=name)
    for name, group in (("attester", attester), ("collateral", collateral), ("evidence", evidence)):
        made.add_typer(group, name=name)
    return made


def _version(wanted: bool) -> None:
    if wanted:
        print(f"cloister {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune models on data that nobody may see."""
    del version


app = _make()


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code. Nothing but this turns an exception into words."""
    given = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in given
    try:
        code = app(given, prog_name="cloister", standalone_mode=False)
        if code == _INTERRUPTED:
            note("cloister: Interrupted; what was started elsewhere goes on.")
        return code if isinstance(code, int) else 0
    except CloisterError as error:
        return fail(error, as_json=as_json)
    except typer.TyperException as error:
        if type(error).__name__ == _NO_ARGUMENTS:
            print(error.format_message(), file=sys.stderr)
            return Misuse.exit_code
        return fail(Misuse("terminal.usage", _sentence(error.format_message())), as_json=as_json)
    except BrokenPipeError:
        return 1  # whoever read our output has seen enough
    except Exception as bug:  # noqa: BLE001  the last line: a bug's own text may quote what it worked on
        where = traceback.extract_tb(bug.__traceback__)[-1]
        place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
        message = f"This is a bug in Cloister ({type(bug).__name__} at {place}); please report it."
        return fail(Internal("terminal.bug", message), as_json=as_json)


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return f"{text.rstrip('.')}; see --help."
