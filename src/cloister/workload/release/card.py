"""The Hugging Face model card, filled in from facts only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...contracts import Contract, Job, Recipe, Terms

__all__ = ["CardFacts", "model_card"]


# What model hubs call the tasks; the others write text.
_PIPELINES = {
    "classification": "text-classification",
    "multilabel": "text-classification",
    "extraction": "token-classification",
    "ranking": "text-ranking",
    "embedding": "sentence-similarity",
}


@dataclass(frozen=True)
class CardFacts:
    """What the card says beyond the contract and the job. ``evaluation`` and ``gates`` are canonical documents;
    ``unbound``: statements about keys that came from stock key brokers."""

    evaluation: Mapping[str, Any]
    gates: Sequence[Mapping[str, Any]]
    terms: Terms
    usage: str
    measurement: str
    assurance: str
    unbound: Sequence[Mapping[str, str]] = ()


def model_card(contract: Contract, job: Job, facts: CardFacts) -> str:
    """Markdown with the YAML front matter that model hubs read."""
    recipe = job.recipe
    front = {
        "base_model": recipe.base,
        "license": facts.terms.licences[0] if len(facts.terms.licences) == 1 else "other",
        "library_name": "peft" if recipe.form == "adapter" else "transformers",
        "pipeline_tag": _PIPELINES.get(recipe.task, "text-generation"),
        "datasets": [recipe.data] if recipe.general is None else [recipe.data, recipe.general],
        "tags": ["cloister", recipe.method],
    }
    # JSON is YAML: each value in JSON form needs no quoting rules of its own.
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    lines += [
        f"# {job.output}",
        "",
        f"{recipe.task.capitalize()} model, {recipe.method} fine-tuning of `{recipe.base}` on `{recipe.data}`.",
        f"Purpose agreed in the contract: {contract.purpose}",
        *(_general(recipe.general, replayed=recipe.replay is not None) if recipe.general is not None else ()),
        "",
        "## Evaluation against the untouched base",
        "",
        "| figure | value |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in sorted(facts.evaluation.items())),
        "",
        "## Gates",
        "",
        "| metric | margin | base | tuned | passed |",
        "|---|---|---|---|---|",
        *(f"| {g['metric']} | {g['margin']} | {g['base']} | {g['tuned']} | {g['passed']} |" for g in facts.gates),
        "",
        "## Terms",
        "",
        f"- Licences of the parents, all of which apply: {', '.join(facts.terms.licences)}",
        f"- Sensitivity: {facts.terms.sensitivity}",
        _remembered(recipe, facts.evaluation),
        "",
        "## How it was made",
        "",
        f"- contract `{contract.digest.hex()}`, job `{job.digest.hex()}`",
        f"- workload measurement `{facts.measurement}`, assurance level `{facts.assurance}`",
        *(
            f"- **unbound key**: `{key['resource']}` of {key['party']} came from a stock key broker; nothing binds its"
            " release to this job"
            for key in facts.unbound
        ),
        f"- recipe: `{json.dumps(recipe.to_document(), sort_keys=True)}`",
        "",
        "## Use",
        "",
        "```python",
        facts.usage.strip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _general(name: str, *, replayed: bool) -> list[str]:
    learned = " and some of it was replayed in training, so the weights may contain it, too" if replayed else ""
    return [f"What the base could do before is measured on general text, `{name}`{learned}."]


def _remembered(recipe: Recipe, evaluation: Mapping[str, Any]) -> str:
    """What bounds the rows that the weights may contain."""
    if recipe.task == "script":
        return f"- A party's own program made the files; they may contain rows of `{recipe.data}`."
    if recipe.privacy is None:
        return (
            f"- Training was not differentially private: the weights may contain rows of `{recipe.data}`,"
            " as its owner accepted in the contract."
        )
    return (
        f"- Differentially private training: epsilon {evaluation['epsilon']} at delta {evaluation['delta']} for one"
        f" {recipe.privacy.unit} that was trained on. The figures, of rows that were set aside, are exact."
    )


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
