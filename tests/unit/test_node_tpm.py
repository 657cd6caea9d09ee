"""The TPM wrapper against a real software TPM: identity, PCRs, quotes, and what happens when the TPM goes."""

import builtins
import json
import os
import signal
import stat

import pytest

from cloister.attestation import Evidence, report_data
from cloister.attestation.registry import verifiers
from cloister.attestation.tpm import attester_id, parser
from cloister.crypto import JweKey, sha256, verify_hardware_signature
from cloister.errors import Misuse, Unavailable, Untrusted
from cloister.node import tpm as tpm_module
from cloister.node.attester import TpmAttester
from cloister.node.swtpm import SoftwareTpm
from cloister.node.tpm import Tpm


@pytest.fixture
def swtpm(tmp_path):
    with SoftwareTpm(tmp_path / "state") as running:
        yield running


@pytest.fixture
def tpm(swtpm):
    opened = Tpm(swtpm.tcti)
    yield opened
    opened.close()


def test_pcrs_extend_as_the_formula_says(tpm):
    assert tpm.read_pcrs(range(16)) == {i: bytes(32) for i in range(16)}
    value = bytes(32)
    for number in range(3):
        digest = sha256(bytes([number]))
        tpm.extend(15, digest)
        value = sha256(value + digest)
    assert tpm.read_pcrs([15, 0]) == {0: bytes(32), 15: value}


def test_identity_is_a_restricted_key_under_the_endorsement_key(tpm, tmp_path):
    identity = tpm.load_identity(tmp_path)
    ak, ek = parser.parse_public(identity.ak_public), parser.parse_public(identity.ek_public)
    assert ak.encode() == identity.ak_public
    assert ak.attributes & parser.RESTRICTED
    assert not ak.attributes & parser.DECRYPT
    assert ek.attributes & parser.DECRYPT
    assert ek.symmetric_bits == 128
    assert identity.attester_id == attester_id(identity.ak_public) == sha256(b"\0\x0b" + sha256(ak.encode())).hex()


def test_quote_is_signed_over_what_was_asked(tpm, tmp_path):
    identity = tpm.load_identity(tmp_path)
    report = sha256(b"report")
    raw, signature = tpm.quote(report, [0, 15])
    quote = parser.parse_attest(raw)
    assert quote.extra_data == report
    assert quote.selections == (parser.PcrSelection(parser.ALG_SHA256, b"\x01\x80\x00"),)
    assert quote.pcr_digest == sha256(bytes(64))
    verify_hardware_signature(
        parser.parse_public(identity.ak_public).der(), raw, parser.parse_signature(signature).raw()
    )


def test_many_operations_leave_no_context_behind(swtpm, tmp_path):
    """swtpm has three slots: what isn't flushed fails by the fourth time."""
    ids = set()
    for _ in range(5):
        tpm = Tpm(swtpm.tcti)
        for _ in range(2):
            ids.add(tpm.load_identity(tmp_path))
            tpm.quote(bytes(32), [15])
        tpm.close()
    assert len(ids) == 1
    tpm = Tpm(swtpm.tcti)
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        ids.add(tpm.load_identity(tmp_path / str(number)))  # a folder without a key gets a new one
    tpm.close()
    assert len(ids) == 6


def test_kept_key_file_is_private_and_loads_nowhere_else(tpm, tmp_path):
    tpm.load_identity(tmp_path)
    path = tmp_path / "attestation-key.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.glob("*.new")) == []
    with SoftwareTpm(tmp_path / "other") as other:
        foreign = Tpm(other.tcti)
        with pytest.raises(Untrusted) as caught:
            foreign.load_identity(tmp_path)
        foreign.close()
    assert caught.value.code == "tpm.identity"
    assert "attestation-key.json" in caught.value.message


def flip(text):
    return ("B" if text[20] == "A" else "A").join((text[:20], text[21:]))


@pytest.mark.parametrize(
    "edit",
    [
        lambda body: body | {"private": flip(body["private"])},
        lambda body: body | {"public": flip(body["public"])},
        lambda body: body | {"public": body["public"][:-8]},
        lambda body: body | {"public": body["public"] + "AAAA"},
        lambda body: body | {"private": "A" * 8000},
        lambda body: body | {"private": ""},
        lambda body: body | {"private": 7},
        lambda body: body | {"private": "not base64"},
        lambda body: body | {"more": ""},
        lambda body: {},
        lambda body: [],
        lambda body: 7,
    ],
)
def test_edited_key_file_is_refused_and_never_replaced(tpm, tmp_path, edit):
    tpm.load_identity(tmp_path)
    path = tmp_path / "attestation-key.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text())), separators=(",", ":"), sort_keys=True))
    before = path.read_bytes()
    for _ in range(4):
        with pytest.raises(Untrusted) as caught:
            tpm.load_identity(tmp_path)
        assert caught.value.code == "tpm.identity"
    assert path.read_bytes() == before


def test_half_written_key_file_is_refused(tpm, tmp_path):
    (tmp_path / "attestation-key.json").write_bytes(b'{"private":"AA')
    with pytest.raises(Untrusted) as caught:
        tpm.load_identity(tmp_path)
    assert caught.value.code == "tpm.identity"


def test_misuse_is_refused_before_the_tpm_is_asked(tpm, tmp_path):
    with pytest.raises(Misuse, match="Load the identity"):
        tpm.quote(bytes(32), [15])
    tpm.load_identity(tmp_path)
    for size in (0, 31, 33, 64):
        with pytest.raises(Misuse) as caught:
            tpm.quote(bytes(size), [15])
        assert caught.value.code == "tpm.quote"
        with pytest.raises(Misuse) as caught:
            tpm.extend(15, bytes(size))
        assert caught.value.code == "tpm.digest"
    assert tpm.read_pcrs([15])[15] == bytes(32)


def test_tpm_that_is_not_there():
    with pytest.raises(Unavailable) as caught:
        Tpm("swtpm:path=/nonexistent/socket").read_pcrs([0])
    assert caught.value.code == "tpm.command"


def test_tpm_that_dies_is_unavailable_and_still_closes(swtpm, tmp_path):
    tpm = Tpm(swtpm.tcti)
    tpm.load_identity(tmp_path)
    os.kill(swtpm.pid, signal.SIGKILL)
    for ask in (lambda: tpm.quote(bytes(32), [15]), lambda: tpm.extend(15, bytes(32)), tpm.shutdown):
        with pytest.raises(Unavailable) as caught:
            ask()
        assert caught.value.code == "tpm.command"
    tpm.close()
    tpm.close()


def test_missing_library_is_said_with_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "tpm2_pytss":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Unavailable) as caught:
        Tpm("swtpm:path=/x")
    assert caught.value.code == "tpm.library"
    assert "apt install libtss2-dev" in caught.value.message


def rsa_template(scheme):
    def make(tss):
        area = tpm_module._template(tss, 0, b"")
        a = tss.TPMA_OBJECT
        area.type = tss.TPM2_ALG.RSA
        area.objectAttributes = (
            a.FIXEDTPM | a.FIXEDPARENT | a.SENSITIVEDATAORIGIN | a.USERWITHAUTH | a.RESTRICTED | a.SIGN_ENCRYPT
        )
        rsa = area.parameters.rsaDetail
        rsa.symmetric.algorithm = tss.TPM2_ALG.NULL
        rsa.keyBits, rsa.exponent = 2048, 0
        rsa.scheme.scheme = getattr(tss.TPM2_ALG, scheme)
        rsa.scheme.details.anySig.hashAlg = tss.TPM2_ALG.SHA256
        return tss.TPM2B_PUBLIC(publicArea=area)

    return make


@pytest.mark.parametrize("scheme", ["RSASSA", "RSAPSS"])
def test_real_rsa_attestation_keys_verify_too(scheme, monkeypatch, tmp_path):
    """Hardware TPMs often hold RSA keys: a real TPM's RSA signatures, through the whole verifier."""
    monkeypatch.setattr(tpm_module, "_ak_template", rsa_template(scheme))
    key, nonce = JweKey().public_jwk, "n" * 88
    with TpmAttester.software(tmp_path / "state", b"a" * 32) as attester:
        attester.extend_launch(b"i" * 16, b"m" * 32, b"c" * 32, b"j" * 32)
        evidence = Evidence.from_wire(attester.evidence(b"i" * 16, nonce, key))
    report = report_data(nonce, key, evidence.additional)
    verifier = verifiers(allow_insecure=False, production=True)["tpm"]
    assert verifier.verify(evidence, report, now=0).attester == attester.attester_id
    with pytest.raises(Untrusted) as caught:
        verifier.verify(evidence, sha256(report), now=0)
    assert caught.value.code == "tpm.report"
