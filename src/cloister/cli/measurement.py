"""``measurement``: releases of the workload, their approval under contracts, and what is served no more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..client import operations
from .options import As, HomeFolder, Json, Reason, Yes, at_home, read_file
from .terminal import ask, columns, note, result

__all__ = ["measurement"]

measurement = typer.Typer(
    no_args_is_help=True,
    help="Releases of the workload: what changed, approve them, revoke what turned out vulnerable.",
)

_MANY = 40
ReleaseFile = Annotated[Path, typer.Argument(help="The release, as its publisher signed it.")]
ImagePath = Annotated[Path, typer.Argument(help="An image's folder, or a manifest of one.")]
KeyFile = Annotated[Path, typer.Option("--key", help="The file of the release key.")]
Out = Annotated[Path, typer.Option("--out", help="Where to write it; an existing file is replaced.")]


@measurement.command("show-changes")
def show_changes(
    before: ImagePath,
    after: ImagePath,
    most: Annotated[int, typer.Option("--most", min=0, max=1_000_000, help="Files to list.")] = _MANY,
    as_json: Json = False,
) -> None:
    """What changed between two images: packages, the launch, and files. It computes both measurements itself."""
    found = operations.show_changes(before, after)
    result(found.document(), found.lines(most=most), as_json=as_json)


@measurement.command("manifest")
def manifest(image: ImagePath, out: Out, as_json: Json = False) -> None:
    """Write an image's manifest: what show-changes needs of it, in one file."""
    data = operations.image_manifest(image)
    operations.write_file(out, data)
    result({"bytes": len(data), "file": str(out)}, [f"{out}: {len(data)} bytes."], as_json=as_json)


@measurement.command("key")
def key(
    file: Annotated[Path, typer.Argument(help="Where to keep the key; it must not exist.")], as_json: Json = False
) -> None:
    """Make a release key, for whoever publishes the workload or reference values."""
    made = operations.create_secret_key(file)
    lines = [f"public key: {made['public']}", f"fingerprint to compare aloud: {made['fingerprint']}"]
    result(made, lines, as_json=as_json)


@measurement.command("release")
def release(
    version: Annotated[str, typer.Option("--version", help="The release's version, for people.")],
    key: KeyFile,
    out: Out,
    image: Annotated[list[Path] | None, typer.Option("--image", help="An image, measured here; several times.")] = None,
    measured: Annotated[list[str] | None, typer.Option("--measurement", help="A measurement; several times.")] = None,
    agent: Annotated[list[str] | None, typer.Option("--agent", help="An agent's digest; several times.")] = None,
    previous: Annotated[Path | None, typer.Option("--previous", help="The release before; none for the first.")] = None,
    notes: Annotated[str, typer.Option("--notes", help="One line for those who approve it.")] = "",
    fix: Annotated[list[str] | None, typer.Option("--fix", help="What it mends, one line; several times.")] = None,
    vulnerable: Annotated[
        list[str] | None, typer.Option("--vulnerable", help="An older measurement to run no more; several times.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign a release of the workload, for owners to approve."""
    signer = operations.read_secret_key(key)
    measurements = [*(measured or []), *(operations.image_measurement(path) for path in image or [])]
    data = operations.make_release(
        version=version,
        measurements=measurements,
        agents=agent or [],
        notes=notes,
        fixes=fix or [],
        vulnerable=vulnerable or [],
        previous=None if previous is None else read_file(previous),
        key=signer,
    )
    operations.write_file(out, data)
    shown = operations.show_release(data, signer.public)
    result(shown, [f"release {version}, number {shown['number']}, {shown['digest']}, in {out}"], as_json=as_json)


@measurement.command("trust")
def trust(
    public: Annotated[str, typer.Argument(help="The release key's public half, 64 hex digits.")],
    party: As = None,
    yes: Yes = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Pin the key that signs releases of the workload, after comparing its fingerprint with who publishes them."""
    with at_home(home) as place:
        acting = place.choose(party)
        ask(f"Was the fingerprint {operations.key_fingerprint(public)} compared with the publisher?", yes=yes)
        done = operations.trust_release_key(place, acting, public)
    result(done, [f"{acting} trusts releases by the key {done['fingerprint']}."], as_json=as_json)


@measurement.command("approve")
def approve(
    file: ReleaseFile,
    contract: Annotated[
        list[str] | None,
        typer.Option("--contract", help="A contract's digest, its beginning, or its name; several times."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every contract in force.")] = False,
    party: As = None,
    yes: Yes = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Approve a release under contracts that name an older one. It runs under each once every party has approved it."""
    data = read_file(file)
    with at_home(home) as place:
        acting = place.choose(party)
        chosen = operations.releases_to_approve(place, acting, data, contract or [], every=every)
        for line in chosen.lines():
            note(line)
        ask(f"Approve this as {acting} for {len(chosen.contracts)} contracts?", yes=yes)
        done = operations.approve_release(place, acting, chosen)
    result(done, [_approved(one, done) for one in done["contracts"]], as_json=as_json)


def _approved(one: dict[str, Any], done: dict[str, Any]) -> str:
    if one["contract"] in done["complete"]:
        return f"{one['name']}: every party has approved {done['version']}; it may run."
    away = f" Not told yet: {', '.join(one['unreached'])}." if one["unreached"] else ""
    return f"{one['name']}: approved by {done['party']}; it may run once the other parties have, too.{away}"


@measurement.command("list")
def list_measurements(party: As = None, home: HomeFolder = None, as_json: Json = False) -> None:
    """What is approved under which contract and who is missing, and what is revoked."""
    with at_home(home) as place:
        found = operations.list_measurements(place, place.choose(party))
    rows: list[tuple[object, ...]] = [row for contract in found["contracts"] for row in _rows(contract)]
    rows += [("revoked", "", measured, reason) for measured, reason in sorted(found["revoked"].items())]
    key = "no release key is pinned" if found["release_key"] is None else f"release key {found['release_key']}"
    result(found, [key, *columns(rows)], as_json=as_json)


def _rows(contract: dict[str, Any]) -> list[tuple[object, ...]]:
    about = (contract["name"], f"serial {contract['serial']}")
    if contract.get("damaged"):
        return [(*about, "DAMAGED", "its approvals can't be read, and nothing runs under it")]
    return [
        (*about, r["version"], "may run" if r["complete"] else f"waits for {', '.join(r['missing'])}")
        for r in contract["releases"]
    ]


@measurement.command("revoke")
def revoke(
    measured: Annotated[str, typer.Argument(help="A workload's measurement or an agent's digest, 64 hex digits.")],
    reason: Reason,
    party: As = None,
    yes: Yes = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Serve a measurement no more, alone and for good. Runs under contracts that let it in end within their lease."""
    with at_home(home) as place:
        acting = place.choose(party)
        ask(f"Revoke {measured} as {acting}, for good?", yes=yes)
        done = operations.revoke_measurement(place, acting, measured, reason)
    lines = [f"The broker of {acting} serves {measured} no more."]
    if done["leases_cut"]:
        lines.append(f"{done['leases_cut']} running jobs that may be it end within their lease; others can be resumed.")
    result(done, lines, as_json=as_json)
