"""``python -m cloister.broker``: one party's key broker. The vault's passphrase, or the credential of the device that
keeps its keys, is the first line of standard input."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from ..errors import CloisterError, Misuse
from ..keys import DriverConfig
from .app import Broker, RunningBroker
from .clock import steady_clock
from .config import Settings, parse_listen
from .migration import migrate
from .serving import harden_process, share_interpreter
from .startup import create_home

__all__ = ["main"]

_MAX_LINE = 8192


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cloister.broker", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the broker's folder")
    parser.add_argument("--listen", default="127.0.0.1:0", help="ADDRESS:PORT for HTTPS; port 0 takes a free one")
    parser.add_argument("--init", metavar="NAME", help="create the party first")
    parser.add_argument("--part-of", metavar="ORG", help="with --init: the organization that the team belongs to")
    parser.add_argument(
        "--allow-insecure-attester", action="store_true", help="development evidence; never in production"
    )
    parser.add_argument(
        "--vault-driver", metavar="NAME", default="file", help="what keeps the vault's KEKs; the vault must agree"
    )
    parser.add_argument(
        "--vault-option", metavar="KEY=VALUE", action="append", default=[], help="where its device or service is"
    )
    parser.add_argument(
        "--database",
        metavar="FILE",
        type=Path,
        help="the URL of the PostgreSQL that replicas share is in FILE (0600); - for the second line of standard input",
    )
    parser.add_argument(
        "--fetch-collateral", action="store_true", help="ask vendors for what attestation needs, in the background"
    )
    parser.add_argument(
        "--collateral-grace", metavar="SECONDS", type=int, default=0, help="how long collateral counts after its end"
    )
    parser.add_argument(
        "--external-verifiers", metavar="FILE", type=Path, help="pins of verifiers whose results this broker takes"
    )
    parser.add_argument(
        "--stock-guests", action="store_true", help="serve guests that speak plain KBS, where a contract allows them"
    )
    parser.add_argument(
        "--migrate", action="store_true", help="move the home's state and log into the database, say so, and end"
    )
    return parser.parse_args(argv)


def _driver(arguments: argparse.Namespace) -> DriverConfig:
    options = {}
    for option in arguments.vault_option:
        key, equals, value = option.partition("=")
        if not equals or key in options:
            raise Misuse("broker.arguments", "Give each --vault-option once, as KEY=VALUE.")
        options[key] = value
    return DriverConfig(arguments.vault_driver, options)


def _passphrase() -> bytes:
    """From a pipe, never from argv or the environment, where other processes could read it."""
    line = sys.stdin.buffer.readline(_MAX_LINE)
    if not line.endswith(b"\n"):
        raise Misuse(
            "broker.passphrase", "Give the vault's passphrase or credential as the first line of standard input."
        )
    return line.rstrip(b"\r\n")


def _database(file: Path | None) -> Path | None:
    """Where the URL is: in a file, or in memory that has no name, where it came through the pipe."""
    if file is None or str(file) != "-":
        return None if file is None else file.resolve()
    line = sys.stdin.buffer.readline(_MAX_LINE)
    if not line.endswith(b"\n"):
        raise Misuse("broker.database", "Give the database's URL as the second line of standard input.")
    descriptor = os.memfd_create("database-url", os.MFD_CLOEXEC)
    os.fchmod(descriptor, 0o600)
    os.write(descriptor, line)
    return Path(f"/proc/self/fd/{descriptor}")  # whoever opens it reads it from its beginning


def _say(body: dict[str, object]) -> None:
    print(json.dumps(body), flush=True)


def _serve(arguments: argparse.Namespace) -> None:
    harden_process()
    share_interpreter()
    os.umask(0o077)
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]  # PostgreSQL's client would take from them what the database's file leaves out
    host, port = parse_listen(arguments.listen)
    driver = _driver(arguments)
    passphrase = _passphrase()
    settings = Settings(
        arguments.home.resolve(),
        host,
        port,
        allow_insecure_attester=arguments.allow_insecure_attester,
        vault_driver=driver,
        database=_database(arguments.database),
        collateral_grace=max(arguments.collateral_grace, 0),
        fetch_collateral=arguments.fetch_collateral,
        external_verifiers=arguments.external_verifiers,
        stock_guests=arguments.stock_guests,
    )
    if arguments.migrate:
        moved = migrate(settings, passphrase, clock=steady_clock())
        aside = [str(path) for path in moved.aside]
        _say({"aside": aside, "entries": moved.entries, "ready": True, "rows": moved.rows})
        return
    if arguments.init is not None:
        create_home(settings, arguments.init, passphrase, part_of=arguments.part_of, clock=steady_clock())
    elif arguments.part_of is not None:
        raise Misuse("broker.arguments", "--part-of goes with --init.")
    broker = Broker.start(settings, passphrase)
    try:
        running = RunningBroker(broker)
    except BaseException:
        broker.close()
        raise
    del passphrase

    def on_loop(loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, running.stop)

    def ready() -> None:
        _say({"party": broker.card.name, "port": running.port, "ready": True})

    running.run(ready, on_loop=on_loop)


def main(argv: list[str] | None = None) -> int:
    """The process's exit code. A refused start says why in one line of JSON."""
    try:
        _serve(_arguments(argv))
    except CloisterError as error:
        _say({"error": error.to_wire(), "ready": False})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
