"""What docs/vaults.md prints for a TPM, run as printed on swtpm. (SoftHSM's part: tests/e2e/test_keys_story.py.)"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.node.swtpm import SoftwareTpm
from tests.readme import commands, printed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vaults.md"
PASSWORD = "the lockout authorization\n"


@pytest.fixture
def tcti(tmp_path: Path) -> Iterator[str]:
    with SoftwareTpm(tmp_path / "swtpm") as tpm:
        yield tpm.tcti


def run(tcti: str, command: str, typed: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "TPM2TOOLS_TCTI": tcti, "LANG": "C.UTF-8"}
    return subprocess.run(
        ["bash", "-c", command], env=environment, input=typed, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_tpm_s_commands_show_and_set_what_the_page_says(tcti: str) -> None:
    pcrs, properties, lockout = (run(tcti, command, PASSWORD) for command in commands(printed(PAGE, "tpm")))
    assert pcrs.returncode == properties.returncode == lockout.returncode == 0, lockout.stderr
    found = dict(re.findall(r"^\s*(\d+)\s*: 0x([0-9A-F]{64})$", pcrs.stdout, re.MULTILINE))
    assert sorted(map(int, found)) == [0, 2, 4, 7]
    named = set(re.findall(r"`(TPM2_PT_\w+)`", PAGE.read_text()))
    assert named == {"TPM2_PT_MAX_AUTH_FAIL", "TPM2_PT_LOCKOUT_INTERVAL"}
    assert all(f"{name}:" in properties.stdout for name in named)


def test_only_who_knows_the_lockout_authorization_resets_the_count(tcti: str) -> None:
    (reset,) = re.findall(r"`(tpm2_dictionarylockout [^`]*)`", PAGE.read_text())
    assert run(tcti, reset.partition(" -p")[0], "").returncode == 0, "anybody, as long as there is none"
    assert run(tcti, commands(printed(PAGE, "tpm"))[-1], PASSWORD).returncode == 0
    assert run(tcti, reset, PASSWORD).returncode == 0
    assert run(tcti, reset.partition(" -p")[0], "").returncode != 0
