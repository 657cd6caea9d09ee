"""The composition root: one folder, one key of the node, and every service on top of them."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert as upsert

from ..crypto import random_bytes
from ..errors import Misuse
from ..fields import Fields
from .agreements import Agreements
from .database import Database
from .directory import Directory
from .jobs import Jobs
from .limits import Limits
from .objects import ObjectStore
from .requests import Asked, Caller, ReplayGuard, check_request
from .runs import Runs
from .storage import OpenStorage, Storage
from .tables import objects, settings

__all__ = ["ControlPlane"]

_SAFE = frozenset({"GET", "HEAD"})  # methods that change nothing: answering them twice gives nothing away


class ControlPlane:
    """Everything that the API calls. ``home`` belongs to this process alone while it runs."""

    def __init__(
        self,
        home: Path,
        *,
        node_key: bytes,
        limits: Limits | None = None,
        storage: Storage | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``storage`` None keeps objects on this disk. Raises Misuse (folder in use, objects kept elsewhere so far),
        and what ``storage`` raises."""
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = _hold(home / "lock")
        self.limits = limits or Limits()
        self._clock = clock
        self._since = self.now()
        self._database = Database(home / "catalogue.db")
        self.directory = Directory(self._database, node_key=node_key, limits=self.limits)
        self._storage: OpenStorage | None = None
        try:
            self._check_place("" if storage is None else storage.url)
            self._storage = None if storage is None else storage.open(home)
        except BaseException:
            self.close()
            raise
        store = None if self._storage is None else self._storage.store
        self.objects = ObjectStore(home, self._database, self.directory, self.limits, store)
        self.agreements = Agreements(self._database, self.directory, self.limits)
        self.jobs = Jobs(self._database, self.agreements, self.objects, self.limits)
        self.runs = Runs(self._database, self.agreements, self.limits)
        self._replays = ReplayGuard(capacity=self.limits.remembered_requests)
        self.id = self._setting("id", random_bytes(32).hex())
        try:
            self.objects.sweep(now=self.now())
        except BaseException:
            self.close()
            raise

    def now(self) -> int:
        """Unix seconds."""
        return int(self._clock())

    def close(self) -> None:
        if self._storage is not None:
            self._storage.close()
        self._database.close()
        os.close(self._lock)

    def _check_place(self, url: str) -> None:
        """Objects in the catalogue lie where they were put: a store that was configured later does not have them."""
        before = self._setting("objects", "")  # "": on this disk, as in every installation at first
        with self._database.write() as connection:
            if before != url and connection.execute(select(objects.c.digest).limit(1)).first() is not None:
                raise Misuse(
                    "control.objects", "The objects of this installation lie in another store; name that one again."
                )
            values = {"name": "objects", "value": url}
            row = upsert(settings).values(values)
            connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": url}))

    def authenticate(self, header: str | None, asked: Asked, *, key: tuple[str, bytes] | None = None) -> Caller:
        """Who asks. ``key``: a party that is not in the directory yet, with the key of the card it offers."""

        def key_of(party: str) -> bytes | None:
            return key[1] if key is not None and key[0] == party else self.directory.key_of(party)

        now = self.now()
        caller = check_request(header, asked, key_of=key_of, audience=self.id, now=now, since=self._since)
        if asked.method not in _SAFE:
            self._replays.admit(caller, now=now)
        return caller

    def node_hello(self, body: Any) -> None:
        """The node started. What it says of itself is a claim for people to compare; contracts pin the values."""
        f = Fields(body, "node's hello")
        claim = {name: f.hex(name, 32).hex() for name in ("measurement", "agent", "attester")}
        claim |= {"hardware": f.text("hardware", limit=256), "level": f.text("level", limit=16)}
        f.done()
        with self._database.write() as connection:
            row = upsert(settings).values(name="node", value=json.dumps(claim))
            connection.execute(row.on_conflict_do_update(index_elements=["name"], set_={"value": json.dumps(claim)}))
        self.runs.requeue_lost(now=self.now())

    def node_claim(self) -> dict[str, Any] | None:
        with self._database.read() as connection:
            text = connection.execute(select(settings.c.value).where(settings.c.name == "node")).scalar()
        return None if text is None else dict(json.loads(text))

    def _setting(self, name: str, default: str) -> str:
        with self._database.write() as connection:
            connection.execute(upsert(settings).values(name=name, value=default).on_conflict_do_nothing())
            return str(connection.execute(select(settings.c.value).where(settings.c.name == name)).scalar_one())


def _hold(path: Path) -> int:
    """Two processes on one folder would not see each other's locks and replays, so the second refuses to start."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Misuse("control.running", "A control plane is already running in this folder; stop it first.") from None
    return fd
