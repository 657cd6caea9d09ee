"""A TPM made of Python: what an attacker with a software TPM of their own design can send.

``Forge`` makes evidence that is right in every respect unless told otherwise, so each attack changes one thing.
"""

import base64
import datetime
import hashlib
import hmac
import os
from typing import Any

from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from cloister.attestation import Evidence, make_nonce, report_data
from cloister.attestation.events import event_digest, replay
from cloister.attestation.tpm import Enrolment, EnrolmentRequest, answer, begin, ek, finish, parser
from cloister.attestation.tpm.credential import Credential
from cloister.crypto import JweKey, canonical_json
from cloister.crypto.x509 import read_certificate

AK_ATTRIBUTES = 0x00050072  # restricted, sign, sensitiveDataOrigin, userWithAuth, fixedParent, fixedTPM
EK_ATTRIBUTES = 0x000300B2
SELECTION = (parser.PcrSelection(parser.ALG_SHA256, b"\xff\x80\x00"),)
QUOTED = (0, 1, 2, 3, 4, 5, 6, 7, 15)
INSTANCE, MEASUREMENT, CONTRACT, JOB, AGENT = b"i" * 16, b"m" * 32, b"c" * 32, b"j" * 32, b"a" * 32


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def launch_event(**changed: str) -> dict[str, str]:
    event = {
        "kind": "launch",
        "salt": os.urandom(16).hex(),
        "instance": INSTANCE.hex(),
        "measurement": MEASUREMENT.hex(),
        "contract": CONTRACT.hex(),
        "job": JOB.hex(),
    }
    return event | changed


class Log:
    """An event log that any part of can be changed before it is sent."""

    def __init__(self, *launches: dict[str, str]) -> None:
        self.agent = {"kind": "agent", "salt": os.urandom(16).hex(), "measurement": AGENT.hex()}
        self.launches = list(launches) or [launch_event(instance="00" * 16), launch_event()]
        self.events = [{"digest": event_digest(self.agent).hex(), "kind": "agent"}]
        self.events += [{"digest": event_digest(e).hex(), "kind": "launch"} for e in self.launches]
        self.opened = self.launches[-1]

    def pcr(self) -> bytes:
        return replay(bytes.fromhex(e["digest"]) for e in self.events)

    def text(self) -> str:
        body = {"cloister": {"agent": self.agent, "events": self.events, "launch": self.opened}}
        return canonical_json(body).decode()


class Forge:
    """``evidence`` signs whatever it is told to; the defaults make good evidence."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.ek = self.public(ec.generate_private_key(ec.SECP256R1()), EK_ATTRIBUTES, parser.ALG_NULL, 128)
        self.ak = self.public(self.key, AK_ATTRIBUTES, parser.ALG_ECDSA, 0)
        self.nonce = make_nonce(sha256(b"ctx"), os.urandom(32))
        self.tee_pubkey: dict[str, Any] = dict(JweKey().public_jwk)

    @staticmethod
    def public(key: ec.EllipticCurvePrivateKey, attributes: int, scheme: int, symmetric: int) -> parser.PublicArea:
        point = key.public_key().public_numbers()
        unique = (point.x.to_bytes(32, "big"), point.y.to_bytes(32, "big"))
        return parser.PublicArea(parser.ALG_ECC, attributes, b"", symmetric, scheme, 0, unique)

    def report(self, additional: str) -> bytes:
        return report_data(self.nonce, self.tee_pubkey, additional)

    def signer(self) -> bytes:
        endorsement = b"\x00\x0b" + sha256((0x4000000B).to_bytes(4, "big") + self.ek.name())
        return b"\x00\x0b" + sha256(endorsement + self.ak.name())

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(self.key.sign(message, ec.ECDSA(hashes.SHA256())))
        return parser.Signature(parser.ALG_ECDSA, (r.to_bytes(32, "big"), s.to_bytes(32, "big"))).encode()

    def evidence(
        self,
        log: Log,
        *,
        quoted_log: Log | None = None,
        pcrs: dict[str, str] | None = None,
        quote: dict[str, Any] | None = None,
        primary: dict[str, Any] | None = None,
    ) -> Evidence:
        """Evidence about ``log``. ``quoted_log``: what really stands in PCR 15; ``quote`` and ``primary``: changes."""
        values = {str(i): bytes([i]).hex() * 32 for i in QUOTED} | {"15": (quoted_log or log).pcr().hex()}
        values |= pcrs or {}
        text = log.text()
        fields: dict[str, Any] = {
            "qualified_signer": self.signer(),
            "extra_data": self.report(text),
            "clock": 1,
            "reset_count": 1,
            "restart_count": 0,
            "safe": True,
            "firmware": 1,
            "selections": SELECTION,
            "pcr_digest": sha256(b"".join(bytes.fromhex(values[str(i)]) for i in QUOTED)),
        }
        message = parser.Attest(**(fields | (quote or {}))).encode()
        body = {
            "quote": b64(message),
            "signature": b64(self.sign(message)),
            "ak_public": b64(self.ak.encode()),
            "ek_public": b64(self.ek.encode()),
            "pcrs": values,
        }
        return Evidence("tpm", body | (primary or {}), text)


class Maker:
    """A TPM manufacturer made of Python: a root, an authority under it, and endorsement certificates."""

    MANUFACTURER = "id:494E5443"
    NOW = 1_800_000_000

    def __init__(self) -> None:
        self.root_key, self.ca_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.root = self._authority("Root", self.root_key, "Root", self.root_key, 1)
        # As real makers' authorities, with policies that are critical and restrict nothing.
        anything = x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("2.5.29.32.0"), None)])
        self.ca = self._authority("Endorsement CA", self.ca_key, "Root", self.root_key, 0, anything)
        self.pool = [read_certificate(c.public_bytes(serialization.Encoding.DER)) for c in (self.ca, self.root)]
        self.fingerprint = self.pool[-1].key_fingerprint

    def _builder(self, subject: x509.Name, issuer: str, key: Any) -> x509.CertificateBuilder:
        day = datetime.timedelta(days=1)
        at = datetime.datetime.fromtimestamp(self.NOW, datetime.UTC)
        return (
            x509.CertificateBuilder(issuer_name=named(issuer), subject_name=subject, public_key=key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(at - 100 * day)
            .not_valid_after(at + 100 * day)
        )

    def _authority(
        self, name: str, key: Any, issuer: str, signer: Any, length: int, critical: x509.ExtensionType | None = None
    ) -> x509.Certificate:
        builder = self._builder(named(name), issuer, key.public_key())
        if critical is not None:
            builder = builder.add_extension(critical, True)
        return builder.add_extension(x509.BasicConstraints(True, length), True).sign(signer, hashes.SHA256())

    def certificate(
        self,
        key: Any,
        *,
        attributes: list[tuple[str, str]] | None = None,
        usage: str = "2.23.133.8.1",
        agreement: bool = True,
        ca: bool = False,
        critical: x509.ExtensionType | None = None,
    ) -> bytes:
        """An endorsement certificate for ``key``, with an empty subject and a critical alternative name, as real
        ones."""
        if attributes is None:
            attributes = [
                ("2.23.133.2.1", self.MANUFACTURER),
                ("2.23.133.2.2", "forge"),
                ("2.23.133.2.3", "id:0001"),
            ]
        name = x509.Name([x509.NameAttribute(x509.ObjectIdentifier(oid), value) for oid, value in attributes])
        encipher = not agreement
        builder = (
            self._builder(x509.Name([]), "Endorsement CA", key)
            .add_extension(x509.SubjectAlternativeName([x509.DirectoryName(name)]), True)
            .add_extension(x509.BasicConstraints(ca, None), True)
            .add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(usage)]), False)
            .add_extension(x509.KeyUsage(False, False, encipher, False, agreement, False, False, False, False), True)
        )
        if critical is not None:
            builder = builder.add_extension(critical, True)
        return builder.sign(self.ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


class Chip:
    """A TPM made of Python, with the endorsement key of one template and an attestation key. It activates as Part 1 §24
    says, written from the formula and not from the code under test."""

    def __init__(self, template: str = "L-2") -> None:
        self.template = next(t for t in ek.TEMPLATES if t.name == template)
        if self.template.algorithm == parser.ALG_RSA:
            self.private: Any = rsa.generate_private_key(65537, self.template.size)
            modulus = self.private.public_key().public_numbers().n
            unique: tuple[bytes, ...] = (modulus.to_bytes(self.template.size // 8, "big"),)
        else:
            curve, size = {3: (ec.SECP256R1(), 32), 4: (ec.SECP384R1(), 48)}[self.template.size]
            self.private = ec.generate_private_key(curve)
            point = self.private.public_key().public_numbers()
            unique = (point.x.to_bytes(size, "big"), point.y.to_bytes(size, "big"))
        self.endorsement = ek.EndorsementKey(self.template, unique)
        self.forge = Forge()
        self.ak = self.forge.ak

    def request(self, maker: Maker, **options: Any) -> EnrolmentRequest:
        agreement = self.template.algorithm != parser.ALG_RSA
        certificate = maker.certificate(self.private.public_key(), **{"agreement": agreement, **options})
        chain = tuple(c.der for c in maker.pool)
        return EnrolmentRequest(self.ak.encode(), self.endorsement.encode(), certificate, chain)

    def activate(self, credential: Credential, loaded: bytes | None = None) -> bytes:
        """The secret; AssertionError where a TPM would say TPM_RC_INTEGRITY. ``loaded``: the key's Name in the TPM."""
        name = self.ak.name() if loaded is None else loaded
        used = self.template.hash_name
        seed = self._seed(credential.secret, used)
        size = hashlib.new(used).digest_size
        mac, identity = credential.identity[2 : 2 + size], credential.identity[2 + size :]
        integrity = counter_mode(seed, used, b"INTEGRITY\0" + (8 * size).to_bytes(4, "big"), size)
        assert hmac.digest(integrity, identity + name, used) == mac
        bits = self.template.symmetric_bits
        key = counter_mode(seed, used, b"STORAGE\0" + name + bits.to_bytes(4, "big"), bits // 8)
        plain = Cipher(algorithms.AES(key), CFB(bytes(16))).decryptor().update(identity)
        return plain[2 : 2 + int.from_bytes(plain[:2], "big")]

    def _seed(self, secret: bytes, used: str) -> bytes:
        if self.template.algorithm == parser.ALG_RSA:
            algorithm = {"sha256": hashes.SHA256(), "sha384": hashes.SHA384()}[used]
            return self.private.decrypt(secret, padding.OAEP(padding.MGF1(algorithm), algorithm, b"IDENTITY\0"))
        size = len(secret) // 2 - 2
        x, y = secret[2 : 2 + size], secret[4 + size :]
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), self.private.curve)
        z = self.private.exchange(ec.ECDH(), numbers.public_key())
        return hashlib.new(used, bytes([0, 0, 0, 1]) + z + b"IDENTITY\0" + x + self.endorsement.unique[0]).digest()


def counter_mode(key: bytes, used: str, fixed: bytes, size: int) -> bytes:
    return hmac.digest(key, bytes([0, 0, 0, 1]) + fixed, used)[:size]


def enrol(chip: Chip, maker: Maker, **options: Any) -> Enrolment:
    """A whole honest enrolment; ``options`` change the certificate."""
    request = chip.request(maker, **options)
    pending, challenge = begin(request, os.urandom(32), now=maker.NOW, roots=[maker.fingerprint])
    return finish(pending, answer(request, chip.activate(challenge.credential)), now=maker.NOW)
