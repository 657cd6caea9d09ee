"""Whoever brings collateral has made an authority of his own, and puts the vendor's real root beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attestation.collateral import CollateralSet, Item
from cloister.attestation.nvidia import revocation_requests
from cloister.broker.collateral_facts import Pinned, examine
from cloister.broker.collateral_store import CollateralStore, Kept
from cloister.broker.fetching import Sources
from cloister.client import collateral as client
from cloister.crypto.x509 import Certificate
from cloister.errors import CloisterError, Untrusted
from tests import nvidia_forge, pki, snp_forge, tdx_forge
from tests.tdx_forge import DAY, NOW, PLATFORM, PROCESSOR, Certified
from tests.vendor_double import vendor


@pytest.fixture(scope="module")
def intel() -> tdx_forge.Forge:
    return tdx_forge.Forge()


@pytest.fixture(scope="module")
def factory() -> nvidia_forge.Factory:
    return nvidia_forge.Factory()


@pytest.fixture
def store(tmp_path: Path, intel: tdx_forge.Forge) -> CollateralStore:
    made = CollateralStore(tmp_path / "collateral", pinned=Pinned(intel={intel.root.fingerprint}))
    chain = intel.authority.pem + intel.root.pem
    made.put([Kept(item) for item in intel.items(pck_crl_chain=chain)], now=NOW)
    return made


def refused(store: CollateralStore, item: Item, now: int = NOW) -> str:
    """The code; and that nothing changed."""
    before = store.kept()
    with pytest.raises(CloisterError) as error:
        store.put([Kept(item)], now=now)
    store.reload()
    assert store.kept() == before
    return error.value.code


def crl(data: bytes, chain: bytes, name: str = "platform") -> Item:
    return Item("intel-pck-crl", name, data, NOW, chain)


def test_a_list_by_a_self_made_authority_under_the_real_root(store: CollateralStore, intel: tdx_forge.Forge) -> None:
    fake = Certified(PLATFORM)
    forged = crl(fake.crl(begins=NOW - 60), fake.pem + intel.root.pem)
    found = examine(forged, store.snapshot(), now=NOW, pinned=store.pinned)
    assert not found.checked
    assert found.refusal is not None
    assert not found.only_time
    assert refused(store, forged) == "x509.issuer"
    # The issuer's name alone makes no difference: the root never signed it.
    named = Certified(PLATFORM, SimpleNamespace(key=tdx_forge.new_key(), name=intel.root.name))  # type: ignore[arg-type]
    assert refused(store, crl(named.crl(begins=NOW - 60), named.pem + intel.root.pem)) == "x509.signature"
    genuine = crl(intel.authority.crl(begins=NOW - 60), intel.authority.pem + intel.root.pem)
    assert store.put([Kept(genuine)], now=NOW)


def test_a_list_by_a_certificate_that_is_no_authority(store: CollateralStore, intel: tdx_forge.Forge) -> None:
    """The root issued it, but not to sign for others: a signer of documents, with an authority's name."""
    leaf = Certified(PLATFORM, intel.root, authority=False)
    assert refused(store, crl(leaf.crl(begins=NOW), leaf.pem + intel.root.pem)) == "x509.ca"


def test_a_root_with_the_pinned_key_and_another_name(store: CollateralStore, intel: tdx_forge.Forge) -> None:
    """Its key is known to everybody; that it signs itself keeps its name and dates from being made up."""
    other = Certified("x")
    other.certificate = _made_up(intel.root)
    fake = Certified(PLATFORM, intel.root)
    assert refused(store, crl(fake.crl(begins=NOW), fake.pem + other.pem)) == "x509.signature"


def _made_up(root: Certified) -> x509.Certificate:
    builder = x509.CertificateBuilder().subject_name(root.name).issuer_name(root.name).serial_number(7)
    builder = builder.public_key(root.key.public_key())
    builder = builder.not_valid_before(tdx_forge.when(NOW - DAY)).not_valid_after(tdx_forge.when(NOW + 9000 * DAY))
    return builder.sign(tdx_forge.new_key(), tdx_forge.hashes.SHA256())


def test_a_forged_piece_does_not_hide_behind_expired_certificates(intel: tdx_forge.Forge, tmp_path: Path) -> None:
    """Time is told apart from the signature, so an old authority is verified as of when it was good."""
    store = CollateralStore(tmp_path / "empty", pinned=Pinned(intel={intel.root.fingerprint}))
    old = Certified(PLATFORM, begins=NOW - 900 * DAY, ends=NOW - 800 * DAY)
    forged = crl(old.crl(begins=NOW - 850 * DAY, ends=NOW - 820 * DAY), old.pem + intel.root.pem)
    assert refused(store, forged) == "x509.issuer"
    never = Certified(PLATFORM, intel.root, begins=NOW + 2000 * DAY, ends=NOW + 3000 * DAY)
    assert refused(store, crl(never.crl(), never.pem + intel.root.pem)) == "collateral.never"
    times = {"issueDate": tdx_forge.stamp(NOW - 3000 * DAY), "nextUpdate": tdx_forge.stamp(NOW - 2000 * DAY)}
    body = intel.answer("tcbInfo", intel.tcb_info(**times), tdx_forge.new_key())
    (document,) = [item for item in intel.items(tcb_info=body) if item.kind == "intel-tcb"]
    assert refused(store, document) == "collateral.never"


def test_an_amd_chain_with_a_self_made_intermediate(tmp_path: Path) -> None:
    forge = snp_forge.Forge()
    store = CollateralStore(tmp_path / "amd", pinned=Pinned(amd=forge.roots))
    store.put([Kept(item) for item in forge.collateral()], now=snp_forge.NOW)
    evil = snp_forge.rsa_key("evil")
    own = forge.authority("SEV-Milan", "SEV-Milan", evil, evil, serial=9, path=0)
    named = forge.authority("SEV-Milan", "ARK-Milan", evil, evil, serial=9, path=0)
    for intermediate, code in ((own, "x509.issuer"), (named, "x509.signature")):
        forged = Item("amd-chain", "milan", pem(intermediate, forge.root()), snp_forge.NOW)
        assert not examine(forged, store.snapshot(), now=snp_forge.NOW, pinned=store.pinned).checked
        assert refused(store, forged, snp_forge.NOW) == code


def pem(*chain: Certificate) -> bytes:
    return b"".join(x509.load_der_x509_certificate(c.der).public_bytes(Encoding.PEM) for c in chain)


def test_a_piece_from_the_future_keeps_no_genuine_one_out(store: CollateralStore, intel: tdx_forge.Forge) -> None:
    """Also a vendor's own, where a clock is wrong: it would stand until its own date."""
    chain = intel.authority.pem + intel.root.pem
    later = crl(intel.authority.crl(begins=NOW + DAY, ends=NOW + 30 * DAY), chain)
    assert refused(store, later) == "collateral.future"
    soon = crl(intel.authority.crl(begins=NOW + 3600, ends=NOW + 30 * DAY), chain)
    assert store.put([Kept(soon)], now=NOW)  # a clock that is behind by an hour


def test_nothing_unverified_keeps_out_what_can_be_verified(tmp_path: Path, intel: tdx_forge.Forge) -> None:
    store = CollateralStore(tmp_path / "other", pinned=Pinned(intel={intel.root.fingerprint}))
    anybodys = crl(Certified(PLATFORM).crl(begins=NOW), b"")
    store.put([Kept(anybodys)], now=NOW)
    genuine = crl(intel.authority.crl(begins=NOW - 9 * DAY), intel.authority.pem + intel.root.pem)
    store.put([Kept(genuine)], now=NOW)
    assert store.find("intel-pck-crl", "platform") == genuine


def test_a_piece_does_not_lose_its_chain(store: CollateralStore, intel: tdx_forge.Forge) -> None:
    """The same list without its chain, and then a forged one that nobody can check."""
    before = store.find("intel-pck-crl", "platform")
    assert before is not None
    store.put([Kept(dataclasses.replace(before, chain=b""))], now=NOW)
    assert store.find("intel-pck-crl", "platform") == before
    assert refused(store, crl(Certified(PLATFORM).crl(begins=NOW), b"")) == "collateral.unchecked"


def test_the_processor_authoritys_list_is_not_the_platforms(store: CollateralStore, intel: tdx_forge.Forge) -> None:
    other = Certified(PROCESSOR, intel.root)
    data, chain = other.crl(begins=NOW), other.pem + intel.root.pem
    assert refused(store, crl(data, chain)) == "collateral.other"
    assert refused(store, crl(data, chain, "quarks")) == "collateral.other"
    assert store.put([Kept(crl(data, chain, "processor"))], now=NOW)


def test_a_forged_answer_about_a_gpu_displaces_nothing_once_its_chain_is_known(
    tmp_path: Path, factory: nvidia_forge.Factory
) -> None:
    """An OCSP response is anybody's without the certificate that it is about: fetching keeps that beside it."""
    gpu, now = factory.gpu(), pki.NOW
    pinned = Pinned(gpus={factory.root.root})
    store = CollateralStore(tmp_path / "gpu", pinned=pinned)
    chains = [b"".join(entity.pem for entity in gpu.chain[at:]) for at in (1, 2, 3)]
    answers = [dataclasses.replace(item, chain=chains[at]) for at, item in enumerate(factory.answers(gpu))]
    store.put([Kept(item, request=b"q") for item in answers], now=now)
    assert all(examine(item, CollateralSet(), now=now, pinned=pinned).checked for item in answers)
    late = examine(answers[0], CollateralSet(), now=now + 9 * DAY, pinned=pinned)
    assert (late.checked, late.only_time) == (True, True)
    brom, provisioner = gpu.chain[1:3]
    evil = pki.issue("Provisioner", pki.p384(), ca=True)
    forged = pki.answer(brom, provisioner, pki.responder(evil), start=now - 30)
    name = brom.parsed.fingerprint
    for chain in (b"", brom.pem + evil.pem, chains[0]):
        assert refused(store, Item("nvidia-ocsp", name, forged, now, chain), now).startswith(("x509.", "ocsp."))
    assert refused(store, Item("nvidia-ocsp", name, answers[1].data, now, chains[1]), now) == "collateral.other"
    future = pki.answer(brom, provisioner, start=now + 3000 * DAY, end=now + 3001 * DAY)
    assert refused(store, Item("nvidia-ocsp", name, future, now), now).startswith(("collateral.", "ocsp."))
    newer = Item("nvidia-ocsp", name, pki.answer(brom, provisioner, pki.responder(provisioner), start=now), now)
    (taken,) = store.put([Kept(newer)], now=now)
    assert (taken.item.chain, taken.request) == (chains[0], b"q")
    assert refused(store, answers[0], now) == "collateral.older"


def test_what_is_fetched_about_a_gpu_comes_with_its_chain(
    tmp_path: Path, factory: nvidia_forge.Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, roots = factory.gpu(), {factory.root.root}

    def about_the_chip(chain: bytes, *, now: int) -> dict[str, bytes]:
        """One question only: the double has one page for all."""
        found = revocation_requests(chain, now=now, roots=roots)
        return dict(list(found.items())[:1])

    monkeypatch.setattr(client, "revocation_requests", about_the_chip)
    pinned = Pinned(gpus=roots)
    monkeypatch.setattr(client, "CollateralStore", lambda folder: CollateralStore(folder, pinned=pinned))
    with vendor() as double:
        sources = Sources(*[double.url] * 5)
        double.pages["/"] = (200, {}, factory.answers(gpu)[0].data)
        (piece,) = client.fetch_gpu_answers(tmp_path / "c", gpu.pem, sources, now=pki.NOW)
        assert (piece.name, piece.checked, piece.reason) == (gpu.chain[1].parsed.fingerprint, True, "")
        double.pages["/"] = (200, {}, factory.answers(gpu)[1].data)  # about the provisioner
        with pytest.raises(Untrusted) as error:
            client.fetch_gpu_answers(tmp_path / "c", gpu.pem, sources, now=pki.NOW)
        assert error.value.code == "ocsp.certificate"
