"""``collateral``: what verifiers need beside evidence, and how old it is."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

from ..client import collateral as pieces
from ..client.collateral import Sources
from ..errors import Misuse, Unavailable
from .options import Json, moment, read_file
from .terminal import columns, note, result

__all__ = ["collateral"]

collateral = typer.Typer(
    no_args_is_help=True, help="Vendors' certificates, revocation lists, TCB levels and manifests."
)

Folder = Annotated[Path, typer.Option("--folder", help="Where the collateral is kept.")]
At = Annotated[str | None, typer.Option("--at", help="Judge it as of this time. Default: now.")]


@collateral.command("show")
def show(folder: Folder, at: At = None, as_json: Json = False) -> None:
    """What there is, until when each piece is good, and whether its signature was verified."""
    found, damaged = pieces.show_collateral(folder, now=moment(at))
    for name in damaged:
        note(f"The file {name} is damaged and not used; fetch or import it again.")
    document = {"damaged": list(damaged), "items": [piece.document() for piece in found]}
    result(document, _table(found) or ["There is no collateral here."], as_json=as_json)


@collateral.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A bundle from 'collateral export', or a vendor's collateral file.")],
    folder: Folder,
    as_json: Json = False,
) -> None:
    """Take over collateral from a file, for a site without a way out. Older or forged pieces are refused."""
    found = pieces.import_collateral(folder, read_file(file, limit=pieces.MAX_FILE))
    result({"items": [piece.document() for piece in found]}, _table(found), as_json=as_json)


@collateral.command("export")
def export(
    out: Annotated[Path, typer.Argument(help="The file to write.")], folder: Folder, as_json: Json = False
) -> None:
    """Write everything into one file, to be carried to another site."""
    data = pieces.export_collateral(folder)
    try:
        with out.open("xb") as file:
            file.write(data)
    except FileExistsError:
        raise Misuse("file.exists", f"There is a file {out} already; name another one.") from None
    except OSError:
        raise Unavailable("file.write", f"The file {out} can't be written.") from None
    result({"bytes": len(data), "file": str(out)}, [f"Wrote {out}: {len(data)} bytes."], as_json=as_json)


@collateral.command("fetch")
def fetch(
    folder: Folder,
    wanted: Annotated[
        list[str] | None,
        typer.Argument(help="KIND:NAME of each, a VCEK with :PRODUCT; without any, what is here is renewed."),
    ] = None,
    amd_kds: Annotated[str, typer.Option("--amd-kds", help="AMD's key service, or a cache of it.")] = Sources.amd_kds,
    intel_pcs: Annotated[
        str, typer.Option("--intel-pcs", help="Intel's provisioning service, or a cache of it.")
    ] = Sources.intel_pcs,
    intel_roots: Annotated[
        str, typer.Option("--intel-roots", help="Where Intel's root's revocation list is.")
    ] = Sources.intel_roots,
    nvidia_rim: Annotated[
        str, typer.Option("--nvidia-rim", help="NVIDIA's manifest service, or a cache of it.")
    ] = Sources.nvidia_rim,
    nvidia_ocsp: Annotated[
        str, typer.Option("--nvidia-ocsp", help="NVIDIA's revocation service, or a cache of it.")
    ] = Sources.nvidia_ocsp,
    gpu_chain: Annotated[
        Path | None, typer.Option("--gpu-chain", help="Ask whether the certificates in this PEM file were revoked.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask the vendors now. This command is the only one that leaves this machine for it."""
    sources = Sources(amd_kds, intel_pcs, intel_roots, nvidia_rim, nvidia_ocsp)
    found: list[pieces.Piece] = []
    failed: dict[str, str] = {}
    if gpu_chain is not None:
        found += pieces.fetch_gpu_answers(folder, read_file(gpu_chain), sources)
    if wanted or gpu_chain is None:
        came, failed = pieces.fetch_collateral(folder, wanted or [], sources)
        found += came
    result({"failed": failed, "items": [piece.document() for piece in found]}, _table(found), as_json=as_json)
    for name, why in sorted(failed.items()):
        note(f"{name}: {why}")
    if failed:
        raise Unavailable("collateral.failed", f"{len(failed)} of the pieces could not be fetched.")


def _table(found: list[pieces.Piece]) -> list[str]:
    rows = [
        (
            piece.kind,
            piece.name[:40],
            f"obtained {_day(piece.obtained)}",
            "states no end" if piece.ends is None else f"good until {_day(piece.ends)}",
            "verified" if piece.checked else "not verified yet",
            piece.reason or "good",
        )
        for piece in found
    ]
    return columns(rows)


def _day(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M")
