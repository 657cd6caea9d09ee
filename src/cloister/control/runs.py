"""Runs: what the node does with jobs. It claims, reports, hands over what was released.

The node is believed about availability alone: that a run began, goes on or ended. Nothing that it says opens anything.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from ..contracts import read_job
from ..crypto import Envelope, parse_json
from ..errors import CloisterError, Denied, Malformed, Misuse
from ..fields import Fields
from .agreements import Agreements, revoked_by
from .database import Database
from .errors import NotFound
from .limits import Limits
from .states import FINAL, check_transition
from .tables import events, jobs, objects, releases, revocations

__all__ = ["Runs", "finish", "state_of"]


class Runs:
    """The node's side of the queue."""

    def __init__(self, database: Database, agreements: Agreements, limits: Limits) -> None:
        self._database, self._agreements, self._limits = database, agreements, limits

    def requeue_lost(self, *, now: int) -> None:
        """The node started anew, so what ran on it does not run any more. It is tried again, a few times."""
        error = {"code": "job.lost", "details": {}, "kind": "unavailable", "message": "The node stopped too often."}
        with self._database.write() as connection:
            rows = connection.execute(select(jobs.c.digest, jobs.c.attempts).where(jobs.c.state == "running")).all()
            for digest, attempts in rows:
                if attempts >= self._limits.attempts:
                    finish(connection, digest, "failed", now, error)
                else:
                    connection.execute(update(jobs).where(jobs.c.digest == digest).values(state="queued"))

    def claim(self, *, now: int) -> dict[str, Any] | None:
        """The oldest queued job that is still allowed, marked running; None when nothing waits."""
        while True:
            with self._database.write() as connection:
                waiting = select(jobs).where(jobs.c.state == "queued").order_by(jobs.c.submitted, jobs.c.digest)
                row = connection.execute(waiting).first()
                if row is None:
                    return None
                values = {"attempts": row.attempts + 1, "started": row.started or now, "state": "running"}
                connection.execute(update(jobs).where(jobs.c.digest == row.digest).values(**values))
            held = self._agreements.get(row.contract, None)
            refusal: CloisterError | None = held.refusal(now=now)
            if refusal is None:
                try:
                    job = read_job(Envelope.from_bytes(row.envelope.encode()), held.contract)
                except CloisterError as changed:  # since it was submitted: what lies here is no job any more
                    refusal = changed
            if refusal is None:
                return {
                    "assets": [digest.hex() for digest in job.assets],
                    "contract": held.contract.envelope.to_bytes().decode(),
                    "job": row.envelope,
                    "revocations": list(held.revocations),
                }
            with self._database.write() as connection:  # it expired or was superseded while it waited
                finish(connection, row.digest, "denied", now, refusal.to_wire())

    def add_events(self, digest: str, batch: tuple[dict[str, Any], ...], *, now: int) -> str | None:
        """Append a running job's events. The answer says why it should stop, if it should: cancelled or revoked."""
        with self._database.write() as connection:
            state = state_of(connection, digest)
            last = connection.execute(select(func.max(events.c.seq)).where(events.c.job == digest)).scalar() or 0
            room = max(0, self._limits.events - last)
            rows = [
                {"at": now, "event": event, "job": digest, "seq": last + n}
                for n, event in enumerate(batch[:room] if state == "running" else (), 1)
            ]
            if rows:
                connection.execute(insert(events), rows)
        return self._stop_reason(digest, state)

    def _stop_reason(self, digest: str, state: str) -> str | None:
        if state != "running":
            return state
        with self._database.read() as connection:
            contract = connection.execute(select(jobs.c.contract).where(jobs.c.digest == digest)).scalar_one()
        return "revoked" if self._agreements.get(contract, None).revocations else None

    def set_state(
        self, digest: str, state: str, error: dict[str, Any] | None, timings: dict[str, str], *, now: int
    ) -> None:
        """The node's word on how a run ended. A run that a party cancelled stays cancelled."""
        with self._database.write() as connection:
            old = state_of(connection, digest)
            if old == "cancelled" or old == state:
                return
            check_transition(old, state)
            if state not in FINAL:
                raise Misuse("job.state", "The node reports how a run ended, nothing else.")
            if state == "succeeded" and not released(connection, digest):
                raise Misuse("job.release", "A run succeeds only with its release handed over.")
            finish(connection, digest, state, now, (state == "revoked" and _revoked(connection, digest)) or error)
            connection.execute(update(jobs).where(jobs.c.digest == digest).values(timings=timings))

    def store_release(self, digest: str, body: bytes, *, now: int) -> None:
        """Keep a run's release record. Signatures in it are for its readers; here it must speak of this run."""
        f = Fields(parse_json(body, limit=self._limits.release_body), "release")
        manifest = Envelope.from_bytes(f.text("manifest", limit=self._limits.release_body).encode()).digest.hex()
        contract = Envelope.from_bytes(f.text("contract", limit=self._limits.release_body).encode()).digest.hex()
        job = Envelope.from_bytes(f.text("job", limit=self._limits.release_body).encode()).digest.hex()
        with self._database.write() as connection:
            if state_of(connection, digest) != "running":
                raise Denied("release.state", "Only a run that is going on releases.")
            row = connection.execute(select(jobs.c.contract, jobs.c.output).where(jobs.c.digest == digest)).one()
            stored = connection.execute(select(objects.c.job).where(objects.c.digest == manifest)).scalar()
            if (job, contract, stored) != (digest, row.contract, digest):
                raise Malformed("release.other", "The release speaks of another run, or its output is not stored.")
            earlier = connection.execute(select(releases.c.manifest).where(releases.c.job == digest)).scalar()
            if earlier == manifest:
                return  # the node asks again because it missed the answer
            if earlier is not None:
                raise Denied("release.twice", "This run has released already.")
            values = {"body": body.decode(), "contract": contract, "job": digest, "manifest": manifest}
            connection.execute(insert(releases).values(**values, output=row.output, stored=now))


def released(connection: Connection, digest: str) -> bool:
    return connection.execute(select(releases.c.job).where(releases.c.job == digest)).first() is not None


def _revoked(connection: Connection, digest: str) -> dict[str, Any] | None:
    """Who ended a run's contract, where that is known: it tells more than the lease that the run saw stop."""
    joined = revocations.join(jobs, jobs.c.contract == revocations.c.contract)
    query = select(revocations.c.party).select_from(joined).where(jobs.c.digest == digest)
    party = connection.execute(query.order_by(revocations.c.stored)).scalar()
    return None if party is None else revoked_by(party).to_wire()


def state_of(connection: Connection, digest: str) -> str:
    state = connection.execute(select(jobs.c.state).where(jobs.c.digest == digest)).scalar()
    if state is None:
        raise NotFound("job.unknown", "There is no such job here, or you are not a party to its contract.")
    return str(state)


def finish(connection: Connection, digest: str, state: str, now: int, error: dict[str, Any] | None) -> None:
    values = {"error": error, "finished": now, "state": state}
    connection.execute(update(jobs).where(jobs.c.digest == digest).values(**values))
