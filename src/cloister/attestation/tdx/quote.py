"""SGX and TDX quotes, versions 3, 4 and 5: strict, total, bounded. Nothing read here is true until it was verified.

Source: Intel, "SGX ECDSA QuoteLibReference DCAP API", Appendix A.4 (version 3); "TDX DCAP Quoting Library API",
Appendix A.3 (versions 4 and 5); the extended TD report (body type 4) as in Intel's ``sgx_quote_5.h``. Integers are
little-endian, coordinates and signatures big-endian.

After its signature data a quote ends. What a host hands over may be longer, because buffers have a fixed size: such
trailing bytes are authenticated by nothing, and are given back apart from the quote.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ...errors import Malformed, Untrusted
from ..reader import Reader

__all__ = ["MAX_QUOTE", "EnclaveReport", "Quote", "TdReport", "parse_quote"]

MAX_QUOTE: Final = 32 * 1024
"""Bytes, trailing ones included. Real quotes have 4,000 to 6,000; quoting services hand out buffers of up to 16 KiB."""
MAX_CHAIN: Final = 16 * 1024
MAX_AUTH_DATA: Final = 1024
"""Bytes of the quoting enclave's authentication data; Intel's has 32."""

_CODE = "tdx.quote"
_HEADER: Final = 48
_KEY_ECDSA_P256: Final = 2
_SGX, _TDX = 0x00, 0x81
# The quoting enclave's vendor: Intel, as a UUID.
_INTEL: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_SGX_BODY: Final = 384
# Version 5: body type → (TEE, bytes, name).
_BODIES: Final = {
    1: (_SGX, _SGX_BODY, "sgx"),
    2: (_TDX, 584, "td-1.0"),
    3: (_TDX, 648, "td-1.5"),
    4: (_TDX, 885, "td-1.5-ex"),
}
_PCK_CHAIN, _QE_REPORT = 5, 6
_OTHER_DATA: Final = {
    1: "a PPID in plain text",
    2: "an encrypted PPID",
    3: "an encrypted PPID",
    4: "a PCK certificate alone",
    7: "a platform manifest",
}


@dataclass(frozen=True)
class EnclaveReport:
    """REPORTBODY of an SGX enclave (Intel SDM Vol. 3D, 39.15). ``misc_select`` (4 bytes), ``attributes`` (16) and all
    identities are as they stand in the report."""

    cpu_svn: bytes
    misc_select: bytes
    isv_ext_prod_id: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes
    raw: bytes = field(repr=False)

    @property
    def debug(self) -> bool:
        """ATTRIBUTES.DEBUG: a debugger can read and change the enclave."""
        return bool(self.attributes[0] & 0x02)


@dataclass(frozen=True)
class TdReport:
    """The report of a trust domain. ``attributes``, ``xfam`` and ``seam_attributes`` are 8 bytes each, little-endian.

    ``name``: td-1.0, td-1.5 or td-1.5-ex. The fields of later forms are None in earlier ones. Measurements have 48
    bytes.
    """

    name: str
    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, ...]
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mr_service_td: bytes | None = None
    td_id: bytes | None = None


@dataclass(frozen=True)
class Quote:
    """``signed`` is header and body, which ``signature`` by ``attestation_key`` (x ‖ y) covers. ``pck_chain`` is the
    PEM text; ``trailing`` is what stood after the quote's end."""

    version: int
    tee: str
    user_data: bytes
    body: EnclaveReport | TdReport
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    attestation_key: bytes = field(repr=False)
    qe_report: EnclaveReport = field(repr=False)
    qe_report_signature: bytes = field(repr=False)
    qe_auth_data: bytes = field(repr=False)
    pck_chain: bytes = field(repr=False)
    trailing: bytes = field(repr=False)


def parse_quote(data: bytes) -> Quote:
    """Read a quote. Raises Malformed ``tdx.quote`` for another form, Untrusted ``tdx.certification-data`` where it does
    not carry its PCK certificate chain."""
    reader = Reader(data, "quote", limit=MAX_QUOTE, order="little", code=_CODE)
    version = reader.one_of(2, (3, 4, 5))
    reader.one_of(2, (_KEY_ECDSA_P256,))
    tee = reader.one_of(4, (_SGX,) if version == 3 else (_SGX, _TDX))
    reader.take(
        4
    )  # version 3: SVNs of QE and PCE; later ones: reserved, or the same. Signed, and told by the QE report.
    if reader.take(16) != _INTEL:
        raise reader.bad("is by another vendor's quoting enclave than Intel's")
    user_data = reader.take(20)
    body = _body(reader, version, tee)
    signed = data[: reader.at]
    signature_data = Reader(
        reader.sized(4, MAX_QUOTE), "quote's signature data", limit=MAX_QUOTE, order="little", code=_CODE
    )
    signature, key = signature_data.take(64), signature_data.take(64)
    certified = signature_data if version == 3 else _nested(signature_data)
    qe_report = parse_enclave_report(certified.take(_SGX_BODY))
    qe_signature, auth_data = certified.take(64), certified.sized(2, MAX_AUTH_DATA)
    chain = _pck_chain(certified)
    certified.end()
    signature_data.end()
    return Quote(
        version=version,
        tee="sgx" if tee == _SGX else "tdx",
        user_data=user_data,
        body=body,
        signed=signed,
        signature=signature,
        attestation_key=key,
        qe_report=qe_report,
        qe_report_signature=qe_signature,
        qe_auth_data=auth_data,
        pck_chain=chain,
        trailing=reader.rest(),
    )


def _body(reader: Reader, version: int, tee: int) -> EnclaveReport | TdReport:
    if version < 5:
        name, size = ("sgx", _SGX_BODY) if tee == _SGX else ("td-1.0", 584)
    else:
        expected_tee, size, name = _BODIES[reader.one_of(2, _BODIES)]
        reader.one_of(4, (size,))
        if expected_tee != tee:
            raise reader.bad("names another TEE in its header than in its body")
    raw = reader.take(size)
    return parse_enclave_report(raw) if name == "sgx" else _td_report(raw, name)


def parse_enclave_report(raw: bytes) -> EnclaveReport:
    """An enclave's report, 384 bytes. Reserved bytes aren't looked at: the report is signed, and they mean nothing."""
    reader = Reader(raw, "report of an enclave", limit=_SGX_BODY, order="little", code=_CODE)
    cpu_svn, misc = reader.take(16), reader.take(4)
    reader.take(12)
    ext_prod_id, attributes, mr_enclave = reader.take(16), reader.take(16), reader.take(32)
    reader.take(32)
    mr_signer = reader.take(32)
    reader.take(32)
    config_id, prod_id, svn, config_svn = reader.take(64), reader.uint(2), reader.uint(2), reader.uint(2)
    reader.take(42)
    family_id, report_data = reader.take(16), reader.take(64)
    reader.end()
    return EnclaveReport(
        cpu_svn=cpu_svn,
        misc_select=misc,
        isv_ext_prod_id=ext_prod_id,
        attributes=attributes,
        mr_enclave=mr_enclave,
        mr_signer=mr_signer,
        config_id=config_id,
        isv_prod_id=prod_id,
        isv_svn=svn,
        config_svn=config_svn,
        isv_family_id=family_id,
        report_data=report_data,
        raw=raw,
    )


def _td_report(raw: bytes, name: str) -> TdReport:
    reader = Reader(raw, "report of a trust domain", limit=885, order="little", code=_CODE)
    report = TdReport(
        name=name,
        tee_tcb_svn=reader.take(16),
        mr_seam=reader.take(48),
        mr_signer_seam=reader.take(48),
        seam_attributes=reader.take(8),
        attributes=reader.take(8),
        xfam=reader.take(8),
        mr_td=reader.take(48),
        mr_config_id=reader.take(48),
        mr_owner=reader.take(48),
        mr_owner_config=reader.take(48),
        rtmrs=tuple(reader.take(48) for _ in range(4)),
        report_data=reader.take(64),
        tee_tcb_svn2=reader.take(16) if name != "td-1.0" else None,
        mr_service_td=reader.take(48) if name != "td-1.0" else None,
        td_id=_td_id(reader) if name == "td-1.5-ex" else None,
    )
    reader.end()
    return report


def _td_id(reader: Reader) -> bytes:
    """TD_ID out of the extended part; the rest of it tells a migrated TD's past, which nothing here decides about."""
    reader.take(1)
    td_id = reader.take(32)
    reader.take(48 + 48 + 8 + 16 + 16 + 12 + 48 + 8)
    return td_id


def _nested(reader: Reader) -> Reader:
    """Versions 4 and 5 wrap the QE report and its certificate chain once more."""
    if reader.uint(2) != _QE_REPORT:
        raise Untrusted("tdx.certification-data", "The quote does not carry its quoting enclave's report.")
    size = reader.uint(4)
    if size != reader.left:
        raise Malformed(_CODE, "A quote's certification data has another length than it says.")
    return Reader(reader.rest(), "quote's certification data", limit=MAX_QUOTE, order="little", code=_CODE)


def _pck_chain(reader: Reader) -> bytes:
    kind = reader.uint(2)
    if kind != _PCK_CHAIN:
        found = _OTHER_DATA.get(kind, "certification data of an unknown kind")
        raise Untrusted(
            "tdx.certification-data",
            f"The quote carries {found}; let the quoting service include the PCK certificate chain (type 5).",
        )
    return reader.sized(4, MAX_CHAIN)
