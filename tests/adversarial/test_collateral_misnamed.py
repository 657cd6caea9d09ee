"""A genuine piece under another one's name: the vendor signed it, and it would keep out the one that belongs there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cloister.attestation.collateral import CollateralSet, Item
from cloister.broker.collateral_facts import Examined, Pinned, examine
from cloister.broker.collateral_store import CollateralStore, Kept
from cloister.errors import Untrusted
from tests import nvidia_forge, snp_forge
from tests.tdx_forge import NOW, Forge


@pytest.fixture(scope="module")
def intel() -> Forge:
    return Forge()


@pytest.fixture(scope="module")
def amd() -> snp_forge.Forge:
    return snp_forge.Forge()


def code(found: Examined) -> str:
    """Why it is refused, whatever the time is; "" where it isn't."""
    if found.refusal is None:
        return ""
    assert not found.only_time
    assert not found.checked
    return found.refusal.code


def named(item: Item, name: str) -> Item:
    return dataclasses.replace(item, name=name)


def test_tcb_levels_of_another_processor(tmp_path: Path, intel: Forge) -> None:
    """Newer than what is here, so it would stay."""
    store = CollateralStore(tmp_path / "c", pinned=Pinned(intel={intel.root.fingerprint}))
    store.put([Kept(item) for item in intel.items()], now=NOW)
    genuine = store.find("intel-tcb", "30806f000000-tdx")
    assert genuine is not None
    other = intel.answer("tcbInfo", intel.tcb_info(fmspc="00AABBCCDDEE", tcbEvaluationDataNumber=20))
    with pytest.raises(Untrusted) as error:
        store.put([Kept(dataclasses.replace(genuine, data=other))], now=NOW)
    assert error.value.code == "collateral.other"
    assert store.find("intel-tcb", "30806f000000-tdx") == genuine


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("intel-tcb", "30806f000000-sgx"), ("intel-tcb", "30806F000000-tdx"), ("intel-tcb", "30806f000001-tdx"),
        ("intel-qe-identity", "sgx"), ("intel-qe-identity", "TD_QE"), ("intel-root-crl", "platform"),
        ("intel-pck-crl", "processor"), ("intel-pck-crl", "root"),
    ],
)  # fmt: skip
def test_intels_pieces(intel: Forge, kind: str, name: str) -> None:
    items = intel.collateral()
    (item,) = [item for item in items if item.kind == kind]
    pinned = Pinned(intel={intel.root.fingerprint})
    assert code(examine(item, items, now=NOW, pinned=pinned)) == ""
    assert code(examine(named(item, name), items, now=NOW, pinned=pinned)) == "collateral.other"


def test_intels_lists_in_each_others_place(intel: Forge) -> None:
    lists = {item.kind: item for item in intel.items() if item.kind.endswith("crl")}
    pinned = Pinned(intel={intel.root.fingerprint})
    for item, other in ((0, 1), (1, 0)):
        first, second = list(lists.values())[item], list(lists.values())[other]
        swapped = dataclasses.replace(first, data=second.data)
        assert code(examine(swapped, CollateralSet(), now=NOW, pinned=pinned)) == "collateral.other"


@pytest.mark.parametrize("kind", ["amd-chain", "amd-crl", "amd-vcek"])
def test_amds_pieces(amd: snp_forge.Forge, kind: str) -> None:
    items, pinned = amd.collateral(), Pinned(amd=amd.roots | {"genoa": amd.roots["milan"]})
    (item,) = [item for item in items if item.kind == kind]
    assert code(examine(item, items, now=snp_forge.NOW, pinned=pinned)) == ""
    if kind == "amd-vcek":
        chip, tcb = item.name.split("-")
        others = [f"{chip[:-2]}00-{tcb}", f"{chip}-{tcb[:-2]}ff", f"{chip.upper()}-{tcb}", chip]
    else:
        others = ["genoa", "milan-vlek"] if kind == "amd-chain" else ["genoa", "genoa-vlek"]
    for name in others:
        assert code(examine(named(item, name), items, now=snp_forge.NOW, pinned=pinned)) == "collateral.other", name


def test_manifests_of_another_version_or_chip() -> None:
    factory = nvidia_forge.Factory()
    pinned = Pinned(nvidia={factory.rim_root.root})
    driver, vbios, blackwell, *_ = factory.items()
    names = {
        driver: ["NV_GPU_DRIVER_GH100_550.90.08", "NV_GPU_CC_DRIVER_GB100_550.90.07", nvidia_forge.VBIOS_RIM],
        vbios: [nvidia_forge.DRIVER_RIM, "NV_GPU_VBIOS_1010_0200_882_96009F0002"],
        blackwell: [nvidia_forge.DRIVER_RIM],
    }
    for item, others in names.items():
        assert code(examine(item, CollateralSet(), now=nvidia_forge.NOW, pinned=pinned)) == ""
        for name in others:
            found = examine(named(item, name), CollateralSet(), now=nvidia_forge.NOW, pinned=pinned)
            assert code(found) == "collateral.other", name


def test_an_expired_manifest_that_was_changed() -> None:
    """Certificates are judged first; that they have run out must not hide that the signature does not hold."""
    factory = nvidia_forge.Factory()
    pinned = Pinned(nvidia={factory.rim_root.root})
    (item, *_), late = factory.items(), nvidia_forge.NOW + 5000 * nvidia_forge.DAY
    expired = examine(item, CollateralSet(), now=late, pinned=pinned)
    assert (expired.only_time, expired.checked) == (True, True)
    start = item.data.index(b"<ds:SignatureValue") if b"<ds:SignatureValue" in item.data else -1
    assert start > 0
    at = item.data.index(b">", start) + 5
    changed = item.data[:at] + (b"B" if item.data[at : at + 1] != b"B" else b"C") + item.data[at + 1 :]
    found = examine(dataclasses.replace(item, data=changed), CollateralSet(), now=late, pinned=pinned)
    assert code(found) == "xmldsig.signature"


def test_real_pieces_have_their_real_names(shared: Path) -> None:
    folder = shared / "vectors"
    rim = (folder / "nvidia" / "NV_GPU_DRIVER_GH100_550.144.03.xml").read_bytes()
    vbios = (folder / "nvidia" / "1010_0200_882_96005E0001_PROD.swidtag").read_bytes()
    chain = (folder / "snp" / "roots" / "ask_ark_milan.pem").read_bytes()
    now = 1_767_225_600  # 2026-01-01
    for kind, name, data in (
        ("nvidia-rim", "NV_GPU_DRIVER_GH100_550.144.03", rim),
        ("nvidia-rim", "NV_GPU_VBIOS_1010_0200_882_96005E0001", vbios),
        ("amd-chain", "milan", chain),
    ):
        found = examine(Item(kind, name, data, now), CollateralSet(), now=now)
        assert found.checked, found.refusal
        assert found.refusal is None or found.only_time
