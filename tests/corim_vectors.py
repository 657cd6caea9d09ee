"""Writes tests/vectors/corim.json: signed reference values, and files that must be refused, each with the reason.

Run as ``python -m tests.corim_vectors``. Deterministic: the same code gives the same bytes, and a test compares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cloister.attestation.corim import ReferenceValue, write_corim
from cloister.crypto import SigningKey
from cloister.crypto.cbor import Tag, cbor, parse_cbor
from cloister.crypto.cose import cose_sign1

PATH = Path(__file__).parent / "vectors" / "corim.json"
KEY = SigningKey(b"corim".ljust(32, b"."))
NOW = 1_790_000_000
VALUES = (
    ReferenceValue("workload", "measurement", ("11" * 32, "12" * 32)),
    ReferenceValue("agent", "agent", ("22" * 32,)),
    ReferenceValue("snp", "launch", ("33" * 48,)),
    ReferenceValue("snp", "tcb.snp", least=22),
    ReferenceValue("tdx", "mrtd", ("44" * 48,)),
    ReferenceValue("tdx", "rtmr1", ("55" * 48,), register=True),
    ReferenceValue("tpm", "pcr7", ("66" * 32, "67" * 32), register=True),
)
GOOD = write_corim(VALUES, name="release 1.2", signer_name="Example", key=KEY, not_after=NOW + 1000)
META = cbor({0: {0: "Example"}})
CLASS = {0: {1: "Cloister", 2: "workload"}}
MEASUREMENT = {0: "measurement", 1: {2: [[1, bytes(32)]]}}


def signed(corim: Any, header: dict[Any, Any] | None = None) -> bytes:
    return cose_sign1(cbor(corim), {3: "application/rim+cbor", 8: META} if header is None else header, KEY)


def corim(triples: Any = None, *, comid: Any = None, **members: Any) -> Tag:
    """One that is good, with changes. ``members``: m0 to m9 replace the CoRIM's members, None takes one away."""
    body = {1: {0: "x"}, 4: {0: [[CLASS, [MEASUREMENT]]] if triples is None else triples}} if comid is None else comid
    made = {0: "x", 1: [Tag(506, cbor(body))], 3: Tag(32, "urn:cloister:corim:v1")}
    made |= {int(name[1:]): value for name, value in members.items()}
    return Tag(501, {key: value for key, value in made.items() if value is not None})


def triple(value: dict[Any, Any], name: Any = "measurement") -> Any:
    return [[CLASS, [{0: name, 1: value}]]]


def bad() -> list[tuple[str, bytes, str]]:
    """(why it must be refused, the file, the error's code)."""
    sha = [1, bytes(32)]
    return [
        (
            "signed by another key",
            cose_sign1(cbor(corim()), {3: "application/rim+cbor", 8: META}, _other()),
            "cose.unsigned",
        ),
        ("of another content type", signed(corim(), {3: "text/plain", 8: META}), "corim.content"),
        ("says nothing of its signer", signed(corim(), {3: "application/rim+cbor"}), "corim.meta"),
        ("an unsigned CoRIM", cbor(corim()), "cose.form"),
        ("another tag than 501", signed(Tag(500, {})), "corim.form"),
        ("no profile", signed(corim(m3=None)), "corim.form"),
        ("an unknown profile", signed(corim(m3=Tag(32, "urn:other"))), "corim.profile"),
        ("its time is over", signed(corim(m4={1: Tag(1, NOW)})), "corim.time"),
        ("its time has not begun", signed(corim(m4={0: Tag(1, NOW + 1), 1: Tag(1, NOW + 9)})), "corim.time"),
        ("a time without its tag", signed(corim(m4={1: NOW + 9})), "corim.time"),
        ("a member that is not known", signed(corim(m9=1)), "corim.form"),
        ("entities, which our profile doesn't have", signed(corim(m5=[{0: "x", 2: [1]}])), "corim.form"),
        ("no tags", signed(corim(m1=[])), "corim.form"),
        ("a CoSWID tag", signed(corim(m1=[Tag(505, b"")])), "corim.tag"),
        (
            "endorsed triples beside",
            signed(corim(comid={1: {0: "x"}, 4: {0: triple({2: [sha]}), 1: []}})),
            "corim.triples",
        ),
        ("a platform that is not known", signed(corim([[{0: {1: "A", 2: "B"}}, [MEASUREMENT]]])), "corim.class"),
        ("an environment of one instance", signed(corim([[{**CLASS, 1: b"x"}, [MEASUREMENT]]])), "corim.form"),
        ("a raw value beside a digest", signed(corim(triple({2: [sha], 4: Tag(560, b"x")}))), "corim.form"),
        ("flags", signed(corim(triple({3: {3: False}}))), "corim.form"),
        ("a value of nothing", signed(corim(triple({}))), "corim.value"),
        ("an exact version number", signed(corim(triple({1: Tag(552, 3)}))), "corim.svn"),
        ("a version number without a tag", signed(corim(triple({1: 3}))), "corim.svn"),
        ("SHA-256 of 20 bytes", signed(corim(triple({2: [[1, bytes(20)]]}))), "corim.digest"),
        ("a truncated hash", signed(corim(triple({2: [[2, bytes(16)]]}))), "corim.digest"),
        ("a digest named by text", signed(corim(triple({2: [["sha-256", bytes(32)]]}))), "corim.digest"),
        ("an empty list of digests", signed(corim(triple({2: []}))), "corim.form"),
        ("a name with a line break", signed(corim(triple({2: [sha]}, "a\nb"))), "corim.text"),
        ("keys out of order", _reordered(), "cbor.order"),
        ("a float for a digest", _float(), "cbor.simple"),
    ]


def _other() -> SigningKey:
    return SigningKey(b"other".ljust(32, b"."))


def _raw(payload: bytes) -> bytes:
    return cose_sign1(payload, {3: "application/rim+cbor", 8: META}, KEY)


def _reordered() -> bytes:
    plain = cbor(corim())
    name = cbor("x")
    head = b"\xd9\x01\xf5\xa3\x00" + name
    assert plain.startswith(head)
    return _raw(b"\xd9\x01\xf5\xa3" + plain[len(head) :] + b"\x00" + name)


def _float() -> bytes:
    return _raw(b"\xd9\x01\xf5\xf9\x3c\x00")


def document() -> dict[str, Any]:
    return {
        "about": "Signed CoRIMs of the profile urn:cloister:corim:v1; written by tests/corim_vectors.py",
        "bad": [{"code": code, "hex": data.hex(), "why": why} for why, data, code in bad()],
        "good": {
            "hex": GOOD.hex(),
            "name": "release 1.2",
            "signer": "Example",
            "values": [
                {
                    "digests": list(v.digests),
                    "least": v.least,
                    "name": v.name,
                    "platform": v.platform,
                    "register": v.register,
                }
                for v in VALUES
            ],
        },
        "key": KEY.public.hex(),
        "now": NOW,
    }


def text() -> str:
    return json.dumps(document(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    parse_cbor(GOOD)
    PATH.write_text(text())
