"""Writes tests/vectors/tdx.json: quotes with the verdict that they must keep. Run it only for a new form of quotes.

python -m tests.make_tdx_vectors
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from cloister.attestation.tdx import extended_value, replay_rtmr3
from tests.tdx_forge import NOW, Certified, Forge, new_key, raw_public, sgx_extension, sha256

TARGET = Path(__file__).resolve().parent / "vectors" / "tdx.json"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def share(first: Forge, other: Forge) -> Forge:
    """``other`` under the same Intel as ``first``."""
    other.root, other.authority, other.signer, other.roots = first.root, first.authority, first.signer, first.roots
    other.pck = first.pck
    return other


def good(name: str, quote: bytes, **facts: Any) -> dict[str, Any]:
    return {"name": name, "facts": facts, "quote": b64(quote)}


def bad(name: str, code: str, reason: str, quote: bytes) -> dict[str, Any]:
    return {"name": name, "code": code, "reason": reason, "quote": b64(quote)}


def cases(td: Forge, sgx: Forge) -> list[dict[str, Any]]:
    newer, newest = share(td, Forge("tdx", 5, "td-1.5")), share(td, Forge("tdx", 5, "td-1.5-ex"))
    neighbour = Certified("Intel SGX PCK Certificate", td.authority, authority=False, extension=sgx_extension())
    chain = neighbour.pem + td.authority.pem + td.root.pem
    return [
        good("version 3, enclave", sgx.quote(), tcb_status="UpToDate", debug=False, body="sgx"),
        good("version 4, domain", td.quote(), tcb_status="UpToDate", debug=False, body="td-1.0"),
        good("version 5, domain 1.5", newer.quote(), tcb_status="UpToDate", body="td-1.5"),
        good("version 5, domain 1.5 extended", newest.quote(), tcb_status="UpToDate", body="td-1.5-ex"),
        good("under debug", td.quote(td.td(attributes=b"\1" + bytes(7))), debug=True, tcb_status="UpToDate"),
        good("outdated module", td.quote(td.td(tee_tcb_svn=b"\4\1\3" + bytes(13))), tcb_status="OutOfDate"),
        bad("swapped key", "tdx.attestation-key", "the QE made another key", td.quote(vouched=raw_public(new_key()))),
        bad("other signer", "tdx.signature", "the attestation key did not sign it", td.quote(signer=new_key())),
        bad("other platform", "tdx.qe-signature", "the chain is another platform's", td.quote(chain=chain)),
        bad("no chain", "tdx.certification-data", "it carries an encrypted PPID", td.quote(data_type=3)),
        bad("other enclave", "tdx.qe-identity", "its QE is another enclave", td.quote(qe={"prod": 1})),
        bad("cut", "tdx.quote", "it ends inside its certificate chain", td.quote()[:-1]),
    ]


def main() -> None:
    td = Forge()
    sgx = share(td, Forge("sgx", 3))
    items = {(item.kind, item.name): item for forge in (td, sgx) for item in forge.items()}
    digests = [sha256(b"agent"), sha256(b"launch")]
    document = {
        "about": "Made by tests/make_tdx_vectors.py. The keys were thrown away: nothing here is Intel's.",
        "now": NOW,
        "roots": sorted(td.roots),
        "collateral": [
            {"kind": i.kind, "name": i.name, "data": b64(i.data), "chain": b64(i.chain)} for i in items.values()
        ],
        "quotes": cases(td, sgx),
        "rtmr3": {
            "digests": [digest.hex() for digest in digests],
            "extended": [extended_value(digest).hex() for digest in digests],
            "register": replay_rtmr3(digests).hex(),
        },
    }
    TARGET.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
