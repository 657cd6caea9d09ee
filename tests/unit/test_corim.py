"""Signed reference values: fixed vectors, deterministic bytes, and nothing that isn't understood is passed over."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation import corim
from cloister.attestation.corim import PLATFORMS, Manifest, ReferenceValue, read_corim, write_corim
from cloister.crypto import SigningKey
from cloister.crypto.cbor import Tag, cbor
from cloister.crypto.cose import CoseKey, cose_sign1
from cloister.errors import CloisterError, Malformed, Untrusted
from tests import corim_vectors as forge

VECTORS = json.loads(forge.PATH.read_text())
PINNED = CoseKey.ed25519(bytes.fromhex(VECTORS["key"]))
NOW = VECTORS["now"]
GOOD = bytes.fromhex(VECTORS["good"]["hex"])


def read(data: bytes, **options: Any) -> Manifest:
    return read_corim(data, [PINNED], **({"now": NOW} | options))


def as_set(values: Any) -> set[Any]:
    return {(v.platform, v.name, tuple(sorted(v.digests)), v.least, v.register) for v in values}


def test_the_vectors_are_what_the_code_writes() -> None:
    assert forge.PATH.read_text() == forge.text()


def test_the_good_vector() -> None:
    manifest = read(GOOD)
    assert (manifest.name, manifest.signer, manifest.key) == ("release 1.2", "Example", PINNED)
    assert (manifest.not_before, manifest.not_after) == (None, NOW + 1000)
    assert as_set(manifest.values) == as_set(
        ReferenceValue(v["platform"], v["name"], tuple(v["digests"]), v["least"], v["register"])
        for v in VECTORS["good"]["values"]
    )
    assert manifest.named("workload", "measurement") == {"11" * 32, "12" * 32}
    assert manifest.named("workload", "other") == frozenset()


@pytest.mark.parametrize("case", VECTORS["bad"], ids=lambda case: case["why"])
def test_the_bad_vectors(case: dict[str, str]) -> None:
    with pytest.raises((Malformed, Untrusted)) as caught:
        read(bytes.fromhex(case["hex"]))
    assert caught.value.code == case["code"]


def test_the_same_values_give_the_same_bytes_in_any_order() -> None:
    again = write_corim(
        reversed(forge.VALUES), name="release 1.2", signer_name="Example", key=forge.KEY, not_after=NOW + 1000
    )
    assert again == GOOD
    halves = [ReferenceValue("workload", "measurement", (d,)) for d in ("12" * 32, "11" * 32)]
    whole = [ReferenceValue("workload", "measurement", ("11" * 32, "12" * 32))]
    one, other = (write_corim(v, name="n", signer_name="s", key=forge.KEY) for v in (halves, whole))
    assert one == other


def test_reference_values_end() -> None:
    read(GOOD, now=NOW + 999)
    with pytest.raises(Untrusted) as caught:
        read(GOOD, now=NOW + 1000)
    assert caught.value.code == "corim.time"


def test_only_a_pinned_key_signs() -> None:
    for keys in ([], [CoseKey.ed25519(SigningKey.generate().public)]):
        with pytest.raises(Untrusted):
            read_corim(GOOD, keys, now=NOW)


@pytest.mark.parametrize(
    "fields",
    [
        {"digests": ("11",)},
        {"digests": ("AA" * 32,)},
        {"digests": ("11" * 32,), "least": 1},
        {},
        {"least": -1},
        {"digests": ("11" * 32,), "name": ""},
        {"digests": ("11" * 32,), "name": "a\nb"},
    ],
)
def test_values_that_are_none(fields: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        ReferenceValue("snp", **({"name": "launch"} | fields))


def test_what_is_not_written() -> None:
    for values in ([], [ReferenceValue("toaster", "launch", ("11" * 32,))]):
        with pytest.raises(Malformed):
            write_corim(values, name="n", signer_name="s", key=forge.KEY)
    with pytest.raises(Malformed):
        write_corim(forge.VALUES, name="two\nlines", signer_name="s", key=forge.KEY)


# Vendors' files: other forms, the same meaning.


def vendor(body: Any, header: dict[Any, Any] | None = None) -> bytes:
    meta = cbor({0: {0: "ACME Ltd.", 1: Tag(32, "https://acme.example")}, 1: {1: Tag(1, NOW + 9)}})
    return cose_sign1(cbor(body), header or {3: "application/rim+cbor", 4: b"kid", 8: meta}, forge.KEY)


def acme(value: Any, **class_more: Any) -> Tag:
    """As the draft's own examples look: entities, a class with an id, two triples, no profile."""
    environment = {0: {0: Tag(37, bytes(16)), 1: "ACME Inc.", 2: "ACME RoadRunner", 3: 1}, **class_more}
    comid = {
        0: "en-GB",
        1: {0: bytes(16), 1: 0},
        2: [{0: "ACME Inc.", 1: Tag(32, "https://acme.example"), 2: [0]}],
        4: {0: [[environment, [{0: 7, 1: value}]]], 1: [[environment, []]]},
    }
    return Tag(501, {0: bytes(16), 1: [Tag(506, cbor(comid))], 5: [{0: "ACME Inc.", 2: [1]}]})


def test_a_vendors_file() -> None:
    data = vendor(acme({2: [[1, b"\x44" * 32], [7, b"\x55" * 48]]}))
    for form in (data, bytes.fromhex("d901f4d901f6") + data):
        manifest = read(form, vendor=True)
        assert manifest.signer == "ACME Ltd."
        assert manifest.name == "00" * 16
        (value,) = manifest.values
        assert value.platform == f"vendor:id={'00' * 16}/vendor=ACME Inc./model=ACME RoadRunner/layer=1"
        assert (value.name, value.digests) == ("7", ("44" * 32, "55" * 48))
    with pytest.raises(Malformed):
        read(data)  # it isn't ours


@pytest.mark.parametrize("name", list(PLATFORMS))
@pytest.mark.parametrize("members", [(1,), (2,), (0,), (1, 2), (2, 3)])
def test_a_vendors_class_is_never_one_of_ours(name: str, members: tuple[int, ...]) -> None:
    comid = {1: {0: "x"}, 4: {0: [[{0: dict.fromkeys(members, name)}, [{0: "measurement", 1: {2: [[1, bytes(32)]]}}]]]}}
    manifest = read(vendor(Tag(501, {0: "x", 1: [Tag(506, cbor(comid))]})), vendor=True)
    assert manifest.named(name, "measurement") == frozenset()
    assert all(value.platform.startswith("vendor:") for value in manifest.values)


@pytest.mark.parametrize("value", [{2: [[True, bytes(32)]]}, {1: Tag(553, True)}, {1: Tag(553, False)}])
def test_true_is_no_number(value: Any) -> None:
    comid = {1: {0: "x"}, 4: {0: [[{0: {1: "AMD", 2: "SEV-SNP"}}, [{0: "launch", 1: value}]]]}}
    body = Tag(501, {0: "x", 1: [Tag(506, cbor(comid))], 3: Tag(32, "urn:cloister:corim:v1")})
    with pytest.raises(Malformed) as caught:
        read(forge.signed(body))
    assert caught.value.code in ("corim.digest", "corim.svn")


def test_a_vendors_file_may_be_encoded_otherwise() -> None:
    plain = cbor(acme({2: [[1, bytes(32)]]}))
    loose = plain.replace(b"\xd9\x01\xfa", b"\xda\x00\x00\x01\xfa", 1)
    meta = cbor({0: {0: "ACME Ltd."}})
    data = cose_sign1(loose, {3: "application/rim+cbor", 8: meta}, forge.KEY)
    assert len(read(data, vendor=True).values) == 1


def test_a_vendors_profile_has_to_be_known() -> None:
    body = acme({2: [[1, bytes(32)]]}).value | {3: Tag(32, "tag:vendor.example,2026:gpu")}
    data = vendor(Tag(501, body))
    with pytest.raises(Untrusted) as caught:
        read(data, vendor=True)
    assert caught.value.code == "corim.profile"
    assert read(data, vendor=True, profiles=["tag:vendor.example,2026:gpu"]).values


@pytest.mark.parametrize(
    ("value", "more"),
    [
        ({2: [[1, bytes(32)]], 4: Tag(560, b"x"), 5: b"\xff"}, {}),
        ({2: [[1, bytes(32)]], 3: {3: False}}, {}),
        ({0: {0: "1.2"}}, {}),
        ({2: [[1, bytes(32)]]}, {"1": Tag(550, bytes(33))}),  # of one instance only
    ],
)
def test_what_could_narrow_a_vendors_value_is_not_passed_over(value: Any, more: dict[str, Any]) -> None:
    body = acme(value)
    if more:
        environment = {0: {1: "ACME"}, 1: more["1"]}
        comid = {1: {0: "x"}, 4: {0: [[environment, [{0: 7, 1: value}]]]}}
        body = Tag(501, {0: "x", 1: [Tag(506, cbor(comid))]})
    with pytest.raises(Malformed):
        read(vendor(body), vendor=True)


def test_a_signature_that_is_over_or_not_yet() -> None:
    data = vendor(acme({2: [[1, bytes(32)]]}))
    for now in (NOW + 9, NOW + 10**6):
        with pytest.raises(Untrusted):
            read(data, vendor=True, now=now)


_DIGESTS = st.lists(st.sampled_from([c * 64 for c in "0123"]), min_size=1, max_size=3).map(tuple)
_VALUES = st.builds(
    ReferenceValue,
    st.sampled_from(sorted(PLATFORMS)),
    st.sampled_from(["launch", "pcr7", "tcb.snp"]),
    digests=_DIGESTS,
    register=st.booleans(),
)


@given(st.lists(_VALUES, min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read_back(values: list[ReferenceValue]) -> None:
    manifest = read(write_corim(values, name="n", signer_name="s", key=forge.KEY))
    for platform in PLATFORMS:
        for name in ("launch", "pcr7", "tcb.snp"):
            wanted = {d for v in values if (v.platform, v.name) == (platform, name) for d in v.digests}
            assert manifest.named(platform, name) == wanted


@given(st.integers(0, 8 * len(GOOD) - 1))
@settings(max_examples=200, deadline=None)
def test_any_one_bit_change_is_refused(bit: int) -> None:
    changed = bytearray(GOOD)
    changed[bit // 8] ^= 1 << (bit % 8)
    for lenient in (False, True):
        with pytest.raises((Malformed, Untrusted)):
            read(bytes(changed), vendor=lenient)


_CBOR = st.recursive(
    st.none() | st.booleans() | st.integers(0, 600) | st.text(max_size=6) | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.integers(0, 14), inner, max_size=4)
        | st.builds(Tag, st.sampled_from([1, 32, 501, 506, 552, 553]), inner)
    ),
    max_leaves=15,
)


@given(_CBOR, st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_signed_value_is_read_or_refused(value: Any, lenient: bool) -> None:
    """Also its holder of the key can't make the reader fail in another way."""
    for body in (value, Tag(501, {0: "x", 1: [Tag(506, cbor(value))], 3: Tag(32, "urn:cloister:corim:v1")})):
        try:
            read(forge.signed(body), vendor=lenient)
        except CloisterError:
            continue


def test_many_values_of_one_thing_are_each_looked_at_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    many, looked = 500, []

    class Form:
        def fullmatch(self, text: str) -> bool:
            looked.append(text)
            return len(text) == 64

    monkeypatch.setattr(corim, "_HEX", Form())
    triples = [forge.triple({2: [[1, n.to_bytes(32, "big")]]}, "one")[0] for n in range(many)]
    (value,) = read(forge.signed(forge.corim(triples))).values
    assert len(value.digests) == many
    assert len(looked) <= 3 * many
