"""The composition root: from a home and a passphrase to a serving broker. Nothing else builds parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from starlette.applications import Starlette

from ..attestation import Verifier
from ..attestation.guests import GuestJudge
from ..contracts import Card
from ..errors import Unavailable
from .admin import admin_routes
from .admin_keys import budget_routes, key_routes
from .agreements import Agreements
from .assets import Assets
from .budgets import Budgets
from .clock import Clock, steady_clock
from .cloister_api import cloister_routes
from .collateral_store import CollateralStore
from .config import Settings
from .core import Core
from .enrolling import Enrolments
from .enrolling_api import enrolment_routes
from .fetching import Fetcher, Refresher, Sources
from .http import application
from .judging import Judges, guest_judges_of, judges_of
from .kbs import kbs_routes
from .knowledge import Knowledge
from .leases import Leases
from .ledger import Ledger
from .lifecycle import Lifecycle
from .measurement_api import approval_routes, measurement_routes
from .measurements import Measurements
from .notices import Notices
from .party import OwnKeys, Parties
from .peers import Peers
from .permits import Permits
from .policy_store import PolicyStore
from .release import KeyReleases
from .rootkeys import remembered_revision
from .serving import https_server, listen_tcp, listen_unix, owner_server, serve_until, tls_context
from .sessions import Sessions
from .startup import Opened, open_home
from .stock import StockGuests
from .trustee_keys import TrusteeKeys, trustee_routes
from .witness import Heads, Herald

__all__ = ["Broker", "RunningBroker"]


class Broker:
    """One party's broker: the services, and the two applications over them. Owns what it opened; close it."""

    def __init__(
        self,
        settings: Settings,
        opened: Opened,
        clock: Clock,
        judges: Mapping[str, Verifier] | None,
        guests: Mapping[str, GuestJudge] | None = None,
    ) -> None:
        """``judges`` and ``guests`` (of guests without a launch log): by platform, instead of those that the settings
        give. Raises Untrusted("state.rollback") if a peer has seen more of our log than is here."""
        self.settings = settings
        self._opened = opened
        limits, name = settings.limits, opened.card.name
        keys = OwnKeys(opened.vault)
        ledger, state, log = opened.ledger(clock, limits), opened.record.state, opened.record.log
        parties = Parties(keys, ledger, clock)
        peers = Peers(state, limits, keys.tls_seed)
        herald = Herald(log, peers, parties.pinned, clock, name=name, log_key=keys.receipt.public)
        confirmed = herald.compare()
        knowledge = Knowledge(state, parties, witnessed=confirmed > 0)
        assets = Assets(keys, parties, ledger)
        self.core = Core(clock, limits, ledger, keys, parties, assets, knowledge, peers, herald)
        self.sessions = Sessions(limits)
        self.collateral = CollateralStore(settings.collateral)
        self.refresher = Refresher(self.collateral, Fetcher(Sources()), clock) if settings.fetch_collateral else None
        self.enrolments = Enrolments(ledger, clock)
        chosen = Judges(judges) if judges else judges_of(settings, self.collateral, self.enrolments.keys)
        stock = None
        if settings.stock_guests:
            judged = guests if guests is not None else guest_judges_of(settings, self.collateral)
            stock = StockGuests(self.core, judged, lambda contract: contract.platform.stock_guests)
        self.releases = KeyReleases(self.core, self.sessions, chosen, stock)
        self.leases = Leases(self.core, self.sessions)
        self.permits = Permits(self.core)
        self.agreements = Agreements(self.core)
        self.heads = Heads(state, parties.pinned, clock, name=name, key=keys.receipt)
        self.policies = PolicyStore(ledger, name)
        self.budgets = Budgets(assets, knowledge, ledger)
        self.measurements = Measurements(self.core)
        self.notices = Notices(self.core, self.agreements, learn=self.measurements.learn)
        self.warnings = [*_warnings(settings, confirmed), *opened.vault.warnings]
        _log_start(ledger, opened, confirmed)
        self.lifecycle = Lifecycle.over(self.core, opened.vault)
        remembered_revision(ledger, opened.vault)
        self.lifecycle.resume()
        self.notices.learn()  # before anything is served: an older copy of the state may have forgotten a revocation

    @classmethod
    def start(
        cls,
        settings: Settings,
        passphrase: bytes,
        *,
        clock: Clock | None = None,
        judges: Mapping[str, Verifier] | None = None,
        guests: Mapping[str, GuestJudge] | None = None,
    ) -> Broker:
        """Open the home, check it, build the services. Raises what ``open_home`` and the peers' check raise."""
        opened = open_home(settings, passphrase)
        try:
            return cls(settings, opened, clock or steady_clock(), judges, guests)
        except BaseException:
            opened.close()
            raise

    @property
    def card(self) -> Card:
        return self.core.parties.card

    def public_app(self) -> Starlette:
        """What everybody may call."""
        limits = self.settings.limits
        kbs = kbs_routes(self.releases, limits)
        cloister = cloister_routes(self.leases, self.permits, self.agreements, self.heads, limits)
        return application([*kbs, *cloister, *approval_routes(self.measurements, limits)])

    def owner_app(self) -> Starlette:
        """What the owner alone may call."""
        limits = self.settings.limits
        admin = admin_routes(self.core, self.agreements, self.permits, self.notices, self.notes, limits)
        keys = key_routes(self.lifecycle, self.core.assets, limits)
        trust = [
            *measurement_routes(self.policies, self.measurements, limits),
            *enrolment_routes(self.enrolments, limits),
            *trustee_routes(TrusteeKeys(self.core), limits),
        ]
        budgets = budget_routes(self.budgets, limits)
        return application([*admin, *keys, *budgets, *trust])

    def notes(self) -> list[str]:
        """What the owner should know now: of the way in which this broker runs, and of its keys."""
        fetching = self.refresher.notes() if self.refresher is not None else []
        return [*self.warnings, *self.lifecycle.notes(), *fetching]

    def close(self) -> None:
        if self.refresher is not None:
            self.refresher.stop()
        self.lifecycle.stop()
        self.notices.stop()
        self._opened.close()


def _warnings(settings: Settings, confirmed: int) -> list[str]:
    found = []
    if settings.allow_insecure_attester:
        found.append("Development attestation is accepted: it proves nothing about the machine.")
    if settings.stock_guests:
        found.append("Guests that speak plain KBS are served where a contract allows it; what they get can't be ended.")
    if not confirmed:
        found.append(
            "No peer confirmed at start that this broker's state is the newest; contracts above level none get no keys."
        )
    return found


def _log_start(ledger: Ledger, opened: Opened, confirmed: int) -> None:
    for intent in opened.recovered:
        tables = ",".join(sorted({change.table for change in intent.changes}))
        details: dict[str, str | int] = {"finished_revision": intent.revision, "tables": tables or "none"}
        ledger.append("state.recovered", target=opened.card.name, details=details)
    ledger.append("broker.started", target=opened.card.name, details={"peers_confirmed": confirmed})


class RunningBroker:
    """A broker behind its sockets. ``run`` serves in the calling thread until ``stop``."""

    def __init__(self, broker: Broker) -> None:
        settings = broker.settings
        self.broker = broker
        self._public = listen_tcp(settings.host, settings.port)
        try:
            self._owner = listen_unix(settings.admin_socket)
        except BaseException:
            self._public.close()
            raise
        context = tls_context(broker.core.keys.tls_seed(), broker.card.name, stock_guests=settings.stock_guests)
        self._servers = [
            (https_server(broker.public_app(), context, settings.limits), self._public),
            (owner_server(broker.owner_app(), settings.limits), self._owner),
        ]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @property
    def port(self) -> int:
        return int(self._public.getsockname()[1])

    @property
    def admin_socket(self) -> Path:
        return self.broker.settings.admin_socket

    def run(
        self, ready: Callable[[], None], *, on_loop: Callable[[asyncio.AbstractEventLoop], None] | None = None
    ) -> None:
        """Serve until ``stop``; ``ready`` is called when both sockets answer. Then close everything."""

        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            if on_loop is not None:
                on_loop(self._loop)
            self.broker.notices.start()
            if self.broker.refresher is not None:
                self.broker.refresher.start()
            self.broker.lifecycle.keeper.start()
            await serve_until(self._stop.wait(), self._servers, ready)

        try:
            asyncio.run(main())
        finally:
            for sock in (self._public, self._owner):
                sock.close()
            self.admin_socket.unlink(missing_ok=True)
            self.broker.close()

    def stop(self) -> None:
        """From any thread."""
        if self._loop is None or self._stop is None:
            raise Unavailable("broker.idle", "The broker does not serve yet.")
        self._loop.call_soon_threadsafe(self._stop.set)
