"""``python -m cloister.control --home DIR --listen 127.0.0.1:PORT --node-key HEX``"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

from ..errors import CloisterError, Misuse
from .server import serve


def main() -> int:
    """Print one JSON line: ready, or why not; then serve."""
    os.umask(0o077)
    parser = argparse.ArgumentParser(prog="python -m cloister.control")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--node-key", required=True, help="the node agent's public key, in hex")
    options = parser.parse_args()
    try:
        if not re.fullmatch(r"[0-9a-f]{64}", options.node_key):
            raise Misuse("control.node_key", "The node's key is 32 bytes in lower-case hex.")
        serve(options.home, options.listen, bytes.fromhex(options.node_key))
    except CloisterError as error:
        print(json.dumps({"error": error.to_wire(), "ready": False}), flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
