"""TPM structures: what is accepted encodes to the same bytes, everything else is Malformed, nothing else is raised."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloister.attestation.tpm import parser
from cloister.attestation.tpm.parser import parse_attest, parse_public, parse_signature
from cloister.attestation.tpm.wire import der_integers
from cloister.crypto import sha256, verify_hardware_signature
from cloister.errors import Malformed, Untrusted

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "tpm"

# Taken from a software TPM: an attestation key, its quote over PCR 0-7 and 15, the signature, an endorsement key.
AK = bytes.fromhex(
    "0023000b00050072000000100018000b0003001000202d6e276af3f2fe8c3376703b4289e91c77547b3335b1ef3895d8874be6cf7efe"
    "002040308cb038550e74ea988e5742871327715a0271114c14373e03732283d5c31e"
)
QUOTE = bytes.fromhex(
    "ff54434780180022000bfb10e041cab1b7a7d0012dacb826b2f2b1a98ea67e3196e1864b16d03d3efc240020655a655d5c2c306074d5"
    "dfd3df60274c27c01b657b24ed0cf24d5c1a192b5bbe000000000000016b000000010000000001201910230016363600000001000b03"
    "ff800000202d5565fb483d8ea4525a7a9229677d1038ad34b6e22c8d5152e1d7f7b9817597"
)
SIGNATURE = bytes.fromhex(
    "0018000b00203208855a288ff4e1d61bd8db2ab04fabb123c3b8e61b84f2921dae274f0f9bd60020310b9c8ad5df10e3e42fce9f3bbf"
    "fb029a0fc4beb78f14066f0c4372a1a97eb0"
)
EK = bytes.fromhex(
    "0023000b000300b20020837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa000600800043001000030010"
    "0020a3b2583d6a266084f8c7ff25f506a96c878c568c372310648996e4a9e396868000202716a5c74e8ebb239596ada29c01506a314f"
    "418d5cc4ab90b9540fb7777bc799"
)
RSA = (
    bytes.fromhex("0001000b00050072000000100014000b0800000000000100") + b"\xc5" * 256
)  # a 2048-bit signing key with RSASSA-SHA256
PARSERS = [
    (parse_public, AK),
    (parse_public, EK),
    (parse_public, RSA),
    (parse_attest, QUOTE),
    (parse_signature, SIGNATURE),
]


@pytest.mark.parametrize(("parse", "data"), PARSERS)
def test_real_structures_encode_to_the_same_bytes(parse, data):
    assert parse(data).encode() == data


def test_the_fields_are_what_the_tpm_said():
    ak, ek, quote = parse_public(AK), parse_public(EK), parse_attest(QUOTE)
    assert (ak.algorithm, ak.scheme, ak.symmetric_bits) == (parser.ALG_ECC, parser.ALG_ECDSA, 0)
    assert ak.attributes & parser.RESTRICTED
    assert ak.attributes & parser.SIGN
    assert not ak.attributes & parser.DECRYPT
    assert ek.symmetric_bits == 128
    assert ak.name() == b"\x00\x0b" + sha256(AK)
    assert quote.selections == (parser.PcrSelection(parser.ALG_SHA256, b"\xff\x80\x00"),)
    assert quote.safe
    assert quote.clock == 0x16B
    verify_hardware_signature(ak.der(), QUOTE, parse_signature(SIGNATURE).raw())
    with pytest.raises(Untrusted):
        verify_hardware_signature(ak.der(), QUOTE + b"\0", parse_signature(SIGNATURE).raw())


def only_malformed_or_same(parse, data):
    parsed, refusal = None, None
    try:
        parsed = parse(data)
    except Malformed as error:
        refusal = error.code
    assert refusal == "tpm.structure" if parsed is None else parsed.encode() == data


@pytest.mark.parametrize(("parse", "data"), PARSERS)
def test_every_truncation_and_every_addition_is_malformed(parse, data):
    for size in range(len(data)):
        with pytest.raises(Malformed):
            parse(data[:size])
    for extra in (b"\0", b"\xff" * 40, bytes(4096)):
        with pytest.raises(Malformed):
            parse(data + extra)


@pytest.mark.parametrize(("parse", "data"), PARSERS)
def test_every_single_bit_flip_is_malformed_or_another_structure(parse, data):
    seen = 0
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        only_malformed_or_same(parse, bytes(changed))
        seen += 1
    assert seen == 8 * len(data)


@given(st.sampled_from([parse_public, parse_attest, parse_signature]), st.binary(max_size=400))
@settings(max_examples=300)
def test_any_bytes_are_malformed_or_encode_to_themselves(parse, data):
    only_malformed_or_same(parse, data)


@given(
    st.sampled_from(PARSERS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
)
@settings(max_examples=300)
def test_edited_structures_are_malformed_or_encode_to_themselves(case, edits):
    parse, data = case
    changed = bytearray(data)
    for position, value in edits:
        changed[position % len(changed)] = value
    only_malformed_or_same(parse, bytes(changed))


def patched(data: bytes, old: str, new: str) -> bytes:
    before, after = bytes.fromhex(old), bytes.fromhex(new)
    assert data.count(before) == 1
    return data.replace(before, after)


@pytest.mark.parametrize(
    ("parse", "data", "reason"),
    [
        (parse_attest, patched(QUOTE, "ff544347", "ff544348"), "magic that a TPM never generates"),
        (parse_attest, patched(QUOTE, "ff5443478018", "ff5443478017"), "a certification, not a quote"),
        (parse_attest, patched(QUOTE, "0120191023", "0220191023"), "a yes/no that is 2"),
        (parse_attest, patched(QUOTE, "00000001000b03", "00000011000b03"), "17 banks"),
        (parse_attest, patched(QUOTE, "000b03ff8000", "000b05ff8000"), "a bit map of 5 bytes"),
        (parse_public, patched(AK, "0023000b0005", "002300040005"), "a SHA-1 name"),
        (parse_public, patched(AK, "00050072", "80050072"), "an attribute bit that is reserved"),
        (parse_public, patched(AK, "0018000b0003", "001800040003"), "ECDSA with SHA-1"),
        (parse_public, patched(AK, "000b00030010", "000b00040010"), "curve P-384 with 32-byte coordinates"),
        (parse_public, patched(RSA, "080000000000", "040000000000"), "a 1024-bit RSA key"),
        (parse_public, patched(RSA, "080000000000", "080000000003"), "the exponent 3"),
        (parse_signature, patched(SIGNATURE, "0018000b", "00180004"), "a SHA-1 signature"),
        (parse_signature, patched(SIGNATURE, "0018000b", "0005000b"), "an HMAC"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_structures_outside_the_profile_are_refused(parse, data, reason):
    with pytest.raises(Malformed) as caught:
        parse(data)
    assert caught.value.code == "tpm.structure", reason


def ecdsa(r: bytes, s: bytes) -> bytes:
    return b"\0\x18\0\x0b" + len(r).to_bytes(2, "big") + r + len(s).to_bytes(2, "big") + s


def test_short_ecdsa_numbers_have_one_encoding():
    short = ecdsa(b"\x07" * 31, b"\1")
    assert parse_signature(short).encode() == short
    for number in (b"\0" + b"\x07" * 30, b"", b"\7" * 33):
        with pytest.raises(Malformed):
            parse_signature(ecdsa(number, b"\1" * 32))


@given(st.integers(0, 2**256 - 1), st.integers(0, 2**256 - 1))
@example(0, 2**255)
@settings(max_examples=50)
def test_der_of_two_integers_reads_back(r, s):
    """An independent reading of the DER: tag, length, minimal signed integer."""
    body = der_integers(r.to_bytes(32, "big"), s.to_bytes(32, "big"))
    assert body[0] == 0x30
    assert body[1] == len(body) - 2
    at, numbers = 2, []
    while at < len(body):
        assert body[at] == 2
        raw = body[at + 2 : at + 2 + body[at + 1]]
        number = int.from_bytes(raw, "big", signed=True)
        assert len(raw) == number.bit_length() // 8 + 1
        numbers.append(number)
        at += 2 + len(raw)
    assert numbers == [r, s]


def test_a_point_off_the_curve_is_malformed():
    off = parse_public(AK[:-1] + bytes([AK[-1] ^ 1]))
    with pytest.raises(Malformed) as caught:
        off.der()
    assert caught.value.code == "key.point"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared vectors folder is not beside the checkout")
@pytest.mark.parametrize("name", ["azure_snp_vtpm_evidence_v1.json", "azure_tdx_vtpm_evidence_v1.json"])
def test_real_azure_quotes_parse_and_verify(name):
    """Quotes of real cloud vTPMs: RSASSA by the key that the platform's report names, all 24 PCRs."""
    evidence = json.loads((SHARED / name).read_text())
    message = bytes.fromhex(evidence["tpm_quote"]["message"])
    quote = parse_attest(message)
    assert quote.encode() == message
    assert quote.extra_data == b"challenge"
    values = b"".join(bytes.fromhex(v) for v in evidence["tpm_quote"]["pcrs"])
    assert quote.pcr_digest == sha256(values)
    assert quote.selections == (parser.PcrSelection(parser.ALG_SHA256, b"\xff\xff\xff"),)

    key = parser.PublicArea(parser.ALG_RSA, 0x00050072, b"", 0, parser.ALG_RSASSA, 2048, (platform_key(evidence),))
    assert parse_public(key.encode()) == key
    raw = b"\0\x14\0\x0b\1\0" + bytes.fromhex(evidence["tpm_quote"]["signature"])
    signature = parse_signature(raw)
    assert signature.encode() == raw
    verify_hardware_signature(key.der(), message, signature.raw())
    with pytest.raises(Untrusted):
        verify_hardware_signature(key.der(), message[:-1] + bytes([message[-1] ^ 1]), signature.raw())


def platform_key(evidence) -> bytes:
    """The modulus of the attestation key in the platform report's runtime JSON."""
    report = base64.urlsafe_b64decode(evidence["hcl_report"] + "==")
    start = report.index(b'{"keys"')
    runtime = json.loads(report[start:].rstrip(b"\0"))
    key = next(k for k in runtime["keys"] if k["kid"] == "HCLAkPub")
    return base64.urlsafe_b64decode(key["n"] + "==")
