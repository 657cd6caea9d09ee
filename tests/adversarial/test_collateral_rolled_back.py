"""Whoever brings collateral must not make a cache forget what it knows: older lists, forged ones, other clocks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cloister.attestation.collateral import Item, Staleness
from cloister.broker.collateral_facts import Pinned
from cloister.broker.collateral_store import CollateralStore, Kept
from cloister.errors import Misuse, Untrusted
from tests.tdx_forge import DAY, NOW, Forge


@pytest.fixture(scope="module")
def intel() -> Forge:
    return Forge()


@pytest.fixture
def store(tmp_path: Path, intel: Forge) -> CollateralStore:
    made = CollateralStore(tmp_path / "collateral", pinned=Pinned(intel={intel.root.fingerprint}))
    made.put([Kept(item) for item in intel.items()], now=NOW)
    return made


def refused(store: CollateralStore, items: list[Item], *, now: int = NOW) -> str:
    """The code; and that nothing changed, in memory or on disk."""
    before = store.kept()
    with pytest.raises((Untrusted, Misuse)) as error:
        store.put([Kept(item) for item in items], now=now)
    assert store.kept() == before
    store.reload()
    assert store.kept() == before
    return error.value.code


def of(items: tuple[Item, ...], kind: str) -> list[Item]:
    return [item for item in items if item.kind == kind]


def test_an_older_revocation_list_does_not_come_back(store: CollateralStore, intel: Forge) -> None:
    older = intel.items(root_crl=intel.root.crl(begins=NOW - 9 * DAY, ends=NOW + 20 * DAY), obtained=NOW)
    assert refused(store, of(older, "intel-root-crl")) == "collateral.older"


def test_an_older_tcb_info_does_not_come_back(store: CollateralStore, intel: Forge) -> None:
    older = intel.answer("tcbInfo", intel.tcb_info(tcbEvaluationDataNumber=18))
    assert refused(store, of(intel.items(tcb_info=older), "intel-tcb")) == "collateral.older"


def test_a_forged_piece_displaces_nothing(store: CollateralStore, intel: Forge) -> None:
    """Not even one that states to be newer: its signature is looked at first."""
    stranger = Forge()
    newer = stranger.answer("tcbInfo", intel.tcb_info(tcbEvaluationDataNumber=99))
    assert refused(store, of(intel.items(tcb_info=newer), "intel-tcb")) == "tdx.document-signature"
    theirs = stranger.items(root_crl=stranger.root.crl(begins=NOW))
    assert refused(store, of(theirs, "intel-root-crl")) == "crl.signature"
    assert refused(store, of(theirs, "intel-qe-identity")) == "x509.root"


def test_nothing_that_was_verified_gives_way_to_what_cannot_be(tmp_path: Path, intel: Forge) -> None:
    """A revocation list without its issuer's chain: it could be anybody's."""
    store = CollateralStore(tmp_path / "other", pinned=Pinned(intel={intel.root.fingerprint}))
    chain = intel.authority.pem + intel.root.pem
    store.put([Kept(item) for item in intel.items(pck_crl_chain=chain)], now=NOW)
    bare = intel.items(pck_crl=intel.authority.crl(begins=NOW), obtained=NOW)
    assert refused(store, of(bare, "intel-pck-crl")) == "collateral.unchecked"


def test_one_bad_piece_keeps_the_whole_bundle_out(store: CollateralStore, intel: Forge) -> None:
    newer = of(intel.items(root_crl=intel.root.crl(begins=NOW)), "intel-root-crl")
    forged = dataclasses.replace(
        of(intel.items(), "intel-tcb")[0], data=b'{"tcbInfo":{},"signature":"' + b"0" * 128 + b'"}'
    )
    with pytest.raises(Exception, match="genuine"):
        store.put([Kept(newer[0]), Kept(forged)], now=NOW)
    found = store.find("intel-root-crl", "root")
    assert found is not None
    assert found.data != newer[0].data


def test_collateral_that_was_obtained_in_the_future(store: CollateralStore, intel: Forge) -> None:
    assert refused(store, list(intel.items(obtained=NOW + 1))) == "collateral.future"


def test_a_clock_that_is_set_back_makes_nothing_old_good(store: CollateralStore, intel: Forge) -> None:
    """What the cache has is from that clock's future, and is refused at use; older pieces don't take its place."""
    past = NOW - 40 * DAY
    item = store.find("intel-tcb", "30806f000000-tdx")
    assert item is not None
    with pytest.raises(Untrusted) as error:
        Staleness().check("TCB info", begins=NOW - DAY, ends=NOW + DAY, obtained=item.obtained, now=past)
    assert error.value.code == "collateral.future"
    older = intel.items(root_crl=intel.root.crl(begins=past - DAY, ends=past + DAY), obtained=past)
    assert refused(store, of(older, "intel-root-crl"), now=past) == "collateral.older"


def test_a_cache_has_an_end(store: CollateralStore, monkeypatch: pytest.MonkeyPatch, intel: Forge) -> None:
    monkeypatch.setattr("cloister.broker.collateral_store.MAX_ITEMS", 4)
    extra = intel.items(tcb_info=intel.answer("tcbInfo", intel.tcb_info(fmspc="00" * 6)))
    assert refused(store, of(extra, "intel-tcb")) == "collateral.full"
