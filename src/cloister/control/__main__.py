"""``python -m cloister.control --home DIR --listen 127.0.0.1:PORT --node-key HEX [--objects URL …]``"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

from ..errors import CloisterError, Misuse
from ..sealed.stores import S3Credentials
from .server import serve
from .storage import DEFAULT_CACHE_MIB, Storage

_LINE = 64 * 1024


def main() -> int:
    """Print one JSON line: ready, or why not; then serve."""
    os.umask(0o077)
    parser = argparse.ArgumentParser(prog="python -m cloister.control")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--node-key", required=True, help="the node agent's public key, in hex")
    parser.add_argument("--objects", help="where objects lie: s3://bucket/prefix; else in the home")
    parser.add_argument("--objects-credentials", help="file of the store's credentials, mode 0600; '-' reads stdin")
    parser.add_argument("--objects-cache", type=int, default=DEFAULT_CACHE_MIB, help="MiB of ciphertext kept here")
    options = parser.parse_args()
    try:
        if not re.fullmatch(r"[0-9a-f]{64}", options.node_key):
            raise Misuse("control.node_key", "The node's key is 32 bytes in lower-case hex.")
        serve(options.home, options.listen, bytes.fromhex(options.node_key), _storage(options))
    except CloisterError as error:
        print(json.dumps({"error": error.to_wire(), "ready": False}), flush=True)
        return error.exit_code
    return 0


def _storage(options: argparse.Namespace) -> Storage | None:
    """Credentials come in a file or over a pipe, never as an argument: every user of the machine sees those."""
    if options.objects is None:
        if options.objects_credentials is not None:
            raise Misuse("control.objects", "Name the store that the credentials are for with --objects.")
        return None
    credentials = None
    if options.objects_credentials == "-":
        credentials = S3Credentials.from_json(sys.stdin.buffer.readline(_LINE))
    elif options.objects_credentials is not None:
        credentials = S3Credentials.from_file(Path(options.objects_credentials))
    return Storage(options.objects, credentials, options.objects_cache)


if __name__ == "__main__":
    sys.exit(main())
