"""A broker and a command write to one folder: neither undoes what the other just learned."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from cloister.attestation.collateral import Item
from cloister.broker import collateral_store
from cloister.broker.collateral_facts import Pinned
from cloister.broker.collateral_store import CollateralStore, Kept
from cloister.errors import Unavailable, Untrusted
from tests.patience import until
from tests.tdx_forge import DAY, NOW, Forge

ROOT = ("intel-root-crl", "root")


@pytest.fixture(scope="module")
def intel() -> Forge:
    return Forge()


def stores(folder: Path, intel: Forge) -> tuple[CollateralStore, CollateralStore]:
    pinned = Pinned(intel={intel.root.fingerprint})
    first = CollateralStore(folder / "collateral", pinned=pinned)
    first.put([Kept(item) for item in intel.items() if item.kind == "intel-qe-identity"], now=NOW)
    return first, CollateralStore(folder / "collateral", pinned=pinned)


def test_a_mirror_that_lags_does_not_undo_an_import(tmp_path: Path, intel: Forge) -> None:
    """The broker has not noticed the import yet when its refresher brings the list from before."""
    broker, command = stores(tmp_path, intel)
    new = Item(*ROOT, intel.root.crl(revoked=[77], begins=NOW - DAY), NOW)
    old = Item(*ROOT, intel.root.crl(begins=NOW - 9 * DAY), NOW)
    command.put([Kept(new)], now=NOW)
    with pytest.raises(Untrusted) as error:
        broker.put([Kept(old)], now=NOW)
    assert error.value.code == "collateral.older"
    assert broker.find(*ROOT) == new
    assert stores(tmp_path, intel)[1].find(*ROOT) == new


def test_who_writes_waits_for_whoever_does(tmp_path: Path, intel: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    broker, command = stores(tmp_path, intel)
    tried: list[bool] = []
    attempt = collateral_store._taken

    def try_it(fd: int) -> bool:
        tried.append(attempt(fd))
        return tried[-1]

    monkeypatch.setattr(collateral_store, "_taken", try_it)
    new = Item(*ROOT, intel.root.crl(begins=NOW), NOW)
    other = os.open(tmp_path / "collateral", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    writer = threading.Thread(target=broker.put, args=([Kept(new)],), kwargs={"now": NOW})
    writer.start()
    until("it tried twice", lambda: len(tried) > 1)
    command.reload()
    assert command.find(*ROOT) is None
    assert writer.is_alive()
    os.close(other)
    writer.join()
    assert tried[-1]
    assert not any(tried[:-1])
    until("the other one notices", lambda: command.find(*ROOT) == new)


def test_a_writer_that_never_ends_is_named(tmp_path: Path, intel: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    broker, _ = stores(tmp_path, intel)
    monkeypatch.setattr("cloister.broker.collateral_store._TURN_SECONDS", 0.0)
    other = os.open(tmp_path / "collateral", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    before = broker.kept()
    with pytest.raises(Unavailable) as busy:
        broker.put([Kept(Item(*ROOT, intel.root.crl(begins=NOW), NOW))], now=NOW)
    assert busy.value.code == "collateral.busy"
    with pytest.raises(Unavailable):
        broker.remove("intel-qe-identity", "tdx")
    assert broker.kept() == before
    os.close(other)
    broker.remove("intel-qe-identity", "tdx")
    assert broker.kept() == []
