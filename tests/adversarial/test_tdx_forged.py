"""Quotes that nobody but the attacker signed, and chains with Intel's names that Intel's root did not make."""

import pytest

from cloister.attestation.tdx import ROOTS, authenticate_quote, verify_quote
from cloister.errors import Malformed, Untrusted
from tests.tdx_forge import (
    DAY,
    NOW,
    PCK,
    PLATFORM,
    PROCESSOR,
    ROOT,
    SIGNER,
    Certified,
    Forge,
    new_key,
    raw_public,
    sgx_extension,
)

FORGE, OTHER = Forge(), Forge()
GOOD = FORGE.quote()


def refused(data, code, *, now=NOW, roots=FORGE.roots, error=Untrusted):
    with pytest.raises(error) as caught:
        authenticate_quote(data, now=now, roots=roots)
    assert caught.value.code == code
    assert caught.value.message.endswith(".")


def leaf(issuer, common=PCK, **changed):
    return Certified(common, issuer, authority=False, extension=sgx_extension(), **changed)


def test_the_good_quote_passes():
    assert authenticate_quote(GOOD, now=NOW, roots=FORGE.roots).platform.authority == "platform"


def test_a_self_signed_chain_with_intels_names():
    refused(GOOD, "x509.root", roots=ROOTS)
    refused(OTHER.quote(), "x509.root")


def test_intels_root_above_a_chain_that_it_did_not_sign():
    chain = OTHER.pck.pem + OTHER.authority.pem + FORGE.root.pem
    refused(OTHER.quote(chain=chain), "x509.signature")
    refused(FORGE.quote(chain=OTHER.pck.pem + FORGE.authority.pem + FORGE.root.pem), "x509.signature")


def test_a_root_with_intels_name_and_another_key():
    refused(FORGE.quote(chain=FORGE.pck.pem + FORGE.authority.pem + Certified(ROOT).pem), "x509.root")


def test_a_certificate_that_the_root_issued_for_something_else():
    for common in (SIGNER, ROOT, "Intel SGX PCK Platform CA 2"):
        authority = Certified(common, FORGE.root)
        pck = leaf(authority)
        chain = pck.pem + authority.pem + FORGE.root.pem
        refused(FORGE.quote(chain=chain, qe_signer=pck.key), "tdx.pck-names")
    pck = leaf(FORGE.authority, SIGNER)
    chain = pck.pem + FORGE.authority.pem + FORGE.root.pem
    refused(FORGE.quote(chain=chain, qe_signer=pck.key), "tdx.pck-names")


def test_a_platform_that_acts_as_an_authority():
    pck = leaf(FORGE.pck)
    chain = pck.pem + FORGE.pck.pem + FORGE.root.pem
    with pytest.raises(Untrusted):
        authenticate_quote(FORGE.quote(chain=chain, qe_signer=pck.key), now=NOW, roots=FORGE.roots)


def test_an_authority_in_the_place_of_a_platform():
    pck = Certified(PCK, FORGE.authority, extension=sgx_extension())
    chain = pck.pem + FORGE.authority.pem + FORGE.root.pem
    refused(FORGE.quote(chain=chain, qe_signer=pck.key), "x509.ca")


def test_a_platforms_certificate_for_a_key_that_may_not_sign():
    pck = leaf(FORGE.authority, signs=False)
    chain = pck.pem + FORGE.authority.pem + FORGE.root.pem
    refused(FORGE.quote(chain=chain, qe_signer=pck.key), "x509.usage")


def test_expired_certificates_and_ones_from_the_future():
    for changed, code in (({"ends": NOW - 1}, "x509.expired"), ({"begins": NOW + 1}, "x509.not-yet")):
        pck = leaf(FORGE.authority, **changed)
        chain = pck.pem + FORGE.authority.pem + FORGE.root.pem
        refused(FORGE.quote(chain=chain, qe_signer=pck.key), code)
    refused(GOOD, "x509.expired", now=NOW + 2000 * DAY)


def test_a_chain_in_another_order_or_cut():
    parts = [FORGE.pck.pem, FORGE.authority.pem, FORGE.root.pem]
    refused(FORGE.quote(chain=b"".join(parts[::-1])), "x509.root")
    refused(FORGE.quote(chain=b"".join(parts[:2])), "tdx.pck", error=Malformed)
    refused(FORGE.quote(chain=b"".join([*parts, FORGE.root.pem])), "tdx.pck", error=Malformed)
    refused(FORGE.quote(chain=b""), "tdx.pck", error=Malformed)


def test_a_quoting_enclaves_report_that_the_platform_did_not_sign():
    refused(FORGE.quote(qe_signer=new_key()), "tdx.qe-signature")
    refused(FORGE.quote(qe_signer=FORGE.attestation_key), "tdx.qe-signature")


def test_a_swapped_attestation_key():
    stranger = new_key()
    refused(FORGE.quote(vouched=raw_public(stranger)), "tdx.attestation-key")
    swapped = GOOD.replace(raw_public(FORGE.attestation_key), raw_public(stranger))
    refused(swapped, "tdx.attestation-key")


def test_authentication_data_that_the_quoting_enclave_did_not_hash():
    refused(FORGE.quote(qe={"report_data": bytes(64)}), "tdx.attestation-key")
    good = FORGE.quote(auth_data=b"a" * 32)
    refused(good.replace(b"a" * 32, b"b" * 32), "tdx.attestation-key")


def test_a_body_that_the_attestation_key_did_not_sign():
    refused(FORGE.quote(signer=new_key()), "tdx.signature")
    refused(GOOD.replace(b"m" * 48, b"M" * 48), "tdx.signature")
    other = FORGE.quote(FORGE.td(report_data=b"x" * 64))
    refused(other[:632] + GOOD[632:], "tdx.signature")


@pytest.mark.parametrize("key", [bytes(64), b"\xff" * 64, b"\x01" * 64])
def test_an_attestation_key_that_is_no_point(key):
    data = FORGE.quote(vouched=key).replace(raw_public(FORGE.attestation_key), key)
    refused(data, "tdx.signature")


@pytest.mark.parametrize("signature", [bytes(64), b"\xff" * 64])
def test_a_signature_that_is_no_pair_of_numbers(signature):
    data = bytearray(GOOD)
    data[636:700] = signature
    refused(bytes(data), "tdx.signature")


@pytest.mark.parametrize("data_type", [1, 2, 3, 4, 6, 7, 0, 65535])
@pytest.mark.parametrize("forge", [FORGE, Forge("sgx", 3, authority=PROCESSOR)])
def test_certification_data_without_the_chain(forge, data_type):
    with pytest.raises(Untrusted) as caught:
        authenticate_quote(forge.quote(data_type=data_type), now=NOW, roots=forge.roots)
    assert caught.value.code == "tdx.certification-data"
    assert "type 5" in caught.value.message


@pytest.mark.parametrize("outer", [1, 5, 7])
def test_certification_data_without_the_quoting_enclaves_report(outer):
    data = bytearray(GOOD)
    data[636 + 128 : 636 + 130] = outer.to_bytes(2, "little")
    refused(bytes(data), "tdx.certification-data")


def test_a_quote_of_one_version_as_another():
    forge = Forge("tdx", 5, "td-1.0")
    body = forge.td()
    four = Forge.signed(FORGE, body)  # header of version 4 over the same domain
    data = forge.quote(body)
    with pytest.raises(Untrusted) as caught:
        authenticate_quote(four + data[len(forge.signed(body)) :], now=NOW, roots=forge.roots)
    assert caught.value.code == "tdx.signature"


def test_two_platforms_in_one_quote():
    neighbour = leaf(FORGE.authority)
    chain = neighbour.pem + FORGE.authority.pem + FORGE.root.pem
    refused(FORGE.quote(chain=chain), "tdx.qe-signature")


def test_a_certificate_under_the_wrong_kind_of_authority():
    processor = Certified(PROCESSOR, FORGE.root)
    chain = FORGE.pck.pem + processor.pem + FORGE.root.pem
    refused(FORGE.quote(chain=chain), "x509.issuer")
    assert FORGE.authority.certificate.subject.rfc4514_string() == f"CN={PLATFORM}"


def test_nothing_is_told_about_a_forged_quote():
    with pytest.raises(Untrusted):
        verify_quote(FORGE.quote(signer=new_key()), FORGE.collateral(), now=NOW, roots=FORGE.roots)
