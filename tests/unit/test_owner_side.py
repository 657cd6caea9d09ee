"""The owner's side and the control plane install without torch and its relatives, and without the TPM stack."""

from __future__ import annotations

import subprocess
import sys

import pytest

_BLOCKED = (
    "accelerate", "numpy", "pandas", "peft", "pyarrow", "pyseccomp", "safetensors", "scipy", "sklearn", "tokenizers",
    "torch", "tpm2_pytss", "transformers",
)  # fmt: skip
_PROGRAM = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("not installed on the owner's side: " + name)

sys.meta_path.insert(0, Blocked())
import {module}
"""


@pytest.mark.parametrize(
    "module",
    [
        "cloister.cli",
        "cloister.client",
        "cloister.broker.__main__",
        "cloister.control.__main__",
        "cloister.contracts",
        "cloister.attestation.tpm",
        "cloister.audit",
        "cloister.keys",
        "cloister.sealed",
    ],
)
def test_imports_without_the_training_stack(module: str) -> None:
    program = _PROGRAM.format(blocked=set(_BLOCKED), module=module)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]


def test_the_block_works() -> None:
    program = _PROGRAM.format(blocked=set(_BLOCKED), module="cloister.workload.pipeline")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "not installed on the owner's side" in done.stderr
