"""XML that says one thing to whoever checks its signature and another to whoever reads it."""

from __future__ import annotations

import pytest

from cloister.attestation.collateral import Item
from cloister.attestation.nvidia.rim import open_manifest
from cloister.errors import CloisterError, Malformed, Untrusted
from tests.nvidia_forge import DSIG, EMPTY, SHA384, SWID, Factory, listed, measured, resource
from tests.pki import NOW

FACTORY = Factory()
GOOD = FACTORY.driver()
EVIL = resource(7, [measured(666)])
SIGNATURE = GOOD[GOOD.index(b"<ds:Signature ") : GOOD.index(b"</SoftwareIdentity>")]


def refused(data: bytes, code: str, kind: type[CloisterError] = Malformed) -> None:
    with pytest.raises(kind) as caught:
        open_manifest(Item("nvidia-rim", "x", data, NOW), roots={FACTORY.rim_root.root}, now=NOW)
    assert caught.value.code == code, caught.value
    good = open_manifest(Item("nvidia-rim", "x", GOOD, NOW), roots={FACTORY.rim_root.root}, now=NOW)
    assert good.active[7].values == (measured(7),)


def test_a_value_that_was_changed() -> None:
    refused(GOOD.replace(measured(7).hex().encode(), measured(666).hex().encode()), "xmldsig.digest", Untrusted)


def test_the_signed_document_wrapped_in_another() -> None:
    """The signature is found and holds over the old root; the reader would see the new one."""
    evil = f'<SoftwareIdentity xmlns="{SWID}" xmlns:ns0="{SWID}" xmlns:ns2="{SHA384}">'
    evil += f"<ns0:Payload>{EVIL}</ns0:Payload>"
    refused(evil.encode() + GOOD + b"</SoftwareIdentity>", "xmldsig.form")


def test_the_signed_document_inside_the_signature() -> None:
    evil = GOOD.replace(b"<ns0:Payload>", b"<ns0:Payload>" + EVIL.encode(), 1)
    for hidden in (GOOD, GOOD.replace(SIGNATURE, b"")):
        wrapped = evil.replace(b"</ds:KeyInfo>", b"</ds:KeyInfo><ds:Object>" + hidden + b"</ds:Object>", 1)
        refused(wrapped, "xmldsig.form")


def test_the_signature_moved_below() -> None:
    moved = GOOD.replace(SIGNATURE, b"").replace(b"</ns0:Payload>", SIGNATURE + b"</ns0:Payload>")
    refused(moved, "xmldsig.form")


def test_two_signatures() -> None:
    refused(GOOD.replace(SIGNATURE, SIGNATURE * 2), "xmldsig.form")
    other = Factory().driver()
    foreign = other[other.index(b"<ds:Signature ") : other.index(b"</SoftwareIdentity>")]
    refused(GOOD.replace(SIGNATURE, foreign + SIGNATURE), "xmldsig.form")


def test_no_signature() -> None:
    refused(GOOD.replace(SIGNATURE, b""), "xmldsig.form")
    refused(b"<SoftwareIdentity/>", "xmldsig.form")


def test_a_signature_over_a_part_by_its_id() -> None:
    refused(GOOD.replace(b'URI=""', b'URI="#payload"'), "xmldsig.form")
    refused(GOOD.replace(b' URI=""', b""), "xmldsig.form")
    refused(GOOD.replace(b'URI=""', b'URI="" Type="x"'), "xmldsig.form")


def test_two_references() -> None:
    start, end = GOOD.index(b"<ds:Reference"), GOOD.index(b"</ds:SignedInfo>")
    refused(GOOD[:end] + GOOD[start:end] + GOOD[end:], "xmldsig.form")


def test_a_transform_that_selects() -> None:
    for algorithm in ("http://www.w3.org/TR/1999/REC-xpath-19991116", "http://www.w3.org/TR/1999/REC-xslt-19991116"):
        transform = f'<ds:Transform Algorithm="{algorithm}"/>'.encode()
        refused(GOOD.replace(b"<ds:Transforms>", b"<ds:Transforms>" + transform), "xmldsig.form")
        only = GOOD.replace(f"{DSIG}enveloped-signature".encode(), algorithm.encode())
        refused(only, "xmldsig.form")
    second = GOOD.replace(
        b'<ds:Transform Algorithm="http://www.w3.org/2006/12/xml-c14n11"/>',
        b'<ds:Transform Algorithm="http://www.w3.org/TR/1999/REC-xpath-19991116"/>',
    )
    refused(second, "xmldsig.algorithm", Untrusted)


def test_parameters_of_a_canonical_form() -> None:
    prefixes = b'<ec:InclusiveNamespaces xmlns:ec="http://www.w3.org/2001/10/xml-exc-c14n#" PrefixList="x"/>'
    inside = GOOD.replace(
        b'<ds:Transform Algorithm="http://www.w3.org/2006/12/xml-c14n11"/>',
        b'<ds:Transform Algorithm="http://www.w3.org/2006/12/xml-c14n11">' + prefixes + b"</ds:Transform>",
    )
    refused(inside, "xmldsig.form")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"xmldsig-more#ecdsa-sha384", b"xmldsig-more#hmac-sha384"),
        (b"xmldsig-more#ecdsa-sha384", b"xmldsig-more#ecdsa-sha256"),
        (b"xmldsig-more#sha384", b"xmldsig-more#sha224"),
        (b"2006/12/xml-c14n11", b"2006/12/xml-c14n11#WithComments"),
    ],
)
def test_an_algorithm_of_the_attackers_choice(old: bytes, new: bytes) -> None:
    refused(GOOD.replace(old, new, 1), "xmldsig.algorithm", Untrusted)


def test_a_key_that_nobody_certified() -> None:
    start, end = GOOD.index(b"<ds:X509Data>"), GOOD.index(b"</ds:KeyInfo>")
    value = b"<ds:KeyValue><ds:ECKeyValue/></ds:KeyValue>"
    refused(GOOD[:start] + value + GOOD[end:], "xmldsig.form")
    refused(GOOD[:start] + value + GOOD[start:], "xmldsig.form")


def test_a_file_of_the_machine_as_an_entity() -> None:
    head = b'<!DOCTYPE x [<!ENTITY secret SYSTEM "file:///etc/passwd">]>'
    refused(head + GOOD.replace(b"</ns0:Payload>", b"&secret;</ns0:Payload>"), "xml.form")
    refused(b'<!DOCTYPE x SYSTEM "http://127.0.0.1/x.dtd">' + GOOD, "xml.form")


def test_a_billion_laughs() -> None:
    lines = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    bomb = f'<!DOCTYPE x [<!ENTITY l0 "ha">{lines}]><SoftwareIdentity>&l9;</SoftwareIdentity>'
    refused(bomb.encode(), "xml.form")


def test_default_attributes_from_a_document_type() -> None:
    """A document type could give elements attributes that the signature doesn't cover."""
    head = b'<!DOCTYPE SoftwareIdentity [<!ATTLIST SoftwareIdentity tagId CDATA "evil">]>'
    refused(head + GOOD, "xml.form")


def test_an_entity_that_was_never_declared() -> None:
    refused(GOOD.replace(b"</ns0:Payload>", b"&evil;</ns0:Payload>"), "xml.form")


def test_a_processing_instruction() -> None:
    refused(GOOD.replace(b"<ns0:Payload>", b"<ns0:Payload><?evil x?>"), "xml.form")


def test_a_comment_that_splits_a_text() -> None:
    """Some readers stop at a comment; here the text is one, so the certificate is the same, and what it isn't fails."""
    at = GOOD.index(b"<ds:X509Certificate>") + 60
    split = GOOD[:at] + b"<!-- x -->" + GOOD[at:]
    open_manifest(Item("nvidia-rim", "x", split, NOW), roots={FACTORY.rim_root.root}, now=NOW)


def test_a_prefix_that_means_something_else() -> None:
    swapped = GOOD.replace(f'xmlns:ns0="{SWID}"'.encode(), b'xmlns:ns0="urn:other"', 1)
    refused(swapped, "xmldsig.digest", Untrusted)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (resource(7, [measured(7)]), "twice"),
        (resource(300, [measured(7)]), "unknown"),
        (resource(50, [measured(7)], active="true"), "state"),
        (resource(50, []), "values"),
        (resource(50, [measured(7)]).replace('alternatives="1"', 'alternatives="2"'), "values"),
        (resource(50, [measured(7), measured(8)]).replace('alternatives="2"', 'alternatives="1"'), "values"),
        (resource(50, [measured(7)]).replace('size="48"', 'size="32"'), "size"),
        (resource(50, [measured(7)]).replace('index="50"', 'index="-1"'), "index"),
        (resource(50, [measured(7)]).replace('index="50"', 'index="١"'), "index"),
        (resource(50, [measured(7)]).replace('type="Measurement"', 'type="Other"'), "unknown"),
        (resource(0x1001, [EMPTY]), "least"),
    ],
)
def test_a_signed_manifest_with_a_rule_that_is_not_understood(more: str, why: str) -> None:
    assert why
    refused(FACTORY.driver(more=more), "nvidia.rim")


def test_a_second_payload() -> None:
    extra = f"<ns0:Payload>{EVIL}</ns0:Payload>"
    refused(FACTORY.driver(inside=extra), "nvidia.rim")
    assert listed((7,)) == {7: [measured(7)]}
