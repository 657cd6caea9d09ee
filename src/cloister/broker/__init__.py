"""The key broker: one process per party, which alone can unwrap the party's data keys.

The tour. Pure: ``decision`` (may this instance have this key, lease, checkpoint?), ``kbs_request`` (strict reading).
Durable: ``tables`` and ``state`` (SQLite), ``ledger`` (announce, log, apply: the one sequencer; ``refusals`` says how
many of those it logs), ``startup`` (is what lies here the newest?). Services: ``party`` (own keys, card, pins),
``assets``, ``agreements`` (contracts, revocations, statements, jobs), ``release`` (challenge, evidence, key),
``leases``, ``permits``, ``sessions``, ``witness`` and ``notices`` (the peers' logs and ours, and revocations),
``peers`` (talking to them), over one shared ``core`` with ``knowledge``. The life of keys, gathered in ``lifecycle``:
``wrapped`` (which rows carry keys), ``rotation`` and its ``schedule``, ``retention`` (dates, holds), ``shredding``,
``tasks`` (re-encryption), ``usage`` (from the log), ``rootkeys``, and ``keeper``, the thread that does what is due.
HTTP: ``kbs``, ``cloister_api``, ``admin`` and ``admin_keys`` on ``http`` and ``errors_http``; ``serving`` has the
sockets, ``door`` says who may hold them. ``app`` builds it all; ``python -m cloister.broker`` runs it. The pages are
docs/spec/key-release.md and docs/spec/key-lifecycle.md.
"""

from .app import Broker, RunningBroker
from .clock import Clock, steady_clock
from .config import LIMITS, Limits, Settings
from .startup import create_home

__all__ = ["LIMITS", "Broker", "Clock", "Limits", "RunningBroker", "Settings", "create_home", "steady_clock"]
