"""NVIDIA GPUs, switches and manifests made of Python: what an attacker with own keys and own roots can send.

Everything is right unless told otherwise, so each attack changes one thing. Manifests are written by hand in their
canonical form, and what is signed is computed from that text: this is no mirror of the code that is tested.
``python -m tests.nvidia_forge nvidia nvidia_revocation`` writes these files of ``tests/vectors`` anew.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID

from cloister.attestation.collateral import CollateralSet, Item, Staleness
from cloister.attestation.nvidia import NvidiaVerifier
from tests.pki import DAY, NOW, Entity, answer, extension, issue, p384, responder
from tests.pki import tlv as der

SWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
SHA384 = "http://www.w3.org/2001/04/xmlenc#sha384"
DSIG = "http://www.w3.org/2000/09/xmldsig#"
LEAST = "https://docs.nvidia.com/attestation/specs/latest/opaque-data.html"
C14N11 = "http://www.w3.org/2006/12/xml-c14n11"
DRIVER, VBIOS = "550.90.07", "96.00.9F.00.01"
DRIVER_RIM, VBIOS_RIM = "NV_GPU_DRIVER_GH100_550.90.07", "NV_GPU_VBIOS_1010_0200_882_96009F0001"
SWITCH_RIM = "NV_SWITCH_BIOS_5612_0002_890_9610550001"
PREFIXES = {"HOPPER": "GH100 A01 GSP", "BLACKWELL": "GB100 A01 GSP", "LS10": "LS_10 A01 FSP"}
DRIVER_INDEXES, VBIOS_INDEXES = (7, 21, 35), (0, 1, 2, 12)
EMPTY = bytes(48)

SIGNING = x509.KeyUsage(True, False, False, False, False, False, False, False, False)


def measured(index: int) -> bytes:
    """What a good device measures."""
    return hashlib.sha384(b"measurement %d" % index).digest()


GOOD = {i: measured(i) if i in DRIVER_INDEXES + VBIOS_INDEXES else EMPTY for i in range(48)}


def fwid_der(digest: bytes) -> bytes:
    return der(0x30, der(0x06, bytes.fromhex("608648016503040202")), der(0x04, digest))


def composite_id(key: ec.EllipticCurvePrivateKey, digest: bytes) -> bytes:
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return der(0x30, der(0x02, b"\x01"), spki, fwid_der(digest))


def tcb_info(digest: bytes, flags: bytes = b"\x80\x00\x00\x01") -> bytes:
    return der(0x30, der(0x80, b"NVIDIA"), der(0xA6, fwid_der(digest), fwid_der(EMPTY)), der(0x87, b"\0" + flags))


def raw_sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA384())))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def device_name(common: str, serial: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, common), x509.NameAttribute(NameOID.SERIAL_NUMBER, serial)]
    )


@dataclass
class Gpu:
    """One device: its attestation key, its chain (leaf first), and what it would report."""

    arch: str
    chain: list[Entity]
    fwid: bytes
    pdi: str

    @property
    def pem(self) -> bytes:
        return b"".join(entity.pem for entity in self.chain)

    def opaque(self) -> dict[int, bytes]:
        if self.arch == "LS10":
            return {6: b"96.10.55.00.01", 22: bytes.fromhex(self.pdi), 20: self.fwid}
        fields = {
            6: bytes.fromhex("009f009601000000"),
            15: b"882\0\0\0\0\0\0",
            17: b"1010\0",
            18: b"0200\0",
            3: DRIVER.encode() + b"\0",
            11: b"\xaa",
            20: self.fwid,
            34: b"\x01\0",
            36: b"\x01\0",
        }
        return fields | ({17: b"G525\0", 35: b"GB100\0"} if self.arch == "BLACKWELL" else {})

    def report(
        self,
        nonce: bytes,
        *,
        measurements: dict[int, bytes] | None = None,
        opaque: dict[int, bytes | None] | None = None,
        raw_opaque: bytes | None = None,
        signer: Entity | None = None,
    ) -> bytes:
        """A signed report. ``measurements`` and ``opaque`` change what is in it; None removes a field."""
        values = GOOD | (measurements or {})
        blocks = b"".join(
            bytes([index + 1, 1])
            + (3 + len(value)).to_bytes(2, "little")
            + b"\x01"
            + len(value).to_bytes(2, "little")
            + value
            for index, value in values.items()
        )
        fields = self.opaque() | (opaque or {})
        data = raw_opaque
        if data is None:
            data = b"".join(
                number.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value
                for number, value in fields.items()
                if value is not None
            )
        head = bytes.fromhex("11e001ff") + nonce + b"\0" + bytes.fromhex("11600000") + bytes([len(values)])
        signed = head + len(blocks).to_bytes(3, "little") + blocks + os.urandom(32) + len(data).to_bytes(2, "little")
        signed += data
        return signed + raw_sign((signer or self.chain[0]).key, signed)

    def entry(self, nonce: bytes, **how: Any) -> dict[str, str]:
        """In the form in which evidence is exchanged."""
        return entry(self, self.report(nonce, **how))


def entry(gpu: Gpu, report: bytes) -> dict[str, str]:
    return {
        "arch": gpu.arch,
        "certificate": base64.b64encode(gpu.pem).decode(),
        "evidence": base64.b64encode(report).decode(),
    }


@dataclass
class Factory:
    """An own NVIDIA: the authorities over devices and over manifests. ``hold``: a manifest for the next collateral."""

    root: Entity = field(default_factory=lambda: issue("Device Root", p384(), ca=True))
    rim_root: Entity = field(default_factory=lambda: issue("Manifest Root", p384(), ca=True))
    made: int = 0

    def __post_init__(self) -> None:
        self.identity = issue("Identity", p384(), self.root, ca=True)
        self.provisioner = issue("Provisioner", p384(), self.identity, ca=True)
        self.rim_middle = issue("Reference Values", p384(), self.rim_root, ca=True)
        self.rim_signer = issue("Signer", p384(), self.rim_middle, extensions=[(SIGNING, True)])

    def gpu(
        self,
        arch: str = "HOPPER",
        *,
        model: str | None = None,
        fwid: bytes | None = None,
        extensions: list[tuple[x509.ExtensionType, bool]] | None = None,
        brom: Entity | None = None,
        flags: bytes = b"\x80\x00\x00\x01",
    ) -> Gpu:
        """A new device, or with ``brom`` another attestation key of a known one."""
        self.made += 1
        digest = fwid if fwid is not None else measured(self.made)
        pdi = f"{self.made:016x}"
        if brom is None:
            subject = device_name(model or PREFIXES[arch] + " BROM", "41" + pdi.upper())
            brom = issue("", p384(), self.provisioner, ca=True, subject=subject)
        key = p384()
        if extensions is None:
            if arch == "BLACKWELL":
                own = extension("2.23.133.5.4.1.1", tcb_info(digest, flags))
            else:
                own = extension("2.23.133.5.4.1", composite_id(brom.key, digest))
            extensions = [(SIGNING, True), own]
        leaf = issue(
            "", key, brom, subject=device_name(PREFIXES[arch] + " FMC LF", key_name(key)), extensions=extensions
        )
        return Gpu(arch, [leaf, brom, self.provisioner, self.identity, self.root], digest, pdi)

    def manifest(self, version: str, golden: dict[int, list[bytes]], **how: Any) -> bytes:
        return manifest(self, version, golden, **how)

    def driver(self, **how: Any) -> bytes:
        return self.manifest(**({"version": DRIVER, "golden": listed(DRIVER_INDEXES)} | how))

    def vbios(self, **how: Any) -> bytes:
        return self.manifest(**({"version": VBIOS, "golden": listed(VBIOS_INDEXES)} | how))

    def items(self, **changed: bytes) -> CollateralSet:
        """Good manifests of everything that the devices here run; ``changed`` replaces ``driver`` or ``vbios``."""
        data = {"driver": self.driver, "vbios": self.vbios}
        found = {role: changed[role] if role in changed else make() for role, make in data.items()}
        switch = self.manifest("96.10.55.00.01", listed(VBIOS_INDEXES), product="LS10")
        blackwell = [make(product="GB100") for make in (self.driver, self.vbios)]
        return CollateralSet(
            [
                Item("nvidia-rim", DRIVER_RIM, found["driver"], NOW),
                Item("nvidia-rim", VBIOS_RIM, found["vbios"], NOW),
                Item("nvidia-rim", "NV_GPU_CC_DRIVER_GB100_550.90.07", blackwell[0], NOW),
                Item("nvidia-rim", "NV_GPU_VBIOS_G525_0200_882_96009F0001", blackwell[1], NOW),
                Item("nvidia-rim", SWITCH_RIM, switch, NOW),
            ]
        )

    def answers(self, gpu: Gpu, **changed: bytes | None) -> list[Item]:
        """Good OCSP responses about a device's boot ROM and the two authorities below the root; ``changed`` replaces
        ``brom``, ``provisioner`` or ``identity``, None removes it."""
        found: list[Item] = []
        for role, about, issuer in zip(("brom", "provisioner", "identity"), gpu.chain[1:], gpu.chain[2:], strict=False):
            data = changed[role] if role in changed else answer(about, issuer, responder(issuer))
            if data is not None:
                found.append(Item("nvidia-ocsp", about.parsed.fingerprint, data, NOW))
        return found

    def verifier(self, items: CollateralSet | None = None, **how: Any) -> NvidiaVerifier:
        return NvidiaVerifier(
            items if items is not None else self.items(),
            Staleness(),
            **({"device_roots": {self.root.root}, "manifest_roots": {self.rim_root.root}} | how),
        )


def key_name(key: ec.EllipticCurvePrivateKey) -> str:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex().upper()


def listed(indexes: tuple[int, ...]) -> dict[int, list[bytes]]:
    return {index: [measured(index)] for index in indexes}


def resource(index: int, values: list[bytes], *, active: str = "True", more: str = "") -> str:
    hashes_ = "".join(f' ns2:Hash{i}="{value.hex()}"' for i, value in enumerate(values))
    size = len(values[0]) if values else 48
    return (
        f'<ns0:Resource active="{active}" alternatives="{len(values)}" index="{index}" name="Measurement_{index}" '
        f'size="{size}" type="Measurement"{more}{hashes_}></ns0:Resource>'
    )


def manifest(
    factory: Factory,
    version: str,
    golden: dict[int, list[bytes]],
    *,
    product: str = "GH100",
    more: str = "",
    patch: str = "false",
    algorithm: str = C14N11,
    chain: list[Entity] | None = None,
    signer: Entity | None = None,
    inside: str = "",
) -> bytes:
    """A signed manifest. ``more``: further resources in canonical form; ``inside``: more text inside the root."""
    inactive = "\n".join(resource(i, [EMPTY], active="False") for i in range(48) if i not in golden)
    active = "\n".join(resource(index, values) for index, values in golden.items())
    prefixed = f'xmlns:ns0="{SWID}" xmlns:ns2="{SHA384}" xmlns:ns3="{LEAST}"'
    canonical = (
        f'<SoftwareIdentity xmlns="{SWID}" {prefixed} corpus="false" name="{product}" patch="{patch}" '
        f'supplemental="false" tagId="{hashlib.sha384(version.encode()).hexdigest()}" tagVersion="0" version="1.0">\n'
        f'    <ns0:Meta colloquialVersion="{version}" edition="GPU" product="{product}"></ns0:Meta>\n'
        f"    <ns0:Payload>\n{active}\n{inactive}\n{more}</ns0:Payload>\n{inside}</SoftwareIdentity>"
    )
    exclusive = "exc" in algorithm
    info = signed_info((used_only(canonical, prefixed) if exclusive else canonical).encode(), algorithm)
    # As a part of its document SignedInfo is hashed with the namespaces that it inherits; the exclusive form has none.
    inherited = f'xmlns:ds="{DSIG}"' if exclusive else f'xmlns="{SWID}" xmlns:ds="{DSIG}" {prefixed}'
    written = expand(info.replace("<ds:SignedInfo>", f"<ds:SignedInfo {inherited}>", 1))
    value = raw_sign((signer or factory.rim_signer).key, written.encode())
    signature = signature_xml(info, value, chain or [factory.rim_signer, factory.rim_middle, factory.rim_root])
    text = canonical.replace("></ns0:Resource>", "/>").replace("></ns0:Meta>", " />")
    return text.replace("</SoftwareIdentity>", signature + "</SoftwareIdentity>").encode()


def used_only(text: str, prefixed: str) -> str:
    """The same document as the exclusive form writes it: each namespace where it is first used, and no other."""
    text = text.replace(f" {prefixed}", "", 1)
    for name in ("Meta", "Payload"):
        text = text.replace(f"<ns0:{name}", f'<ns0:{name} xmlns:ns0="{SWID}"', 1)
    return text.replace("<ns0:Resource ", f'<ns0:Resource xmlns:ns2="{SHA384}" ')


def signed_info(document: bytes, algorithm: str = C14N11) -> str:
    digest = base64.b64encode(hashlib.sha384(document).digest()).decode()
    return (
        f'<ds:SignedInfo><ds:CanonicalizationMethod Algorithm="{algorithm}"/>'
        f'<ds:SignatureMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"/>'
        f'<ds:Reference URI=""><ds:Transforms><ds:Transform Algorithm="{DSIG}enveloped-signature"/>'
        f'<ds:Transform Algorithm="{algorithm}"/></ds:Transforms>'
        f'<ds:DigestMethod Algorithm="http://www.w3.org/2001/04/xmldsig-more#sha384"/>'
        f"<ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
    )


def expand(text: str) -> str:
    """Empty elements as the canonical form writes them."""
    for name in ("CanonicalizationMethod", "SignatureMethod", "Transform", "DigestMethod"):
        head, *rest = text.split(f"<ds:{name} ")
        text = head + "".join(f"<ds:{name} " + part.replace("/>", f"></ds:{name}>", 1) for part in rest)
    return text


def signature_xml(info: str, value: bytes, chain: list[Entity]) -> str:
    certificates = "".join(
        f"<ds:X509Certificate>{base64.encodebytes(entity.der).decode()}</ds:X509Certificate>" for entity in chain
    )
    return (
        f'<ds:Signature xmlns:ds="{DSIG}">{info}<ds:SignatureValue>{base64.b64encode(value).decode()}'
        f"</ds:SignatureValue><ds:KeyInfo><ds:X509Data>{certificates}</ds:X509Data></ds:KeyInfo></ds:Signature>"
    )


def vectors() -> dict[str, Any]:
    """One good evidence of a GPU of each generation and a switch, and evidence with one thing wrong."""
    factory, other = Factory(), Factory()
    nonce = hashlib.sha256(b"device").digest()
    gpu, blackwell, switch = factory.gpu(), factory.gpu("BLACKWELL"), factory.gpu("LS10")
    tools = {21: measured(2100)}
    bad = {
        "made for another challenge": ("nvidia.nonce", gpu.entry(bytes(32))),
        "of another vendor": ("x509.root", other.gpu().entry(nonce)),
        "signed by another device": ("nvidia.signature", gpu.entry(nonce, signer=blackwell.chain[0])),
        "of other firmware than its certificate": ("nvidia.fwid", gpu.entry(nonce, opaque={20: measured(999)})),
        "with developer tools that change a measurement": ("nvidia.measurement", gpu.entry(nonce, measurements=tools)),
        "of another generation than it says": ("nvidia.architecture", gpu.entry(nonce) | {"arch": "BLACKWELL"}),
        "of a driver without a manifest": ("collateral.missing", gpu.entry(nonce, opaque={3: b"550.90.08\0"})),
    }
    return {
        "about": "Self-made devices and manifests. The good evidence verifies at the time 'now' with the manifests to "
        "the roots; every bad one is a device with one thing changed, and must fail with the code.",
        "now": NOW,
        "device": nonce.hex(),
        "device_root": factory.root.root,
        "manifest_root": factory.rim_root.root,
        "manifests": {item.name: item.data.decode() for item in factory.items()},
        "good": [g.entry(nonce) for g in (gpu, blackwell, switch)],
        "bad": [{"name": name, "code": code, "evidence": [sent]} for name, (code, sent) in bad.items()],
    }


def revocation_vectors() -> dict[str, Any]:
    """A device with good answers about it, and with one of them exchanged for a bad one or left out."""
    factory, other = Factory(), Factory()
    gpu = factory.gpu()
    brom, provisioner = gpu.chain[1], factory.provisioner
    signer, early = responder(provisioner), {"start": NOW - 2 * DAY, "end": NOW - DAY}
    later = {"start": NOW + DAY, "end": NOW + 2 * DAY}
    revoked, unknown = x509.ReasonFlags.key_compromise, ocsp.OCSPCertStatus.UNKNOWN
    bad = {
        "of a device on hold": (
            "x509.hold",
            answer(brom, provisioner, signer, reason=x509.ReasonFlags.certificate_hold),
        ),
        "of a revoked device": ("x509.revoked", answer(brom, provisioner, signer, reason=revoked)),
        "of an unknown device": ("ocsp.unknown", answer(brom, provisioner, signer, status=unknown)),
        "about another device": ("ocsp.certificate", answer(factory.gpu().chain[1], provisioner, signer)),
        "by a responder of an authority above": ("x509.issuer", answer(brom, provisioner, responder(factory.root))),
        "by another vendor's": ("x509.signature", answer(brom, provisioner, responder(other.provisioner))),
        "without the purpose": ("ocsp.responder", answer(brom, provisioner, responder(provisioner, purposes=[]))),
        "that has run out": ("collateral.stale", answer(brom, provisioner, signer, **early)),
        "from the future": ("ocsp.future", answer(brom, provisioner, signer, **later)),
        "that never ends": ("ocsp.form", answer(brom, provisioner, signer, end=None)),
        "that is a refusal to answer": ("ocsp.unanswered", der(0x30, der(0x0A, b"\6"))),
        "left out": ("collateral.missing", None),
    }

    def texts(items: list[Item]) -> dict[str, str]:
        return {item.name: base64.b64encode(item.data).decode() for item in items}

    return {
        "about": "A self-made device's chain, and OCSP responses (DER) by the SHA-256 of the certificate that each is "
        "about. The good ones are accepted at the time 'now'; every bad one must fail with the code, where revocation "
        "must be checked.",
        "now": NOW,
        "device_root": factory.root.root,
        "chain": gpu.pem.decode(),
        "good": texts(factory.answers(gpu)),
        "bad": [
            {"name": name, "code": code, "answers": texts(factory.answers(gpu, brom=data))}
            for name, (code, data) in bad.items()
        ],
    }


if __name__ == "__main__":
    for name, made in (("nvidia", vectors), ("nvidia_revocation", revocation_vectors)):
        if name in sys.argv[1:]:
            target = Path(__file__).parent / "vectors" / f"{name}.json"
            target.write_text(json.dumps(made(), indent=1) + "\n", encoding="utf-8")
