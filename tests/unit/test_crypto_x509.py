"""Vendors' certificate chains: what is refused, each by its reason, and a good one accepted at its time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto import pem
from cloister.crypto.der import BITS, SEQUENCE, encode, read_der
from cloister.crypto.x509 import (
    Certificate,
    check_usage,
    fingerprints,
    read_certificate,
    read_certificates,
    read_crl,
    verify_chain,
    verify_crl,
)
from cloister.errors import CloisterError, Malformed, Untrusted
from tests.pki import DAY, NOW, Entity, extension, issue, p256, p384


@dataclass
class World:
    root: Entity
    middle: Entity
    leaf: Entity

    def chain(self) -> list[Certificate]:
        return [self.leaf.parsed, self.middle.parsed, self.root.parsed]


def world(**leaf: object) -> World:
    root = issue("root", p384(), ca=True)
    middle = issue("middle", p384(), root, ca=True, path_length=0)
    return World(root, middle, issue("leaf", p256(), middle, **leaf))  # type: ignore[arg-type]


GOOD = world()


def check(w: World, **how: object) -> None:
    verify_chain(w.chain(), **{"roots": {w.root.root}, "now": NOW, **how})  # type: ignore[arg-type]


def refused(code: str, act: Callable[[], object], kind: type[CloisterError] = Untrusted) -> None:
    with pytest.raises(kind) as caught:
        act()
    assert caught.value.code == code, caught.value


def test_a_good_chain_in_its_time() -> None:
    check(GOOD)
    check(GOOD, crls=[read_crl(GOOD.middle.crl()), read_crl(GOOD.root.crl())], require_crls=True)
    leaf = GOOD.leaf.parsed
    assert leaf.subject_attributes == {"CN": "leaf", "O": "Test"}
    assert "spki" not in repr(leaf)


def test_another_root() -> None:
    refused("x509.root", lambda: check(GOOD, roots={world().root.root}))
    # The same name and a chain that holds in itself: only the key counts.
    impostor = world()
    refused("x509.root", lambda: check(impostor, roots={GOOD.root.root}))


def test_a_root_that_someone_else_signed() -> None:
    other = issue("root", p384(), ca=True)
    mixed = World(other, GOOD.middle, GOOD.leaf)
    refused("x509.signature", lambda: check(mixed))


@pytest.mark.parametrize(("now", "code"), [(NOW - 31 * DAY, "x509.not-yet"), (NOW + 3651 * DAY, "x509.expired")])
def test_out_of_time(now: int, code: str) -> None:
    refused(code, lambda: check(GOOD, now=now))


def test_every_link_has_its_own_time() -> None:
    middle = issue("middle", p384(), GOOD.root, ca=True, end=NOW - 1)
    w = World(GOOD.root, middle, issue("leaf", p256(), middle))
    refused("x509.expired", lambda: check(w))


def test_a_leaf_that_issues() -> None:
    leaf = issue("leaf", p256(), GOOD.root)
    chain = [issue("below", p256(), leaf).parsed, leaf.parsed, GOOD.root.parsed]
    refused("x509.ca", lambda: verify_chain(chain, roots={GOOD.root.root}, now=NOW))


def test_an_authority_as_leaf() -> None:
    refused("x509.ca", lambda: verify_chain(GOOD.chain()[1:], roots={GOOD.root.root}, now=NOW))


def test_path_length() -> None:
    second = issue("second", p384(), GOOD.middle, ca=True)
    leaf = issue("leaf", p256(), second)
    chain = [leaf.parsed, second.parsed, GOOD.middle.parsed, GOOD.root.parsed]
    refused("x509.path-length", lambda: verify_chain(chain, roots={GOOD.root.root}, now=NOW))


def test_a_wrong_order_and_a_gap() -> None:
    leaf, middle, root = GOOD.chain()
    refused("x509.issuer", lambda: verify_chain([leaf, root], roots={GOOD.root.root}, now=NOW))
    refused("x509.issuer", lambda: verify_chain([middle, leaf, root], roots={GOOD.root.root}, now=NOW))
    refused("x509.count", lambda: verify_chain([], roots={GOOD.root.root}, now=NOW), Malformed)


def test_critical_extensions_must_be_understood() -> None:
    oid = "1.3.6.1.4.1.99999.1"
    w = world(extensions=[extension(oid, b"\x05\x00", critical=True)])
    refused("x509.critical", lambda: check(w))
    check(w, critical={oid})
    assert w.leaf.parsed.extension(oid) == b"\x05\x00"
    assert w.leaf.parsed.extension("1.2.3") is None


def test_weak_signatures() -> None:
    weak = issue("root", rsa.generate_private_key(65537, 1024), ca=True, hash_=hashes.SHA256())
    leaf = issue("leaf", p256(), weak, hash_=hashes.SHA256())
    chain = [leaf.parsed, weak.parsed]
    refused("x509.signature", lambda: verify_chain(chain, roots={weak.root}, now=NOW))
    odd = issue("leaf", p256(), GOOD.middle, hash_=hashes.SHA3_256())
    refused("x509.signature", lambda: check(World(GOOD.root, GOOD.middle, odd)))


RSA = rsa.generate_private_key(65537, 2048)


def test_the_algorithm_beside_the_signature_is_the_signed_one() -> None:
    """Nobody signs it. sha256WithRSAEncryption holds with and without its NULL, so a certificate had two texts."""
    written, shorter = bytes.fromhex("300d06092a864886f70d01010b0500"), bytes.fromhex("300b06092a864886f70d01010b")
    root = issue("root", RSA, ca=True, hash_=hashes.SHA256())
    for read, der in ((read_certificate, root.der), (read_crl, root.crl(1, 2))):
        assert der.count(written) == 2
        head, signed, tail = der[:4], *der[4:].rsplit(written, 1)
        other = head[:2] + (len(der) - 6).to_bytes(2, "big") + signed + shorter + tail
        assert read(der).der == der
        refused("x509.form", lambda read=read, other=other: read(other), Malformed)  # type: ignore[misc]


def test_the_other_text_of_a_certificate_is_known() -> None:
    leaf, middle, root = GOOD.chain()
    r, s = decode_dss_signature(GOOD.leaf.cert.signature)
    parts = read_der(leaf.der, "certificate", code="test.form").children(count=3)
    twice = b"\0" + encode_dss_signature(r, ec.SECP384R1().group_order - s)
    twin = read_certificate(encode(SEQUENCE, parts[0].encode() + parts[1].encode() + encode(BITS, twice)))
    verify_chain([twin, middle, root], roots={GOOD.root.root}, now=NOW)
    assert fingerprints(leaf, middle) == (leaf.fingerprint, twin.fingerprint)
    assert fingerprints(twin, middle) == (twin.fingerprint, leaf.fingerprint)
    by_rsa = issue("root", RSA, ca=True, hash_=hashes.SHA256()).parsed
    assert fingerprints(by_rsa, by_rsa) == (by_rsa.fingerprint,)


def test_the_curve_of_a_key() -> None:
    assert [c.curve for c in GOOD.chain()] == ["P-256", "P-384", "P-384"]
    for key in (RSA, ec.generate_private_key(ec.SECP256K1())):
        assert issue("other", key, GOOD.root).parsed.curve == ""


def test_usage_that_must_be_stated() -> None:
    leaf, middle, _ = GOOD.chain()
    check_usage(leaf, "digital_signature", "x.usage", "It may not.")
    check_usage(middle, "crl_sign", "x.usage", "It may not.", stated=True)
    refused("x.usage", lambda: check_usage(leaf, "digital_signature", "x.usage", "It may not.", stated=True))
    refused("x.usage", lambda: check_usage(middle, "digital_signature", "x.usage", "It may not."))


def test_rsa_pss() -> None:
    root = issue("root", rsa.generate_private_key(65537, 2048), ca=True, pss=True)
    leaf = issue("leaf", p256(), root, pss=True)
    verify_chain([leaf.parsed, root.parsed], roots={root.root}, now=NOW)


def test_revocation() -> None:
    middle, root = GOOD.middle, GOOD.root
    fresh = [read_crl(middle.crl()), read_crl(root.crl())]
    revoked = [read_crl(middle.crl(GOOD.leaf.cert.serial_number)), fresh[1]]
    refused("x509.revoked", lambda: check(GOOD, crls=revoked))
    above = [fresh[0], read_crl(root.crl(middle.cert.serial_number))]
    refused("x509.revoked", lambda: check(GOOD, crls=above))
    refused("crl.missing", lambda: check(GOOD, crls=fresh[:1], require_crls=True))
    refused("crl.stale", lambda: check(GOOD, crls=[read_crl(middle.crl(end=NOW))]))
    refused("crl.future", lambda: check(GOOD, crls=[read_crl(middle.crl(start=NOW + 1))]))
    forged = issue("middle", p384(), root, ca=True)
    refused("crl.signature", lambda: check(GOOD, crls=[read_crl(forged.crl())]))
    refused("crl.issuer", lambda: verify_crl(fresh[0], root.parsed, now=NOW))


def test_partial_revocation_lists_are_not_taken_for_whole_ones() -> None:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(GOOD.middle.cert.subject)
        .last_update(GOOD.middle.cert.not_valid_before_utc)
        .next_update(GOOD.middle.cert.not_valid_after_utc)
        .add_extension(x509.DeltaCRLIndicator(1), critical=True)
    )
    from cryptography.hazmat.primitives.serialization import Encoding

    delta = builder.sign(GOOD.middle.key, hashes.SHA384()).public_bytes(Encoding.DER)
    refused("crl.form", lambda: read_crl(delta), Malformed)


def crl_with(extension: x509.ExtensionType, *, critical: bool) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(GOOD.middle.cert.subject)
        .last_update(GOOD.middle.cert.not_valid_before_utc)
        .next_update(GOOD.middle.cert.not_valid_after_utc)
        .add_extension(extension, critical=critical)
    )
    return builder.sign(GOOD.middle.key, hashes.SHA384()).public_bytes(Encoding.DER)


def point(**how: object) -> x509.IssuingDistributionPoint:
    plain: dict[str, object] = {
        "full_name": [x509.UniformResourceIdentifier("http://crl.example")],
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
    }
    return x509.IssuingDistributionPoint(**{**plain, **how})  # type: ignore[arg-type]


def test_a_list_of_a_part_is_refused_critical_or_not() -> None:
    verify_crl(read_crl(crl_with(point(), critical=True)), GOOD.middle.parsed, now=NOW)
    parts = [{"only_contains_user_certs": True}, {"only_contains_ca_certs": True}, {"indirect_crl": True}]
    for how in parts:
        refused("crl.form", lambda how=how: read_crl(crl_with(point(**how), critical=False)), Malformed)  # type: ignore[misc]
    refused("crl.form", lambda: read_crl(crl_with(x509.DeltaCRLIndicator(1), critical=False)), Malformed)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    refused("crl.form", lambda: read_crl(crl_with(unknown, critical=True)), Malformed)
    assert read_crl(crl_with(unknown, critical=False))


def test_a_list_may_be_long_by_what_it_revokes_only() -> None:
    many = read_crl(GOOD.middle.crl(*range(1, 2000)))
    assert many.revoked(1999)
    assert not many.revoked(2000)
    long = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x04\x82\x40\x00" + bytes(0x4000))
    refused("x509.size", lambda: read_crl(crl_with(long, critical=False)), Malformed)


def test_pem() -> None:
    bundle = GOOD.middle.pem + b"\n" + GOOD.root.pem
    assert [c.der for c in read_certificates(bundle)] == [GOOD.middle.der, GOOD.root.der]
    assert read_certificate(GOOD.leaf.pem).der == GOOD.leaf.der
    refused("x509.count", lambda: read_certificate(bundle), Malformed)
    refused("x509.pem", lambda: read_certificates(b"note\n" + bundle), Malformed)
    refused("x509.pem", lambda: read_certificates(bundle[:-30]), Malformed)
    assert pem.one(b"-----BEGIN X-----\nAA==\n-----END X-----\n", b"X", 99) == b"\0"
    refused("x509.pem", lambda: pem.one(b"-----BEGIN X-----\nAB==\n-----END X-----\n", b"X", 99), Malformed)
    refused("x509.count", lambda: read_certificates(bundle, limit=1), Malformed)
    refused("x509.count", lambda: read_certificates(b""), Malformed)
    refused("x509.size", lambda: read_certificate(b"\x30" * 40_000), Malformed)
    refused("x509.form", lambda: read_certificate(GOOD.leaf.der + b"\0"), Malformed)


def test_what_the_library_stumbles_over() -> None:
    """Each of these made it raise something of its own, or warn, or pass."""
    der = bytearray(GOOD.leaf.der)
    version = der.index(bytes.fromhex("a003020102")) + 4
    der[version] = 3
    refused("x509.form", lambda: read_certificate(bytes(der)), Malformed)
    x400 = world(extensions=[extension("2.5.29.17", bytes.fromhex("3004a3020500"))])
    refused("x509.form", lambda: x400.leaf.parsed, Malformed)
    features = world(extensions=[extension("1.3.6.1.5.5.7.1.24", bytes.fromhex("3003020101"))])
    refused("x509.form", lambda: features.leaf.parsed, Malformed)
    # RSASSA-PSS without parameters, in place of ecdsa-with-SHA384.
    ecdsa, pss = bytes.fromhex("06082a8648ce3d040303"), bytes.fromhex("06092a864886f70d01010a")
    assert len(pss) == len(ecdsa) + 1
    text = GOOD.middle.crl(*range(1, 30))
    assert text.count(ecdsa) == 2
    changed = read_crl(_longer(text, ecdsa, pss))
    refused("crl.signature", lambda: verify_crl(changed, GOOD.middle.parsed, now=NOW))
    # ECDSA's signature has no unused bits; where its last one is zero, the library would take a count of 1 as well.
    for _ in range(200):
        w = world()
        bits = bytearray(w.leaf.der)
        at = len(bits) - len(w.leaf.cert.signature) - 1
        assert bits[at] == 0
        if bits[-1] & 1 == 0:
            bits[at] = 1
            refused("x509.form", lambda bits=bits: read_certificate(bytes(bits)), Malformed)  # type: ignore[misc]
            return
    pytest.fail("no signature ended in a zero bit")


def _longer(der: bytes, old: bytes, new: bytes) -> bytes:
    """``der``, a CertificateList, with both of its algorithms replaced by one that is a byte longer."""
    assert der[:2] == b"\x30\x82"
    assert der[4:6] in (b"\x30\x81", b"\x30\x82")
    wide = 2 if der[5] == 0x82 else 1
    tbs = int.from_bytes(der[6 : 6 + wide], "big") + 1
    whole = int.from_bytes(der[2:4], "big") + 2
    body = der[6 + wide :].replace(b"\x30\x0a" + old, b"\x30\x0b" + new)
    return b"\x30\x82" + whole.to_bytes(2, "big") + der[4:6] + tbs.to_bytes(wide, "big") + body


@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    for read in (read_certificate, read_certificates, read_crl):
        with pytest.raises(Malformed):
            read(data)


@given(st.data())
def test_no_changed_certificate_passes(data: st.DataObject) -> None:
    der = bytearray(GOOD.leaf.der)
    der[data.draw(st.integers(0, len(der) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((Malformed, Untrusted)):
        verify_chain([read_certificate(bytes(der)), *GOOD.chain()[1:]], roots={GOOD.root.root}, now=NOW)
