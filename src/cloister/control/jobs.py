"""Jobs: submission under the same rules as the brokers', and what a party may see of them.

The control plane can't run anything that brokers refuse: what it decides here spares a useless start and gives the
submitter the same reason at once.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, insert, select

from ..contracts import Contract, check_contract, check_job, read_job
from ..crypto import Envelope
from ..errors import Denied, Misuse
from ..fields import Fields
from .agreements import Agreements
from .database import Database
from .directory import NODE
from .errors import NotFound
from .limits import Limits
from .objects import ObjectStore
from .runs import finish, state_of
from .states import FINAL, check_transition
from .tables import contract_parties, events, jobs, releases

__all__ = ["Jobs"]


class Jobs:
    """One queue, first come first served."""

    def __init__(self, database: Database, agreements: Agreements, store: ObjectStore, limits: Limits) -> None:
        self._database, self._agreements, self._store, self._limits = database, agreements, store, limits

    def submit(self, envelope: Envelope, party: str, *, now: int) -> dict[str, Any]:
        """Queue a run. Raises what a broker would raise, as far as it can be known here."""
        contract_digest = Fields(envelope.document(), "job").hex("contract", 32)
        held = self._agreements.get(contract_digest.hex(), party)
        job = read_job(envelope, held.contract)
        if job.submitter != party:
            raise Denied("job.submitter", "A job is submitted by the party that signed it.")
        digest = job.digest.hex()
        if not self._known(digest):
            check_contract(held.contract, held.state, now=now)
            check_job(held.contract, job, held.state)
            with self._database.write() as connection:
                self._check_ready(connection, held.contract, [digest.hex() for digest in job.assets])
                row = {"contract": contract_digest.hex(), "digest": digest, "output": job.output, "submitter": party}
                text = envelope.to_bytes().decode()
                connection.execute(insert(jobs).values(**row, envelope=text, state="queued", attempts=0, submitted=now))
        return self.get(digest, party)

    def _known(self, digest: str) -> bool:
        with self._database.read() as connection:
            return connection.execute(select(jobs.c.state).where(jobs.c.digest == digest)).first() is not None

    def _check_ready(self, connection: Connection, contract: Contract, assets: list[str]) -> None:
        missing = self._store.missing(connection, assets)
        if missing:
            name = contract.asset(bytes.fromhex(missing[0])).name
            raise Misuse("asset.missing", f"The asset {name} is not in the store; its owner must upload it first.")
        waiting = (jobs.c.contract == contract.digest.hex()) & (jobs.c.state == "queued")
        if (
            connection.execute(select(func.count()).select_from(jobs).where(waiting)).scalar_one()
            >= self._limits.queued_jobs
        ):
            raise Denied("job.queue", "Too many jobs of this contract are waiting; let some finish first.")

    def cancel(self, digest: str, party: str, *, now: int) -> dict[str, Any]:
        """Any party of the contract may: tightening needs one alone. The node learns it with its next report."""
        self.get(digest, party)
        with self._database.write() as connection:
            check_transition(state_of(connection, digest), "cancelled")
            finish(connection, digest, "cancelled", now, None)
        return self.get(digest, party)

    def get(self, digest: str, party: str) -> dict[str, Any]:
        with self._database.read() as connection:
            row = connection.execute(select(jobs).where(jobs.c.digest == digest, _shared_with(party))).first()
        if row is None:
            raise NotFound("job.unknown", "There is no such job here, or you are not a party to its contract.")
        return {**_summary(row), "job": row.envelope}

    def listing(self, party: str) -> list[dict[str, Any]]:
        query = select(jobs).where(_shared_with(party)).order_by(jobs.c.submitted.desc(), jobs.c.digest)
        with self._database.read() as connection:
            return [_summary(row) for row in connection.execute(query).all()]

    def events(self, digest: str, party: str, after: int) -> dict[str, Any]:
        """Events above ``after`` and the state, as one consistent answer."""
        with self._database.read() as connection:
            state = connection.execute(
                select(jobs.c.state).where(jobs.c.digest == digest, _shared_with(party))
            ).scalar()
            if state is None:
                raise NotFound("job.unknown", "There is no such job here, or you are not a party to its contract.")
            query = select(events).where(events.c.job == digest, events.c.seq > after).order_by(events.c.seq)
            rows = connection.execute(query.limit(self._limits.event_batch)).all()
        found = [{"at": row.at, "event": row.event, "seq": row.seq} for row in rows]
        return {"events": found, "final": state in FINAL and len(found) < self._limits.event_batch, "state": state}

    def release(self, digest: str, party: str) -> str:
        self.get(digest, party)
        with self._database.read() as connection:
            body = connection.execute(select(releases.c.body).where(releases.c.job == digest)).scalar()
        if body is None:
            raise NotFound("release.unknown", "This job has released nothing.")
        return str(body)

    def output(self, name: str, party: str) -> dict[str, Any]:
        """The newest release of an output among the contracts of ``party``."""
        mine = select(contract_parties.c.contract).where(contract_parties.c.party == party)
        query = select(releases, jobs.c.envelope).join(jobs, jobs.c.digest == releases.c.job)
        query = query.where(releases.c.output == name, releases.c.contract.in_(mine))
        with self._database.read() as connection:
            row = connection.execute(query.order_by(releases.c.stored.desc(), jobs.c.submitted.desc())).first()
        if row is None:
            raise NotFound("output.unknown", "No such output was released, or you are not a party to its contract.")
        return {"job": row.envelope, "job_digest": row.job, "manifest": row.manifest, "release": row.body}


def _shared_with(party: str) -> Any:
    """The SQL condition on ``jobs``: parties of the contract, and the node."""
    if party == NODE:
        return jobs.c.digest.is_not(None)
    return jobs.c.contract.in_(select(contract_parties.c.contract).where(contract_parties.c.party == party))


def _summary(row: Row[Any]) -> dict[str, Any]:
    keys = (
        "contract",
        "digest",
        "output",
        "state",
        "submitter",
        "submitted",
        "started",
        "finished",
        "error",
        "timings",
    )
    return {key: row._mapping[key] for key in keys}
