"""A stock key broker, written from Trustee's published documents alone: nothing of Cloister is imported here.

Messages, paths, status codes and error shapes: kbs/docs/kbs_attestation_protocol.md. Keys and responses: RFC 7516, 7517
and 7518 (``tests/unit/test_kbs_jwe.py`` holds our side against the RFCs' own examples). Its TEE is "sample": evidence
is ``{"svn", "report_data"}`` and proves nothing, which is what that name means there.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import re
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509.oid import NameOID

ERRORS = "https://github.com/confidential-containers/kbs/errors/"
RESOURCE = re.compile(r"/kbs/v0/resource/([^/]+)/([^/]+)/([^/]+)")


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def canonical(value: Any) -> bytes:
    """RFC 8785 for what occurs here: objects of ASCII names and texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def encrypt(jwk: dict[str, str], plaintext: bytes, *, with_aad: bool) -> dict[str, str]:
    """RFC 7516 flattened JSON. Older servers repeat the encoded header as ``aad``, newer ones leave it out."""
    cek, iv = os.urandom(32), os.urandom(12)
    header: dict[str, Any] = {"alg": jwk["alg"], "enc": "A256GCM"}
    if jwk["kty"] == "RSA":
        numbers = rsa.RSAPublicNumbers(int.from_bytes(unb64(jwk["e"]), "big"), int.from_bytes(unb64(jwk["n"]), "big"))
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
        wrapped = numbers.public_key().encrypt(cek, oaep)
    else:
        x, y = (int.from_bytes(unb64(jwk[name]), "big") for name in ("x", "y"))
        peer = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        own = ec.generate_private_key(ec.SECP256R1())
        n = own.public_key().public_numbers()
        point = {"x": b64(n.x.to_bytes(32, "big")), "y": b64(n.y.to_bytes(32, "big"))}
        header["epk"] = {"crv": "P-256", "kty": "EC", **point}
        name = b"ECDH-ES+A256KW"
        info = len(name).to_bytes(4, "big") + name + bytes(8) + (256).to_bytes(4, "big")
        kek = hashlib.sha256((1).to_bytes(4, "big") + own.exchange(ec.ECDH(), peer) + info).digest()
        wrapped = keywrap.aes_key_wrap(kek, cek)
    protected = b64(json.dumps(header, separators=(",", ":")).encode())
    sealed = AESGCM(cek).encrypt(iv, plaintext, protected.encode())
    jwe = {
        "protected": protected,
        "encrypted_key": b64(wrapped),
        "iv": b64(iv),
        "ciphertext": b64(sealed[:-16]),
        "tag": b64(sealed[-16:]),
    }
    return {**jwe, "aad": protected} if with_aad else jwe


class Refusal(Exception):
    def __init__(self, status: int, problem: str, detail: str = "no") -> None:
        super().__init__(problem)
        self.status = status
        self.body = {"type": ERRORS + problem, "detail": detail}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without asking for the machine's name: that may wait for a network."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]


class Trustee:
    """``resources`` by "repository/type/tag". ``selects``: the hash that the challenge names, or None for none."""

    def __init__(self, folder: Path, *, selects: str | None = None, with_aad: bool = False) -> None:
        self.resources: dict[str, bytes] = {}
        self.sessions: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        self.selects, self.with_aad = selects, with_aad
        self.spoil: dict[str, Any] = {}  # what a hostile server changes, by place
        self._signing = ec.generate_private_key(ec.SECP256R1())
        self.pin = self._certificate(folder)
        self._server = _Server(("127.0.0.1", 0), self._handler())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "trustee.crt", folder / "trustee.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(60)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def connect(self) -> socket.socket:
        return socket.create_connection(self._server.server_address[:2], timeout=60)

    def _certificate(self, folder: Path) -> bytes:
        """A P-256 key, as its own documents make one; the pin is SHA-256 of the SubjectPublicKeyInfo."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kbs")])
        begin = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        builder = builder.serial_number(1).not_valid_before(begin)
        certificate = builder.not_valid_after(begin + datetime.timedelta(days=36500)).sign(key, hashes.SHA256())
        pem, der = serialization.Encoding.PEM, serialization.Encoding.DER
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / "trustee.crt").write_bytes(certificate.public_bytes(pem))
        (folder / "trustee.key").write_bytes(private)
        spki = key.public_key().public_bytes(der, serialization.PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).digest()

    # The protocol.

    def auth(self, body: Any) -> tuple[str, dict[str, Any]]:
        if set(body) != {"version", "tee", "extra-params"} or body["version"] != "0.4.0" or body["tee"] != "sample":
            raise Refusal(401, "AttestationError")
        nonce, cookie = base64.b64encode(os.urandom(32)).decode(), b64(os.urandom(16))
        self.sessions[cookie] = {"nonce": nonce}
        extra: Any = "" if self.selects is None else {"selected-hash-algorithm": self.selects}
        return cookie, {"nonce": nonce, "extra-params": self.spoil.get("extra-params", extra)}

    def attest(self, cookie: str | None, body: Any) -> dict[str, Any]:
        session = self.sessions.get(cookie or "")
        if session is None:
            raise Refusal(401, "AttestationError")
        runtime, evidence = body["runtime-data"], body["tee-evidence"]
        if set(runtime) != {"nonce", "tee-pubkey"} or runtime["nonce"] != session["nonce"]:
            raise Refusal(401, "AttestationError")
        additional = evidence["additional_evidence"]
        if additional and not set(json.loads(additional)) <= {"sampledevice", "nvidia"}:
            raise Refusal(401, "AttestationError")  # a platform that its attestation service does not know
        material = canonical({**runtime, "additional-evidence": additional})
        report = hashlib.new(self.selects or "sha384", material).digest()
        if base64.b64decode(evidence["primary_evidence"]["report_data"]) != report:
            raise Refusal(401, "AttestationError")
        session["key"] = runtime["tee-pubkey"]
        return {"token": self._token(runtime)}

    def _token(self, runtime: dict[str, Any]) -> str:
        head = b64(json.dumps({"alg": "ES256", "typ": "JWT"}).encode())
        claims = {"eat_profile": "tag:github.com,2024:confidential-containers/Trustee", "submods": {"cpu0": runtime}}
        message = f"{head}.{b64(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self._signing.sign(message.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{message}.{b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def resource(self, cookie: str | None, path: str) -> dict[str, str]:
        session = self.sessions.get(cookie or "")
        if session is None or "key" not in session:
            raise Refusal(401, "TokenNotFound")
        if path not in self.resources:
            raise Refusal(404, "InvalidRequestPath")
        if path.startswith("denied/"):
            raise Refusal(403, "PolicyDeny", "a stranger's text\n\x1b[31m")
        answer = encrypt(session["key"], self.resources[path], with_aad=self.with_aad)
        return {**answer, **self.spoil.get("jwe", {})}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        trustee = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # an answer in one piece

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                trustee.requests.append(self.path)
                if self.path == "/kbs/v0/auth":
                    self._answer(lambda: trustee.auth(body), cookie=True)
                elif self.path == "/kbs/v0/attest":
                    self._answer(lambda: trustee.attest(self._cookie(), body))
                else:
                    self._answer(lambda: _raise(Refusal(404, "PluginNotFound")))

            def do_GET(self) -> None:
                trustee.requests.append(self.path)
                found = RESOURCE.fullmatch(self.path)
                if found is None:
                    return self._answer(lambda: _raise(Refusal(404, "PluginNotFound")))
                return self._answer(lambda: trustee.resource(self._cookie(), "/".join(found.groups())))

            def _cookie(self) -> str | None:
                found = re.search(r"kbs-session-id=([A-Za-z0-9_-]+)", self.headers.get("Cookie", ""))
                return found.group(1) if found else None

            def _answer(self, make: Any, *, cookie: bool = False) -> None:
                try:
                    made, status = make(), 200
                except (ValueError, LookupError, TypeError):
                    made, status, cookie = {"type": ERRORS + "SerdeError", "detail": "no"}, 401, False
                except Refusal as refusal:
                    made, status, cookie = refusal.body, refusal.status, False
                self.send_response(status)
                if cookie:
                    self.send_header("Set-Cookie", f"kbs-session-id={made[0]}")
                    made = made[1]
                data = json.dumps(made).encode()
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Silent: the tests read ``requests``."""

        return Handler


def _raise(error: Exception) -> Any:
    raise error
