"""The README's hand-run commands, run as they are printed, on real rows and the real MiniLM."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.demo.data import generate, write_csv
from cloister.demo.story import base_model_folder
from tests.readme import commands, fenced, printed

README = Path(__file__).resolve().parents[2] / "README.md"
BIN = Path(sys.executable).parent


@pytest.fixture
def place() -> Iterator[Path]:
    """Where a user stands: their table and their model folder, an empty home, and nothing else."""
    folder = Path(tempfile.mkdtemp(prefix="cloister-readme-"))
    folder.chmod(0o711)
    write_csv(folder / "train.csv", generate(300, seed=4))
    shutil.copytree(base_model_folder(), folder / "minilm", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (folder / "contract.yaml").write_text(printed(README, "contract.yaml"))
    (folder / "recipe.yaml").write_text(printed(README, "recipe.yaml"))
    (folder / "passphrase").write_text("a long enough passphrase\n")
    (folder / "passphrase").chmod(0o600)
    try:
        yield folder
    finally:
        run(folder, "cloister down")
        shutil.rmtree(folder)


def run(place: Path, command: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "CLOISTER_HOME": str(place / "home"),
        "CLOISTER_PASSPHRASE_FILE": str(place / "passphrase"),
        "HOME": str(place),
        "LANG": "C.UTF-8",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    return subprocess.run(shlex.split(command), cwd=place, env=environment, capture_output=True, text=True, timeout=540)


@pytest.mark.timeout(900)
def test_the_hand_run_commands_work_as_printed(place: Path) -> None:
    for command in commands(printed(README, "hand-run")):
        done = run(place, command)
        assert done.returncode == 0, f"{command}: {done.stdout[-1000:]}{done.stderr[-2000:]}"
    evaluation = json.loads((place / "out" / "evaluation.json").read_text())
    assert float(evaluation["accuracy"]) >= float(evaluation["base_accuracy"])
    _opens_without_cloister(place)


def _opens_without_cloister(place: Path) -> None:
    """The model card's own lines, in a Python where Cloister can't be imported."""
    card = (place / "out" / "README.md").read_text()
    code = next(body for language, body in fenced(card) if language == "python")
    block = "import sys\nsys.modules['cloister'] = None\nimport warnings\nwarnings.simplefilter('ignore')\n"
    (place / "out" / "base").symlink_to(place / "minilm")
    done = subprocess.run(
        [sys.executable, "-c", block + code], cwd=place / "out", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.fullmatch(r"\['[^']+', '[^']+'\]", done.stdout.strip())


@pytest.mark.timeout(900)
def test_the_demo_tells_its_story_and_ends_with_one_line_of_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cloister.demo", "--json", "--rows", "300"],
        capture_output=True,
        text=True,
        timeout=850,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["verified"] is True
    assert len(result["refused"]) == 4
    assert result["tuned_accuracy"] > result["base_accuracy"]
    assert {"seal", "attest", "train"} <= set(result["seconds"])
