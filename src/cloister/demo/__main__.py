"""``make demo``: the whole story on this machine, and what is refused in it."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from ..errors import CloisterError
from .refusals import play_refusals
from .stage import Stage
from .story import play_story

__all__ = ["main"]


def main() -> int:
    """Progress on stderr; one line on stdout, JSON with ``--json``."""
    parser = argparse.ArgumentParser(prog="make demo", description="Two organizations, one contract, one attested run.")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rows", type=int, default=1600, help="dialogues that the hospital's generator makes")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="keep everything here; by default a temporary folder is removed")
    options = parser.parse_args()
    started = time.monotonic()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="cloister-demo-") as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711)  # the parts run as users of their own and must be able to get to their folders
        try:
            with Stage(folder, console) as stage:
                told = play_story(stage, rows=options.rows, seed=options.seed)
                refused = play_refusals(stage, told)
        except CloisterError as fault:
            console.print(f"cloister: {fault.message}", style="bold red", markup=False)
            return fault.exit_code
    result = {**told.document(), "refused": refused}
    result["seconds"] = {**told.seconds, "total": round(time.monotonic() - started, 1)}
    print(json.dumps(result) if options.json else _sentence(result))
    return 0 if result["verified"] else 4


def _sentence(result: dict[str, object]) -> str:
    return (
        f"verified: accuracy {result['tuned_accuracy']} against the base's {result['base_accuracy']}; "
        f"refused: {len(result['refused'])} attempts"  # type: ignore[arg-type]
    )


if __name__ == "__main__":
    sys.exit(main())
