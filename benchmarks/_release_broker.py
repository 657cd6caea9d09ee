"""One broker as a process, which can tell how long it was in its log and in its state: ``key_release`` starts it.

Standard input: the passphrase, then one line for each question. Standard output: the port, then one line of JSON for
each answer. It ends with its standard input. The verifiers are those of a production configuration.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloister.audit import AuditLog
from cloister.broker import LIMITS, Broker, RunningBroker, Settings
from cloister.broker.release import KeyReleases
from cloister.broker.serving import share_interpreter
from cloister.broker.state import State

# What bounds a flood would bound a benchmark: all of it comes from one address. Sessions are bounded as ever, and those
# that were given something make room.
UNHURRIED = replace(LIMITS, address_rate=1e6, address_burst=1e6, contract_rate=1e6, contract_burst=1e6)


class Watch:
    """Seconds by name, over all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}

    def over(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                taken = time.perf_counter() - start
                with self._lock:
                    self._seconds[name] = self._seconds.get(name, 0.0) + taken

        return timed

    def take(self) -> dict[str, float]:
        with self._lock:
            found, self._seconds = self._seconds, {}
        return found


def main() -> None:
    watch = Watch()
    watched: list[tuple[type, str, str]] = [
        (AuditLog, "append", "log"),
        (State, "intend", "state"),
        (State, "apply", "state"),
        (KeyReleases, "challenge", "challenge"),
        (KeyReleases, "attest", "attest"),
        (KeyReleases, "resource", "resource"),
    ]
    for owner, method, name in watched:
        setattr(owner, method, watch.over(name, getattr(owner, method)))
    share_interpreter()  # as the broker's own main does
    passphrase = sys.stdin.readline().rstrip("\n").encode()
    broker = Broker.start(Settings(Path(sys.argv[1]), limits=UNHURRIED), passphrase)
    running = RunningBroker(broker)
    ready = threading.Event()
    thread = threading.Thread(target=running.run, args=(ready.set,))
    thread.start()
    ready.wait()
    print(running.port, flush=True)
    for _ in sys.stdin:
        print(json.dumps({**watch.take(), "cpu": time.process_time()}), flush=True)
    running.stop()
    thread.join()


if __name__ == "__main__":
    main()
