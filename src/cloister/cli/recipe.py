"""``recipe``: write one, check one, and what each key is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ..client import operations
from ..errors import Misuse
from .options import Changes, Json, read_file
from .terminal import columns, result

__all__ = ["recipe"]

recipe = typer.Typer(no_args_is_help=True, help="Recipes: what a run does, as data.")

RecipeFile = Annotated[Path, typer.Argument(help="The recipe.")]
_HEAD = "# What a run does. 'cloister recipe explain' says what each key is for; what is left out has a tried default."


@recipe.command("init")
def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("recipe.yaml"),
    task: Annotated[str, typer.Option("--task", help="What the model is to do.")] = "classification",
    method: Annotated[str, typer.Option("--method", help="What of the model is trained.")] = "lora",
    as_json: Json = False,
) -> None:
    """Write a recipe to start from. An existing file is left alone."""
    text = f"{_HEAD}\n{operations.recipe_draft(task, method)}"
    try:
        with file.open("x") as out:
            out.write(text)
    except FileExistsError:
        raise Misuse("recipe.exists", f"{file} exists already; name another file.") from None
    except OSError:
        raise Misuse("file.write", f"The file {file} can't be written; name another.") from None
    result({"file": str(file), "task": task}, [f"Wrote {file}; put in the names of your assets."], as_json=as_json)


@recipe.command("check")
def check(
    file: RecipeFile = Path("recipe.yaml"),
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="The base's folder, for --sample.")] = None,
    sample: Annotated[Path | None, typer.Option("--sample", help="Rows (JSONL) to show the learned tokens of.")] = None,
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """Check a recipe with the same code that brokers use, and show it with every default written out. With a sample:
    show for each token of its rows whether it is learned."""
    recipe = operations.check_recipe(read_file(file), changes or ())
    if (tokenizer is None) != (sample is None):
        raise Misuse("recipe.sample", "Give --tokenizer and --sample together.")
    if tokenizer is not None and sample is not None:
        found = operations.sample_tokens(recipe, tokenizer, sample)
        result({"rows": found, "valid": True}, [_marked(row) for row in found], as_json=as_json)
        return
    document = recipe.to_document()
    rows = [(key, _shown(value)) for key, value in sorted(document.items())]
    result({"recipe": document, "valid": True}, ["The recipe is valid.", *columns(rows)], as_json=as_json)


@recipe.command("explain")
def explain(
    key: Annotated[str | None, typer.Argument(help="A key, or lora.rank; without it, all of them.")] = None,
    as_json: Json = False,
) -> None:
    """Say what the keys of a recipe are for, what they take, and what they are when left out."""
    found = operations.explain_recipe(key)
    rows = [("KEY", "WHAT", "TAKES", "DEFAULT"), *((k["key"], k["says"], k["takes"], k["default"]) for k in found)]
    result({"keys": found}, columns(rows, full=True), as_json=as_json)


@recipe.command("schema")
def schema() -> None:
    """Print the JSON schema of a recipe, for editors and other programs."""
    print(json.dumps(operations.recipe_schema(), indent=2, sort_keys=True))


def _marked(row: list[dict[str, Any]]) -> str:
    """Tokens one after the other, the learned ones in brackets; no control character reaches the terminal."""
    texts = [json.dumps(token["text"], ensure_ascii=False)[1:-1] for token in row]
    return " ".join(f"[{text}]" if token["learned"] else text for text, token in zip(texts, row, strict=True))


def _shown(value: Any) -> str:
    return ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
