"""Objects that lie in the store's folder although no row of the catalogue names them.

That is so after a crash between an object's last rename and its row, and after an older copy of the catalogue was put
back. Ciphertext may be the only copy there is, so none of it is ever deleted here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..crypto import Envelope, random_bytes
from ..errors import CloisterError, Unavailable
from ..sealed import Manifest, check_ciphertext, read_envelope

__all__ = ["adopt", "move_aside", "report"]


def adopt(folder: Path, judge: Callable[[str, Envelope], Manifest]) -> Manifest | None:
    """The manifest, if ``judge`` takes it and every root fits; else None. Raises Unavailable where it can't be read."""
    try:
        manifest = judge(folder.name, read_envelope(folder))
        check_ciphertext(folder)
    except Unavailable:
        raise
    except CloisterError:
        return None
    return manifest


def move_aside(folder: Path, aside: Path) -> None:
    """Keep ``folder`` below ``aside``, where nothing serves it and nothing removes it."""
    try:
        folder.rmdir()  # an empty folder holds nothing that could be lost
    except OSError:
        aside.mkdir(mode=0o700, exist_ok=True)
        target = aside / folder.name
        if os.path.lexists(target):
            target = aside / f"{folder.name}.{random_bytes(8).hex()}"
        os.rename(folder, target)
        report("object.unknown", "No row knows this object and it can't be judged: it was moved aside.", target.name)


def report(code: str, message: str, name: str) -> None:
    """One line for the operator."""
    line = {"at": int(time.time()), "code": code, "message": message, "object": name}
    print(json.dumps(line), file=sys.stderr, flush=True)
