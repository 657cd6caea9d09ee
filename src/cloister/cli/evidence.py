"""``evidence``: what a platform's raw evidence proves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from ..client.evidence import PLATFORMS, Given, Proven, verify_evidence
from ..errors import Misuse
from .options import Full, Json, moment, read_file
from .terminal import columns, result

__all__ = ["evidence"]

evidence = typer.Typer(no_args_is_help=True, help="Raw evidence of hardware platforms, verified offline.")


@evidence.callback()
def _group() -> None:
    """Raw evidence of hardware platforms, verified offline."""


@evidence.command("verify")
def verify(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="The evidence: a report or quote (binary or hex) or JSON; beside it certificates, or a boot log."
        ),
    ],
    platform: Annotated[str, typer.Option("--platform", help=f"One of {', '.join(PLATFORMS)}.")],
    collateral: Annotated[
        list[Path] | None,
        typer.Option("--collateral", help="Chains, revocation lists, TCB info, manifests, or a bundle; repeatable."),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="As of this time: 2025-06-20T12:00:00Z, a day, or seconds. Default: now.")
    ] = None,
    nonce: Annotated[str | None, typer.Option("--nonce", help="What it must have been made for, in hex.")] = None,
    allow_debug: Annotated[
        bool, typer.Option("--allow-debug", help="Don't refuse what can be debugged; it says so all the same.")
    ] = False,
    allow_unvouched: Annotated[
        bool,
        typer.Option("--allow-unvouched", help="Show what a TPM's quote says, though anybody could have made its key."),
    ] = False,
    full: Full = False,
    as_json: Json = False,
) -> None:
    """Verify a vendor's evidence to the vendor's root, and show what it proves. Nothing is fetched."""
    proven = verify_evidence(
        platform,
        [Given(path.name, read_file(path)) for path in files],
        [Given(path.name, read_file(path, limit=16 << 20)) for path in collateral or ()],
        at=moment(at),
        nonce=None if nonce is None else _nonce(nonce),
        allow_debug=allow_debug,
        allow_unvouched=allow_unvouched,
    )
    result(proven.document(), _lines(proven, full), as_json=as_json)


def _lines(proven: Proven, full: bool) -> list[str]:
    lines = []
    for device in proven.devices:
        verdict = "not verified" if device.name in proven.unvouched else "verified"
        lines.append(f"{device.name}: {verdict}. {device.hardware}")
        rows = [("identity", device.identity or "none"), *sorted(device.measurements.items())]
        rows += [(name, _shown(value)) for name, value in sorted(device.facts.items())]
        lines += [f"  {line}" for line in columns(rows, full=full)]
        lines += [f"  {note}" for note in device.notes]
    return [*lines, *proven.notes]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def _nonce(text: str) -> bytes:
    if not re.fullmatch(r"([0-9a-fA-F]{2}){1,64}", text):
        raise Misuse("evidence.nonce-form", "Give the nonce in hex, at most 64 bytes.")
    return bytes.fromhex(text)
