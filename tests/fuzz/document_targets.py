"""Parsers of everything else that comes from outside: documents, logs, tokens, sealed objects, requests, vaults."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from cloister.attestation.appraisal import EAR_PROFILE, verify_token
from cloister.audit import AuditLog, Receipt, checkpoint, journal, note, tiles
from cloister.audit import events as audit_events
from cloister.broker import LIMITS
from cloister.broker.config import parse_listen
from cloister.broker.init_data import InitData
from cloister.broker.kbs_request import read_attestation, read_knock
from cloister.client.parties import parse_card
from cloister.client.proposal import read_draft
from cloister.contracts import (
    CONTRACT_TYPE,
    Terms,
    contract,
    documents,
    parse_recipe,
    party,
    read_trustee_key,
    releases,
    trustee_key,
)
from cloister.contracts.recipe import read_yaml
from cloister.control import states
from cloister.crypto import (
    Envelope,
    HpkePrivateKey,
    JweKey,
    SigningKey,
    b64url,
    canonical,
    canonical_xml,
    jwe_encrypt,
    ocsp,
)
from cloister.crypto import certificates as x509
from cloister.crypto.cbor import cbor, parse_cbor
from cloister.crypto.cose import CoseKey, cose_sign1, cose_verify1
from cloister.crypto.der import Der, read_der
from cloister.crypto.jws import JwsKey, verify_jws
from cloister.crypto.slip39 import Share, share_secret
from cloister.crypto.xmldsig import open_signed_xml
from cloister.errors import CloisterError
from cloister.keys import WrappedKey
from cloister.keys.document import VaultDocument
from cloister.node.socket_requests import SocketLimits, parse_request
from cloister.sealed import Manifest
from cloister.sealed.folder import parse_envelope, read_envelope
from tests import bundles, nvidia_forge, tdx_forge
from tests.broker_party import recipe

from .registry import Target, as_envelope, as_json, as_text, shared_bytes, wire

__all__ = ["document_targets"]

DRAFT = b"""\
name: intents
parties: [hospital, lab]
assets: [hospital/queries, lab/minilm]
purpose: classify
recipes: {tasks: [classification], methods: [lora], max_epochs: 20}
runs: 5
outputs: [{name: hospital/adapter, form: adapter, recipients: [hospital]}]
gates: [{metric: accuracy, better_than_base_by: "0.0"}]
unbounded_memorization: [hospital]
telemetry: [loss]
lease_seconds: 30
assurance: none
regions: [local]
expires: 90d
platform: this
"""
KEY = SigningKey(b"fuzz".ljust(32, b"."))
NOW, tdx_now = 1_790_000_000, tdx_forge.NOW
RESULT = {"eat_profile": EAR_PROFILE, "exp": NOW + 100, "iat": NOW - 1, "submods": {"cpu0": {}}}
deal = cache(bundles.make_contract)
job = cache(lambda: bundles.make_job(deal()))
jwe, gpus, tdx = cache(JweKey), cache(nvidia_forge.Factory), cache(tdx_forge.Forge)


def _token(header: Any, body: Any) -> bytes:
    message = f"{b64url(wire(header))}.{b64url(wire(body))}"
    return f"{message}.{b64url(KEY.sign(message.encode()))}".encode()


def document_targets() -> list[Target]:
    return [*_crypto(), *_contracts(), *_logs(), *_requests(), *_keys()]


def _crypto() -> list[Target]:
    c = "cloister.crypto."
    return [
        Target("json", canonical.parse_json, _jsons, (f"{c}canonical.parse_json",)),
        Target("canonical json", canonical.parse_canonical, _jsons, (f"{c}canonical.parse_canonical",)),
        Target("envelope", Envelope.from_bytes, _envelopes, (f"{c}dsse.Envelope.from_bytes",)),
        Target("cbor", parse_cbor, _cbors, (f"{c}cbor.parse_cbor",)),
        Target("loose cbor", lambda data: parse_cbor(data, strict=False), _cbors, (f"{c}cbor.parse_cbor",)),
        Target(
            "cose",
            lambda data: cose_verify1(data, [CoseKey.ed25519(KEY.public)]),
            lambda: [cose_sign1(b"payload", {3: "text"}, KEY)],
            (f"{c}cose.cose_verify1",),
        ),
        Target("public key", CoseKey.read, _keys_of_signers, (f"{c}cose.CoseKey.read",), 8192),
        Target(
            "jws",
            as_text(lambda text: verify_jws(text, JwsKey("EdDSA", KEY.public), limit=64 * 1024)),
            lambda: [_token({"alg": "EdDSA"}, {})],
            (f"{c}jws.verify_jws",),
        ),
        Target("jwe", lambda data: jwe().decrypt(data), lambda: [jwe_encrypt(jwe().public_jwk, b"key")], ()),
        Target("xml", canonical_xml.parse_xml, _xmls, (f"{c}canonical_xml.parse_xml",), 256 * 1024),
        Target(
            "signed xml",
            lambda data: open_signed_xml(data, roots={gpus().rim_root.root}, now=nvidia_forge.NOW),
            _xmls,
            (f"{c}xmldsig.open_signed_xml",),
            256 * 1024,
        ),
        Target("der", _walk, _certificates, (f"{c}der.read_der",), 8192),
        Target("certificate", x509.read_certificate, _certificates, (f"{c}certificates.read_certificate",), 32 * 1024),
        Target(
            "certificates",
            x509.read_certificates,
            lambda: [tdx().signer.pem + tdx().root.pem, *shared_bytes("snp/roots/ask_ark_milan.pem")],
            (f"{c}certificates.read_certificates",),
        ),
        Target("ocsp response", ocsp.read_ocsp, _ocsp, (f"{c}ocsp.read_ocsp",)),
        Target("revocation list", x509.read_crl, lambda: [tdx().root.crl((1, 2, 3))], (f"{c}certificates.read_crl",)),
        Target(
            "words of a share",
            as_text(Share.from_words),
            lambda: [share_secret(bytes(32), 2, 3)[1][0].encode()],
            (f"{c}slip39.Share.from_words",),
            4096,
        ),
    ]


def _contracts() -> list[Target]:
    c = "cloister.contracts."
    kinds: list[tuple[str, str, Any, Any, str]] = [
        ("contract", CONTRACT_TYPE, contract.read_contract, lambda: deal().envelope, "contract.read_contract"),
        ("job", documents.JOB_TYPE, lambda e: documents.read_job(e, deal()), lambda: job().envelope,
         "documents.read_job"),
        ("revocation", documents.REVOCATION_TYPE, lambda e: documents.read_revocation(e, deal()), _revocation,
         "documents.read_revocation"),
        ("permit", documents.PERMIT_TYPE, lambda e: documents.read_permit(e, deal()), _permit, "documents.read_permit"),
        ("statement", documents.STATUS_TYPE, lambda e: documents.check_statement(e, deal(), now=NOW), _statement,
         "documents.check_statement"),
        ("card", party.CARD_TYPE, party.read_card, lambda: bundles.HOSPITAL.card.envelope, "party.read_card"),
        ("release of a workload", releases.RELEASE_TYPE, lambda e: releases.read_release(e, KEY.public), _release,
         "releases.read_release"),
        ("approval", releases.APPROVAL_TYPE, lambda e: releases.read_approval(e, deal()), _approval,
         "releases.read_approval"),
    ]  # fmt: skip
    made = [
        Target(name, as_envelope(kind, read, _signers(name)), (lambda seed=seed: [seed().payload]), (c + covered,))
        for name, kind, read, seed, covered in kinds
    ]
    recipes = [json.dumps(recipe()).encode(), b"task: classification\nmethod: lora\ndata: a/b\nbase: c/d\n"]
    return [
        *made,
        Target("recipe", parse_recipe, lambda: recipes, (f"{c}recipe.recipe.parse_recipe",)),
        Target("yaml", read_yaml, lambda: recipes, (f"{c}recipe.yaml.read_yaml",)),
        Target("terms", as_json(Terms.read), lambda: [wire(deal().assets[0].terms.document())],
               (f"{c}terms.Terms.read",)),
        Target("contract with stock parties", as_envelope(CONTRACT_TYPE, contract.read_contract, (KEY,)),
               _stock_contract, (f"{c}contract.read_contract",)),
        Target("stock key broker's key", lambda data: read_trustee_key(data, contract=bytes(32), asset=bytes(32)),
               lambda: [trustee_key(bytes(32), bytes(32), bytes(32))], (f"{c}trustees.read_trustee_key",)),
        Target("card's text", parse_card, lambda: [bundles.HOSPITAL.card.envelope.to_bytes()],
               ("cloister.client.parties.parse_card",)),
        Target("draft", lambda data: read_draft(data, now=NOW), lambda: [DRAFT],
               ("cloister.client.proposal.read_draft",)),
    ]  # fmt: skip


def _stock_contract() -> Iterable[bytes]:
    entry = {"address": "kbs.example:8080", "repository": "cloister", "tls_pin": "ab" * 32, "unbound": True}
    platform = {**bundles.contract_fields()["platform"], "stock_guests": True}
    privacy = {"max_delta": "0.00001", "max_epsilon": "8", "unit": "user"}
    recipes = {**bundles.contract_fields()["recipes"], "privacy": privacy}
    return [bundles.make_contract(platform=platform, recipes=recipes, trustees={"lab": entry}).envelope.payload]


@cache
def _signers(name: str) -> tuple[SigningKey, ...]:
    """Whoever signs documents here: each reader finds the signature that it wants, or takes a sole one only."""
    if name in ("job", "statement"):
        return (bundles.HOSPITAL.secret("signing" if name == "job" else "status"),)
    return (KEY, *(bundles.HOSPITAL.secret(role) for role in ("signing", "status", "receipt")))


def _revocation() -> Envelope:
    return documents.revocation_envelope(deal().digest, "hospital", KEY, now=NOW, reason="enough")


def _permit() -> Envelope:
    return documents.permit_envelope("hospital", deal().digest, job().digest, bytes(32), bytes(16), KEY, now=NOW)


def _statement() -> Envelope:
    return documents.in_force_statement(deal(), "hospital", KEY, now=NOW)


@cache
def _release() -> Envelope:
    return releases.release_envelope(
        version="1.2", number=1, previous=None, measurements=["aa" * 32], agents=["bb" * 32], notes="x", fixes=[],
        vulnerable=[], key=KEY, now=NOW,
    )  # fmt: skip


def _approval() -> Envelope:
    release = releases.read_release(_release(), KEY.public)
    return releases.approval_envelope(deal().digest, "hospital", release, bundles.HOSPITAL.secret("signing"), now=NOW)


@cache
def _log() -> tuple[Receipt, bytes, str]:
    """A receipt, the journal's bytes and the head of a short log."""
    with tempfile.TemporaryDirectory() as folder:
        with AuditLog.create(Path(folder) / "log", origin="cloister.example/log/hospital", signer=KEY) as log:
            event = audit_events.event("attest.ok", actor="hospital", target="x", details={"a": "b", "c": 1}, now=NOW)
            receipt = [log.append(audit_events.encode_event(event)) for _ in range(3)][-1]
            head = log.head()
        kept = (Path(folder) / "log" / "journal").read_bytes()
    return receipt, kept, head


def _logs() -> list[Target]:
    a = "cloister.audit."
    return [
        Target("receipt", as_json(Receipt.from_wire), lambda: [wire(_log()[0].to_wire())],
               (f"{a}receipt.Receipt.from_wire",)),
        Target("event", audit_events.parse_event, lambda: [_log()[0].leaf], (f"{a}events.parse_event",)),
        Target("note", as_text(note.Note.parse), lambda: [_log()[2].encode()], (f"{a}note.Note.parse",)),
        Target(
            "signature line",
            as_text(note.NoteSignature.parse),
            lambda: [_log()[2].splitlines()[-1].encode()],
            (f"{a}note.NoteSignature.parse",),
        ),
        Target(
            "head",
            as_text(lambda text: checkpoint.verify_checkpoint(text, "cloister.example/log/hospital", KEY.public)),
            lambda: [_log()[2].encode()],
            (f"{a}checkpoint.verify_checkpoint", f"{a}checkpoint.parse_checkpoint_text"),
        ),
        Target("journal", journal.parse_journal, lambda: [_log()[1]], (f"{a}journal.parse_journal",)),
        Target("path of a tile", as_text(tiles.parse_resource), lambda: [b"tile/0/x001/234.p/5"],
               (f"{a}tiles.parse_resource",), 4096),
        Target("bundle of entries", lambda data: tiles.decode_bundle(data, 3),
               lambda: [tiles.encode_bundle([b"a", b"bb", b"ccc"])], (f"{a}tiles.decode_bundle",)),
    ]  # fmt: skip


def _requests() -> list[Target]:
    b = "cloister.broker."
    version = (0, 4, 0)
    return [
        Target("kbs request", as_json(lambda body: read_knock(body, LIMITS)), _knock,
               (f"{b}kbs_request.read_knock",), 256 * 1024),
        Target("kbs attestation", as_json(lambda body: read_attestation(body, version)), _attestation,
               (f"{b}kbs_request.read_attestation",), 256 * 1024),
        Target("init-data", as_json(InitData.read), _init_data, (f"{b}init_data.InitData.read",)),
        Target("address", as_text(parse_listen), lambda: [b"127.0.0.1:80"], (f"{b}config.parse_listen",), 4096),
        Target("sandbox's request", lambda data: parse_request(data, SocketLimits()), _node_requests,
               ("cloister.node.socket_requests.parse_request",)),
        Target("node's event", as_json(states.read_event), lambda: [b'{"kind":"state","code":"done"}'],
               ("cloister.control.states.read_event", "cloister.control.states.read_error")),
        Target("timings", as_json(states.read_timings), lambda: [b'{"train":"1.5"}'],
               ("cloister.control.states.read_timings",)),
        Target("result token", as_text(lambda text: verify_token(text, KEY.public, now=NOW)),
               lambda: [_token({"alg": "EdDSA", "typ": "JWT"}, RESULT)],
               ("cloister.attestation.appraisal.verify_token",)),
    ]  # fmt: skip


def _keys() -> list[Target]:
    wrapped = WrappedKey("0" * 32, 1, "aes-256-gcm", bytes(60)).to_document()
    return [
        Target(
            "wrapped key",
            as_json(WrappedKey.from_document),
            lambda: [wire(wrapped)],
            ("cloister.keys.models.WrappedKey.from_document",),
        ),
        Target("vault", VaultDocument.parse, _vaults, ("cloister.keys.document.VaultDocument.parse",)),
        Target("manifest", Manifest.from_payload, _manifests, ("cloister.sealed.models.Manifest.from_payload",)),
        Target("manifest's envelope", parse_envelope, _envelopes, ("cloister.sealed.folder.parse_envelope",)),
    ]


def _jsons() -> Iterable[bytes]:
    return [deal().envelope.payload, b'{"a":[1,-2,true,null,"\\u00e9\\\\"],"b":{"c":""}}', _log()[0].leaf]


def _envelopes() -> Iterable[bytes]:
    return [deal().envelope.to_bytes(), job().envelope.to_bytes()]


def _cbors() -> Iterable[bytes]:
    return [cbor({1: [b"x", "y", -5, True, None], "a": {2: 2**40}}), cose_sign1(b"p", {3: "text"}, KEY)]


def _xmls() -> Iterable[bytes]:
    return [gpus().vbios(), b"<a:b xmlns:a='urn:x'><c d=\"e\">&amp;&#65;</c></a:b>"]


def _certificates() -> Iterable[bytes]:
    return [x509.read_certificate(tdx().signer.pem).der, tdx().signer.pem, *shared_bytes("snp/milan_vcek.der")]


def _keys_of_signers() -> Iterable[bytes]:
    return [KEY.public.hex().encode(), x509.read_certificate(tdx().signer.pem).spki]


def _walk(data: bytes) -> None:
    """Each element as everything that it could be, some levels down."""
    level = [read_der(data, "thing", code="thing.form")]
    for _ in range(4):
        below: list[Der] = []
        for element in level[:200]:
            for read in (element.oid, element.boolean, element.text, element.bits, lambda e=element: e.unsigned(2)):
                with contextlib.suppress(CloisterError):
                    read()
            with contextlib.suppress(CloisterError):
                below += element.children(element.tag)
        level = below


@cache
def _ocsp() -> list[bytes]:
    """A good answer about a certificate of the forge's."""
    from cryptography import x509 as lib
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.x509 import ocsp as lib_ocsp

    from tests.tdx_forge import when

    leaf, issuer = (lib.load_pem_x509_certificate(made.pem) for made in (tdx().signer, tdx().root))
    builder = lib_ocsp.OCSPResponseBuilder().add_response(
        leaf, issuer, hashes.SHA384(), lib_ocsp.OCSPCertStatus.GOOD, when(tdx_now), when(tdx_now + 1000), None, None
    )
    made = builder.responder_id(lib_ocsp.OCSPResponderEncoding.NAME, issuer).sign(tdx().root.key, hashes.SHA256())
    return [made.public_bytes(serialization.Encoding.DER)]


@cache
def hpke() -> HpkePrivateKey:
    return HpkePrivateKey.generate()


def _knock() -> Iterable[bytes]:
    cloister = {
        "contract": deal().envelope.to_bytes().decode(), "hpke": base64.b64encode(hpke().public).decode(),
        "instance": "00" * 16, "job": job().envelope.to_bytes().decode(), "purpose": "release", "sequence": 0,
        "signing": "00" * 32, "statements": [_statement().to_bytes().decode()],
    }  # fmt: skip
    return [wire({"extra-params": {"cloister": cloister}, "tee": "tpm", "version": "0.4.0"})]


def _attestation() -> Iterable[bytes]:
    runtime = {"nonce": base64.b64encode(bytes(64)).decode(), "tee-pubkey": jwe().public_jwk}
    evidence = {"additional_evidence": "{}", "primary_evidence": {"quote": "AAAA"}}
    return [wire({"runtime-data": runtime, "tee-evidence": evidence})]


def _init_data() -> Iterable[bytes]:
    inner = json.dumps({"algorithm": "sha256", "data": {"a.toml": "x = 1"}, "version": "0.1.0"})
    toml = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"a.toml" = "x"\n'
    return [wire({"body": inner, "format": "json"}), wire({"body": toml, "format": "toml"})]


def _node_requests() -> Iterable[bytes]:
    progress = {"kind": "progress", "stage": "train", "step": 1, "total": 2, "values": {"loss": "0.5"}}
    return [
        b'{"op":"connect","party":"hospital"}',
        wire({"op": "telemetry", "event": progress}),
        wire({"op": "evidence", "nonce": "abc", "tee-pubkey": {"kty": "EC"}}),
        wire({"op": "stock-evidence", "nonce": "abc", "tee-pubkey": {"kty": "EC"}, "hash": "sha384"}),
    ]


@cache
def _vaults() -> list[bytes]:
    from cloister.crypto import Argon2Params
    from cloister.keys import create_vault

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vault.json"
        create_vault(path, b"correct horse", "hospital", params=Argon2Params(8 * 1024, 1, 1)).close()
        return [path.read_bytes()]


@cache
def _manifests() -> list[bytes]:
    from cloister.sealed import seal_object
    from tests.sealing import OWNER_KEY, identity, signer

    with tempfile.TemporaryDirectory() as folder:
        made = seal_object([("a.bin", io.BytesIO(b"rows"))], Path(folder) / "o", dek=bytes(range(32)),
                           identity=identity(), sign=signer(OWNER_KEY), terms={})  # fmt: skip
        return [read_envelope(Path(folder) / "o").payload] if made else []
