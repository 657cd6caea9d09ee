"""Parsers and whole verifiers of hardware evidence, vendors' collateral and signed reference values."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from cloister.attestation import external, models, policy
from cloister.attestation.bootlog import efi
from cloister.attestation.bootlog import format as bootlog
from cloister.attestation.collateral import Item, Staleness
from cloister.attestation.corim import read_corim
from cloister.attestation.events import open_log
from cloister.attestation.models import Evidence, ReferenceValues
from cloister.attestation.nvidia import rim, spdm
from cloister.attestation.nvidia.verifier import NvidiaVerifier
from cloister.attestation.snp import SnpGuestJudge, SnpVerifier, certs, report
from cloister.attestation.snp import stock as snp_stock
from cloister.attestation.tdx import (
    TdxGuestJudge,
    TdxVerifier,
    documents,
    enclave,
    pck,
    quote,
    revocation,
    sources,
    tcb,
)
from cloister.attestation.tpm import TpmVerifier, ek, ek_certificate, enrolment, hcl, parser
from cloister.broker.collateral_store import Kept, read_bundle, write_bundle
from cloister.crypto import parse_json
from cloister.crypto.cose import CoseKey
from tests import azure_forge, boot_logs, corim_vectors, nvidia_forge, snp_forge, stock_evidence, tdx_forge
from tests.adversarial import evidence_forge

from .registry import Target, as_json, as_text, shared_bytes, wire

__all__ = ["attestation_targets"]

REPORT = bytes(32)
_KEY = {"crv": "Ed25519", "kty": "OKP", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}  # RFC 8037, appendix A.2
PINNED = {
    "algorithm": "EdDSA", "binding": "eat_nonce", "key": _KEY, "level": "cpu-tee",
    "measurements": {"mrtd": "/quote/mr_td"}, "most_seconds": 300, "name": "verifier",
    "profile": "tag:github.com,2023:veraison/ear", "required": {"/debug": False}, "submodule": "cpu0", "tee": "tdx",
    "warnings": False,
}  # fmt: skip
snp, tdx = cache(snp_forge.Forge), cache(tdx_forge.Forge)
gpus, log, tpm = cache(nvidia_forge.Factory), cache(evidence_forge.Log), cache(evidence_forge.Forge)
snp_evidence, tdx_evidence = cache(lambda: snp().evidence()), cache(lambda: tdx().evidence(log().text()))


def attestation_targets() -> list[Target]:
    a = "cloister.attestation."
    return [
        Target("snp report", report.parse_report, _snp_reports, (f"{a}snp.report.parse_report",), 4096),
        Target(
            "snp certificate",
            lambda data: certs.read_leaf(certs.read_amd(data)),
            lambda: [snp().leaf().der, *shared_bytes("snp/milan_vcek.der")],
            (f"{a}snp.certs.read_amd", f"{a}snp.certs.read_leaf"),
            32 * 1024,
        ),
        Target("snp evidence", _snp_verifier(), _snp_evidence, (f"{a}snp.verifier.SnpVerifier",)),
        Target("tdx quote", quote.parse_quote, _quotes, (f"{a}tdx.quote.parse_quote",), 16 * 1024),
        Target(
            "tdx enclave report",
            quote.parse_enclave_report,
            lambda: [tdx().enclave()],
            (f"{a}tdx.quote.parse_enclave_report",),
            1024,
        ),
        Target("tdx certificates", pck.read_chain, lambda: [tdx().chain()], (f"{a}tdx.pck.read_chain",)),
        Target(
            "tdx tcb info",
            lambda data: tcb.read_tcb_info(parse_json(documents.split_answer(data, "tcbInfo").body)),
            lambda: [tdx().answer("tcbInfo", tdx().tcb_info()), *shared_bytes("tdx/tdx_v4_sample_tcbInfo_response")],
            (f"{a}tdx.tcb.read_tcb_info", f"{a}tdx.tcb.read_component_levels", f"{a}tdx.documents.read_signed"),
            128 * 1024,
        ),
        Target(
            "tdx qe identity",
            lambda data: enclave.read_identity(parse_json(documents.split_answer(data, "enclaveIdentity").body)),
            lambda: [tdx().answer("enclaveIdentity", tdx().qe_identity())],
            (f"{a}tdx.enclave.read_identity",),
            128 * 1024,
        ),
        Target("tdx revocation list", revocation.read_intel_crl, _crls, (f"{a}tdx.revocation.read_intel_crl",)),
        Target(
            "tdx collateral file",
            lambda data: sources.read_collateral(data, obtained=0),
            _collateral_files,
            (f"{a}tdx.sources.read_collateral",),
            256 * 1024,
        ),
        Target("tdx evidence", _tdx_verifier(), _tdx_evidence, (f"{a}tdx.verifier.TdxVerifier",)),
        Target("gpu report", spdm.parse_report, _gpu_reports, (f"{a}nvidia.spdm.parse_report",)),
        Target(
            "gpu manifest",
            lambda data: rim.open_manifest(
                Item("nvidia-rim", "x", data, 0), roots={gpus().rim_root.root}, now=nvidia_forge.NOW
            ),
            lambda: [gpus().vbios()],
            (f"{a}nvidia.rim.open_manifest",),
            256 * 1024,
        ),
        Target(
            "gpu evidence",
            _gpu_verifier(),
            lambda: [wire([gpus().gpu().entry(REPORT)])],
            (f"{a}nvidia.verifier.NvidiaVerifier", f"{a}nvidia.forms.read_entries"),
        ),
        *_stock_targets(a),
        *_tpm_targets(f"{a}tpm."),
        Target("boot log", bootlog.parse_log, _boot_logs, (f"{a}bootlog.format.parse_log",), 128 * 1024),
        Target(
            "efi variable",
            efi.parse_variable,
            lambda: [boot_logs.variable("SecureBoot", b"\1")],
            (f"{a}bootlog.efi.parse_variable",),
        ),
        Target("node's event log", as_text(open_log), lambda: [log().text().encode()], (f"{a}events.open_log",)),
        Target("evidence", as_json(Evidence.from_wire), _evidence, (f"{a}models.Evidence.from_wire",)),
        Target(
            "reference values",
            as_json(ReferenceValues.from_wire),
            lambda: [wire(models.ReferenceValues(*[frozenset({"0" * 64})] * 3, {"0": "1" * 64}, "tpm").to_wire())],
            (f"{a}models.ReferenceValues.from_wire",),
        ),
        Target(
            "signed reference values",
            lambda data: read_corim(data, [CoseKey.ed25519(corim_vectors.KEY.public)], now=corim_vectors.NOW),
            lambda: [corim_vectors.GOOD],
            (f"{a}corim.read_corim",),
        ),
        Target(
            "vendor's reference values",
            lambda data: read_corim(
                data, [CoseKey.ed25519(corim_vectors.KEY.public)], now=corim_vectors.NOW, vendor=True
            ),
            lambda: [corim_vectors.GOOD],
            (f"{a}corim.read_corim",),
        ),
        Target(
            "appraisal policy",
            policy.read_policy,
            lambda: [wire(policy.DEFAULT_POLICY.document())],
            (f"{a}policy.read_policy",),
        ),
        Target(
            "pinned verifier",
            as_json(external.PinnedVerifier.from_wire),
            lambda: [wire(PINNED)],
            (f"{a}external.PinnedVerifier.from_wire",),
        ),
        Target(
            "collateral bundle",
            read_bundle,
            lambda: [write_bundle(Kept(item) for item in tdx().items())],
            ("cloister.broker.collateral_store.read_bundle",),
        ),
    ]


def _stock_targets(a: str) -> list[Target]:
    """Guests of the Confidential Containers kind: the report's fields, and whole judgements."""
    signed = cache(lambda: snp().report(report_data=REPORT + bytes(32)))
    quote = cache(lambda: tdx().quote(tdx().td(report_data=REPORT + bytes(32))))
    shapes = (stock_evidence.older, stock_evidence.newer)
    amd = cache(lambda: SnpGuestJudge(snp().collateral(), Staleness(), roots=snp().roots))
    intel = cache(lambda: TdxGuestJudge(tdx().collateral(), Staleness(), roots=tdx().roots))
    return [
        Target(
            "stock snp report",
            as_json(snp_stock.read_stock_report),
            lambda: [wire(shape(report)) for shape in shapes for report in _snp_reports() if report[0] != 0],
            (f"{a}snp.stock.read_stock_report",),
        ),
        Target(
            "stock snp certificates",
            as_json(snp_stock.read_stock_certificates),
            lambda: [wire(stock_evidence.chain(VCEK=snp().leaf().der, CRL=b"x")), b"null"],
            (f"{a}snp.stock.read_stock_certificates",),
        ),
        Target(
            "stock snp evidence",
            as_json(lambda body: amd().judge(body, REPORT, now=snp_forge.NOW)),
            lambda: [wire(stock_evidence.snp(signed(), None, shape=shape)) for shape in shapes],
            (f"{a}snp.stock.SnpGuestJudge",),
            256 * 1024,
        ),
        Target(
            "stock tdx evidence",
            as_json(lambda body: intel().judge(body, REPORT, now=tdx_forge.NOW)),
            lambda: [wire(stock_evidence.tdx(quote(), aa_eventlog="INIT"))],
            (f"{a}tdx.stock.TdxGuestJudge", f"{a}tdx.verifier.read_quote", f"{a}tdx.verifier.read_boot_log"),
            256 * 1024,
        ),
    ]


def _tpm_targets(t: str) -> list[Target]:
    forge = tpm
    request = cache(lambda: evidence_forge.Chip().request(evidence_forge.Maker()))
    return [
        Target("tpm key", parser.parse_public, lambda: [forge().ak.encode()], (f"{t}parser.parse_public",), 4096),
        Target(
            "tpm signature",
            parser.parse_signature,
            lambda: [forge().sign(b"x")],
            (f"{t}parser.parse_signature",),
            4096,
        ),
        Target("tpm quote", parser.parse_attest, _tpm_quotes, (f"{t}parser.parse_attest",), 4096),
        Target(
            "tpm endorsement key",
            ek.parse_endorsement,
            lambda: [request().ek_public],
            (f"{t}ek.parse_endorsement",),
            4096,
        ),
        Target(
            "tpm endorsement certificate",
            ek_certificate.read_ek_certificate,
            lambda: [request().ek_certificate],
            (f"{t}ek_certificate.read_ek_certificate",),
            32 * 1024,
        ),
        Target(
            "tpm enrolment request",
            as_json(enrolment.EnrolmentRequest.from_wire),
            lambda: [wire(request().to_wire())],
            (f"{t}enrolment.EnrolmentRequest.from_wire",),
        ),
        Target(
            "tpm challenge",
            as_json(enrolment.Challenge.from_wire),
            lambda: [b'{"identity":"AAAA","secret":"AAAA","version":1}'],
            (f"{t}enrolment.Challenge.from_wire",),
        ),
        Target(
            "tpm enrolment",
            as_json(enrolment.Enrolment.from_wire),
            lambda: [wire(evidence_forge.enrol(evidence_forge.Chip(), evidence_forge.Maker()).to_wire())],
            (f"{t}enrolment.Enrolment.from_wire",),
        ),
        Target("azure report", hcl.parse_hcl, _hcl_reports, (f"{t}hcl.parse_hcl",), 16 * 1024),
        Target("azure evidence", as_json(hcl.parse_azure), _azure, (f"{t}hcl.parse_azure", f"{t}hcl.verify_quote")),
        Target("tpm evidence", _tpm_verifier(), _tpm_evidence, (f"{t}verifier.TpmVerifier",)),
    ]


def _verifying(make: Callable[[], Any], tee: str, expected: Callable[[], bytes], now: int) -> Callable[[bytes], object]:
    """A whole verifier: the evidence as a broker gets it, from JSON. ``expected``: the report that the seed is over."""
    made, report = cache(make), cache(expected)

    def call(data: bytes) -> object:
        body = parse_json(data)
        evidence = Evidence.from_wire({**body, "tee": tee} if isinstance(body, dict) else body)
        return made().verify(evidence, report(), now=now)

    return call


def _snp_verifier() -> Callable[[bytes], object]:
    def make() -> SnpVerifier:
        return SnpVerifier(snp().collateral(), Staleness(), roots=snp().roots)

    return _verifying(make, "snp", lambda: snp().data(snp_evidence().additional), snp_forge.NOW)


def _tdx_verifier() -> Callable[[bytes], object]:
    def make() -> TdxVerifier:
        return TdxVerifier(tdx().collateral(), Staleness(), roots={tdx().root.fingerprint})

    return _verifying(make, "tdx", lambda: bytes(tdx_evidence()[1]), tdx_forge.NOW)


def _tpm_verifier() -> Callable[[bytes], object]:
    return _verifying(TpmVerifier, "tpm", lambda: tpm().report(log().text()), 1_790_000_000)


def _gpu_verifier() -> Callable[[bytes], object]:
    made = cache(lambda: NvidiaVerifier(
        gpus().items(), Staleness(), device_roots={gpus().root.root}, manifest_roots={gpus().rim_root.root}
    ))  # fmt: skip
    return lambda data: made().verify(parse_json(data), REPORT, now=nvidia_forge.NOW)


def _evidence() -> Iterable[bytes]:
    return [wire(tpm().evidence(log()).to_wire())]


def _tpm_evidence() -> Iterable[bytes]:
    return _evidence()


def _snp_evidence() -> Iterable[bytes]:
    return [wire(snp_evidence().to_wire())]


def _tdx_evidence() -> Iterable[bytes]:
    return [wire(tdx_evidence()[0].to_wire())]


def _snp_reports() -> Iterable[bytes]:
    forged = [snp_forge.Forge(version=version).report() for version in (2, 3, 5)]
    return [*forged, *shared_bytes("snp/milan_debug_report.bin")]


def _quotes() -> Iterable[bytes]:
    shapes = (("tdx", 4, ""), ("tdx", 5, "td-1.5"), ("sgx", 3, ""))
    forged = [tdx_forge.Forge(*shape).quote() for shape in shapes]
    return [*forged, *shared_bytes("tdx/tdx_v4_quote.dat", "tdx/tdx_quote", "tdx/sgx_quote")]


def _crls() -> Iterable[bytes]:
    return [tdx().root.crl(), tdx().root.crl().hex().encode(), *shared_bytes("tdx/tdx_v4_rootcrl.der")]


def _collateral_files() -> Iterable[bytes]:
    items = {item.kind: item for item in tdx().items()}
    tcb_info = json.loads(items["intel-tcb"].data)
    body = {
        "tcb_info": json.dumps(tcb_info["tcbInfo"]), "tcb_info_signature": tcb_info["signature"],
        "tcb_info_issuer_chain": "", "qe_identity": json.dumps(tdx().qe_identity()), "qe_identity_signature": "0" * 128,
        "qe_identity_issuer_chain": "", "pck_crl": items["intel-pck-crl"].data.hex(), "pck_crl_issuer_chain": "",
        "root_ca_crl": items["intel-root-crl"].data.hex(),
    }  # fmt: skip
    return [json.dumps(body).encode(), *shared_bytes("tdx/tdx_quote_collateral.json")]


def _gpu_reports() -> Iterable[bytes]:
    real = shared_bytes("nvidia/hopperAttestationReport.txt")
    return [gpus().gpu().report(REPORT), *(bytes.fromhex(text.decode().strip()) for text in real)]


def _tpm_quotes() -> Iterable[bytes]:
    return [base64.b64decode(evidence_forge.Forge().evidence(log()).primary["quote"])]


def _azure() -> Iterable[bytes]:
    forged = [wire(azure_forge.AzureForge(kind).body(REPORT)) for kind in ("snp", "tdx")]
    return [*forged, *shared_bytes("tpm/azure_snp_vtpm_evidence_v1.json")]


def _hcl_reports() -> Iterable[bytes]:
    made = azure_forge.AzureForge("snp")
    return [made.hcl(made.runtime(), made.hardware(made.runtime()))]


def _boot_logs() -> Iterable[bytes]:
    return [
        boot_logs.boot_bytes(),
        *shared_bytes("tpm/eventlogs/short_no_action_eventlog", "tpm/eventlogs/debian-10.bin"),
    ]
