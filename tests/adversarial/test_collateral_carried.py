"""A bundle carries more than pieces: an ETag and a question, which no vendor signs."""

from __future__ import annotations

import dataclasses
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.attestation.collateral import Item
from cloister.broker.collateral_facts import Pinned
from cloister.broker.collateral_store import CollateralStore, Kept, read_bundle, write_bundle
from cloister.broker.fetching import Fetcher, Refresher, Sources, request_of
from cloister.crypto import canonical_json
from tests.tdx_forge import DAY, NOW, Forge
from tests.vendor_double import Vendor, vendor

ROOT = ("intel-root-crl", "root")


@pytest.fixture(scope="module")
def intel() -> Forge:
    return Forge()


@pytest.fixture
def store(tmp_path: Path, intel: Forge) -> CollateralStore:
    return CollateralStore(tmp_path / "collateral", pinned=Pinned(intel={intel.root.fingerprint}))


@pytest.fixture
def service() -> Iterator[Vendor]:
    with vendor() as double:
        yield double


def carried(item: Item, etag: str = "", request: bytes = b"") -> bytes:
    """A bundle as somebody else writes it."""
    body = json.loads(write_bundle([Kept(item)]))
    body["items"][0] |= {"etag": etag, "request": b64encode(request).decode()}
    return canonical_json(body)


def refresher(store: CollateralStore, double: Vendor, now: int) -> Refresher:
    return Refresher(store, Fetcher(Sources(*[double.url] * 5), pause=lambda _: None), lambda: now, margin=7 * DAY)


def serve(double: Vendor, wanted: tuple[str, str], body: bytes, etag: str = "") -> str:
    path = request_of(wanted, Sources(*[double.url] * 5)).removeprefix(double.url)
    double.pages[path] = (200, {"ETag": etag} if etag else {}, body)
    return path


def test_an_old_list_beside_the_present_ones_etag(store: CollateralStore, service: Vendor, intel: Forge) -> None:
    """The vendor would say "nothing changed" of it for as long as it is asked so."""
    old = intel.root.crl(begins=NOW - 9 * DAY, ends=NOW + DAY)
    new = intel.root.crl(revoked=[77], begins=NOW - DAY, ends=NOW + 200 * DAY)
    path = serve(service, ROOT, new, '"v2"')
    store.put(read_bundle(carried(Item(*ROOT, old, NOW - 9 * DAY), etag='"v2"')), now=NOW)
    assert refresher(store, service, NOW).look() == 1
    assert service.asked == [(path, "")]
    found = store.find(*ROOT)
    assert found is not None
    assert found.data == new


def test_a_question_beside_a_piece_that_answers_none(store: CollateralStore, service: Vendor, intel: Forge) -> None:
    """It would be posted to the OCSP service for ever, and the piece never be renewed. Also one from an old cache."""
    new = intel.root.crl(begins=NOW - DAY, ends=NOW + DAY)
    newer = intel.root.crl(begins=NOW, ends=NOW + 200 * DAY)
    serve(service, ROOT, newer)
    store.put([Kept(Item(*ROOT, new, NOW), request=b"x")], now=NOW)
    store.put(read_bundle(carried(Item(*ROOT, new, NOW), request=b"x")), now=NOW)
    assert refresher(store, service, NOW).look() == 1
    assert service.posted == []
    found = store.find(*ROOT)
    assert found is not None
    assert found.data == newer


def test_nothing_but_pieces_goes_in_or_out(store: CollateralStore, intel: Forge) -> None:
    item = Item(*ROOT, intel.root.crl(), NOW)
    assert read_bundle(carried(item, etag='"a"', request=b"q")) == [Kept(item)]
    assert read_bundle(write_bundle([Kept(item, '"a"', b"q")])) == [Kept(item)]
    assert write_bundle([Kept(item, '"a"', b"q")]) == write_bundle([Kept(item)])


def test_an_import_takes_no_etag_away(store: CollateralStore, intel: Forge) -> None:
    """What this cache fetched itself keeps its ETag when the same piece comes again, and loses it for another."""
    item = Item(*ROOT, intel.root.crl(), NOW)
    store.put([Kept(item, '"mine"')], now=NOW)
    store.put(read_bundle(carried(item, etag='"theirs"')), now=NOW)
    assert [kept.etag for kept in store.kept()] == ['"mine"']
    newer = dataclasses.replace(item, data=intel.root.crl(begins=NOW))
    store.put(read_bundle(carried(newer, etag='"theirs"')), now=NOW)
    assert [kept.etag for kept in store.kept()] == [""]
