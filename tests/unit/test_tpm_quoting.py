"""One quote by itself: what it proves, and that nothing about it can be exchanged."""

import dataclasses

import pytest

from cloister.attestation.bootlog import parse_log
from cloister.attestation.tpm import parser
from cloister.attestation.tpm.quoting import verify_quote
from cloister.errors import CloisterError, Malformed, Untrusted
from tests.adversarial.evidence_forge import AK_ATTRIBUTES, Chip, Maker, enrol, sha256
from tests.boot_logs import boot_bytes, naive_replay
from tests.unit.test_attestation_parser import AK, QUOTE, SIGNATURE

MAKER, CHIP = Maker(), Chip()
RAW = boot_bytes()
PCRS = {index: value for index, value in naive_replay(parse_log(RAW), "sha256").items() if index < 8} | {10: b"i" * 32}


def quote(pcrs=PCRS, *, nonce=b"nonce", forge=CHIP.forge, **changed):
    bits = sum(1 << index for index in pcrs).to_bytes(3, "little")
    fields = {
        "qualified_signer": forge.signer(), "extra_data": nonce, "clock": 1, "reset_count": 1, "restart_count": 0,
        "safe": True, "firmware": 0x0102, "selections": (parser.PcrSelection(parser.ALG_SHA256, bits),),
        "pcr_digest": sha256(b"".join(pcrs[i] for i in sorted(pcrs))),
    }  # fmt: skip
    message = parser.Attest(**(fields | changed)).encode()
    return {
        "message": message,
        "signature": forge.sign(message),
        "ak_public": forge.ak.encode(),
        "pcrs": pcrs,
        "nonce": nonce,
    }


def refused(code, arguments, kind=Untrusted, **more):
    with pytest.raises(kind) as caught:
        verify_quote(**(arguments | more))
    assert caught.value.code == code


def test_a_real_quote_of_a_software_tpm():
    values = dict.fromkeys((*range(8), 15), bytes(32))  # it had just been started
    device = verify_quote(QUOTE, SIGNATURE, AK, values, parser.parse_attest(QUOTE).extra_data)
    assert device.facts["clock_safe"] is True
    refused("tpm.pcr-digest", {
        "message": QUOTE, "signature": SIGNATURE, "ak_public": AK, "pcrs": values | {15: b"x" * 32},
        "nonce": parser.parse_attest(QUOTE).extra_data,
    })  # fmt: skip


def test_what_a_quote_proves():
    device = verify_quote(**quote())
    assert (device.name, device.tee, device.identity) == ("tpm0", "tpm", "")
    assert device.measurements["pcr10"] == (b"i" * 32).hex()
    assert device.facts == {"clock_safe": True, "firmware": "0000000000000102"}


def test_with_a_boot_log_and_an_enrolment():
    record = enrol(CHIP, MAKER)
    device = verify_quote(**quote(), boot_log=RAW, enrolment=record)
    assert device.identity == record.ek
    assert device.facts["secure_boot"] is True
    assert "manufacturer" not in device.facts  # the forge's root isn't a shipped one
    refused("bootlog.replay", quote(), boot_log=boot_bytes(on=False))
    refused("tpm.enrolment", quote(), enrolment=enrol(Chip(), MAKER))


def test_what_must_not_be_exchanged():
    good = quote()
    refused("tpm.report", good, nonce=b"nonc")
    refused("signature.invalid", good, message=quote(clock=2)["message"])
    refused("tpm.pcr-digest", good, pcrs=PCRS | {0: b"x" * 32})
    refused("tpm.pcr-selection", good, pcrs={0: PCRS[0]})
    refused("tpm.pcr-selection", quote(selections=()))
    refused("tpm.pcr-selection", quote(selections=(parser.PcrSelection(4, b"\xff\x04\0"),)))
    refused("tpm.pcrs", good, Malformed, pcrs={})
    refused("tpm.pcrs", good, Malformed, pcrs={24: bytes(32)})
    refused("tpm.pcrs", good, Malformed, pcrs={0: bytes(20)})
    loose = dataclasses.replace(CHIP.ak, attributes=AK_ATTRIBUTES & ~parser.RESTRICTED)
    refused("tpm.ak-attributes", good, ak_public=loose.encode())
    rsa = parser.Signature(parser.ALG_RSASSA, (b"\1" * 256,)).encode()
    refused("tpm.ak-scheme", good, signature=rsa)


@pytest.mark.parametrize("name", ["message", "signature", "nonce"])
def test_any_one_bit_changed(name):
    good = quote()
    for bit in range(0, 8 * len(good[name]), 5):
        raw = bytearray(good[name])
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CloisterError):
            verify_quote(**(good | {name: bytes(raw)}))
