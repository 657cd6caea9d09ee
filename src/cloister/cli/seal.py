"""``seal``: from files to a sealed asset in the store."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ..client import SealOptions, operations
from ..client.times import parse_day
from ..errors import Misuse
from .options import HomeFolder, Json, ShowProgress, at_home
from .terminal import Bars, note, result

__all__ = ["register"]

_FORMS = "metrics,adapter,weights"


def register(app: typer.Typer) -> None:
    app.command("seal")(seal)


def seal(
    path: Annotated[Path, typer.Argument(help="A file, or a folder with all its files; or a sealed folder to upload.")],
    name: Annotated[str, typer.Option("--as", help="The asset's name: party/asset.")],
    schema: Annotated[str, typer.Option("--schema", help="Columns of a dataset, in order: text,label")] = "",
    licence: Annotated[str, typer.Option("--licence", help="SPDX identifiers, with commas between.")] = "",
    sensitivity: Annotated[
        str, typer.Option("--sensitivity", help="public, internal, confidential or restricted.")
    ] = "confidential",
    forms: Annotated[str, typer.Option("--forms", help="In which forms what is made from it may leave.")] = _FORMS,
    asset_class: Annotated[
        str | None, typer.Option("--class", help="dataset or model, where the files don't show it; or program.")
    ] = None,
    keep_until: Annotated[
        str | None, typer.Option("--keep-until", help="Shred it after a day such as 2027-11-20, or a time such as 90d.")
    ] = None,
    manifest_to: Annotated[
        Path | None, typer.Option("--manifest-to", help="Also write the signed manifest, to send to other parties.")
    ] = None,
    progress: ShowProgress = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Encrypt files under a fresh key, give the key to your broker, store the ciphertext; again for a new version."""
    if asset_class not in (None, "dataset", "model", "program"):
        raise Misuse("seal.class", "The class is dataset, model or program.")
    options = SealOptions(
        schema=_split(schema),
        licences=_split(licence),
        sensitivity=sensitivity,
        forms=_split(forms),
        asset_class=asset_class,
        keep_until=None if keep_until is None else parse_day(keep_until, "--keep-until", now=int(time.time())),
    )
    with at_home(home) as place, Bars(progress) as bars:
        sealed = operations.seal(place, path, name, options, progress=bars)
    for text in sealed.notes:
        note(text)
    if manifest_to is not None:
        try:
            manifest_to.write_bytes(sealed.manifest.to_bytes())
        except OSError:
            raise Misuse("file.write", f"The asset is sealed, but {manifest_to} can't be written.") from None
    lines = [
        f"{sealed.name} version {sealed.version} is sealed and stored: {sealed.files} file(s), {sealed.size} bytes.",
        f"digest  {sealed.digest}",
    ]
    result(sealed.document(), lines, as_json=as_json)


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
