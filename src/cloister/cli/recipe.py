"""``recipe``: write one, have one advised, check one, and what each key is for."""

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
Base = Annotated[Path | None, typer.Option("--base", help="The base model's folder, of which config.json is read.")]
Memory = Annotated[
    str | None, typer.Option("--memory", help="Memory of the machine that trains, such as 16GiB; this machine's.")
]
Cores = Annotated[int | None, typer.Option("--cores", help="Its processor cores; this machine's.")]
Gpu = Annotated[bool, typer.Option("--gpu", help="It trains on a GPU; --memory is then that of the GPU.")]
_HEAD = "# What a run does. 'cloister recipe explain' says what each key is for; what is left out has a tried default."


@recipe.command("init")
def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("recipe.yaml"),
    task: Annotated[str, typer.Option("--task", help="What the model is to do.")] = "classification",
    method: Annotated[str, typer.Option("--method", help="What of the model is trained.")] = "lora",
    as_json: Json = False,
) -> None:
    """Write a recipe to start from. An existing file is left alone."""
    _write_new(file, f"{_HEAD}\n{operations.recipe_draft(task, method)}")
    result({"file": str(file), "task": task}, [f"Wrote {file}; put in the names of your assets."], as_json=as_json)


@recipe.command("check")
def check(
    file: RecipeFile = Path("recipe.yaml"),
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="The base's folder, for --sample.")] = None,
    sample: Annotated[Path | None, typer.Option("--sample", help="Rows (JSONL) to show the learned tokens of.")] = None,
    base: Base = None,
    rows: Annotated[
        str | None, typer.Option("--rows", help="The rows (JSONL or CSV), or how many there are, for the forecast.")
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", help="With a number of rows: tokens of an ordinary one.")] = 0,
    memory: Memory = None,
    cores: Cores = None,
    gpu: Gpu = False,
    licence: Annotated[str, typer.Option("--licence", help="SPDX identifiers of data and base, with commas.")] = "",
    purpose: Annotated[str | None, typer.Option("--purpose", help="What for: commercial or research.")] = None,
    changes: Changes = None,
    as_json: Json = False,
) -> None:
    """Check a recipe with the same code that brokers use, and show it with every default written out. With --base:
    forecast memory and time, before any key is asked for. Warnings tell what speaks against it. With a sample: show for
    each token of its rows whether it is learned."""
    source = read_file(file)
    recipe = operations.check_recipe(source, changes or ())
    if (tokenizer is None) != (sample is None):
        raise Misuse("recipe.sample", "Give --tokenizer and --sample together.")
    if tokenizer is not None and sample is not None:
        found = operations.sample_tokens(recipe, tokenizer, sample)
        result({"rows": found, "valid": True}, [_marked(row) for row in found], as_json=as_json)
        return
    examined = operations.examine_recipe(
        source,
        changes or (),
        base=base,
        rows=rows,
        tokens=tokens,
        machine=operations.describe_machine(memory, cores, gpu=gpu),
        licences=[name.strip() for name in licence.split(",") if name.strip()],
        purpose=purpose,
    )
    document = recipe.to_document()
    shown = [(key, _shown(value)) for key, value in sorted(document.items())]
    lines = ["The recipe is valid.", *columns(shown), *operations.forecast_lines(examined.forecast)]
    for warned in examined.warnings:
        lines.append(f"Warning: {warned.says}")
    result({"recipe": document, "valid": True, **examined.document()}, lines, as_json=as_json)


@recipe.command("advise")
def advise(
    task: Annotated[str, typer.Option("--task", help="What the model is to do.")],
    rows: Annotated[int, typer.Option("--rows", help="How many rows there are.")],
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens of an ordinary row; words and a third.")],
    base: Annotated[Path, typer.Option("--base", help="The base model's folder, of which config.json is read.")],
    memory: Memory = None,
    cores: Cores = None,
    gpu: Gpu = False,
    deadline: Annotated[str | None, typer.Option("--deadline", help="When it must be done: 90m, 8h or 2d.")] = None,
    regulation: Annotated[str, typer.Option("--regulation", help="hipaa, glba, pci or none.")] = "none",
    file: Annotated[Path | None, typer.Option("--out", help="Write the draft to this file, too.")] = None,
    as_json: Json = False,
) -> None:
    """Propose a method and its settings, each with its reason, as a recipe to begin with."""
    machine = operations.describe_machine(memory, cores, gpu=gpu)
    advice = operations.advise_recipe(task, rows, tokens, base, machine, deadline=deadline, regulation=regulation)
    if file is not None:
        _write_new(file, advice.text)
    lines = [*advice.text.splitlines(), *(f"# {line}" for line in operations.forecast_lines(advice.forecast))]
    result(advice.document(), lines, as_json=as_json)


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


def _write_new(file: Path, text: str) -> None:
    try:
        with file.open("x") as out:
            out.write(text)
    except FileExistsError:
        raise Misuse("recipe.exists", f"{file} exists already; name another file.") from None
    except OSError:
        raise Misuse("file.write", f"The file {file} can't be written; name another.") from None


def _marked(row: list[dict[str, Any]]) -> str:
    """Tokens one after the other, the learned ones in brackets; no control character reaches the terminal."""
    texts = [json.dumps(token["text"], ensure_ascii=False)[1:-1] for token in row]
    return " ".join(f"[{text}]" if token["learned"] else text for text, token in zip(texts, row, strict=True))


def _shown(value: Any) -> str:
    return ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
