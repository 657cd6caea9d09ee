"""The page of the table, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._quality_lines import LINES, Line

__all__ = ["page"]

_HEAD = """\
# Quality on real data

Written by `make bench NAME=quality`, which trains and compares every line below in one run (`ARGS="LINE …"` for some of
them, `--again` to measure anew). The data are public and are not part of the repository.

Base and tuned model answer the same rows, none of which was trained on. *Base* is the base's own best without training:
logistic regression on its frozen embeddings (probe), the cosines of its embeddings, the commonest answer, or, for text,
the untuned model. *Difference* is tuned minus base with its 95 % interval over resampled rows or queries; *p* is from
approximate randomization on the pairs, 10,000 rounds, so 0.0001 is the least it can be. Bits per byte are of the text
to be written, and less is better. *Cores* are the seconds of processor cores of the whole line, which other work on the
machine does not lengthen much. The default rates of classification were once searched for on banking77, over several
seeds of its split; settings of the other lines were not chosen by the rows that they report on.

| line | task, method | figure | n | base | tuned | difference | p | training | in all | cores |
|---|---|---|---|---|---|---|---|---|---|---|
"""
_TEXT = """\
For text, `bits_per_byte` beside byte statistics of the same texts, interpolated after up to five bytes (Witten-Bell, as
PPM compressors have it), over whole texts; the model reads at most 512 tokens of prompt and text. *From the prompt*:
they know nothing but the row's own prompt, so they can only copy: the extractive baseline. *From training texts*: they
read the training part's texts first.

| line | base | tuned | from the prompt | from training texts |
|---|---|---|---|---|
"""


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    missing = ", ".join(f"`{name}`" for name in LINES if name not in found)
    machines = sorted({str(one["machine"]).partition(", load")[0] for one in found.values()})
    notes = [
        f"`{name}`: the same adapter {what}: {value:.4f}."
        for name, one in found.items()
        if one["metric"] != "bits_per_byte"
        for what, value in one["beside"].items()
    ]
    blocks = [
        _HEAD + "\n".join(_row(name, LINES[name], one) for name, one in found.items()),
        "\n".join(f"- `{name}`: {LINES[name].says}. {_settings(LINES[name], one)}." for name, one in found.items()),
        *notes,
        _TEXT + "\n".join(_beside(name, one) for name, one in found.items() if one["metric"] == "bits_per_byte"),
        "Preferences (DPO) have no line: no public data here holds pairs of a better and a worse answer.",
        *([f"Not measured yet: {missing}."] if missing else []),
        f"Seen on {'; '.join(machines)}, with other work beside it. No figure here was measured on a GPU.",
    ]
    return "\n\n".join(blocks) + "\n"


def _row(name: str, line: Line, one: Mapping[str, Any]) -> str:
    difference = one["tuned"] - one["base"]
    cells = (
        f"`{name}`", f"{line.task}, {line.method}", one["metric"], f"{one['n']} {one['unit']}",
        f"{one['base']:.4f} ({one['base_kind']})", f"{one['tuned']:.4f}",
        f"{difference:+.4f} ({one['low']:+.4f} to {one['high']:+.4f})", f"{one['p']:.4f}",
        f"{one['train_seconds']:.0f} s", f"{one['seconds']:.0f} s", _cores(one),
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _cores(one: Mapping[str, Any]) -> str:
    return f"{one['core_seconds']:.0f} s" if "core_seconds" in one else "–"


def _beside(name: str, one: Mapping[str, Any]) -> str:
    given = one["beside"].get("prompt alone")
    prompt = "–" if given is None else f"{given:.4f}"
    return f"| `{name}` | {one['base']:.4f} | {one['tuned']:.4f} | {prompt} | {one['beside']['training texts']:.4f} |"


def _settings(line: Line, one: Mapping[str, Any]) -> str:
    recipe = one["recipe"]
    own = ", ".join(f"`{key}` {value}" for key, value in line.settings.items())
    return (
        f"Base {line.base}; {own or 'defaults'}; {recipe['epochs']} epochs, rate {recipe['learning_rate']}, batches of"
        f" {recipe['batch_size']}, at most {recipe['max_length']} tokens"
        + (f"; {line.folds} folds" if line.folds > 1 else "")
    )
