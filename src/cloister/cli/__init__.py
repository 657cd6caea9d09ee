"""The command line: each command reads its arguments, calls one operation of the public client, prints one result.

The tour: ``app`` (all commands), ``terminal`` (where output goes, errors, exit codes), ``options`` and
``passphrase`` (what commands share), then one file per group. ``reference`` writes docs/cli.md.
"""

from .app import main

__all__ = ["main"]
