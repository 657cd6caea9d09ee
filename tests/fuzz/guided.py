"""One target under atheris: ``python -m tests.fuzz.guided TARGET RUNS CORPUS``. A process of its own, because libFuzzer
ends the process that it runs in. Inputs that reached something new lie in CORPUS afterwards.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cloister"]):
    from cloister.errors import CloisterError
    from tests.fuzz.targets import TARGETS


def main() -> None:
    name, runs, corpus = sys.argv[1:]
    target = TARGETS[name]
    folder = Path(corpus)
    for number, seed in enumerate(target.seeds):
        (folder / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        with contextlib.suppress(CloisterError):
            target.call(data)

    options = [f"-runs={runs}", f"-max_len={target.limit}", "-seed=1", "-verbosity=0", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, "-len_control=0", f"-artifact_prefix={corpus}/crash-", corpus], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
