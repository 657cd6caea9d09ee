"""Many mutated inputs for every reader of TPM evidence, boot logs and enrolments: only typed errors come out (slow)."""

import json
import random

import pytest

from cloister.attestation.bootlog import BootLog, encode_log, parse_log, replay, secure_boot
from cloister.attestation.tpm import Challenge, Enrolment, EnrolmentRequest, begin, ek
from cloister.attestation.tpm.ek_certificate import read_ek_certificate
from cloister.attestation.tpm.hcl import parse_azure, parse_hcl, verify_quote
from cloister.crypto import canonical_json, parse_json
from cloister.errors import CloisterError
from tests.adversarial.evidence_forge import Chip, Maker, enrol
from tests.azure_forge import AzureForge
from tests.boot_logs import boot_bytes, boot_log, header, secure_boot_events

pytestmark = pytest.mark.slow

ROUNDS = 40_000
MAKER, CHIP, FORGE = Maker(), Chip(), AzureForge("snp")
REQUEST = CHIP.request(MAKER)


def read_boot_log(data, registers="pcr"):
    log = parse_log(data, registers)
    assert encode_log(log) == data
    for bank in log.algorithms:
        for ask in (replay, secure_boot):
            try:
                ask(log, bank)
            except CloisterError as error:
                assert error.code  # noqa: PT017  the next bank is asked all the same


def read_azure(data):
    found = parse_azure(parse_json(data))
    verify_quote(found.report, found.quote, b"n" * 32)


def ccel():
    events = secure_boot_events(banks=("sha384",), register=1)
    return encode_log(BootLog("rtmr", ("sha384",), tuple(events), header("sha384"), b"\xff" * 64))


def sha1_log():
    return encode_log(BootLog("pcr", ("sha1",), boot_log(banks=("sha1",)).events))


CHALLENGE = begin(REQUEST, bytes(32), now=MAKER.NOW, roots=[MAKER.fingerprint])[1]
READERS = {
    "agile log": (read_boot_log, boot_bytes(banks=("sha1", "sha256", "sha384"))),
    "sha-1 log": (read_boot_log, sha1_log()),
    "ccel": (lambda data: read_boot_log(data, "rtmr"), ccel()),
    "hcl": (parse_hcl, FORGE.hcl(FORGE.runtime(), bytes(1184))),
    "azure": (read_azure, json.dumps(FORGE.body(b"n" * 32)).encode()),
    "endorsement key": (ek.parse_endorsement, CHIP.endorsement.encode()),
    "endorsement certificate": (read_ek_certificate, REQUEST.ek_certificate),
    "request": (lambda data: EnrolmentRequest.from_wire(parse_json(data)), canonical_json(REQUEST.to_wire())),
    "challenge": (lambda data: Challenge.from_wire(parse_json(data)), canonical_json(CHALLENGE.to_wire())),
    "record": (lambda data: Enrolment.from_wire(parse_json(data)), canonical_json(enrol(CHIP, MAKER).to_wire())),
}


def mutated(random_, seed):
    """One to four changes: bits, bytes, runs cut, copied or repeated, numbers at their limits."""
    data = bytearray(seed)
    for _ in range(random_.randint(1, 4)):
        at, length = random_.randrange(len(data) + 1), random_.randint(1, 16)
        kind = random_.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << random_.randrange(8)
        elif kind == 1:
            data[at : at + length] = random_.randbytes(length)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            start = random_.randrange(len(data) + 1)
            data[at:at] = data[start : start + length]
        elif kind == 4:
            data[at : at + 4] = random_.choice([b"\xff\xff\xff\xff", bytes(4), b"\0\0\0\x80", b"\xff\xff\xff\x7f"])
        else:
            data = data[:at] if random_.random() < 0.2 else data
    return bytes(data)


@pytest.mark.parametrize("name", READERS)
def test_mutated_inputs_raise_typed_errors_only(name):
    read, seed = READERS[name]
    read(seed)
    random_ = random.Random(name)
    refused = 0
    for _ in range(ROUNDS):
        try:
            read(mutated(random_, seed))
        except CloisterError:
            refused += 1
    assert 0 < refused <= ROUNDS
