"""Collateral of Intel's from outside, as items: what the service answers, and the one JSON file that many tools keep.

Nothing is believed here. The names that items get come from unverified bytes, and the verifier compares what is signed.
"""

from __future__ import annotations

from typing import Any, Final

from ...crypto import canonical_json, parse_json
from ...errors import Malformed
from ...fields import Fields
from ..collateral import Item
from .documents import MAX_DOCUMENT, hex_field, split_answer
from .revocation import read_intel_crl

__all__ = ["read_collateral", "service_items"]

_MAX_FILE: Final = 256 * 1024
_MAX_TEXT: Final = 128 * 1024
_CODE: Final = "tdx.collateral"
_TEES: Final = {"QE": "sgx", "TD_QE": "tdx", "SGX": "sgx", "TDX": "tdx"}
_AUTHORITIES: Final = {"CN=Intel SGX PCK Platform CA": "platform", "CN=Intel SGX PCK Processor CA": "processor"}
_ROOT: Final = "CN=Intel SGX Root CA"


def service_items(
    *,
    obtained: int,
    tcb_info: bytes = b"",
    tcb_info_chain: bytes = b"",
    qe_identity: bytes = b"",
    qe_identity_chain: bytes = b"",
    pck_crl: bytes = b"",
    pck_crl_chain: bytes = b"",
    root_crl: bytes = b"",
) -> tuple[Item, ...]:
    """What Intel's service (or a cache of it) answered, as items; pass what there is.

    TCB info and QE identity: the answers' bytes, whole. Revocation lists: DER, PEM, or DER in hex. Chains: the PEM text
    of the answers' headers, decoded. Raises Malformed for what can't be named.
    """
    items: list[Item] = []
    if tcb_info:
        body = Fields(parse_json(split_answer(tcb_info, "tcbInfo").body, limit=MAX_DOCUMENT), "TCB info")
        tee = "SGX" if body.integer("version") == 2 else body.text("id", choices=("SGX", "TDX"))
        name = f"{hex_field(body, 'fmspc', 6).hex()}-{_TEES[tee]}"
        items.append(Item("intel-tcb", name, tcb_info, obtained, tcb_info_chain))
    if qe_identity:
        body = Fields(parse_json(split_answer(qe_identity, "enclaveIdentity").body, limit=MAX_DOCUMENT), "QE identity")
        tee = body.text("id", choices=("QE", "TD_QE"))
        items.append(Item("intel-qe-identity", _TEES[tee], qe_identity, obtained, qe_identity_chain))
    for data, chain in ((pck_crl, pck_crl_chain), (root_crl, b"")):
        if data:
            items.append(_crl_item(data, chain, obtained))
    return tuple(items)


def _crl_item(data: bytes, chain: bytes, obtained: int) -> Item:
    crl = read_intel_crl(data)
    names = crl.issuer.split(",")
    kind = next((_AUTHORITIES[name] for name in names if name in _AUTHORITIES), None)
    if kind is not None:
        return Item("intel-pck-crl", kind, crl.der, obtained, chain)
    if _ROOT not in names:
        raise Malformed(_CODE, "A revocation list is of no authority of Intel's for SGX and TDX.")
    return Item("intel-root-crl", "root", crl.der, obtained, chain)


def read_collateral(data: bytes, *, obtained: int) -> tuple[Item, ...]:
    """The common collateral file: one JSON object with the signed bodies as text and the lists in hex.

    ::

        {"tcb_info": "{…}", "tcb_info_signature": hex, "tcb_info_issuer_chain": PEM, "qe_identity": "{…}",
         "qe_identity_signature": hex, "qe_identity_issuer_chain": PEM, "pck_crl": hex, "pck_crl_issuer_chain": PEM,
         "root_ca_crl": hex}

    Other fields are not looked at; nothing signed this file as a whole. Raises Malformed.
    """
    fields = Fields(parse_json(data, limit=_MAX_FILE), "collateral file")
    return service_items(
        obtained=obtained,
        tcb_info=_answer(fields, "tcb_info", "tcbInfo"),
        tcb_info_chain=_text(fields, "tcb_info_issuer_chain"),
        qe_identity=_answer(fields, "qe_identity", "enclaveIdentity"),
        qe_identity_chain=_text(fields, "qe_identity_issuer_chain"),
        pck_crl=_text(fields, "pck_crl"),
        pck_crl_chain=_text(fields, "pck_crl_issuer_chain"),
        root_crl=_text(fields, "root_ca_crl"),
    )


def _text(fields: Fields, key: str) -> bytes:
    return fields.text(key, limit=_MAX_TEXT).encode()


def _answer(fields: Fields, key: str, name: str) -> bytes:
    """The answer that the service gave, put together again: the body's bytes stay as they are."""
    body = fields.text(key, limit=_MAX_TEXT).encode()
    parsed: Any = parse_json(body, limit=MAX_DOCUMENT)
    if not isinstance(parsed, dict):
        raise Malformed(_CODE, f"A collateral file's {key} is not a JSON object.")
    signature = canonical_json(fields.text(f"{key}_signature", limit=256))
    return b'{"%b":%b,"signature":%b}' % (name.encode(), body, signature)
