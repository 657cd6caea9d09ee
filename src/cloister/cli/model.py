"""``model``: bring weights into the form that is sealed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..client import operations
from ..errors import Misuse
from .options import Json
from .terminal import result, spinner

__all__ = ["model"]

model = typer.Typer(no_args_is_help=True, help="Models: convert foreign weights to safetensors.")


@model.command("convert")
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="The model file, for example stories260K.bin.")],
    tokenizer: Annotated[Path, typer.Argument(help="Its tokenizer file, for example tok512.bin.")],
    to: Annotated[Path, typer.Option("--to", help="A new folder for it.")],
    source: Annotated[str, typer.Option("--from", help="The format; llama2c so far.")] = "llama2c",
    as_json: Json = False,
) -> None:
    """Convert a model to a Hugging Face folder with safetensors. Nothing in it is executed."""
    if source != "llama2c":
        raise Misuse("model.format", "The format is llama2c.")
    for path in (checkpoint, tokenizer):
        if not path.is_file():
            raise Misuse("file.missing", f"There is no file {path}.")
    with spinner("converting"):
        operations.convert_llama2c(checkpoint, tokenizer, to)
    result({"folder": str(to), "from": source}, [f"The model is in {to}; seal that folder."], as_json=as_json)
