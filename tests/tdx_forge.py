"""An Intel made of Python: root, authorities, a platform with its quoting enclave, and the service's documents.

``Forge`` makes quotes and collateral that are right in every respect unless told otherwise, so each attack changes one
thing. Nothing here is Intel's but names and numbers of formats.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from cloister.attestation import Evidence, make_nonce, report_data
from cloister.attestation.collateral import CollateralSet, Item
from cloister.attestation.tdx import service_items
from cloister.crypto.x509 import read_certificate

NOW = 1_900_000_000
DAY = 86_400
ROOT, PLATFORM, PROCESSOR = "Intel SGX Root CA", "Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"
SIGNER, PCK = "Intel SGX TCB Signing", "Intel SGX PCK Certificate"
VENDOR = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
FMSPC, PPID, INSTANCE = bytes.fromhex("30806f000000"), b"p" * 16, b"i" * 16
QE_SIGNER = b"q" * 32
QE_ATTRIBUTES = bytes.fromhex("11000000000000000000000000000000")
COMPONENTS = bytes([5, 5, 2, 2, 3, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0])
TEE_TCB_SVN = bytes([6, 1, 3, *bytes(13)])
SEPT_VE_DISABLE = (1 << 28).to_bytes(8, "little")
TD_FIELDS = {
    "tee_tcb_svn": 16, "mr_seam": 48, "mr_signer_seam": 48, "seam_attributes": 8, "attributes": 8, "xfam": 8,
    "mr_td": 48, "mr_config_id": 48, "mr_owner": 48, "mr_owner_config": 48, "rtmr0": 48, "rtmr1": 48, "rtmr2": 48,
    "rtmr3": 48, "report_data": 64, "tee_tcb_svn2": 16, "mr_service_td": 48, "vmid": 1, "td_id": 32, "rest": 204,
}  # fmt: skip
TD_SIZES = {"td-1.0": 584, "td-1.5": 648, "td-1.5-ex": 885}
BODY_TYPES = {"sgx": 1, "td-1.0": 2, "td-1.5": 3, "td-1.5-ex": 4}


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_public(key: ec.EllipticCurvePrivateKey) -> bytes:
    point = key.public_key().public_numbers()
    return point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big")


def when(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def stamp(seconds: int) -> str:
    return when(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def integer(value: int) -> bytes:
    return der(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def pair(suffix: bytes, value: bytes) -> bytes:
    return der(0x30, der(6, bytes.fromhex("2a864886f84d010d01") + suffix) + value)


def sgx_extension(**changed: Any) -> bytes:
    """Intel's extension of a PCK certificate; ``changed`` by the names below, None leaves one out."""
    values = {
        "components": COMPONENTS, "pcesvn": 13, "ppid": PPID, "pceid": bytes(2), "fmspc": FMSPC, "sgx_type": 1,
        "instance": INSTANCE, "flags": (True, False, True),
    } | changed  # fmt: skip
    svns = b"".join(pair(bytes([2, n]), integer(svn)) for n, svn in enumerate(values["components"], 1))
    svns += pair(b"\x02\x11", integer(values["pcesvn"])) + pair(b"\x02\x12", der(4, values["components"]))
    parts = [
        pair(b"\x01", der(4, values["ppid"])),
        pair(b"\x02", der(0x30, svns)),
        pair(b"\x03", der(4, values["pceid"])),
        pair(b"\x04", der(4, values["fmspc"])),
        pair(b"\x05", der(10, bytes([values["sgx_type"]]))),
    ]
    if values["instance"] is not None:
        flags = enumerate(values["flags"], 1)
        content = b"".join(pair(bytes([7, n]), der(1, b"\xff" if flag else b"\0")) for n, flag in flags)
        parts += [pair(b"\x06", der(4, values["instance"])), pair(b"\x07", der(0x30, content))]
    return der(0x30, b"".join(parts))


class Certified:
    """A key with its certificate."""

    def __init__(
        self,
        common: str,
        issuer: Certified | None = None,
        *,
        authority: bool = True,
        extension: bytes | None = None,
        begins: int = NOW - 1000 * DAY,
        ends: int = NOW + 1000 * DAY,
        serial: int | None = None,
        signs: bool | None = None,
    ) -> None:
        self.key = new_key()
        self.name = name(common)
        signs = not authority if signs is None else signs
        signer, signer_name = (self.key, self.name) if issuer is None else (issuer.key, issuer.name)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(signer_name)
            .public_key(self.key.public_key())
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(when(begins))
            .not_valid_after(when(ends))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(x509.KeyUsage(signs, False, False, False, False, authority, authority, False, False), True)
        )
        if extension is not None:
            oid = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
            builder = builder.add_extension(x509.UnrecognizedExtension(oid, extension), False)
        self.certificate = builder.sign(signer, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        return read_certificate(self.pem).key_fingerprint

    def crl(self, revoked: Iterable[int] = (), *, begins: int = NOW - DAY, ends: int = NOW + 29 * DAY) -> bytes:
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.name)
        builder = builder.last_update(when(begins)).next_update(when(ends))
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when(begins)).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def level(svn: int, status: str = "UpToDate", *, date: int = NOW - 100 * DAY, advisories: tuple[str, ...] = ()) -> Any:
    found: dict[str, Any] = {"tcb": {"isvsvn": svn}, "tcbDate": stamp(date), "tcbStatus": status}
    return found | ({"advisoryIDs": list(advisories)} if advisories else {})


def platform_level(sgx: bytes, tdx: bytes | None, pcesvn: int = 13, status: str = "UpToDate", **more: Any) -> Any:
    tcb: dict[str, Any] = {"sgxtcbcomponents": [{"svn": svn} for svn in sgx], "pcesvn": pcesvn}
    if tdx is not None:
        tcb["tdxtcbcomponents"] = [{"svn": svn, "category": "OS/VMM"} for svn in tdx]
    return level(0, status, **more) | {"tcb": tcb}


class Forge:
    """One Intel and one platform. ``tee``: tdx or sgx; ``version`` and ``body``: the form of its quotes."""

    def __init__(self, tee: str = "tdx", version: int = 4, body: str = "", authority: str = PLATFORM) -> None:
        self.tee, self.version, self.body = tee, version, body or ("td-1.0" if tee == "tdx" else "sgx")
        self.root = Certified(ROOT)
        self.authority = Certified(authority, self.root)
        self.signer = Certified(SIGNER, self.root, authority=False)
        instance = INSTANCE if authority == PLATFORM else None
        self.pck = Certified(PCK, self.authority, authority=False, extension=sgx_extension(instance=instance))
        self.attestation_key = new_key()
        self.roots = frozenset({self.root.fingerprint})

    # Quotes

    def td(self, **changed: bytes) -> bytes:
        values = {key: bytes(size) for key, size in TD_FIELDS.items()} | {
            "tee_tcb_svn": TEE_TCB_SVN, "tee_tcb_svn2": TEE_TCB_SVN, "attributes": SEPT_VE_DISABLE, "mr_td": b"m" * 48,
            "rtmr0": b"0" * 48, "rtmr1": b"1" * 48, "rtmr2": b"2" * 48, "report_data": b"r" * 64,
        } | changed  # fmt: skip
        assert all(len(values[key]) == size for key, size in TD_FIELDS.items())
        return b"".join(values.values())[: TD_SIZES[self.body]]

    def enclave(self, **changed: Any) -> bytes:
        values = {
            "cpu_svn": COMPONENTS, "misc": bytes(4), "attributes": QE_ATTRIBUTES, "mr_enclave": b"e" * 32,
            "mr_signer": QE_SIGNER, "prod": 2 if self.tee == "tdx" else 1, "svn": 8, "report_data": bytes(64),
        } | changed  # fmt: skip
        return (
            values["cpu_svn"] + values["misc"] + bytes(28) + values["attributes"] + values["mr_enclave"] + bytes(32)
            + values["mr_signer"] + bytes(96) + values["prod"].to_bytes(2, "little")
            + values["svn"].to_bytes(2, "little") + bytes(60) + values["report_data"]
        )  # fmt: skip

    def signed(self, body: bytes) -> bytes:
        tee = 0x81 if self.tee == "tdx" else 0
        header = self.version.to_bytes(2, "little") + b"\x02\x00" + tee.to_bytes(4, "little") + bytes(4) + VENDOR
        described = b""
        if self.version == 5:
            described = BODY_TYPES[self.body].to_bytes(2, "little") + len(body).to_bytes(4, "little")
        return header + bytes(20) + described + body

    def chain(self) -> bytes:
        return self.pck.pem + self.authority.pem + self.root.pem

    def quote(
        self,
        body: bytes | None = None,
        *,
        qe: dict[str, Any] | None = None,
        auth_data: bytes = bytes(range(32)),
        chain: bytes | None = None,
        data_type: int = 5,
        vouched: bytes | None = None,
        signed: bytes | None = None,
        signer: ec.EllipticCurvePrivateKey | None = None,
        qe_signer: ec.EllipticCurvePrivateKey | None = None,
    ) -> bytes:
        """``vouched``: the key that the QE's report is about; ``signed``: what the quote says, header included."""
        if body is None:
            body = self.td() if self.tee == "tdx" else self.enclave(report_data=b"r" * 64)
        signed = self.signed(body) if signed is None else signed
        key = raw_public(self.attestation_key)
        about = sha256((vouched or key) + auth_data) + bytes(32)
        report = self.enclave(**({"report_data": about} | (qe or {})))
        pem = self.chain() if chain is None else chain
        certified = report + raw_signature(qe_signer or self.pck.key, report)
        certified += len(auth_data).to_bytes(2, "little") + auth_data
        certified += data_type.to_bytes(2, "little") + len(pem).to_bytes(4, "little") + pem
        if self.version > 3:
            certified = b"\x06\x00" + len(certified).to_bytes(4, "little") + certified
        data = raw_signature(signer or self.attestation_key, signed) + key + certified
        return signed + len(data).to_bytes(4, "little") + data

    # Collateral

    def tcb_info(self, **changed: Any) -> dict[str, Any]:
        tdx = self.tee == "tdx"
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        older = bytes(max(svn - 1, 0) for svn in COMPONENTS)
        info: dict[str, Any] = {
            "id": self.tee.upper(), "version": 3, "issueDate": stamp(NOW - DAY), "nextUpdate": stamp(NOW + 29 * DAY),
            "fmspc": FMSPC.hex().upper(), "pceId": "0000", "tcbType": 0, "tcbEvaluationDataNumber": 19,
            "tcbLevels": [
                platform_level(COMPONENTS, bytes([5, 0, 3, *bytes(13)]) if tdx else None),
                platform_level(older, bytes([4, 0, 2, *bytes(13)]) if tdx else None, 5, "OutOfDate",
                               date=NOW - 400 * DAY, advisories=("INTEL-SA-00001",)),
            ],
        }  # fmt: skip
        if tdx:
            levels = [level(6), level(4, "OutOfDate", date=NOW - 300 * DAY, advisories=("INTEL-SA-00002",))]
            info["tdxModule"] = module
            info["tdxModuleIdentities"] = [{"id": "TDX_01", "tcbLevels": levels, **module}]
        return info | changed

    def qe_identity(self, **changed: Any) -> dict[str, Any]:
        return {
            "id": "TD_QE" if self.tee == "tdx" else "QE", "version": 2, "issueDate": stamp(NOW - DAY),
            "nextUpdate": stamp(NOW + 29 * DAY), "tcbEvaluationDataNumber": 19, "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF", "attributes": QE_ATTRIBUTES.hex().upper(),
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000", "mrsigner": QE_SIGNER.hex().upper(),
            "isvprodid": 2 if self.tee == "tdx" else 1,
            "tcbLevels": [level(8), level(5, "OutOfDate", date=NOW - 500 * DAY, advisories=("INTEL-SA-00003",))],
        } | changed  # fmt: skip

    def answer(self, key: str, body: dict[str, Any], signer: ec.EllipticCurvePrivateKey | None = None) -> bytes:
        text = json.dumps(body, separators=(",", ":")).encode()
        signature = raw_signature(signer or self.signer.key, text).hex()
        return b'{"%b":%b,"signature":"%b"}' % (key.encode(), text, signature.encode())

    def items(self, **changed: Any) -> tuple[Item, ...]:
        chain = self.signer.pem + self.root.pem
        parts: dict[str, Any] = {
            "tcb_info": self.answer("tcbInfo", self.tcb_info()), "tcb_info_chain": chain,
            "qe_identity": self.answer("enclaveIdentity", self.qe_identity()), "qe_identity_chain": chain,
            "pck_crl": self.authority.crl(), "root_crl": self.root.crl(), "obtained": NOW,
        }  # fmt: skip
        return service_items(**(parts | changed))

    def collateral(self, **changed: Any) -> CollateralSet:
        return CollateralSet(self.items(**changed))

    # Evidence

    def evidence(
        self, text: str, *, primary: dict[str, Any] | None = None, report: bytes | None = None, **td: bytes
    ) -> Any:
        """Evidence over the additional evidence ``text``, and the report that a verifier expects of it."""
        nonce = make_nonce(sha256(b"ctx"), b"n" * 32)
        expected = report_data(nonce, {"kty": "OKP"}, text)
        said = expected + bytes(32) if report is None else report
        quote = self.quote(self.td(**({"report_data": said} | td)))
        body = {"quote": base64.b64encode(quote).decode()} | (primary or {})
        return Evidence("tdx", body, text), expected
