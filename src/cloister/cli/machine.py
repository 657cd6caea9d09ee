"""``up``, ``down``, ``status``: everything on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..client import ASSURANCE, Home, operations
from ..errors import Unavailable
from .options import HomeFolder, Json, at_home
from .terminal import columns, note, result, spinner

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command("up")(up)
    app.command("down")(down)
    app.command("status")(status)


def up(
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay in this terminal until interrupted.")] = False,
    single_user: Annotated[
        bool, typer.Option("--single-user", help="Run every part as this user, even as root.")
    ] = False,
    objects: Annotated[
        str | None, typer.Option("--objects", help="Where sealed objects lie: s3://bucket/prefix; else in the home.")
    ] = None,
    objects_credentials: Annotated[
        Path | None, typer.Option("--objects-credentials", help="File of the store's credentials, mode 0600.")
    ] = None,
    objects_cache: Annotated[
        int | None, typer.Option("--objects-cache", help="MiB of the store's ciphertext kept on this disk.")
    ] = None,
    attester: Annotated[
        str | None, typer.Option("--attester", help="What vouches for the node: swtpm (level none), tpm or tsm.")
    ] = None,
    tpm: Annotated[str | None, typer.Option("--tpm", help="TCTI of the node's TPM, as device:/dev/tpmrm0.")] = None,
    gpus: Annotated[str | None, typer.Option("--gpus", help="Attest the guest's GPUs beside tsm: nvidia.")] = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Start the control plane and the node on this machine. Running it again changes nothing."""
    store: dict[str, Any] = {"objects": objects, "credentials": objects_credentials, "cache_mib": objects_cache}
    store |= {"attester": attester, "tpm": tpm, "gpus": gpus}
    with at_home(home) as place:
        if foreground:
            raise typer.Exit(operations.run_in_foreground(place, single_user=single_user, **store))
        with spinner("starting Cloister"):
            state, started = operations.up(place, single_user=single_user, **store)
        document = _document(place, state)
        lines = ["Cloister is up." if started else "Cloister was up already.", *_lines(document)]
        result({**document, "started": started}, lines, as_json=as_json)


def down(home: HomeFolder = None, as_json: Json = False) -> None:
    """Stop everything on this machine; the parties' vaults lock."""
    with at_home(home) as place, spinner("stopping Cloister"):
        stopped = operations.down(place)
    result({"stopped": stopped}, ["Cloister is down." if stopped else "Cloister was not running."], as_json=as_json)


def status(home: HomeFolder = None, as_json: Json = False) -> None:
    """What runs here, and what this way of running costs."""
    with at_home(home) as place:
        document = _document(place, place.status())
        result(document, _lines(document), as_json=as_json)


def _document(home: Home, state: dict[str, Any]) -> dict[str, Any]:
    try:
        claim = home.control().info()["node"]
    except Unavailable as error:
        note(error.message)
        claim = None
    keys = ("control", "node", "notes", "parties", "users")
    return {**{k: state.get(k) for k in keys}, "claim": claim, "home": str(home.path)}


def _lines(document: dict[str, Any]) -> list[str]:
    claim, control = document["claim"], document["control"] or {}
    rows = [("home", document["home"]), ("control", control.get("url", "not running"))]
    if claim is None:
        rows.append(("node", "has not reported yet"))
    else:
        rows.append(("node", claim["hardware"]))
        rows.append(("assurance", ASSURANCE.get(str(claim["level"]), str(claim["level"]))))
        rows.append(("workload", f"{claim['measurement'][:16]}…  agent {claim['agent'][:16]}…"))
    single = "one user for every part: a break-in into one reaches the files of all"
    rows.append(("users", "a user for each part" if document["users"] == "separate" else single))
    if chosen := (document["node"] or {}).get("chosen"):
        rows.append(("attester", ", ".join(str(chosen[k]) for k in ("attester", "tpm", "gpus") if chosen.get(k))))
    for name, party in sorted(document["parties"].items()):
        on = "".join(f", {switch.replace('_', ' ')}" for switch in party.get("switches", ()))
        rows.append((name, f"{party['state']}, port {party['port']}{on}"))
    return [*columns(rows), *(f"Note: {text}" for text in document["notes"] or [])]
