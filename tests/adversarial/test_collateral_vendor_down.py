"""Vendors that are down, hang, lie or flood: no job stops whose collateral is still good, and no release waits."""

from __future__ import annotations

import json
import threading
import urllib.parse
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.attestation.collateral import Staleness
from cloister.attestation.tdx import verify_quote
from cloister.broker.collateral_facts import Pinned
from cloister.broker.collateral_store import CollateralStore, Kept
from cloister.broker.fetching import Fetcher, Refresher, Sources, request_of
from cloister.errors import Malformed, Misuse, Unavailable, Untrusted
from tests.patience import until
from tests.tdx_forge import DAY, NOW, Forge
from tests.vendor_double import Vendor, vendor

TCB = ("intel-tcb", "30806f000000-tdx")
WANTED = [TCB, ("intel-qe-identity", "tdx"), ("intel-pck-crl", "platform"), ("intel-root-crl", "root")]


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture(scope="module")
def intel() -> Forge:
    return Forge()


@pytest.fixture
def store(tmp_path: Path, intel: Forge) -> CollateralStore:
    return CollateralStore(tmp_path / "collateral", pinned=Pinned(intel={intel.root.fingerprint}))


@pytest.fixture
def service(intel: Forge) -> Iterator[Vendor]:
    with vendor() as double:
        serve(double, intel)
        yield double


def sources(double: Vendor) -> Sources:
    return Sources(*[double.url] * 5)


def serve(double: Vendor, intel: Forge, *, later: int = 0) -> None:
    """Intel's service at ``later`` seconds after now."""
    begins, ends = NOW + later - DAY, NOW + later + 29 * DAY
    from tests.tdx_forge import stamp

    times = {"issueDate": stamp(begins), "nextUpdate": stamp(ends)}
    chain = urllib.parse.quote(intel.signer.pem + intel.root.pem)
    authority = urllib.parse.quote(intel.authority.pem + intel.root.pem)
    etag = {"ETag": f'"{later}"'}
    tcb, identity = intel.tcb_info(**times), intel.qe_identity(**times)
    found = {
        TCB: ({"TCB-Info-Issuer-Chain": chain, **etag}, intel.answer("tcbInfo", tcb)),
        WANTED[1]: ({"SGX-Enclave-Identity-Issuer-Chain": chain, **etag}, intel.answer("enclaveIdentity", identity)),
        WANTED[2]: ({"SGX-PCK-CRL-Issuer-Chain": authority, **etag}, intel.authority.crl(begins=begins, ends=ends)),
        WANTED[3]: (etag, intel.root.crl(begins=begins, ends=ends)),
    }
    for wanted, (headers, body) in found.items():
        path = request_of(wanted, sources(double)).removeprefix(double.url)
        double.pages[path] = (200, headers, body)


def refresher(store: CollateralStore, double: Vendor, clock: Clock, *, seconds: float = 5.0) -> Refresher:
    fetcher = Fetcher(sources(double), seconds=seconds, pause=lambda _: None)
    return Refresher(store, fetcher, clock, always=WANTED, interval=3600.0)


def judge(store: CollateralStore, intel: Forge, now: int) -> str:
    found = verify_quote(intel.quote(), store, now=now, staleness=Staleness(), roots={intel.root.fingerprint})
    return str(found.facts["tcb_status"])


def test_a_vendor_that_dies_stops_nobody_whose_collateral_is_good(store: CollateralStore, intel: Forge) -> None:
    clock = Clock()
    with vendor() as double:
        serve(double, intel)
        assert refresher(store, double, clock).look() == 4
    clock.now = NOW + 25 * DAY
    dead = refresher(store, double, clock)
    assert len(dead.due()) == 4  # it would be time to ask
    assert dead.look() == 0
    assert len(dead.notes()) == 4
    assert judge(store, intel, clock.now) == "UpToDate"
    clock.now = NOW + 30 * DAY
    with pytest.raises(Untrusted) as late:
        judge(store, intel, clock.now)
    assert late.value.code == "collateral.stale"


def test_a_vendor_that_hangs_holds_nothing_up(store: CollateralStore, service: Vendor, intel: Forge) -> None:
    clock = Clock()
    refresher(store, service, clock).look()
    clock.now = NOW + 25 * DAY
    asked = len(service.asked)
    service.hang = threading.Event()
    hanging = refresher(store, service, clock, seconds=60.0)
    hanging.start()
    until("the vendor is asked", lambda: len(service.asked) > asked)
    # The thread waits for the vendor now; a decision asks the cache, and stopping waits for nobody.
    assert judge(store, intel, clock.now) == "UpToDate"
    hanging.stop()
    service.hang.set()


def test_a_vendor_that_sends_a_byte_at_a_time_is_hung_up_on(store: CollateralStore, service: Vendor) -> None:
    service.drip = True
    fetcher = Fetcher(sources(service), seconds=0.3, pause=lambda _: None)
    with pytest.raises(Unavailable) as slow:
        fetcher.fetch(TCB, now=NOW)
    assert slow.value.code == "fetch.unreachable"
    assert len(service.asked) == 3


def test_what_runs_out_soon_is_fetched_before_it_does(store: CollateralStore, service: Vendor, intel: Forge) -> None:
    clock = Clock()
    keeper = refresher(store, service, clock)
    keeper.look()
    asked = len(service.asked)
    clock.now = NOW + 20 * DAY
    assert keeper.look() == 0
    assert len(service.asked) == asked  # nothing is due yet
    clock.now = NOW + 23 * DAY
    serve(service, intel, later=22 * DAY)
    assert keeper.look() == 4
    clock.now = NOW + 40 * DAY
    assert judge(store, intel, clock.now) == "UpToDate"


def test_what_did_not_change_is_not_sent_again(store: CollateralStore, service: Vendor) -> None:
    clock = Clock()
    keeper = refresher(store, service, clock)
    keeper.look()
    clock.now = NOW + 25 * DAY
    assert keeper.look() == 4
    assert [etag for _, etag in service.asked[-4:]] == ['"0"'] * 4
    assert {piece.item.obtained for piece in store.kept()} == {clock.now}
    assert {piece.etag for piece in store.kept()} == {'"0"'}


def test_a_vendor_that_fails_is_asked_again_with_growing_pauses(service: Vendor) -> None:
    pauses: list[float] = []
    path = request_of(TCB, sources(service)).removeprefix(service.url)
    service.pages[path] = (503, {}, b"")
    with pytest.raises(Unavailable) as busy:
        Fetcher(sources(service), pause=pauses.append).fetch(TCB, now=NOW)
    assert busy.value.code == "fetch.busy"
    assert [1 <= pauses[0] <= 1.5, 2 <= pauses[1] <= 3, len(pauses)] == [True, True, 2]
    service.pages[path] = (404, {}, b"")
    with pytest.raises(Unavailable) as refused:
        Fetcher(sources(service), pause=pauses.append).fetch(TCB, now=NOW)
    assert refused.value.code == "fetch.refused"
    assert len(pauses) == 2


def test_a_lying_vendor_changes_nothing(store: CollateralStore, service: Vendor, intel: Forge) -> None:
    """TLS would not help here either: it is the signature inside that counts."""
    clock = Clock()
    refresher(store, service, clock).look()
    before = store.kept()
    serve(service, Forge(), later=22 * DAY)
    clock.now = NOW + 23 * DAY
    liar = refresher(store, service, clock)
    assert liar.look() == 0
    assert len(liar.notes()) == 4
    assert store.kept() == before
    assert judge(store, intel, clock.now) == "UpToDate"


def test_a_flood_is_cut_off(service: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.broker.fetching.MAX_ITEM", 1000)
    path = request_of(TCB, sources(service)).removeprefix(service.url)
    service.pages[path] = (200, {}, b"x" * 5000)
    with pytest.raises(Malformed) as size:
        Fetcher(sources(service)).fetch(TCB, now=NOW)
    assert size.value.code == "fetch.size"


def test_another_manifest_than_the_one_asked_for(service: Vendor) -> None:
    body = json.dumps({"id": "NV_OTHER", "rim": b64encode(b"<x/>").decode()}).encode()
    service.pages["/v1/rim/NV_GPU_DRIVER_GH100_1"] = (200, {}, body)
    with pytest.raises(Malformed) as other:
        Fetcher(sources(service)).fetch(("nvidia-rim", "NV_GPU_DRIVER_GH100_1"), now=NOW)
    assert other.value.code == "fetch.other"


@pytest.mark.parametrize(
    "wanted",
    [
        ("intel-tcb", "30806f000000-tdx&x=1"), ("intel-tcb", "../x"), ("nvidia-rim", "a/../b"), ("amd-chain", "rome"),
        ("nvidia-rim", "a?b"), ("nvidia-crl", "00"), ("intel-qe-identity", "x"), ("amd-vcek", "00-00"),
    ],
)  # fmt: skip
def test_names_from_unverified_evidence_reach_no_other_address(wanted: tuple[str, str]) -> None:
    with pytest.raises(Misuse) as unknown:
        request_of(wanted, Sources(), product="milan")
    assert unknown.value.code == "fetch.unknown"


@pytest.mark.parametrize("url", ["http://vendor.example", "ftp://127.0.0.1", "https://", "https://a?b", ""])
def test_sources_are_asked_in_the_clear_on_this_machine_only(url: str) -> None:
    with pytest.raises(Misuse):
        Sources(amd_kds=url)


def test_nothing_is_fetched_by_itself(store: CollateralStore, service: Vendor) -> None:
    """A cache alone asks nobody; only a refresher that somebody started does."""
    assert store.find(*TCB) is None
    assert service.asked == []


def test_every_wanted_piece_has_its_published_address() -> None:
    chip, tcb = "ab" * 64, "d315000000000004"
    given = {
        ("amd-chain", "milan"): "https://kdsintf.amd.com/vcek/v1/Milan/cert_chain",
        ("amd-chain", "genoa-vlek"): "https://kdsintf.amd.com/vlek/v1/Genoa/cert_chain",
        ("amd-crl", "turin"): "https://kdsintf.amd.com/vcek/v1/Turin/crl",
        ("amd-vcek", f"{chip}-{tcb}"): (
            f"https://kdsintf.amd.com/vcek/v1/Milan/{chip}?blSPL=04&teeSPL=00&snpSPL=21&ucodeSPL=211"
        ),
        TCB: "https://api.trustedservices.intel.com/tdx/certification/v4/tcb?fmspc=30806f000000",
        ("intel-root-crl", "root"): "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der",
        ("nvidia-rim", "NV_X"): "https://rim.attestation.nvidia.com/v1/rim/NV_X",
    }
    assert {wanted: request_of(wanted, Sources(), product="milan") for wanted in given} == given


def test_a_chips_certificate_is_found_whatever_its_product(service: Vendor, tmp_path: Path) -> None:
    """A VCEK's name does not say of which processor it is: each is asked for in turn."""
    from tests import snp_forge

    forge = snp_forge.Forge("genoa")
    store = CollateralStore(tmp_path / "amd", pinned=Pinned(amd=forge.roots))
    theirs = forge.collateral()
    wanted = next((item.kind, item.name) for item in theirs if item.kind == "amd-vcek")
    (item,) = [item for item in theirs if item.kind == "amd-vcek"]
    path = request_of(wanted, sources(service), product="genoa").removeprefix(service.url)
    service.pages[path] = (200, {}, item.data)
    clock = Clock()
    clock.now = snp_forge.NOW
    assert store.find(*wanted) is None  # a verifier asked in vain
    keeper = Refresher(store, Fetcher(sources(service), pause=lambda _: None), clock)
    assert keeper.look() == 1
    assert store.find(*wanted) is not None
    assert Kept(item).item.data == item.data
    assert [asked.split("/")[3] for asked, _ in service.asked] == ["Milan", "Genoa"]


def test_a_revocation_service_is_asked_again_with_the_same_question(store: CollateralStore, service: Vendor) -> None:
    """Its answers run out within days, and the question needs certificates that a cache does not have."""
    from tests import nvidia_forge

    factory = nvidia_forge.Factory()
    gpu = factory.gpu()
    answers = factory.answers(gpu)
    clock = Clock()
    clock.now = nvidia_forge.NOW
    wanted = (answers[0].kind, answers[0].name)
    service.pages["/"] = (200, {}, answers[0].data)
    fetcher = Fetcher(sources(service), pause=lambda _: None)
    store.put([fetcher.ask(wanted, b"question", now=clock.now)], now=clock.now)
    assert service.posted == [b"question"]
    clock.now += 30 * DAY
    keeper = Refresher(store, fetcher, clock)
    assert keeper.due() == [wanted]
    assert keeper.look() == 1
    assert service.posted == [b"question"] * 2
    service.pages["/"] = (200, {}, b"rubbish")
    assert keeper.look() == 0
    assert len(keeper.notes()) == 1
    found = store.find(*wanted)
    assert found is not None
    assert found.data == answers[0].data
