"""When a run renews which of its leases, with brokers that the test plays."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import pytest

from cloister.crypto import sign_document
from cloister.errors import Malformed
from cloister.workload import key_session
from cloister.workload import leases as leases_module
from cloister.workload.identity import KeyRing, WorkloadIdentity
from cloister.workload.key_session import AttestedSession, Lease, RunContext
from cloister.workload.leases import LeaseKeeper
from tests.bundles import HOSPITAL, INSTANCE, make_contract, make_job


class Brokers:
    """Renew every lease at once, on a clock that stands still unless it is moved. Remember what they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.gathered = 0
        self.renewed: list[tuple[str, int]] = []
        contract = make_contract()
        link: Any = None
        self.run = RunContext(contract, make_job(contract), INSTANCE, "tpm", WorkloadIdentity(), link)
        monkeypatch.setattr(leases_module, "boottime", lambda: self.now)
        monkeypatch.setattr(leases_module, "gather_statements", self._gather)
        monkeypatch.setattr(leases_module, "AttestedSession", self._session)

    @property
    def term(self) -> int:
        return self.run.contract.lease_seconds

    def keeper(self, **deadlines: float) -> LeaseKeeper:
        leases = {party: Lease(0, self.now + left) for party, left in deadlines.items()}
        return LeaseKeeper(self.run, KeyRing(), leases, on_lost=lambda _: None)

    def _gather(self, run: RunContext) -> list[str]:
        self.gathered += 1
        return ["fresh"]

    def _session(self, run: RunContext, party: str, *, purpose: str, sequence: int, statements: list[str]) -> Session:
        assert (purpose, statements) == ("renew", ["fresh"])
        self.renewed.append((party, sequence))
        return Session(Lease(sequence, self.now + self.term))


class Client:
    """A broker's answer to a renewal: a lease with these fields, signed by its receipt key."""

    pin = b""

    def __init__(self, run: RunContext, **fields: Any) -> None:
        body = {
            "contract": run.contract.digest.hex(),
            "expires": 0,
            "instance": run.instance.hex(),
            "job": run.job.digest.hex(),
            "owner": "hospital",
            "sequence": 1,
            "type": "lease/v1",
        }
        envelope = sign_document(key_session.LEASE_TYPE, body | fields, HOSPITAL.secret("receipt"))
        self._answer = {"lease": envelope.to_bytes().decode()}

    def post(self, path: str, body: Any) -> Any:
        assert (path, body) == ("/cloister/v1/lease", {})
        return self._answer


class Session:
    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None

    def renew(self) -> Lease:
        return self._lease


def test_leases_that_began_one_handshake_apart_are_renewed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = Brokers(monkeypatch)
    due = brokers.term * 2 / 3
    keeper = brokers.keeper(hospital=due, lab=due + 0.5)
    keeper._renew_all()
    assert brokers.renewed == [("hospital", 1), ("lab", 1)]
    assert brokers.gathered == 1
    assert keeper._deadline() == brokers.now + brokers.term


def test_a_lease_that_was_just_renewed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = Brokers(monkeypatch)
    keeper = brokers.keeper(hospital=brokers.term * 2 / 3, lab=brokers.term)
    keeper._renew_all()
    assert brokers.renewed == [("hospital", 1)]
    keeper._renew_all()
    assert brokers.renewed == [("hospital", 1)]


def test_each_renewal_counts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    brokers = Brokers(monkeypatch)
    keeper = brokers.keeper(hospital=0.0, lab=0.0)
    for _ in range(3):
        keeper._renew_all()
        brokers.now += brokers.term / 3 + 1
    assert brokers.renewed == [(party, n) for n in (1, 2, 3) for party in ("hospital", "lab")]


def renew(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> Lease:
    run = Brokers(monkeypatch).run
    monkeypatch.setattr(key_session, "BrokerClient", lambda *_, **__: Client(run, **fields))
    session = AttestedSession(run, "hospital", purpose="renew", sequence=1, statements=[])
    session._started = 500.0
    return session.renew()


def test_a_renewed_lease_lasts_as_long_as_the_broker_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contract that ends in two seconds ends the run then, and not one whole term later."""
    assert renew(monkeypatch, seconds=2) == Lease(1, 502.0, 2)
    term = Brokers(monkeypatch).term
    assert renew(monkeypatch, seconds=10 * term) == Lease(1, 500.0 + term, term)  # never beyond the contract's term
    assert renew(monkeypatch) == Lease(1, 500.0 + term, term)  # a broker from before this field


@pytest.mark.parametrize("seconds", [0, -1, True, "2", [2]])
def test_a_renewed_lease_of_no_length(monkeypatch: pytest.MonkeyPatch, seconds: Any) -> None:
    with pytest.raises(Malformed):
        renew(monkeypatch, seconds=seconds)


def test_a_short_lease_is_not_renewed_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the contract's end brokers give what is left. A third of that passes before anybody is asked again."""
    brokers = Brokers(monkeypatch)
    keeper = brokers.keeper(hospital=0.0)
    keeper._leases = {"hospital": Lease(4, brokers.now + 6, 6)}
    keeper._renew_all()
    assert brokers.renewed == []
    brokers.now += 2
    keeper._renew_all()
    assert brokers.renewed == [("hospital", 5)]
