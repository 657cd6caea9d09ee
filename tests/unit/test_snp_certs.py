"""VCEK and VLEK certificates: AMD's extensions read strictly, and only AMD's own authorities above them count."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.snp import AMD_ROOTS, attester_id, read_amd, read_leaf, role_of
from cloister.attestation.snp.certs import LEEWAY, check_chain, check_revocation
from cloister.attestation.snp.products import covers, product_of_cpuid, product_of_name, split_tcb
from cloister.crypto.x509 import read_certificates, read_crl, verify_chain
from cloister.errors import CloisterError, Malformed, Untrusted
from tests.snp_forge import CHIP, CSP_ID, DAY, NOW, TCB, TURIN_CHIP, Forge, der_integer, der_text

# The library warns of names of odd lengths, which changed certificates may have.
pytestmark = pytest.mark.filterwarnings("ignore:Attribute's length must be")

ROOTS = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "snp" / "roots"
MILAN, GENOA, TURIN = (Forge(product) for product in ("milan", "genoa", "turin"))
VLEK = Forge("genoa", "vlek")


@pytest.mark.parametrize("forge", [MILAN, GENOA, TURIN], ids=lambda f: f.product)
def test_a_vcek_names_product_tcb_and_chip(forge):
    leaf = read_leaf(forge.leaf())
    assert (leaf.signing_key, leaf.product, leaf.csp_id) == ("vcek", forge.product, "")
    assert leaf.tcb == TCB[forge.product]
    assert leaf.hwid == (TURIN_CHIP if forge is TURIN else CHIP)


def test_a_vlek_names_the_provider_and_no_chip():
    leaf = read_leaf(VLEK.leaf())
    assert (leaf.signing_key, leaf.product, leaf.product_name) == ("vlek", "genoa", "Genoa")
    assert (leaf.hwid, leaf.csp_id) == (b"", CSP_ID)


def test_a_hardware_id_may_stand_in_an_octet_string():
    # Also one that begins like a DER header: raw bytes of the right length are the id itself.
    for hwid in (CHIP, b"\x04\x3e" + bytes(62), b"\x02\xea" + bytes(62)):
        assert read_leaf(MILAN.leaf(extensions=MILAN.extensions(_4=hwid))).hwid == hwid
        assert read_leaf(MILAN.leaf(extensions=MILAN.extensions(_4=b"\x04\x40" + hwid))).hwid == hwid
    assert read_leaf(TURIN.leaf(extensions=TURIN.extensions(_4=b"\x04\x08" + TURIN_CHIP))).hwid == TURIN_CHIP


def test_reserved_security_versions_may_be_missing():
    leaf = read_leaf(MILAN.leaf(extensions=MILAN.extensions(_3_4=None, _3_5=None, _3_6=None, _3_7=None)))
    assert leaf.tcb == TCB["milan"]
    # One that isn't zero is kept, so that no report with zero bytes there matches.
    assert read_leaf(MILAN.leaf(extensions=MILAN.extensions(_3_5=der_integer(9)))).tcb[3] == 9


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"_1": None}, "no structure version"),
        ({"_1": der_integer(2)}, "an unknown structure version"),
        ({"_2": None}, "no product name"),
        ({"_2": der_text("Venice-A0")}, "an unknown product"),
        ({"_2": der_text("Milan-B0 ")}, "a product with something after it"),
        ({"_2": der_text("milan")}, "a product in other letters"),
        ({"_2": der_text("")}, "an empty product"),
        ({"_2": der_text("Milan\n")}, "a product that moves a cursor"),
        ({"_2": der_text("Milan", 0x04)}, "a product as an octet string"),
        ({"_2": b"\x16\x06Milan"}, "a text that ends too early"),
        ({"_2": b"\x16"}, "a header cut short"),
        ({"_3_1": None}, "no bootloader version"),
        ({"_3_8": None}, "no microcode version"),
        ({"_3_8": b"\x02\x01\x80"}, "a negative version"),
        ({"_3_8": b"\x02\x02\x00\x7f"}, "a version with a needless zero"),
        ({"_3_8": b"\x02\x02\x01\x00"}, "a version of 256"),
        ({"_3_8": b"\x02\x00"}, "an empty version"),
        ({"_3_8": b"\x02\x81\x01\x07"}, "a length in the long form"),
        ({"_3_8": b"\x02\x01\x07\x00"}, "bytes after a version"),
        ({"_4": None}, "neither chip nor provider"),
        ({"_5": der_text(CSP_ID)}, "both a chip and a provider"),
        ({"_4": CHIP[:8]}, "a Turin's hardware id"),
        ({"_4": CHIP + b"\0"}, "a hardware id of 65 bytes"),
        ({"_4": b"\x04\x3f" + CHIP[:63]}, "a wrapped hardware id of 63 bytes"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_certificates_outside_of_amds_profile_are_refused(changed, reason):
    with pytest.raises(Malformed) as caught:
        read_leaf(MILAN.leaf(extensions=MILAN.extensions(**changed)))
    assert caught.value.code == "snp.certificate", reason


def test_a_turin_key_needs_its_firmware_version_and_a_short_hardware_id():
    for changed in ({"_3_9": None}, {"_4": CHIP}):
        with pytest.raises(Malformed):
            read_leaf(TURIN.leaf(extensions=TURIN.extensions(**changed)))


def test_authorities_are_no_leaves():
    assert [role_of(c) for c in (MILAN.leaf(), *MILAN.chain())] == ["leaf", "intermediate", "root"]
    assert role_of(MILAN.leaf(common="SEV-OTHER")) == "intermediate"
    assert role_of(MILAN.leaf(common="Somebody")) is None
    for certificate in MILAN.chain():
        with pytest.raises(Malformed) as caught:
            read_leaf(certificate)
        assert caught.value.code == "snp.certificate"


@pytest.mark.parametrize("forge", [MILAN, GENOA, TURIN, VLEK], ids=lambda f: f"{f.product}-{f.signing_key}")
def test_the_chain_of_its_own_product_holds(forge):
    check_chain(read_leaf(forge.leaf()), forge.chain(), roots=forge.roots, now=NOW)


def test_a_product_without_a_pinned_root_is_refused():
    with pytest.raises(Untrusted) as caught:
        check_chain(read_leaf(MILAN.leaf()), MILAN.chain(), roots=GENOA.roots, now=NOW)
    assert caught.value.code == "snp.product"


@pytest.mark.parametrize("length", [0, 1, 3])
def test_a_chain_has_exactly_two_authorities(length):
    chain = (*MILAN.chain(), MILAN.root())[:length]
    with pytest.raises(Malformed) as caught:
        check_chain(read_leaf(MILAN.leaf()), chain, roots=MILAN.roots, now=NOW)
    assert caught.value.code == "snp.certificates"


def test_revocation_lists_are_those_of_the_root():
    chain = MILAN.chain()
    assert not check_revocation(chain, (), now=NOW, grace=0, required=False)
    assert check_revocation(chain, [read_crl(MILAN.crl())], now=NOW, grace=0, required=True)
    # A list of another product's root says nothing about this chain.
    for lists in ([], [read_crl(GENOA.crl())]):
        with pytest.raises(Untrusted) as caught:
            check_revocation(chain, lists, now=NOW, grace=0, required=True)
        assert caught.value.code == "crl.missing"


def test_a_revocation_list_has_its_time_and_its_grace():
    crl = read_crl(MILAN.crl(ends=NOW))
    assert check_revocation(MILAN.chain(), [crl], now=NOW - 1, grace=0, required=True)
    assert check_revocation(MILAN.chain(), [crl], now=NOW + 59, grace=60, required=True)
    for now, grace, code in ((NOW, 0, "crl.stale"), (NOW + 60, 60, "crl.stale"), (NOW - 2 * DAY, 0, "crl.future")):
        with pytest.raises(Untrusted) as caught:
            check_revocation(MILAN.chain(), [crl], now=now, grace=grace, required=False)
        assert caught.value.code == code


def test_amds_clock_may_be_a_little_ahead():
    crl = read_crl(MILAN.crl(begins=NOW + LEEWAY))
    assert check_revocation(MILAN.chain(), [crl], now=NOW, grace=0, required=True)
    with pytest.raises(Untrusted) as caught:
        check_revocation(MILAN.chain(), [crl], now=NOW - 1, grace=0, required=True)
    assert caught.value.code == "crl.future"


def test_products_are_known_by_cpuid_and_by_name():
    known = {(0x19, 0x01): "milan", (0x19, 0x11): "genoa", (0x19, 0xA0): "genoa", (0x1A, 0x02): "turin"}
    known |= {(0x19, 0x0F): "milan", (0x19, 0x1F): "genoa", (0x19, 0xAF): "genoa", (0x1A, 0x11): "turin"}
    for (family, model), product in known.items():
        assert product_of_cpuid(family, model) == product
    for family, model in ((0x17, 0x31), (0x19, 0x20), (0x19, 0xB0), (0x1A, 0x50), (0x1B, 0)):
        assert product_of_cpuid(family, model) is None
    names = {"Milan-B0": "milan", "Genoa": "genoa", "Genoa-B2": "genoa", "Siena-A2": "genoa", "Bergamo": "genoa"}
    for name, product in (names | {"Turin": "turin", "Turin-B1": "turin"}).items():
        assert product_of_name(name) == product
    for name in ("", "Rome-B0", "Milan-", "Milan-B", "Milan-BB0", "Milan-B0-B0", "Milan\0", "MILAN"):
        assert product_of_name(name) is None


def test_tcb_parts_depend_on_the_product():
    assert split_tcb(TCB["milan"], "milan") == {"bootloader": 4, "tee": 1, "snp": 24, "microcode": 219}
    assert split_tcb(TCB["turin"], "turin") == {"fmc": 1, "bootloader": 2, "tee": 3, "snp": 4, "microcode": 82}
    for raw, product in ((TCB["turin"], "milan"), (TCB["milan"], "turin"), (bytes(7), "milan"), (bytes(9), "turin")):
        with pytest.raises(Malformed) as caught:
            split_tcb(raw, product)
        assert caught.value.code == "snp.tcb"


def test_no_part_of_a_tcb_stands_in_for_another():
    assert covers({"a": 2, "b": 2}, {"a": 2, "b": 1})
    assert not covers({"a": 9, "b": 1}, {"a": 1, "b": 2})


def test_attesters_are_told_apart_by_key_and_name():
    ids = {attester_id("vcek", CHIP.hex()), attester_id("vlek", CHIP.hex()), attester_id("vcek", TURIN_CHIP.hex())}
    assert len(ids) == 3
    assert all(len(found) == 64 for found in ids)


@pytest.mark.skipif(not ROOTS.is_dir(), reason="the shared vectors folder is not beside the checkout")
def test_the_pinned_roots_are_amds_and_stand_above_all_their_authorities():
    files = sorted(ROOTS.glob("*.pem"))
    assert len(files) == 6
    seen = set()
    for file in files:
        intermediate, root = read_certificates(file.read_bytes())
        product = file.stem.split("_")[2]
        assert root.key_fingerprint == AMD_ROOTS[product]
        verify_chain([root], roots={AMD_ROOTS[product]}, now=NOW)
        assert root.subject_attributes["CN"] == f"ARK-{product.capitalize()}"
        seen.add(intermediate.subject_attributes["CN"])
    assert seen == {f"SEV-{kind}{p}" for kind in ("", "VLEK-") for p in ("Milan", "Genoa", "Turin")}


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=150)
def test_edited_certificates_raise_typed_errors_only(edits):
    der = bytearray(LEAF)
    for position, value in edits:
        der[position % len(der)] = value
    try:
        leaf = read_leaf(read_amd(bytes(der)))
        check_chain(leaf, MILAN.chain(), roots=MILAN.roots, now=NOW)
    except CloisterError as error:
        assert isinstance(error, Malformed | Untrusted)  # noqa: PT017 - one kind or the other, never a third
    else:
        assert bytes(der) == LEAF


LEAF = MILAN.leaf().der
