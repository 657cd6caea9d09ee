"""The cache of collateral: what it keeps, what it says about it, bundles, and what it does with a damaged folder."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attestation.collateral import CollateralSet, Item
from cloister.attestation.tdx import read_collateral
from cloister.broker.collateral_facts import Pinned, examine
from cloister.broker.collateral_store import CollateralStore, Kept, read_bundle, write_bundle
from cloister.errors import CloisterError, Malformed, Unavailable
from tests import nvidia_forge, snp_forge, tdx_forge

DAY = 86_400
NOW = tdx_forge.NOW


@pytest.fixture(scope="module")
def intel() -> tdx_forge.Forge:
    return tdx_forge.Forge()


@pytest.fixture(scope="module")
def amd() -> snp_forge.Forge:
    return snp_forge.Forge()


def pieces(intel: tdx_forge.Forge) -> list[Kept]:
    return [Kept(item) for item in intel.items()]


def pinned(intel: tdx_forge.Forge) -> Pinned:
    return Pinned(intel=frozenset({intel.root.fingerprint}))


@pytest.fixture
def store(tmp_path: Path, intel: tdx_forge.Forge) -> CollateralStore:
    return CollateralStore(tmp_path / "collateral", pinned=pinned(intel))


def test_what_was_put_is_found_also_by_the_next_process(
    store: CollateralStore, tmp_path: Path, intel: tdx_forge.Forge
) -> None:
    given_pieces = [dataclasses.replace(piece, etag='"a"') for piece in pieces(intel)]
    store.put(given_pieces, now=NOW)
    again = CollateralStore(tmp_path / "collateral", pinned=pinned(intel))
    assert again.kept() == store.kept() == sorted(given_pieces, key=lambda p: (p.item.kind, p.item.name))
    for piece in given_pieces:
        assert again.find(piece.item.kind, piece.item.name) == piece.item
    assert len(again.snapshot()) == len(given_pieces)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "collateral").iterdir()} == {0o600}
    again.remove("intel-root-crl", "root")
    store.reload()
    assert store.find("intel-root-crl", "root") is None


def test_what_is_missing_is_remembered_once_and_within_bounds(store: CollateralStore) -> None:
    for number in range(200):
        assert store.find("nvidia-rim", f"R{number}") is None
    assert len(store.missed()) == 64
    assert store.missed() == []


def test_a_verifier_uses_the_cache_as_it_is(store: CollateralStore, intel: tdx_forge.Forge) -> None:
    from cloister.attestation.collateral import Staleness
    from cloister.attestation.tdx import verify_quote

    store.put(pieces(intel), now=NOW)
    device = verify_quote(intel.quote(), store, now=NOW, staleness=Staleness(), roots={intel.root.fingerprint})
    assert device.facts["tcb_status"] == "UpToDate"


def test_a_newer_piece_takes_the_place_of_an_older_one(store: CollateralStore, intel: tdx_forge.Forge) -> None:
    store.put(pieces(intel), now=NOW)
    newer = intel.items(root_crl=intel.root.crl(begins=NOW, ends=NOW + 60 * DAY), obtained=NOW + 5)
    store.put([Kept(item) for item in newer if item.kind == "intel-root-crl"], now=NOW + 10)
    found = store.find("intel-root-crl", "root")
    assert found is not None
    assert found.obtained == NOW + 5


def test_what_each_piece_says_about_itself(intel: tdx_forge.Forge, amd: snp_forge.Forge) -> None:
    items = CollateralSet(intel.items())
    for item in items:
        found = examine(item, items, now=NOW, pinned=pinned(intel))
        # The list of the PCK authority came without its issuer's chain.
        assert (found.refusal, found.checked) == (None, item.kind != "intel-pck-crl"), item.kind
        assert found.begins == NOW - DAY
        assert found.ends == NOW + 29 * DAY
        late = examine(item, items, now=NOW + 30 * DAY, pinned=pinned(intel))
        early = examine(item, items, now=NOW - 2 * DAY, pinned=pinned(intel))
        assert [f.refusal.code for f in (late, early) if f.refusal] == ["collateral.stale", "collateral.future"]
        assert late.only_time
        assert early.only_time
    theirs = amd.collateral()
    for item in theirs:
        found = examine(item, theirs, now=snp_forge.NOW, pinned=Pinned(amd=amd.roots))
        assert (found.refusal, found.checked) == (None, True), item.kind
        alone = examine(item, CollateralSet([item]), now=snp_forge.NOW, pinned=Pinned(amd=amd.roots))
        assert alone.checked is (item.kind == "amd-chain")


def test_a_manifest_is_verified(tmp_path: Path) -> None:
    factory = nvidia_forge.Factory()
    roots = Pinned(nvidia={factory.rim_root.root})
    for item in factory.items():
        found = examine(item, CollateralSet(), now=nvidia_forge.NOW, pinned=roots)
        assert (found.refusal, found.checked) == (None, True)
        strange = examine(item, CollateralSet(), now=nvidia_forge.NOW)
        assert strange.refusal is not None
        assert not strange.only_time


def test_real_collateral_of_intels(shared: Path) -> None:
    folder = shared / "vectors" / "tdx"
    in_time, today = 1_750_420_800, 1_795_824_000
    for name in ("tdx", "sgx"):
        items = CollateralSet(
            read_collateral((folder / f"{name}_quote_collateral.json").read_bytes(), obtained=in_time)
        )
        for item in items:
            found = examine(item, items, now=in_time)
            assert found.refusal is None, (item.kind, found.refusal)
            assert found.checked
            assert examine(item, items, now=today).only_time or item.kind == "intel-root-crl"


def test_a_bundle_carries_everything(intel: tdx_forge.Forge, tmp_path: Path) -> None:
    carried = pieces(intel)
    bundle = write_bundle(carried)
    assert read_bundle(bundle) == carried
    closed = CollateralStore(tmp_path / "closed", pinned=pinned(intel))
    assert closed.put(read_bundle(bundle), now=NOW) == carried


@pytest.fixture(scope="module")
def bundle(intel: tdx_forge.Forge) -> bytes:
    return write_bundle(pieces(intel))


@given(st.data())
def test_any_bytes_for_a_bundle_give_our_errors_only(bundle: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(bundle) - 1))
    with_what = data.draw(st.binary(max_size=8))
    changed = bundle[:at] + with_what + bundle[at + data.draw(st.integers(0, 4)) :]
    with contextlib.suppress(Malformed):
        read_bundle(changed)


def test_a_bundle_with_one_piece_twice(intel: tdx_forge.Forge) -> None:
    with pytest.raises(Malformed, match="twice"):
        read_bundle(write_bundle([pieces(intel)[0]] * 2))


def test_a_damaged_file_is_named_and_the_others_are_used(
    store: CollateralStore, tmp_path: Path, intel: tdx_forge.Forge
) -> None:
    store.put(pieces(intel), now=NOW)
    first, second, *_ = sorted((tmp_path / "collateral").iterdir())
    first.write_bytes(first.read_bytes()[:-1])
    second.rename(second.with_name("0" * 32 + ".collateral"))
    store.reload()
    assert len(store.damaged) == 2
    assert len(store.kept()) == len(pieces(intel)) - 2
    store.put(pieces(intel), now=NOW)
    assert len(store.kept()) == len(pieces(intel))


def test_a_folder_that_cannot_be_written(tmp_path: Path, intel: tdx_forge.Forge) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = CollateralStore(tmp_path / "file", pinned=pinned(intel))
    with pytest.raises(Unavailable) as refused:
        store.put(pieces(intel), now=NOW)
    assert refused.value.code == "collateral.unwritable"
    assert store.kept() == []


def test_an_import_by_another_process_is_noticed(
    store: CollateralStore, tmp_path: Path, intel: tdx_forge.Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister.broker.collateral_store._LOOK_SECONDS", 0.0)
    assert store.find("intel-root-crl", "root") is None
    CollateralStore(tmp_path / "collateral", pinned=pinned(intel)).put(pieces(intel), now=NOW)
    assert store.find("intel-root-crl", "root") is not None


def test_names_reach_no_path(store: CollateralStore, tmp_path: Path) -> None:
    item = Item("nvidia-crl", "../../etc/x", b"", NOW)
    with pytest.raises(CloisterError):
        store.put([Kept(item)], now=NOW)  # no list at all
    assert sorted(path.name for path in tmp_path.rglob("*")) == []
