"""``recipe``: write one, check one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..client import operations
from ..errors import Misuse
from .options import Json, read_file
from .terminal import columns, result

__all__ = ["recipe"]

recipe = typer.Typer(no_args_is_help=True, help="Recipes: what a run does, as data.")

_TEMPLATES = {
    "classification": """\
# What a run does. Every key is in docs/spec/recipe.md; what is left out has a tried default.
task: classification
method: lora                 # or full
data: PARTY/DATASET          # as named in the contract
base: PARTY/MODEL
columns: {text: text, label: label}
epochs: 3
""",
    "generation": """\
# What a run does. Every key is in docs/spec/recipe.md; what is left out has a tried default.
task: generation
method: lora                 # or full
data: PARTY/DATASET          # as named in the contract
base: PARTY/MODEL
columns: {prompt: prompt, completion: completion}
epochs: 3
""",
}


@recipe.command("init")
def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("recipe.yaml"),
    task: Annotated[str, typer.Option("--task", help="classification or generation.")] = "classification",
    as_json: Json = False,
) -> None:
    """Write a recipe to start from. An existing file is left alone."""
    if task not in _TEMPLATES:
        raise Misuse("recipe.task", "The task is classification or generation.")
    try:
        with file.open("x") as out:
            out.write(_TEMPLATES[task])
    except FileExistsError:
        raise Misuse("recipe.exists", f"{file} exists already; name another file.") from None
    except OSError:
        raise Misuse("file.write", f"The file {file} can't be written; name another.") from None
    result({"file": str(file), "task": task}, [f"Wrote {file}; put in the names of your assets."], as_json=as_json)


@recipe.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="The recipe to check.")] = Path("recipe.yaml"), as_json: Json = False
) -> None:
    """Check a recipe with the same code that brokers use, and show it with every default written out."""
    document = operations.check_recipe(read_file(file)).to_document()
    rows = [(key, _shown(value)) for key, value in sorted(document.items())]
    result({"recipe": document, "valid": True}, ["The recipe is valid.", *columns(rows)], as_json=as_json)


def _shown(value: object) -> str:
    return ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
