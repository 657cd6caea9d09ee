"""Boot event logs made by hand: right in every respect unless a test changes one thing."""

import hashlib
import struct

from cloister.attestation.bootlog import BootEvent, BootLog, encode_log
from cloister.attestation.bootlog.efi import GLOBAL, SECURITY_DATABASE

BANKS = {"sha1": (0x0004, 20), "sha256": (0x000B, 32), "sha384": (0x000C, 48), "sha512": (0x000D, 64)}
X509 = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")
NO_ACTION, SEPARATOR, CRTM_VERSION, IPL = 0x3, 0x4, 0x8, 0xD
DRIVER_CONFIG, BOOT, APPLICATION, ACTION, AUTHORITY = 0x80000001, 0x80000002, 0x80000003, 0x80000007, 0x800000E0


def header(*banks):
    """TCG_EfiSpecIDEvent for these banks."""
    listed = b"".join(struct.pack("<HH", *BANKS[name]) for name in banks)
    return b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks)) + listed + b"\0"


def event(index, kind, data, *, banks=("sha256",), measured=None):
    """An event whose digests are those of ``measured``, else of its data."""
    of = data if measured is None else measured
    digests = {name: hashlib.new(name, of).digest() for name in banks}
    if kind == NO_ACTION:
        digests = {name: bytes(BANKS[name][1]) for name in banks}
    return BootEvent(index, kind, digests, data)


def variable(name, value, vendor=None):
    """UEFI_VARIABLE_DATA."""
    guid = vendor or (SECURITY_DATABASE if name.startswith("db") else GLOBAL)
    return guid + struct.pack("<QQ", len(name), len(value)) + name.encode("utf-16-le") + value


def signature_list(*certificates):
    """One EFI_SIGNATURE_LIST for each certificate, with an owner of zeros."""
    return b"".join(X509 + struct.pack("<III", 28 + 16 + len(c), 0, 16 + len(c)) + bytes(16) + c for c in certificates)


def secure_boot_events(*, on=True, banks=("sha256",), register=7):
    """What firmware measures into PCR 7, up to and after the separator."""
    values = [("SecureBoot", bytes([on])), ("PK", signature_list(b"platform")), ("KEK", signature_list(b"exchange"))]
    values += [("db", signature_list(b"windows", b"third party")), ("dbx", signature_list(b"bad"))]
    events = [event(register, DRIVER_CONFIG, variable(n, v), banks=banks) for n, v in values]
    events.append(event(register, SEPARATOR, bytes(4), banks=banks))
    events.append(event(register, AUTHORITY, variable("db", bytes(16) + b"third party"), banks=banks))
    return events


def boot_log(*, on=True, banks=("sha256",), extra=()):
    """A whole boot as a TPM's crypto-agile log tells it."""
    events = [event(0, CRTM_VERSION, "v1\0".encode("utf-16-le"), banks=banks)]
    events += secure_boot_events(on=on, banks=banks)
    events += [event(i, SEPARATOR, bytes(4), banks=banks) for i in range(7)]
    events.append(event(4, APPLICATION, b"device path", banks=banks, measured=b"the boot loader"))
    events += [event(5, ACTION, b"Exit Boot Services Invocation", banks=banks), *extra]
    return BootLog("pcr", tuple(banks), tuple(events), header(*banks))


def boot_bytes(**options):
    return encode_log(boot_log(**options))


def naive_replay(log, algorithm):
    """An independent replay: every PCR from zeros, nothing special."""
    values = {}
    for e in log.events:
        if e.kind != NO_ACTION:
            before = values.get(e.index, bytes(BANKS[algorithm][1]))
            values[e.index] = hashlib.new(algorithm, before + e.digests[algorithm]).digest()
    return values
