"""Quotes and PCK certificates: what is accepted is of one form, and everything else is our own errors."""

import base64
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloister.attestation.tdx import MAX_QUOTE, EnclaveReport, TdReport, parse_quote
from cloister.attestation.tdx.pck import SGX_EXTENSION, platform_certificate, read_chain
from cloister.crypto.x509 import read_certificate
from cloister.errors import Malformed, Untrusted
from tests.tdx_forge import (
    COMPONENTS,
    FMSPC,
    INSTANCE,
    PCK,
    PLATFORM,
    PPID,
    PROCESSOR,
    Certified,
    Forge,
    der,
    integer,
    pair,
    sgx_extension,
)

FORMS = [
    ("sgx", 3, "sgx"),
    ("sgx", 4, "sgx"),
    ("sgx", 5, "sgx"),
    ("tdx", 4, "td-1.0"),
    ("tdx", 5, "td-1.0"),
    ("tdx", 5, "td-1.5"),
    ("tdx", 5, "td-1.5-ex"),
]
FORGE = Forge()
QUOTE = FORGE.quote()
PEM = FORGE.chain()
ROOT, AUTHORITY = Certified("root"), Certified(PLATFORM)


@pytest.mark.parametrize(("tee", "version", "body"), FORMS)
def test_every_form_is_read(tee, version, body):
    forge = Forge(tee, version, body)
    quote = parse_quote(forge.quote())
    assert (quote.version, quote.tee) == (version, tee)
    assert quote.body.report_data == b"r" * 64
    assert quote.signed == forge.signed(forge.td() if tee == "tdx" else forge.enclave(report_data=b"r" * 64))
    assert quote.pck_chain == forge.chain()
    assert quote.trailing == b""
    if tee == "sgx":
        assert isinstance(quote.body, EnclaveReport)
        return
    assert isinstance(quote.body, TdReport)
    assert quote.body.name == body
    assert quote.body.rtmrs == (b"0" * 48, b"1" * 48, b"2" * 48, bytes(48))
    assert (quote.body.tee_tcb_svn2 is None) == (body == "td-1.0")
    assert (quote.body.td_id is None) == (body != "td-1.5-ex")


def test_the_fields_of_a_td_report_are_where_they_belong():
    forge = Forge("tdx", 5, "td-1.5-ex")
    body = parse_quote(
        forge.quote(
            forge.td(
                mr_seam=b"s" * 48,
                mr_signer_seam=b"S" * 48,
                seam_attributes=b"a" * 8,
                attributes=b"A" * 8,
                xfam=b"x" * 8,
                mr_config_id=b"c" * 48,
                mr_owner=b"o" * 48,
                mr_owner_config=b"O" * 48,
                rtmr3=b"3" * 48,
                mr_service_td=b"v" * 48,
                td_id=b"t" * 32,
            )
        )
    ).body
    assert isinstance(body, TdReport)
    assert (body.mr_seam, body.mr_signer_seam, body.seam_attributes) == (b"s" * 48, b"S" * 48, b"a" * 8)
    assert (body.attributes, body.xfam, body.mr_td) == (b"A" * 8, b"x" * 8, b"m" * 48)
    assert (body.mr_config_id, body.mr_owner, body.mr_owner_config) == (b"c" * 48, b"o" * 48, b"O" * 48)
    assert (body.rtmrs[3], body.mr_service_td, body.td_id) == (b"3" * 48, b"v" * 48, b"t" * 32)


def test_the_fields_of_an_enclave_report_are_where_they_belong():
    forge = Forge("sgx", 3)
    raw = bytearray(forge.enclave(svn=0x0201, prod=0x0403, misc=b"misc"))
    raw[32:48], raw[192:256], raw[260:262], raw[304:320] = b"X" * 16, b"C" * 64, b"\x06\x05", b"F" * 16
    body = parse_quote(forge.quote(bytes(raw))).body
    assert isinstance(body, EnclaveReport)
    assert (body.cpu_svn, body.misc_select, body.isv_ext_prod_id) == (COMPONENTS, b"misc", b"X" * 16)
    assert (body.isv_svn, body.isv_prod_id, body.config_svn) == (0x0201, 0x0403, 0x0506)
    assert (body.config_id, body.isv_family_id) == (b"C" * 64, b"F" * 16)
    assert not body.debug


def test_bytes_after_the_end_are_given_back_apart():
    assert parse_quote(QUOTE + bytes(70)).trailing == bytes(70)
    assert parse_quote(QUOTE + b"tail").trailing == b"tail"
    with pytest.raises(Malformed):
        parse_quote(QUOTE + bytes(MAX_QUOTE))


@pytest.mark.parametrize("size", [0, 1, 47, 48, 631, 632, 636, 637, 763, 764, -1])
def test_a_truncated_quote_is_malformed(size):
    with pytest.raises(Malformed) as error:
        parse_quote(QUOTE[:size])
    assert error.value.code == "tdx.quote"


BODY_AT, DATA_AT = 48, 48 + 584


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, b"\x02\x00"),  # versions that don't exist
        (0, b"\x06\x00"),
        (0, b"\x03\x00"),  # version 3 knows no TDX
        (2, b"\x03\x00"),  # ECDSA P-384
        (4, b"\x82\x00\x00\x00"),  # an unknown TEE
        (12, b"\x00"),  # another vendor's quoting enclave
        (DATA_AT, b"\xff\xff\xff\xff"),  # lengths beyond the end
        (DATA_AT, b"\x00\x00\x00\x00"),
        (DATA_AT + 4 + 128 + 2, b"\xff\xff\xff\xff"),
        (DATA_AT + 4 + 128 + 6 + 448, b"\xff\xff"),
        (DATA_AT + 4 + 128 + 6 + 448 + 2 + 32 + 2, b"\xff\xff\xff\xff"),
    ],
)
def test_a_field_that_is_not_of_the_form_is_malformed(at, value):
    data = bytearray(QUOTE)
    data[at : at + len(value)] = value
    with pytest.raises(Malformed) as error:
        parse_quote(bytes(data))
    assert error.value.code == "tdx.quote"


@pytest.mark.parametrize(("kind", "size"), [(1, 584), (2, 648), (3, 584), (4, 648), (0, 584), (5, 584), (2, 2**32 - 1)])
def test_a_body_that_is_not_what_its_descriptor_says_is_malformed(kind, size):
    forge = Forge("tdx", 5, "td-1.0")
    data = bytearray(forge.quote())
    data[48:54] = kind.to_bytes(2, "little") + size.to_bytes(4, "little")
    with pytest.raises(Malformed):
        parse_quote(bytes(data))


def test_a_body_of_another_tee_than_the_headers_is_malformed():
    for forge, tee in ((Forge("tdx", 5, "td-1.0"), b"\x00"), (Forge("sgx", 5, "sgx"), b"\x81")):
        data = bytearray(forge.quote())
        data[4:5] = tee
        with pytest.raises(Malformed):
            parse_quote(bytes(data))


def test_certification_data_that_ends_before_the_signature_data_is_malformed():
    data = bytearray(QUOTE + b"more")
    data[DATA_AT : DATA_AT + 4] = (len(QUOTE) - DATA_AT).to_bytes(4, "little")  # four bytes longer than its parts
    with pytest.raises(Malformed) as error:
        parse_quote(bytes(data))
    assert error.value.code == "tdx.quote"


@given(st.binary(max_size=700) | st.builds(lambda head, tail: QUOTE[:head] + tail, st.integers(0, 5000), st.binary()))
@example(b"")
def test_any_bytes_give_a_quote_or_our_own_error(data):
    with suppress(Malformed, Untrusted):
        parse_quote(data)


@given(st.integers(0, len(QUOTE) - 1), st.binary(min_size=1, max_size=8))
def test_overwritten_quotes_give_a_chain_or_our_own_error(at, value):
    data = QUOTE[:at] + value + QUOTE[at + len(value) :]
    with suppress(Malformed, Untrusted):
        read_chain(parse_quote(data).pck_chain)


@pytest.mark.parametrize(
    "data",
    [
        FORGE.quote(chain=PEM + b"\n" * 12_000 + b"x"),
        FORGE.quote(chain=b"-----BEGIN CERTIFICATE-----\n" * 500),
        FORGE.quote(chain=b"-----BEGIN CERTIFICATE-----\n" + b"AAAA\n" * 3000),
        FORGE.quote(chain=b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" * 290),
        FORGE.quote(chain=b"A" * 16_385),
        FORGE.quote(auth_data=bytes(1025)),
    ],
)
def test_an_oversized_part_is_malformed(data):
    with pytest.raises(Malformed):
        read_chain(parse_quote(data).pck_chain)


# The chain


def test_a_chain_may_end_in_newlines_and_zeros_and_nothing_else():
    for text in (PEM, PEM + b"\0", PEM.rstrip(), PEM + b"\n\n\0\0", PEM.replace(b"\n", b"\r\n")):
        assert [c.subject for c in read_chain(text)] == [f"CN={n}" for n in (PCK, PLATFORM, "Intel SGX Root CA")]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0",
        PEM[: len(FORGE.pck.pem)],
        FORGE.pck.pem + FORGE.root.pem,
        PEM + FORGE.root.pem,
        b" " + PEM,
        PEM + b" ",
        PEM + b"\0\n",
        PEM.replace(b"\n", b"\x0b", 5),
        PEM.replace(b"-----\n-----", b"-----\nfor us\n-----"),
        PEM.replace(b"BEGIN CERTIFICATE", b"BEGIN TRUSTED CERTIFICATE"),
        PEM.replace(b"\n", b""),
    ],
)
def test_a_chain_in_another_form_is_malformed(text):
    with pytest.raises(Malformed):
        read_chain(text)


def test_a_certificate_in_another_spelling_of_base64_is_malformed():
    first = FORGE.pck.pem.splitlines(keepends=True)
    for old, new in ((b"M", b"="), (b"MII", b"MI"), (b"MII", b"MI=I")):
        changed = first[0] + first[1].replace(old, new, 1) + b"".join(first[2:])
        with pytest.raises(Malformed):
            read_chain(changed + FORGE.authority.pem + FORGE.root.pem)


def padded(size):
    """A self-made certificate whose DER ends in base64 padding, so that there are bits nobody signed."""
    while True:
        pem = Certified("x" * size, FORGE.root).pem
        if b"=\n" in pem:
            return pem
        size += 1


def test_stray_bits_behind_a_certificate_are_malformed():
    pem = padded(4)
    assert read_certificate(pem)
    lines = pem.splitlines()
    at = lines[-2].index(b"=") - 1
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    stray = alphabet[alphabet.index(lines[-2][at]) + 1]
    lines[-2] = lines[-2][:at] + bytes([stray]) + lines[-2][at + 1 :]
    with pytest.raises(Malformed) as error:
        read_chain(b"\n".join(lines) + b"\n" + FORGE.authority.pem + FORGE.root.pem)
    assert error.value.code == "tdx.pck"


def test_unused_bits_in_a_certificates_signature_are_malformed():
    der = bytearray(read_certificate(FORGE.pck.pem).der)
    signature = FORGE.pck.certificate.signature
    assert der[-len(signature) - 1] == 0
    der[-len(signature) - 1] = 1
    text = base64.encodebytes(bytes(der)).replace(b"\n", b"")
    pem = b"-----BEGIN CERTIFICATE-----\n"
    pem += b"".join(text[at : at + 64] + b"\n" for at in range(0, len(text), 64)) + b"-----END CERTIFICATE-----\n"
    with pytest.raises(Malformed) as error:
        read_chain(pem + FORGE.authority.pem + FORGE.root.pem)
    assert error.value.code == "x509.form"


# The extension


def leaf(extension, common=PCK):
    return read_certificate(Certified(common, AUTHORITY, authority=False, extension=extension).pem)


AUTHORITY_CERTIFICATE = read_certificate(AUTHORITY.pem)
PROCESSOR_CERTIFICATE = read_certificate(Certified(PROCESSOR).pem)


def test_what_a_pck_certificate_says_is_read():
    platform = platform_certificate(leaf(sgx_extension()), AUTHORITY_CERTIFICATE)
    assert (platform.components, platform.pcesvn, platform.cpusvn) == (COMPONENTS, 13, COMPONENTS)
    assert (platform.fmspc, platform.pceid, platform.ppid) == (FMSPC, bytes(2), PPID)
    assert (platform.sgx_type, platform.authority, platform.instance) == ("scalable", "platform", INSTANCE)
    assert platform.flags == {"dynamic_platform": True, "cached_keys": False, "smt_enabled": True}
    assert platform.identity == INSTANCE.hex()


def test_a_processors_certificate_is_named_by_a_hash_of_its_ppid():
    platform = platform_certificate(leaf(sgx_extension(instance=None)), PROCESSOR_CERTIFICATE)
    assert (platform.authority, platform.instance, platform.flags) == ("processor", None, {})
    assert len(platform.identity) == 64
    assert PPID.hex() not in platform.identity


def test_svns_of_128_and_more_are_read():
    components, pcesvn = bytes([255, 128, 127, *range(13)]), 65535
    platform = platform_certificate(leaf(sgx_extension(components=components, pcesvn=pcesvn)), AUTHORITY_CERTIFICATE)
    assert (platform.components, platform.pcesvn) == (components, pcesvn)


GOOD = sgx_extension()
TWICE = GOOD[:2] + (len(GOOD) - 4 + 20).to_bytes(2, "big") + GOOD[4:] + pair(b"\x04", b"\x04\x06" + FMSPC)


@pytest.mark.parametrize(
    "extension",
    [
        b"",
        b"\x30\x00",
        GOOD[:-1],
        GOOD + b"\0",
        TWICE,
        sgx_extension(fmspc=FMSPC + b"\0"),
        sgx_extension(ppid=b"p" * 15),
        sgx_extension(sgx_type=3),
        sgx_extension(pcesvn=65536),
        GOOD.replace(pair(b"\x02\x01", integer(5)), pair(b"\x02\x13", integer(5))),
        GOOD.replace(pair(b"\x02\x01", b"\x02\x01\x05"), pair(b"\x02\x01", b"\x02\x01\x85")),  # a negative SVN
        GOOD.replace(b"\x2a\x86\x48\x86\xf8\x4d\x01\x0d\x01\x05", b"\x2a\x86\x48\x86\xf8\x4d\x01\x0e\x01\x05"),
        b"\x30\x80" + GOOD[4:] + b"\0\0",  # indefinite length
        b"\x30\x83\x00" + GOOD[2:],  # a length that is longer than need be
        b"\x30\x81\x05" + b"\x30\x03\x06\x01\x01",
        der(0x30, pair(b"\x01", b"\x05\x00") * 33),  # too many parts
        GOOD.replace(der(1, b"\xff"), der(1, b"\x01"), 1),  # a boolean in another form
        GOOD.replace(der(1, b"\xff"), der(2, b"\xff"), 1),
    ],
)
def test_an_extension_in_another_form_is_malformed(extension):
    with pytest.raises(Malformed) as error:
        platform_certificate(leaf(extension), AUTHORITY_CERTIFICATE)
    assert error.value.code == "tdx.pck"


def test_a_certificate_without_the_extension_is_malformed():
    with pytest.raises(Malformed) as error:
        platform_certificate(leaf(None), AUTHORITY_CERTIFICATE)
    assert error.value.code == "tdx.pck"


@pytest.mark.parametrize(("common", "issuer"), [("Intel SGX TCB Signing", PLATFORM), (PCK, "Intel SGX Root CA")])
def test_a_certificate_for_something_else_is_untrusted(common, issuer):
    with pytest.raises(Untrusted) as error:
        platform_certificate(leaf(GOOD, common), read_certificate(Certified(issuer).pem))
    assert error.value.code == "tdx.pck-names"


@settings(max_examples=200)
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=3), st.booleans())
def test_any_extension_gives_a_platform_or_our_own_error(at, value, cut):
    class Leaf:
        subject_attributes = {"CN": PCK}  # noqa: RUF012 - a stand-in for one certificate

        def extension(self, oid):
            assert oid == SGX_EXTENSION
            return GOOD[:at] + value + (b"" if cut else GOOD[at + len(value) :])

    with suppress(Malformed):
        platform_certificate(Leaf(), AUTHORITY_CERTIFICATE)
