"""Any one bit of a SEV-SNP report or of its certificates is changed: the change is noticed, whatever it was."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.snp import read_amd, verify_report
from cloister.crypto.x509 import read_certificates
from cloister.errors import CloisterError, Malformed, Untrusted
from tests.snp_forge import NOW, SIZE, Forge

# The library warns of names of odd lengths, which changed certificates may have.
pytestmark = pytest.mark.filterwarnings("ignore:Attribute's length must be")

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "snp"
FORGES = [Forge("milan", "vcek", 2), Forge("turin", "vcek", 5), Forge("genoa", "vlek", 4)]
PIECES = [(f.report(), f.leaf().der, *(c.der for c in f.chain())) for f in FORGES]


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


def verify(pieces, roots, now=NOW):
    report, leaf, *chain = pieces
    verify_report(report, read_amd(leaf), [read_amd(c) for c in chain], now=now, roots=roots)


def noticed(pieces, which, bit, roots, now=NOW):
    changed = [flip(p, bit % (8 * len(p))) if i == which else p for i, p in enumerate(pieces)]
    with pytest.raises(CloisterError) as caught:
        verify(changed, roots, now)
    assert isinstance(caught.value, Malformed | Untrusted)


@pytest.mark.parametrize("which", range(3))
def test_the_unchanged_pieces_verify(which):
    verify(PIECES[which], FORGES[which].roots)


@given(st.integers(0, 2), st.integers(0, 3), st.integers(0, 8 * 4096))
@settings(max_examples=400)
def test_a_changed_bit_is_noticed(which, piece, bit):
    noticed(PIECES[which], piece, bit, FORGES[which].roots)


@pytest.mark.parametrize("which", range(3))
def test_changed_bits_outside_of_what_is_signed_are_noticed(which):
    """Every bit of headers, algorithm names and padding, where a signature doesn't look."""
    report, *certificates = PIECES[which]
    for bit in range(8 * 0x330, 8 * SIZE, 41):
        noticed(PIECES[which], 0, bit, FORGES[which].roots)
    for piece, der in enumerate(certificates, 1):
        tail = len(der) - 512 - 80
        for bit in [*range(8 * 8), *range(8 * tail, 8 * (len(der) - 512))]:
            noticed(PIECES[which], piece, bit, FORGES[which].roots)
    assert len(report) == SIZE


@pytest.mark.slow
@pytest.mark.parametrize("which", range(3))
def test_every_single_bit_counts(which):
    for piece, data in enumerate(PIECES[which]):
        for bit in range(8 * len(data)):
            noticed(PIECES[which], piece, bit, FORGES[which].roots)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared vectors folder is not beside the checkout")
def test_every_single_bit_of_real_pieces_counts():
    chain = read_certificates((SHARED / "roots" / "ask_ark_milan.pem").read_bytes())
    report = bytes.fromhex((SHARED / "milan_report.hex").read_text())
    pieces = (report, (SHARED / "milan_vcek.der").read_bytes(), *(c.der for c in chain))
    roots, now = {"milan": chain[1].key_fingerprint}, 1_700_000_000
    verify(pieces, roots, now)
    for piece, data in enumerate(pieces):
        for bit in range(8 * len(data)):
            noticed(pieces, piece, bit, roots, now)
