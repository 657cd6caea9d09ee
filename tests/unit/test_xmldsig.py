"""Canonical XML and the one profile of XML signatures: what is accepted, what is written, what is returned."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from xml.etree.ElementTree import canonicalize as exclusive_by_python

import pytest
from cryptography import x509
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloister.attestation.nvidia import MANIFEST_ROOTS
from cloister.crypto.canonical_xml import MAX_XML, canonicalize, parse_xml
from cloister.crypto.xmldsig import open_signed_xml
from cloister.errors import CloisterError, Malformed, Untrusted
from tests.nvidia_forge import C14N11, DRIVER, Factory, listed
from tests.pki import DAY, NOW, issue, p256, p384

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "nvidia"
FACTORY = Factory()
GOOD = FACTORY.driver()
SIGNED_2025 = 1_737_000_000  # 2025-01-16: the signers of both manifests in the shared folder are in their time


def open_it(data: bytes, factory: Factory = FACTORY, **how: object) -> object:
    return open_signed_xml(data, **{"roots": {factory.rim_root.root}, "now": NOW, **how})  # type: ignore[arg-type]


def refused(code: str, act: Callable[[], object], kind: type[CloisterError] = Untrusted) -> None:
    with pytest.raises(kind) as caught:
        act()
    assert caught.value.code == code, caught.value


@pytest.mark.parametrize(
    ("document", "canonical"),
    [
        # Canonical XML 1.0 §3.3: empty elements, attributes and namespaces in order, defaults undeclared.
        (
            '<doc><e1   /><e2   ></e2><e3   name = "elem3"   id="elem3"   /><e5 a:attr="out" b:attr="sorted" '
            'attr2="all" attr="I\'m" xmlns:b="http://www.ietf.org" xmlns:a="http://www.w3.org" '
            'xmlns="http://example.org"/><e6 xmlns="" xmlns:a="http://www.w3.org"><e7 xmlns="http://www.ietf.org">'
            '<e8 xmlns="" xmlns:a="http://www.w3.org"></e8></e7></e6></doc>',
            '<doc><e1></e1><e2></e2><e3 id="elem3" name="elem3"></e3><e5 xmlns="http://example.org" '
            'xmlns:a="http://www.w3.org" xmlns:b="http://www.ietf.org" attr="I\'m" attr2="all" b:attr="sorted" '
            'a:attr="out"></e5><e6 xmlns:a="http://www.w3.org"><e7 xmlns="http://www.ietf.org"><e8 xmlns=""></e8>'
            "</e7></e6></doc>",
        ),
        # §3.4: character references, white space in attributes, text that has to be escaped, CDATA.
        (
            "<doc><text>First line&#x0d;&#10;Second line</text><value>&#x32;</value>"
            '<compute><![CDATA[value>"0" && value<"10" ?"valid":"error"]]></compute>'
            '<compute expr=\'value>"0" &amp;&amp; value&lt;"10" ?"valid":"error"\'>valid</compute>'
            "<norm attr=' &#x20;   &#13;&#xa;&#9;   '/></doc>",
            "<doc><text>First line&#xD;\nSecond line</text><value>2</value>"
            '<compute>value&gt;"0" &amp;&amp; value&lt;"10" ?"valid":"error"</compute>'
            '<compute expr="value>&quot;0&quot; &amp;&amp; value&lt;&quot;10&quot; ?&quot;valid&quot;:&quot;error&quot;'
            '">valid</compute><norm attr="     &#xD;&#xA;&#x9;   "></norm></doc>',
        ),
        # §3.1: comments vanish, and what is around them is one text.
        ("<doc>Hello<!-- a --> world</doc><!-- b -->", "<doc>Hello world</doc>"),
    ],
)
def test_the_specifications_own_examples(document: str, canonical: str) -> None:
    assert canonicalize(parse_xml(document.encode()), exclusive=False).decode() == canonical


NAMES = st.sampled_from(["a", "b", "p:a", "p:b", "q:c"])
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)


@st.composite
def documents(draw: st.DrawFn, depth: int = 0) -> str:
    name = draw(NAMES)
    declared = 'xmlns:p="urn:p" xmlns:q="urn:q"' if depth == 0 else draw(st.sampled_from(["", 'xmlns:p="urn:other"']))
    attributes = draw(st.dictionaries(NAMES, TEXTS, max_size=2))
    escape = {"&": "&amp;", "<": "&lt;", '"': "&quot;"}
    written = " ".join(f'{key}="{"".join(escape.get(c, c) for c in value)}"' for key, value in attributes.items())
    inside = [draw(documents(depth + 1)) if depth < 2 else "x" for _ in range(draw(st.integers(0, 2)))]
    return f"<{name} {declared} {written}>{draw(TEXTS.map(lambda t: re.sub('[&<>]', '', t)))}{''.join(inside)}</{name}>"


@given(documents())
@settings(max_examples=60)
def test_the_exclusive_form_is_what_pythons_own_writer_makes(document: str) -> None:
    ours = canonicalize(parse_xml(document.encode()), exclusive=True).decode()
    assert ours == exclusive_by_python(document)


@given(documents())
@settings(max_examples=60)
def test_a_canonical_form_is_its_own(document: str) -> None:
    once = canonicalize(parse_xml(document.encode()), exclusive=False)
    assert canonicalize(parse_xml(once), exclusive=False) == once


@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
@example(b"")
@example(b"\xef\xbb\xbf<a/>")
@example(b'<?xml version="1.1"?><a/>')
@example(b'<?xml version="1.0" encoding="UTF-16"?><a/>')
@example(b"<a>\xff</a>")
@example(b'<a xmlns:p=""/>')
@example(b'<a xmlns:xml="urn:x"/>')
@example(b'<a xml:id="x"/>')
@example(b'<a xmlns:p="urn:x" xmlns:q="urn:x" p:b="" q:b=""/>')
@example(b"<p:a/>")
def test_any_bytes_are_a_document_or_malformed(data: bytes) -> None:
    with suppress(Malformed):
        canonicalize(parse_xml(data), exclusive=False)


@pytest.mark.parametrize(
    "data",
    [
        b"<a/>" + b" " * MAX_XML,
        b"<a>" * 40 + b"</a>" * 40,
        b"<r>" + b"<a/>" * 2000 + b"</r>",
        b"<r " + b" ".join(b'a%d=""' % i for i in range(5000)) + b"/>",
        b"<r " + b" ".join(b'xmlns:a%d="urn:%d"' % (i, i) for i in range(70)) + b"/>",
    ],
)
def test_a_document_that_is_too_much_is_refused(data: bytes) -> None:
    refused("xml.size", lambda: parse_xml(data), Malformed)


def test_a_good_signature_returns_the_document_without_itself() -> None:
    signed = open_it(GOOD)
    assert signed.root.local == "SoftwareIdentity"  # type: ignore[attr-defined]
    assert [child.local for child in signed.root.elements()] == ["Meta", "Payload"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "algorithm",
    [C14N11, "http://www.w3.org/TR/2001/REC-xml-c14n-20010315", "http://www.w3.org/2001/10/xml-exc-c14n#"],
)
def test_each_canonical_form(algorithm: str) -> None:
    open_it(FACTORY.driver(algorithm=algorithm))


def test_the_upper_end_of_the_chain_may_come_beside_the_document() -> None:
    cut = FACTORY.driver(chain=[FACTORY.rim_signer, FACTORY.rim_middle])
    refused("x509.root", lambda: open_it(cut))
    open_it(cut, above=[FACTORY.rim_root.parsed])


def test_the_signer_has_a_time_and_an_owner_may_grant_more() -> None:
    short = issue("short", p384(), FACTORY.rim_middle, end=NOW - DAY)
    old = FACTORY.driver(signer=short, chain=[short, FACTORY.rim_middle, FACTORY.rim_root])
    refused("x509.expired", lambda: open_it(old))
    refused("x509.expired", lambda: open_it(old, grace=DAY))
    open_it(old, grace=DAY + 1)
    refused("x509.not-yet", lambda: open_it(GOOD, now=NOW - 40 * DAY, grace=3650 * DAY))


def test_a_key_that_may_not_sign_documents() -> None:
    agrees = x509.KeyUsage(False, False, False, False, True, False, False, False, False)
    mute = issue("mute", p384(), FACTORY.rim_middle, extensions=[(agrees, True)])
    data = FACTORY.driver(signer=mute, chain=[mute, FACTORY.rim_middle, FACTORY.rim_root])
    refused("x509.usage", lambda: open_it(data))


def test_a_key_of_another_kind_is_refused() -> None:
    weak = issue("weak", p256(), FACTORY.rim_middle)
    data = FACTORY.driver(chain=[weak, FACTORY.rim_middle, FACTORY.rim_root])
    refused("xmldsig.algorithm", lambda: open_it(data))


CHANGES = st.integers(0, len(GOOD) * 8 - 1)


@given(CHANGES)
@settings(max_examples=200)
def test_any_one_bit_change_is_refused_or_changes_nothing(bit: int) -> None:
    changed = bytearray(GOOD)
    changed[bit // 8] ^= 1 << bit % 8
    before = canonicalize(open_it(GOOD).root, exclusive=False)  # type: ignore[attr-defined]
    try:
        signed = open_it(bytes(changed))
    except (Malformed, Untrusted):
        return
    # White space inside a tag, or between base64 characters, is not content.
    assert canonicalize(signed.root, exclusive=False) == before  # type: ignore[attr-defined]


def test_a_manifest_is_written_by_whoever_signs() -> None:
    other = Factory()
    refused("x509.root", lambda: open_it(other.driver()))
    refused("xmldsig.signature", lambda: open_it(FACTORY.driver(signer=other.rim_signer)))
    refused("xmldsig.digest", lambda: open_it(GOOD.replace(DRIVER.encode(), b"550.90.08")))
    assert FACTORY.manifest(DRIVER, listed((7,)))


@pytest.mark.parametrize("name", ["1010_0200_882_96005E0001_PROD.swidtag", "NV_GPU_DRIVER_GH100_550.144.03.xml"])
def test_nvidias_own_manifests(name: str) -> None:
    if not (SHARED / name).exists():
        pytest.skip("the shared folder with NVIDIA's manifests is not beside the checkout")
    data = (SHARED / name).read_bytes()
    signed = open_signed_xml(data, roots=set(MANIFEST_ROOTS), now=SIGNED_2025)
    assert len(signed.certificates) == 4
    refused("x509.root", lambda: open_signed_xml(data, roots={"00" * 32}, now=SIGNED_2025))
    refused("x509.expired", lambda: open_signed_xml(data, roots=set(MANIFEST_ROOTS), now=1_830_000_000))
    zeros = data.replace(b'active="True"', b'active="False"', 1)
    refused("xmldsig.digest", lambda: open_signed_xml(zeros, roots=set(MANIFEST_ROOTS), now=SIGNED_2025))
