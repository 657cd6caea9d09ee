"""docs/cli.md, written from the commands themselves: ``python -m cloister.cli.reference > docs/cli.md``."""

from __future__ import annotations

import sys
from typing import Any

import typer.main

from .app import app

__all__ = ["reference"]

_HEAD = """\
# Commands

Written by `python -m cloister.cli.reference` from the commands themselves; a test compares.

Results go to stdout, everything else to stderr. With `--json`, stdout carries one JSON object, for errors too:
`{"error": {"kind", "code", "message", "details"}}`. Exit codes: 0 done, 1 failed or unreachable, 2 misuse, 3 denied,
4 not verified, 130 interrupted. Passphrases are typed, or read from a file; they are never arguments or environment
values.

| setting | meaning |
|---|---|
| `CLOISTER_HOME` | where this machine's parts live; `/var/lib/cloister` for root, else `~/.local/share/cloister` |
| `CLOISTER_PASSPHRASE_FILE` | a file whose first line is the passphrase, where `--passphrase-file` is not given |
"""


def reference() -> str:
    """The whole page, Markdown."""
    return _HEAD + "".join(_sections(typer.main.get_command(app), "cloister"))


def _sections(command: Any, name: str) -> list[str]:
    if hasattr(command, "commands"):
        return [text for child, sub in command.commands.items() for text in _sections(sub, f"{name} {child}")]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join([name, *(_argument(p) for p in arguments), "[OPTIONS]" if options else ""]).rstrip()
    rows = [f"| `{p.name.upper()}` | {p.help or ''} |\n" for p in arguments]
    rows += [f"| `{', '.join(p.opts)}`{_value(p)} | {_help(p)} |\n" for p in options]
    table = "\n| | |\n|---|---|\n" + "".join(rows) if rows else ""
    return [f"\n## {name}\n\n`{usage}`\n\n{' '.join((command.help or '').split())}\n{table}"]


def _argument(param: Any) -> str:
    name = param.name.upper()
    return name if param.required else f"[{name}]"


def _value(param: Any) -> str:
    return "" if param.is_flag else f" {param.opts[0].lstrip('-').upper()}"


def _help(param: Any) -> str:
    shown = param.default not in (None, False, "", []) and not param.is_flag and not callable(param.default)
    return (
        (param.help or "")
        + (f" Default: `{param.default}`." if shown else "")
        + (" Required." if param.required else "")
    )


if __name__ == "__main__":
    sys.stdout.write(reference())
