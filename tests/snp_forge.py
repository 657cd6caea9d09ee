"""An AMD made of Python: roots, authorities, VCEKs and VLEKs, and reports of every version, right but for one thing.

It knows the format from a table of its own and never asks the code that it tests. ``python -m tests.snp_forge`` writes
``tests/vectors/snp.json`` anew.
"""

from __future__ import annotations

import base64
import datetime
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attestation import Evidence, make_nonce, report_data
from cloister.attestation.collateral import CollateralSet, Item
from cloister.crypto import JweKey
from cloister.crypto.x509 import Certificate, read_certificate
from tests.adversarial.evidence_forge import Log, sha256

NOW = 1_760_000_000
DAY = 86_400
NAMES = {"milan": "Milan", "genoa": "Genoa", "turin": "Turin"}
CPUID = {"milan": b"\x19\x01\x01", "genoa": b"\x19\x11\x01", "turin": b"\x1a\x02\x01"}
CHIP = bytes(range(1, 65))
TURIN_CHIP = bytes(range(1, 9))
TCB = {
    "milan": bytes([4, 1, 0, 0, 0, 0, 24, 219]),
    "genoa": bytes([10, 0, 0, 0, 0, 0, 23, 84]),
    "turin": bytes([1, 2, 3, 4, 0, 0, 0, 82]),
}
OIDS = {
    "milan": ("3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8"),
    "genoa": ("3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8"),
    "turin": ("3.9", "3.1", "3.2", "3.3", "3.5", "3.6", "3.7", "3.8"),
}
AMD = "1.3.6.1.4.1.3704.1."
CSP_ID = "CN=cc-us-east-2.example.com"
SIGNED, SIZE = 0x2A0, 0x4A0
# name: (offset, size), as in AMD 56860, table "ATTESTATION_REPORT".
FIELDS = {
    "version": (0x000, 4),
    "guest_svn": (0x004, 4),
    "policy": (0x008, 8),
    "family_id": (0x010, 16),
    "image_id": (0x020, 16),
    "vmpl": (0x030, 4),
    "algorithm": (0x034, 4),
    "current_tcb": (0x038, 8),
    "platform": (0x040, 8),
    "key_information": (0x048, 4),
    "reserved_4c": (0x04C, 4),
    "report_data": (0x050, 64),
    "measurement": (0x090, 48),
    "host_data": (0x0C0, 32),
    "id_key_digest": (0x0E0, 48),
    "author_key_digest": (0x110, 48),
    "report_id": (0x140, 32),
    "report_id_ma": (0x160, 32),
    "reported_tcb": (0x180, 8),
    "cpuid": (0x188, 3),
    "reserved_18b": (0x18B, 21),
    "chip_id": (0x1A0, 64),
    "committed_tcb": (0x1E0, 8),
    "current_version": (0x1E8, 3),
    "reserved_1eb": (0x1EB, 1),
    "committed_version": (0x1EC, 3),
    "reserved_1ef": (0x1EF, 1),
    "launch_tcb": (0x1F0, 8),
    "launch_mitigations": (0x1F8, 8),
    "current_mitigations": (0x200, 8),
    "reserved_208": (0x208, 0x98),
}
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
KEYS = {"vcek": 0, "vlek": 1, "none": 7}


@functools.cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """One key a name; 4096 bits take their time, so tests share them."""
    del name
    return rsa.generate_private_key(65537, 4096)


def pinned(key: rsa.RSAPrivateKey) -> str:
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return sha256(spki).hex()


def when(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def name(common: str) -> x509.Name:
    oid = x509.NameOID
    parts = (
        (oid.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
        (oid.COUNTRY_NAME, "US"),
        (oid.LOCALITY_NAME, "Santa Clara"),
        (oid.STATE_OR_PROVINCE_NAME, "CA"),
        (oid.ORGANIZATION_NAME, "Advanced Micro Devices"),
        (oid.COMMON_NAME, common),
    )
    return x509.Name([x509.NameAttribute(o, v) for o, v in parts])


def der_integer(value: int) -> bytes:
    return bytes([2, 1, value]) if value < 0x80 else bytes([2, 2, 0, value])


def der_text(text: str, tag: int = 0x16) -> bytes:
    return bytes([tag, len(text)]) + text.encode()


class Forge:
    """One processor and those who vouch for it. ``report`` and ``leaf`` change what they are told to, nothing else."""

    def __init__(self, product: str = "milan", signing_key: str = "vcek", version: int = 3, root: str = "ark") -> None:
        self.product, self.signing_key, self.version = product, signing_key, version
        self.root_key, self.intermediate_key = rsa_key(root), rsa_key("ask")
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.hwid = TURIN_CHIP if product == "turin" else CHIP
        self.made: dict[Any, Any] = {}
        self.nonce = make_nonce(sha256(b"ctx"), os.urandom(32))
        self.tee_pubkey: dict[str, Any] = dict(JweKey().public_jwk)

    @property
    def roots(self) -> dict[str, str]:
        return {self.product: pinned(self.root_key)}

    # Certificates

    def root(self, product: str | None = None, **changed: Any) -> Certificate:
        common = f"ARK-{NAMES[product or self.product]}"
        arguments = {"serial": 0x10000} | changed
        return self.once(
            (common, *sorted(arguments.items())),
            lambda: self.authority(common, common, self.root_key, self.root_key, **arguments),
        )

    def intermediate(self, product: str | None = None, signing_key: str | None = None, **changed: Any) -> Certificate:
        line = NAMES[product or self.product]
        common = f"SEV-VLEK-{line}" if (signing_key or self.signing_key) == "vlek" else f"SEV-{line}"
        arguments = {"serial": 0x10001, "path": 0} | changed
        return self.once(
            (common, *sorted(arguments.items())),
            lambda: self.authority(common, f"ARK-{line}", self.intermediate_key, self.root_key, **arguments),
        )

    @staticmethod
    def authority(
        common: str,
        issuer: str,
        key: rsa.RSAPrivateKey,
        signer: rsa.RSAPrivateKey,
        *,
        serial: int,
        path: int | None = None,
        begins: int = NOW - 1000 * DAY,
        ends: int = NOW + 1000 * DAY,
        pss: padding.PSS | None = PSS,
    ) -> Certificate:
        usage = [False] * 5 + [True, True] + [False] * 2
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(common))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(when(begins))
            .not_valid_after(when(ends))
            .add_extension(x509.BasicConstraints(ca=True, path_length=path), critical=True)
            .add_extension(x509.KeyUsage(*usage), critical=True)
        )
        return read_certificate(builder.sign(signer, hashes.SHA384(), rsa_padding=pss).public_bytes(Encoding.DER))

    def extensions(self, **changed: bytes | None) -> dict[str, bytes]:
        """AMD's extensions by the end of their OID; None takes one out. Names have ``_`` for a dot."""
        found = {"1": der_integer(int(self.product == "turin"))}
        stepping = "-B0" if self.signing_key == "vcek" and self.product != "turin" else ""
        found["2"] = der_text(NAMES[self.product] + stepping)
        found |= {o: der_integer(v) for o, v in zip(OIDS[self.product], TCB[self.product], strict=True)}
        found |= {"4": self.hwid} if self.signing_key == "vcek" else {"5": der_text(CSP_ID)}
        for key, value in changed.items():
            found.pop(key.strip("_").replace("_", "."), None)
            if value is not None:
                found[key.strip("_").replace("_", ".")] = value
        return found

    def once(self, what: Any, make: Callable[[], Any]) -> Any:
        """RSA-4096 signatures take their time; the same thing is signed once."""
        if what not in self.made:
            self.made[what] = make()
        return self.made[what]

    def leaf(self, **changed: Any) -> Certificate:
        return self.make_leaf(**changed) if changed else self.once("leaf", self.make_leaf)

    def make_leaf(
        self,
        *,
        extensions: Mapping[str, bytes] | None = None,
        common: str | None = None,
        issuer: Certificate | None = None,
        key: ec.EllipticCurvePrivateKey | None = None,
        begins: int = NOW - DAY,
        ends: int = NOW + DAY,
        pss: padding.PSS | None = PSS,
    ) -> Certificate:
        above = x509.load_der_x509_certificate((issuer or self.intermediate()).der)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(common or f"SEV-{self.signing_key.upper()}"))
            .issuer_name(above.subject)
            .public_key((key or self.key).public_key())
            .serial_number(1)
            .not_valid_before(when(begins))
            .not_valid_after(when(ends))
        )
        for oid, value in (self.extensions() if extensions is None else extensions).items():
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(AMD + oid), value), critical=False
            )
        signed = builder.sign(self.intermediate_key, hashes.SHA384(), rsa_padding=pss)
        return read_certificate(signed.public_bytes(Encoding.DER))

    def chain(self) -> tuple[Certificate, Certificate]:
        return self.intermediate(), self.root()

    def crl(self, *revoked: int, begins: int = NOW - DAY, ends: int = NOW + DAY, key: str | None = None) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(name(f"ARK-{NAMES[self.product]}"))
            .last_update(when(begins))
            .next_update(when(ends))
        )
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when(begins)).build()
            builder = builder.add_revoked_certificate(entry)
        signer = rsa_key(key) if key else self.root_key
        return builder.sign(signer, hashes.SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER)

    def collateral(self, *without: str, obtained: int = NOW - 60, crl: bytes | None = None) -> CollateralSet:
        suffix = "-vlek" if self.signing_key == "vlek" else ""
        pem = b"".join(x509.load_der_x509_certificate(c.der).public_bytes(Encoding.PEM) for c in self.chain())
        vcek = f"{self.hwid.hex()}-{TCB[self.product][::-1].hex()}"
        items = [
            Item("amd-chain", self.product + suffix, pem, obtained),
            Item("amd-vcek", vcek, self.leaf().der, obtained),
            Item("amd-crl", self.product + suffix, crl or self.once("crl", self.crl), obtained),
        ]
        return CollateralSet(item for item in items if item.kind not in without)

    # Reports

    def fields(self, **changed: bytes | int) -> dict[str, bytes]:
        tcb = TCB[self.product]
        found: dict[str, bytes | int] = dict.fromkeys(FIELDS, 0) | {
            "version": self.version,
            "guest_svn": 7,
            "policy": 1 << 17 | 1 << 16 | 0x011F,
            "family_id": b"f" * 16,
            "image_id": b"i" * 16,
            "algorithm": 1,
            "platform": 0b100101,
            "key_information": KEYS[self.signing_key] << 2,
            "report_data": b"d" * 64,
            "measurement": b"m" * 48,
            "host_data": b"h" * 32,
            "report_id": b"r" * 32,
            "report_id_ma": b"\xff" * 32,
            "current_tcb": tcb,
            "reported_tcb": tcb,
            "committed_tcb": tcb,
            "launch_tcb": tcb,
            "current_version": b"\x1d\x37\x01",
            "committed_version": b"\x1d\x37\x01",
        }
        if self.version >= 3:
            found["cpuid"] = CPUID[self.product]
        if self.version >= 5:
            found |= {"launch_mitigations": 0b101, "current_mitigations": 0b111}
        if self.signing_key == "vcek":
            found["chip_id"] = self.hwid.ljust(64, b"\0")
        assert set(changed) <= set(found)
        return {
            field: value if isinstance(value, bytes) else value.to_bytes(FIELDS[field][1], "little")
            for field, value in (found | changed).items()
        }

    def report(self, **changed: bytes | int) -> bytes:
        return self.sign(body(self.fields(**changed)))

    def sign(self, message: bytes, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
        r, s = decode_dss_signature((key or self.key).sign(message, ec.ECDSA(hashes.SHA384())))
        return (message + r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(SIZE, b"\0")

    # Evidence

    def data(self, additional: str) -> bytes:
        return report_data(self.nonce, self.tee_pubkey, additional)

    def evidence(
        self,
        log: Log | None = None,
        *,
        certificates: list[Certificate] | None = None,
        primary: dict[str, Any] | None = None,
        **changed: bytes | int,
    ) -> Evidence:
        text = (log or Log()).text()
        report = self.report(**({"report_data": self.data(text) + bytes(32)} | changed))
        given = [self.leaf(), *self.chain()] if certificates is None else certificates
        parts = {"report": b64(report), "certificates": [b64(c.der) for c in given]}
        return Evidence("snp", parts | (primary or {}), text)


def body(fields: Mapping[str, bytes]) -> bytes:
    """The signed part of a report, from all of its fields."""
    message = bytearray(SIGNED)
    for field, (offset, size) in FIELDS.items():
        assert len(fields[field]) == size, field
        message[offset : offset + size] = fields[field]
    return bytes(message)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# Vectors

BAD: dict[str, tuple[str, dict[str, bytes | int]]] = {
    "version 1": ("snp.version", {"version": 1}),
    "version 6": ("snp.version", {"version": 6}),
    "another signature algorithm": ("snp.structure", {"algorithm": 2}),
    "policy without the bit that is always one": ("snp.structure", {"policy": 0}),
    "policy bit 26": ("snp.structure", {"policy": 1 << 17 | 1 << 26}),
    "platform bit 8": ("snp.structure", {"platform": 1 << 8}),
    "a reserved signing key": ("snp.structure", {"key_information": 2 << 2}),
    "key information bit 5": ("snp.structure", {"key_information": 1 << 5}),
    "VMPL 4": ("snp.structure", {"vmpl": 4}),
    "mitigations before version 5": ("snp.structure", {"launch_mitigations": 1}),
    "asked for by the host": ("snp.host-requested", {"vmpl": 0xFFFFFFFF}),
    "signed by no key": ("snp.unsigned", {"key_information": 7 << 2}),
    "says VLEK, has a VCEK": ("snp.signing-key", {"key_information": 1 << 2}),
    "the CPUID of a Genoa": ("snp.product", {"cpuid": CPUID["genoa"]}),
    "the CPUID of no product": ("snp.product", {"cpuid": b"\x1b\x00\x00"}),
    "another reported TCB": ("snp.tcb-mismatch", {"reported_tcb": bytes([4, 0, 0, 0, 0, 0, 24, 219])}),
    "another chip": ("snp.chip-id", {"chip_id": CHIP[:-1] + b"\0"}),
    "committed TCB above the current one": ("snp.tcb-order", {"committed_tcb": bytes([5, 1, 0, 0, 0, 0, 24, 219])}),
    "current TCB below the reported one": ("snp.tcb-order", {"current_tcb": bytes([4, 1, 0, 0, 0, 0, 23, 219])}),
    "committed firmware above the current one": ("snp.tcb-order", {"committed_version": b"\x1e\x37\x01"}),
    "a reserved byte in the launch TCB": ("snp.tcb", {"launch_tcb": bytes([4, 1, 0, 1, 0, 0, 24, 219])}),
}
BAD |= {f"{field} not zero": ("snp.structure", {field: 1}) for field in FIELDS if field.startswith("reserved")}

GOOD = [
    ("milan", "vcek", 2),
    ("milan", "vcek", 3),
    ("milan", "vlek", 5),
    ("genoa", "vcek", 4),
    ("genoa", "vlek", 3),
    ("turin", "vcek", 2),
    ("turin", "vcek", 5),
    ("turin", "vlek", 5),
]


def vectors() -> dict[str, Any]:
    forge = Forge("milan", "vcek", 3)
    good = []
    for product, signing_key, version in GOOD:
        maker = Forge(product, signing_key, version)
        good.append(
            {
                "name": f"{product}, {signing_key}, version {version}",
                "product": product,
                "report": b64(maker.report()),
                "certificates": [b64(c.der) for c in (maker.leaf(), *maker.chain())],
            }
        )
    return {
        "about": "Self-made reports and certificates. Every good one verifies at the time 'now' to the root; every bad "
        "one is the report under 'certificates' with one thing changed, signed anew, and must fail with the code.",
        "now": NOW,
        "root": pinned(forge.root_key),
        "good": good,
        "certificates": [b64(c.der) for c in (forge.leaf(), *forge.chain())],
        "bad": [
            {"name": label, "code": code, "report": b64(forge.report(**changed))}
            for label, (code, changed) in BAD.items()
        ],
    }


if __name__ == "__main__":
    target = Path(__file__).parent / "vectors" / "snp.json"
    target.write_text(json.dumps(vectors(), indent=1) + "\n", encoding="utf-8")
