"""The key broker: one process per party, which alone can unwrap the party's data keys.

The tour. Pure: ``decision`` (may this instance have this key, lease, checkpoint?), ``decided`` (the same, nothing
twice), ``release_words``, ``kbs_request`` and ``init_data`` (strict reading). Durable: ``record`` (where state and log
lie: ``state`` over ``tables`` in SQLite, with ``lookups`` and ``writes``, or ``shared`` by replicas in a ``database``,
with ``sequence``, ``overdue``, ``seen``, ``migration``), ``ledger`` (log, apply: the one sequencer; ``refusals`` says
how many of those it logs), ``startup`` (is what lies here the newest?). Services:
``party`` (own keys, card, pins), ``assets``, ``agreements`` (contracts, revocations, statements, jobs), ``release``
(challenge, evidence, key; ``stock`` for guests that aren't ours), ``leases``, ``permits``, ``sessions``, ``witness``
and ``notices`` (the peers' logs and ours, and revocations), ``peers`` and ``errands`` (talking to them, to several at
once), over one shared ``core`` with ``knowledge``. What is believed about hardware: ``judging``, ``enrolling``,
``policy_store``, ``measurements``, and collateral (``collateral_store``, ``collateral_facts``, ``fetching`` from
``vendors``). The life of keys, gathered in ``lifecycle``: ``wrapped`` (which rows carry keys), ``rotation`` and its
``schedule``, ``retention`` (dates, holds), ``shredding``, ``tasks`` (re-encryption), ``usage`` (from the log),
``rootkeys``, and ``keeper``, the thread that does what is due.
HTTP: ``kbs``, ``cloister_api``, ``admin``, ``admin_keys``, ``measurement_api`` and ``enrolling_api`` on ``http`` and
``errors_http``; ``serving`` has the sockets, ``door`` and ``rates`` say who may hold them. ``app`` builds it all;
``python -m cloister.broker`` runs it. The pages are docs/spec/key-release.md and docs/spec/key-lifecycle.md.
"""

from .app import Broker, RunningBroker
from .clock import Clock, steady_clock
from .config import LIMITS, Limits, Settings
from .startup import create_home

__all__ = ["LIMITS", "Broker", "Clock", "Limits", "RunningBroker", "Settings", "create_home", "steady_clock"]
