"""Which settings can't work together, with the reason. Checked wherever a recipe is read, so nobody finds out later."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import Misuse

if TYPE_CHECKING:
    from .recipe import Recipe

__all__ = ["check_combination", "check_pair"]

_POOLED = ("classification", "multilabel", "ranking", "embedding")
_FROM_EMBEDDINGS = (*_POOLED, "extraction")


def check_pair(task: str, method: str) -> None:
    """Before anything else is read: defaults are by task and method. Raises Misuse (``recipe.combination``)."""
    if (task == "script") != (method == "script"):
        raise _cannot("method", "A party's own program is task and method at once; set both to script.")


def check_combination(recipe: Recipe) -> None:
    """Raises Misuse (``recipe.value``, ``recipe.combination``)."""
    if recipe.task == "script":
        _check_script(recipe)
    if recipe.task not in _POOLED and recipe.pooling != "auto":
        raise Misuse(
            "recipe.value", f"The recipe's 'pooling' is for {', '.join(_POOLED)} only; remove it.", key="pooling"
        )
    if recipe.task != "chat" and recipe.template is not None:
        raise Misuse("recipe.value", "The recipe's 'template' is for chat only; remove it.", key="template")
    if recipe.method == "scratch" and recipe.task == "preference":
        raise _cannot(
            "method",
            "Preferences are learned as a difference from a base, and a model from scratch has learned nothing yet;"
            " train it on conversations or text first.",
        )
    if recipe.method == "scratch" and recipe.task in _FROM_EMBEDDINGS:
        raise _cannot(
            "method",
            f"Task {recipe.task} starts from a base's embeddings, and a model from scratch has none yet;"
            " train it on task text first, or use method full.",
        )
    if recipe.task == "embedding" and recipe.batch_size < 2:
        raise _cannot("batch_size", "An embedding learns from the other rows of its batch; set it to 2 or more.")
    if recipe.task == "embedding" and recipe.gradient_accumulation > 1:
        raise _cannot(
            "gradient_accumulation",
            "An embedding learns from the other rows of its batch, and accumulated batches don't see each other;"
            " raise batch_size instead.",
        )
    _check_choices(recipe)
    lora = recipe.lora
    if lora is not None and lora.dora and lora.dropout:
        raise _cannot(
            "lora.dropout",
            "DoRA measures the whole weight, which dropout changes at every step; set lora.dropout to 0.",
        )
    if recipe.method == "qlora" and lora is not None and lora.dora:
        raise _cannot(
            "qlora.dora",
            "DoRA measures the whole weight, and where the release is opened on a CPU, bitsandbytes keeps 4-bit weights"
            " in an order that this reads wrongly; set qlora.dora to false.",
        )
    if recipe.method == "qlora" and recipe.sharding == "fsdp":
        raise _cannot("sharding", "A base in 4 bits is packed, and fsdp cuts weights up; set sharding to ddp.")


def _check_script(recipe: Recipe) -> None:
    ours = (recipe.privacy, recipe.replay, recipe.ewc, recipe.search, recipe.general)
    asked = recipe.select == "best" or recipe.patience or recipe.evaluate_steps or recipe.processes > 1
    if asked or any(part is not None for part in ours):
        raise _cannot(
            "task",
            "A party's own program trains by itself, so nothing here can choose, replay, hide or share for it; remove"
            " what asks for that, and let the program do it.",
        )


def _check_choices(recipe: Recipe) -> None:
    chosen = recipe.select == "best" or recipe.patience or recipe.search is not None
    if recipe.test is not None and not chosen:
        raise _cannot(
            "test",
            "Nothing is chosen by the validation rows here, so the report is on them; remove 'test', or set 'select' to"
            " best, 'patience' or 'search'.",
        )
    if recipe.search is not None and recipe.processes > 1:
        raise _cannot("search", "A search tries its settings in one process; remove 'search', or set processes to 1.")
    if recipe.test is not None and recipe.validation + recipe.test >= 1:
        raise _cannot("test", "With 'validation' it takes all rows; leave some to train on.")
    if recipe.replay is not None and recipe.general is None:
        raise _cannot("replay", "Replay mixes general text in; name the asset that holds it in 'general'.")
    if recipe.replay is not None or recipe.ewc is not None:
        _check_forgetting(recipe)
    if recipe.gradient_checkpointing and recipe.method == "prefix":
        raise _cannot(
            "gradient_checkpointing",
            "Prefix tuning keeps its tokens in the attention's cache, which gradient checkpointing turns off; set it to"
            " false.",
        )
    hides_users = recipe.privacy is not None and recipe.privacy.unit == "user"
    if hides_users and recipe.columns.get("user") is None:
        raise _cannot("columns.user", "To hide users, name the column that says whose a row is; add columns.user.")
    if recipe.columns.get("user") is not None and not hides_users:
        raise _cannot("columns.user", "Users matter only where privacy.unit is user; set it, or remove columns.user.")
    if recipe.privacy is not None:
        _check_privacy(recipe)
    _check_speed(recipe)
    _check_processes(recipe)


def _check_speed(recipe: Recipe) -> None:
    if recipe.packing == "on" and recipe.task not in ("generation", "text", "chat"):
        raise _cannot(
            "packing",
            f"Rows stand beside each other in generation, text and chat, not in {recipe.task}; set packing to auto.",
        )
    if recipe.packing == "on" and recipe.method in ("prefix", "prompt", "ptuning"):
        raise _cannot(
            "packing", f"Method {recipe.method} puts tokens of its own in front of every row; set packing to auto."
        )
    if recipe.compile == "on" and (recipe.processes > 1 or recipe.privacy is not None or recipe.task == "script"):
        raise _cannot(
            "compile", "Compiling is there for one process without privacy and without a program; set compile to auto."
        )


def _check_processes(recipe: Recipe) -> None:
    if recipe.processes == 1:
        if recipe.sharding == "fsdp":
            raise _cannot("sharding", "One process has the whole model anyway; set processes to 2 or more, or use ddp.")
        return
    if recipe.task == "embedding":
        raise _cannot(
            "processes", "An embedding learns from the other rows of its batch, and processes split it; set it to 1."
        )
    if recipe.batch_size < recipe.processes:
        raise _cannot("processes", "Processes share the rows of a batch; set batch_size to at least as many.")
    if recipe.sharding != "fsdp":
        return
    if recipe.select == "best" or recipe.patience or recipe.evaluate_steps:
        raise _cannot(
            "sharding",
            "A look at the validation rows needs the whole model, and fsdp cuts it up; set sharding to ddp, or remove"
            " 'select', 'patience' and 'evaluate_steps'.",
        )
    if recipe.optimizer != "adamw":
        raise _cannot("sharding", f"Optimizer {recipe.optimizer} needs whole weights; set sharding to ddp.")


def _check_forgetting(recipe: Recipe) -> None:
    if recipe.replay is not None:
        if recipe.task not in ("generation", "text", "chat"):
            raise _cannot(
                "replay",
                f"General text teaches a model to write, and task {recipe.task} learns something else from its rows;"
                " replay is there for generation, text and chat. Remove it, or use 'ewc'.",
            )
        step = recipe.batch_size * recipe.gradient_accumulation
        if not 0 < recipe.replay.rows(step) < step:
            raise _cannot(
                "replay.share",
                f"A step has {step} rows, of which this share is none or all; change replay.share or batch_size.",
            )
    if recipe.privacy is not None:
        raise _cannot(
            "privacy",
            "With differential privacy a step's rows are drawn at random and each adds a bounded gradient; 'replay' and"
            " 'ewc' would add others. Remove one of them.",
        )
    if recipe.ewc is not None:
        _check_ewc(recipe)


def _check_ewc(recipe: Recipe) -> None:
    if recipe.task in _FROM_EMBEDDINGS:
        raise _cannot(
            "ewc",
            "EWC asks a language head which weights general text needs, and an encoder has none; use a lower"
            " learning_rate, or method lora.",
        )
    if recipe.method == "scratch":
        raise _cannot("ewc", "EWC holds what a base has learned, and a model from scratch has learned nothing yet.")
    if recipe.method in ("prefix", "prompt", "ptuning"):
        raise _cannot("ewc", f"Method {recipe.method} changes no weight of the base, so there is none to hold.")
    if recipe.lora is not None and recipe.lora.dora:
        raise _cannot(
            "ewc",
            "EWC measures what an adapter adds to a weight; DoRA scales the whole weight besides. Set lora.dora to"
            " false, or remove 'ewc'.",
        )
    if recipe.sharding == "fsdp":
        raise _cannot("ewc", "EWC needs whole weights, and fsdp cuts them up; set sharding to ddp.")


def _check_privacy(recipe: Recipe) -> None:
    if recipe.packing == "on":
        raise _cannot(
            "packing", "Packed rows share a gradient, and differential privacy needs one a unit; set packing to off."
        )
    if recipe.task not in ("classification", "generation", "text", "chat"):
        raise _cannot(
            "privacy", "Differential privacy is there for classification, generation, text and chat; remove 'privacy'."
        )
    if recipe.method not in ("lora", "full", "qlora"):
        raise _cannot("privacy", "Differential privacy is there for lora, qlora and full; choose one of them.")
    if recipe.select == "best" or recipe.patience or recipe.search is not None or recipe.evaluate_steps:
        raise _cannot(
            "privacy",
            "The validation rows are private too, and choosing or looking by them spends privacy that no noise covers;"
            " remove 'select', 'patience', 'search' and 'evaluate_steps'.",
        )
    if recipe.processes > 1:
        raise _cannot("processes", "Private training draws its rows in one process; set processes to 1.")
    if recipe.precision == "bf16" or recipe.compile == "on":
        raise _cannot(
            "precision" if recipe.precision == "bf16" else "compile",
            "Private training reads each unit's gradient in float32, layer by layer; leave precision and compile at"
            " auto.",
        )
    if recipe.lora is not None and (recipe.lora.dora or recipe.lora.dropout):
        raise _cannot(
            f"{recipe.method}.{'dora' if recipe.lora.dora else 'dropout'}",
            "Private training needs a gradient that depends on one unit alone, without DoRA's shared norms and without"
            " dropout; turn them off.",
        )
    if not recipe.checkpoint_steps and not recipe.checkpoint_minutes:
        raise _cannot(
            "checkpoint_steps",
            "Without a checkpoint a run that is started again would draw other noise and spend its budget twice; set"
            " checkpoint_steps.",
        )


def _cannot(key: str, reason: str) -> Misuse:
    return Misuse("recipe.combination", reason, key=key)
