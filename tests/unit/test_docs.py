"""The documents can't drift from the code: links, commands, settings, paths and tests that they name exist."""

from __future__ import annotations

import importlib
import pkgutil
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer

import cloister.cli
from tests.readme import commands, console_blocks, fenced, tables

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# Without a language: diagrams and formulas.
LANGUAGES = {"", "console", "text", "yaml", "json", "python", "toml", "mermaid", "http", "csv", "abnf"}
TARGETS = {"help", "demo", "dev", "lint", "test", "test-slow", "bench", "docs", "clean"}
NAMED = [page.relative_to(ROOT).as_posix() for page in PAGES]


def prose(text: str) -> str:
    """A page without its fenced blocks: what is in them is output or example."""
    return re.sub(r"^\s*```.*?^\s*```\s*$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchor(heading: str) -> str:
    """The name under which a heading can be linked to."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower())
    return kept.replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor(line) for line in re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)}


@pytest.mark.parametrize("name", NAMED)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, part = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        known = target.exists() and (not part or part in anchors(target))
        broken += [] if known and target.is_relative_to(ROOT) else [link]
    assert broken == []


@pytest.mark.parametrize("name", NAMED)
def test_blocks_are_closed_and_say_what_they_are(name: str) -> None:
    languages = [language for language, _ in fenced((ROOT / name).read_text(encoding="utf-8"))]
    assert [language for language in languages if language not in LANGUAGES] == []


@pytest.mark.parametrize("name", NAMED)
def test_paths_and_tests_that_are_named_exist(name: str) -> None:
    """`src/…`, `tests/…::test_…` and the like in backticks."""
    missing = []
    for path, test in re.findall(
        r"`((?:src|tests|docs|scripts|benchmarks|requirements|\.ci)/[^\s`:*<>{}…]*)(?:::(\w+))?`",
        prose((ROOT / name).read_text(encoding="utf-8")),
    ):
        target = ROOT / path
        if not target.exists() or (test and f"def {test}(" not in target.read_text(encoding="utf-8")):
            missing.append(f"{path}::{test}" if test else path)
    assert missing == []


def test_make_help_lists_every_target() -> None:
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = {line.split()[0] for line in shown.splitlines()}
    assert listed >= TARGETS
    assert all(len(line.split()) > 2 for line in shown.splitlines()), "each target says what it is for"


def documented(program: str) -> list[tuple[str, list[str]]]:
    """(page, words) of each command of ``program`` in a console block of any page."""
    found = []
    for page in PAGES:
        for block in console_blocks(page):
            for command in block:
                words = shlex.split(command, comments=True)
                # Setting variables in front of a command is part of how it is called.
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words and words[0] == program:
                    found.append((page.relative_to(ROOT).as_posix(), words[1:]))
    return found


def test_the_readme_shows_the_commands_that_matter_first() -> None:
    blocks = console_blocks(ROOT / "README.md")
    shown = [shlex.split(command, comments=True) for block in blocks for command in block]
    assert ["make", "demo"] in shown
    assert ["make", "test"] in shown


def test_make_commands_in_the_documents_exist() -> None:
    unknown = [
        (page, word)
        for page, words in documented("make")
        for word in words
        if "=" not in word and word not in TARGETS | {"install"}
    ]
    assert unknown == []


def command_tree() -> Any:
    """The command line as click sees it: the one Typer application that holds the others."""
    names = ["cloister.cli", *(m.name for m in pkgutil.walk_packages(cloister.cli.__path__, "cloister.cli."))]
    modules = [importlib.import_module(name) for name in names if not name.endswith(".__main__")]
    apps = [value for module in modules for value in vars(module).values() if isinstance(value, typer.Typer)]
    return typer.main.get_command(max(apps, key=lambda app: len(app.registered_groups)))


def unknown_words(words: list[str]) -> list[str]:
    """Words of a documented call that the command line doesn't have: a command, or an option of the command reached."""
    node, unknown = command_tree(), []
    options = {name for parameter in node.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        children = getattr(node, "commands", {})
        if word in {"|", ">", "2>", "&&"}:
            break
        if word.startswith("-") and word != "-":
            unknown += [] if word.split("=")[0] in options | {"--help"} else [word]
        elif children:
            if word not in children:
                return [*unknown, word]
            node = children[word]
            options |= {name for parameter in node.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return unknown


def test_cloister_commands_in_the_documents_exist() -> None:
    calls = documented("cloister")
    assert calls, "the documents show no command of cloister at all"
    assert [(page, words, bad) for page, words in calls if (bad := unknown_words(words))] == []


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert unknown_words(["no-such-command", "x"]) == ["no-such-command"]
    assert unknown_words(["--no-such-option"]) == ["--no-such-option"]


def settings_in_code() -> set[str]:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    return {name for text in texts for name in re.findall(r"[\"'](CLOISTER_[A-Z_]+)[\"']", text)}


def settings_in_documents() -> set[str]:
    """First cells of every table whose first header is "setting"."""
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    chosen = [table for text in pages for table in tables(text) if table[0][0].lower() == "setting"]
    return {row[0].strip("`") for table in chosen for row in table[1:]}


def test_the_settings_tables_say_what_the_code_reads() -> None:
    assert settings_in_documents() == settings_in_code()


def test_decision_records_are_numbered_and_name_their_drawbacks() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert [record.name[:4] for record in records] == [f"{n:04d}" for n in range(1, len(records) + 1)]
    for record in records:
        headings = re.findall(r"^## (.+)$", record.read_text(encoding="utf-8"), re.MULTILINE)
        assert {"Context", "Decision", "Drawbacks"} <= set(headings), record.name


def test_the_reader_of_pages_itself() -> None:
    text = "a\n```console\n$ one \\\n    two\noutput\n$ three\n```\n\n| setting | x |\n|---|---|\n| `A` | b |\n"
    assert [commands(body) for _, body in fenced(text)] == [["one two", "three"]]
    assert tables(text) == [[["setting", "x"], ["`A`", "b"]]]
    with pytest.raises(ValueError, match="never closed"):
        fenced("```console\n$ x\n")


def test_every_test_that_the_threat_model_names_exists() -> None:
    text = (ROOT / "THREAT_MODEL.md").read_text()
    named = set(re.findall(r"`(test_[a-z0-9_]+\.py)`", text))
    present = {
        path.name
        for folder in ("adversarial", "e2e", "integration")
        for path in (ROOT / "tests" / folder).glob("test_*.py")
    }
    assert len(named) > 20
    assert sorted(named - present) == []


def test_every_file_that_the_threat_model_names_exists() -> None:
    rows = [line for line in (ROOT / "THREAT_MODEL.md").read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    named = {name for row in rows for name in re.findall(r"`([a-z_]+/[a-z_/]*(?:\.py)?)`", row.split("|")[4])}
    assert sorted(name for name in named if not (ROOT / "src" / "cloister" / name).exists()) == []
