"""Collateral that is old, from the future, of another platform or TEE, by somebody else, or that revokes."""

import json

import pytest

from cloister.attestation.collateral import CollateralSet, Item, Staleness
from cloister.attestation.tdx import service_items, verify_quote
from cloister.errors import Malformed, Untrusted
from tests.tdx_forge import (
    COMPONENTS,
    DAY,
    NOW,
    PROCESSOR,
    SIGNER,
    Certified,
    Forge,
    level,
    platform_level,
    raw_signature,
    stamp,
)

FORGE, OTHER = Forge(), Forge()
SGX = Forge("sgx", 3)
QUOTE = FORGE.quote()
CHAIN = FORGE.signer.pem + FORGE.root.pem


def info(signer=None, **changed):
    return FORGE.answer("tcbInfo", FORGE.tcb_info(**changed), signer)


def identity(signer=None, **changed):
    return FORGE.answer("enclaveIdentity", FORGE.qe_identity(**changed), signer)


def refused(code, *, quote=QUOTE, forge=FORGE, now=NOW, error=Untrusted, items=(), **changed):
    collateral = CollateralSet((*forge.items(**changed), *items))
    with pytest.raises(error) as caught:
        verify_quote(quote, collateral, now=now, roots=forge.roots, staleness=Staleness())
    assert caught.value.code == code


def test_the_good_collateral_passes():
    assert verify_quote(QUOTE, FORGE.collateral(), now=NOW, roots=FORGE.roots).facts["tcb_status"] == "UpToDate"


# Time


@pytest.mark.parametrize("document", ["tcb_info", "qe_identity"])
def test_expired_documents_and_ones_from_the_future(document):
    make = info if document == "tcb_info" else identity
    old = make(issueDate=stamp(NOW - 31 * DAY), nextUpdate=stamp(NOW - DAY))
    refused("collateral.stale", **{document: old})
    refused("collateral.stale", **{document: make(nextUpdate=stamp(NOW))})
    future = make(issueDate=stamp(NOW + 2 * DAY), nextUpdate=stamp(NOW + 32 * DAY))
    refused("collateral.future", **{document: future})


@pytest.mark.parametrize("list_", ["pck_crl", "root_crl"])
def test_expired_revocation_lists_and_ones_from_the_future(list_):
    owner = FORGE.authority if list_ == "pck_crl" else FORGE.root
    refused("collateral.stale", **{list_: owner.crl(begins=NOW - 31 * DAY, ends=NOW - DAY)})
    refused("collateral.future", **{list_: owner.crl(begins=NOW + 2 * DAY, ends=NOW + 32 * DAY)})


def test_a_clock_set_back_behind_the_collateral():
    refused("collateral.future", now=NOW - 3 * DAY)


def test_a_clock_far_ahead():
    refused("collateral.stale", now=NOW + 60 * DAY)


@pytest.mark.parametrize("text", ["2030-13-01T00:00:00Z", "2030-01-01", "2030-01-01T00:00:00+14:00", "9" * 20, 5])
def test_a_time_that_cannot_be_read(text):
    error = Malformed
    with pytest.raises(error):
        verify_quote(QUOTE, FORGE.collateral(tcb_info=info(nextUpdate=text)), now=NOW, roots=FORGE.roots)


# Whose


def test_documents_by_somebody_else():
    refused("tdx.document-signature", tcb_info=info(OTHER.signer.key))
    refused("tdx.document-signature", qe_identity=identity(OTHER.signer.key))
    refused("x509.root", tcb_info=info(OTHER.signer.key), tcb_info_chain=OTHER.signer.pem + OTHER.root.pem)
    refused("x509.signature", tcb_info=info(OTHER.signer.key), tcb_info_chain=OTHER.signer.pem + FORGE.root.pem)


def test_documents_by_a_certificate_of_intels_for_something_else():
    authority = Certified("Intel SGX PCK Platform CA", FORGE.root, authority=False)
    refused("tdx.signer", tcb_info=info(authority.key), tcb_info_chain=authority.pem + FORGE.root.pem)


def test_documents_by_a_platform():
    chain = FORGE.pck.pem + FORGE.authority.pem + FORGE.root.pem
    refused("tdx.document", error=Malformed, tcb_info=info(FORGE.pck.key), tcb_info_chain=chain)
    named = Certified(SIGNER, FORGE.authority, authority=False)
    refused("x509.root", tcb_info=info(named.key), tcb_info_chain=named.pem + FORGE.authority.pem)


def test_documents_by_a_key_that_may_not_sign():
    mute = Certified(SIGNER, FORGE.root, authority=False, signs=False)
    refused("x509.usage", tcb_info=info(mute.key), tcb_info_chain=mute.pem + FORGE.root.pem)


def test_a_document_changed_after_signing():
    for find, put in ((b"UpToDate", b"UptoDate"), (b'"tcbType":0', b'"tcbType":00'), (b'"svn":5', b'"svn":4')):
        answer = info().replace(find, put, 1)
        with pytest.raises((Untrusted, Malformed)):
            verify_quote(
                QUOTE,
                CollateralSet((*FORGE.items(), Item("intel-tcb", "30806f000000-tdx", answer, NOW, CHAIN))),
                now=NOW,
                roots=FORGE.roots,
            )
    spaced = info().replace(b'{"tcbInfo":{', b'{"tcbInfo":{ ', 1)
    refused("tdx.document-signature", tcb_info=spaced)


def test_a_good_signature_over_another_part_of_the_answer():
    """What is judged must be the very bytes that are signed, wherever the signed bytes stand."""
    good = json.dumps(FORGE.tcb_info(), separators=(",", ":")).encode()
    signature = raw_signature(FORGE.signer.key, good).hex().encode()
    bad = json.dumps(FORGE.tcb_info(tcbLevels=[]), separators=(",", ":")).encode()
    smuggled = b'{"tcbInfo":%b,"signature":"%b","tcbInfo":%b}' % (bad, signature, good)
    with pytest.raises(Malformed):
        service_items(tcb_info=smuggled, obtained=NOW)
    nested = b'{"tcbInfo":{"tcbInfo":%b,"fmspc":"30806f000000","version":3,"id":"TDX"},"signature":"%b"}' % (
        good,
        signature,
    )
    refused("tdx.document-signature", tcb_info=nested)


# Which platform


def test_tcb_info_of_another_fmspc():
    answer = info(fmspc="50806F000000")
    refused("tdx.tcb-info", items=[Item("intel-tcb", "30806f000000-tdx", answer, NOW, CHAIN)])


def test_tcb_info_of_another_pce():
    refused("tdx.tcb-info", tcb_info=info(pceId="0001"))


def test_tcb_info_of_sgx_for_a_trust_domain_and_the_reverse():
    foreign = FORGE.answer("tcbInfo", SGX.tcb_info())
    refused("tdx.tcb-info", items=[Item("intel-tcb", "30806f000000-tdx", foreign, NOW, CHAIN)])
    chain = SGX.signer.pem + SGX.root.pem
    foreign = SGX.answer("tcbInfo", FORGE.tcb_info())
    item = Item("intel-tcb", "30806f000000-sgx", foreign, NOW, chain)
    refused("tdx.tcb-info", quote=SGX.quote(), forge=SGX, items=[item])


def test_the_qe_identity_of_sgx_for_a_trust_domain_and_the_reverse():
    foreign = FORGE.answer("enclaveIdentity", SGX.qe_identity())
    refused("tdx.qe-identity", items=[Item("intel-qe-identity", "tdx", foreign, NOW, CHAIN)])
    foreign = SGX.answer("enclaveIdentity", FORGE.qe_identity())
    item = Item("intel-qe-identity", "sgx", foreign, NOW, SGX.signer.pem + SGX.root.pem)
    refused("tdx.qe-identity", quote=SGX.quote(), forge=SGX, items=[item])


@pytest.mark.parametrize(
    "qe",
    [
        {"mr_signer": b"Q" * 32},
        {"prod": 1},
        {"misc": b"\x01\0\0\0"},
        {"attributes": bytes.fromhex("13000000000000000000000000000000")},  # a quoting enclave under a debugger
        {"attributes": bytes.fromhex("01000000000000000000000000000000")},
        {"svn": 4},  # older than any level
    ],
)
def test_another_enclave_as_quoting_enclave(qe):
    refused("tdx.qe-identity", quote=FORGE.quote(qe=qe))


def test_a_debuggable_quoting_enclave_even_where_the_mask_forgets_it():
    attributes = bytes.fromhex("13000000000000000000000000000000")
    answer = identity(attributesMask="F9FFFFFFFFFFFFFF0000000000000000")
    refused("tdx.qe-identity", quote=FORGE.quote(qe={"attributes": attributes}), qe_identity=answer)


@pytest.mark.parametrize(
    "td",
    [
        {"mr_signer_seam": b"x" * 48},
        {"seam_attributes": b"\x01" + bytes(7)},
        {"tee_tcb_svn": b"\x06\x09" + bytes(14)},
    ],
)
def test_a_module_that_is_not_intels(td):
    refused("tdx.module", quote=FORGE.quote(FORGE.td(**td)))


def test_a_debuggable_module_even_where_the_mask_forgets_it():
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "00" * 8}
    answer = info(tdxModuleIdentities=[{"id": "TDX_01", "tcbLevels": [level(6)], **module}])
    refused("tdx.module", quote=FORGE.quote(FORGE.td(seam_attributes=b"\x01" + bytes(7))), tcb_info=answer)


# Revocation


def test_a_revoked_platform():
    refused("x509.revoked", pck_crl=FORGE.authority.crl([FORGE.pck.certificate.serial_number]))


def test_a_revoked_authority():
    refused("x509.revoked", root_crl=FORGE.root.crl([FORGE.authority.certificate.serial_number]))


def test_a_revoked_signer_of_documents():
    refused("x509.revoked", root_crl=FORGE.root.crl([FORGE.signer.certificate.serial_number]))


def test_a_root_that_revoked_itself():
    refused("x509.revoked", root_crl=FORGE.root.crl([FORGE.root.certificate.serial_number]))


def test_revocation_lists_by_somebody_else():
    refused("crl.signature", pck_crl=OTHER.authority.crl())
    refused("crl.signature", root_crl=OTHER.root.crl())


def test_the_list_of_another_authority():
    processor = Certified(PROCESSOR, FORGE.root)
    refused("crl.issuer", items=[Item("intel-pck-crl", "platform", processor.crl(), NOW)])
    refused("crl.issuer", items=[Item("intel-root-crl", "root", FORGE.authority.crl(), NOW)])


def test_a_revoked_state():
    levels = [platform_level(COMPONENTS, bytes(16), status="Revoked")]
    refused("tdx.tcb-revoked", tcb_info=info(tcbLevels=levels))
    refused("tdx.tcb-revoked", qe_identity=identity(tcbLevels=[level(8, "Revoked")]))


def test_an_issuer_chain_of_another_length():
    for chain in (FORGE.root.pem, FORGE.signer.pem, FORGE.signer.pem + FORGE.authority.pem + FORGE.root.pem):
        refused("tdx.document", error=Malformed, tcb_info_chain=chain)


def test_a_huge_revocation_list():
    refused("crl.form", error=Malformed, items=[Item("intel-pck-crl", "platform", bytes(300_000), NOW)])


def test_a_huge_or_nested_document():
    bombs = [
        b'{"tcbInfo":' + b"[" * 100_000,
        b'{"tcbInfo":{"a":' + b'{"a":' * 31 + b"1" + b"}" * 32 + b',"signature":"%b"}' % (b"00" * 64),
        b'{"tcbInfo":{"a":"%b"},"signature":"%b"}' % (b"a" * 300_000, b"00" * 64),
    ]
    for bomb in bombs:
        with pytest.raises(Malformed):
            verify_quote(
                QUOTE,
                CollateralSet((*FORGE.items(), Item("intel-tcb", "30806f000000-tdx", bomb, NOW, CHAIN))),
                now=NOW,
                roots=FORGE.roots,
            )
