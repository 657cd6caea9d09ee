"""Chains of authorities alone, as they stand beside lists that an authority signs itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cloister.crypto.x509 import verify_authorities
from cloister.errors import CloisterError, Malformed
from tests.pki import DAY, NOW, Entity, issue, p384

ROOT = issue("root", p384(), ca=True, path_length=1)
MIDDLE = issue("middle", p384(), ROOT, ca=True, path_length=0)


def code(chain: Sequence[Entity], *, root: Entity = ROOT, now: int = NOW) -> str:
    """ "" where the chain is accepted."""
    try:
        verify_authorities([entity.parsed for entity in chain], roots={root.root}, now=now)
    except CloisterError as error:
        return error.code
    return ""


def test_what_is_accepted() -> None:
    assert code([MIDDLE, ROOT]) == ""
    assert code([ROOT]) == ""


def test_whoever_the_root_did_not_issue() -> None:
    assert code([issue("middle", p384(), ca=True), ROOT]) == "x509.issuer"
    stranger = issue("root", p384(), ca=True)
    assert code([issue("middle", p384(), stranger, ca=True), ROOT]) == "x509.signature"
    assert code([MIDDLE, stranger]) == "x509.root"
    assert code([ROOT, MIDDLE]) == "x509.root"


def test_the_first_and_a_lone_one_must_be_authorities_too() -> None:
    """Of a lone pinned key ``verify_chain`` asks less: it signed nothing there. Here it signs a list."""
    assert code([issue("leaf", p384(), ROOT), ROOT]) == "x509.ca"
    lone = issue("lone", p384())
    assert code([lone], root=lone) == "x509.ca"


def test_the_length_of_the_path_counts_the_first_one() -> None:
    below = issue("below", p384(), MIDDLE, ca=True)
    assert code([below, MIDDLE, ROOT]) == "x509.path-length"


def test_time_and_number() -> None:
    assert code([MIDDLE, ROOT], now=NOW - 31 * DAY) == "x509.not-yet"
    assert code([MIDDLE, ROOT], now=NOW + 3651 * DAY) == "x509.expired"
    for chain in ([], [ROOT] * 9):
        with pytest.raises(Malformed):
            verify_authorities([entity.parsed for entity in chain], roots={ROOT.root}, now=NOW)
