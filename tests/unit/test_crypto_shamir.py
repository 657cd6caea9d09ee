"""Shamir's sharing and its words: the standard's vectors, the reference implementation as a peer, and properties."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import shamir_mnemonic
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto.shamir import combine_shares, interpolate, invert, multiply, split_secret
from cloister.crypto.slip39 import Share, join_shares, share_secret
from cloister.crypto.slip39_words import WORDS
from cloister.errors import CloisterError, Malformed, Misuse, Untrusted

KNOWN: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parents[1] / "vectors" / "slip39" / "vectors.json").read_text()
)
SECRET = bytes(range(32))


def names(cases: list[dict[str, Any]]) -> list[str]:
    return [case["name"] for case in cases]


@pytest.mark.parametrize("case", KNOWN["valid"], ids=names(KNOWN["valid"]))
def test_the_standards_valid_vectors(case: dict[str, Any]) -> None:
    assert join_shares(case["shares"], passphrase=KNOWN["passphrase"].encode())[1].hex() == case["secret"]
    assert [Share.from_words(text).to_words() for text in case["shares"]] == case["shares"]


@pytest.mark.parametrize("case", KNOWN["invalid"], ids=names(KNOWN["invalid"]))
def test_the_standards_invalid_vectors(case: dict[str, Any]) -> None:
    with pytest.raises(CloisterError) as info:
        join_shares(case["shares"], passphrase=KNOWN["passphrase"].encode())
    assert info.value.code == case["code"]
    given_ = set(" ".join(case["shares"]).split())
    assert not set(str(info.value).split()) & given_, "a message shows no word of a share"


def test_the_field() -> None:
    """FIPS 197 §4.2's examples, and every inverse."""
    assert (multiply(0x57, 0x83), multiply(0x57, 0x13)) == (0xC1, 0xFE)
    assert all(multiply(a, invert(a)) == 1 for a in range(1, 256))
    assert all(multiply(a, b) == multiply(b, a) for a in range(0, 256, 7) for b in range(256))


def test_the_words() -> None:
    assert len(WORDS) == len({word[:4] for word in WORDS}) == 1024
    assert list(WORDS) == sorted(WORDS)
    assert all(4 <= len(word) <= 8 for word in WORDS)


@pytest.mark.parametrize(("threshold", "shares"), [(2, 2), (2, 3), (3, 5), (16, 16)])
def test_the_reference_implementation_reads_ours(threshold: int, shares: int) -> None:
    set_id, texts = share_secret(SECRET, threshold, shares)
    assert len(texts) == shares
    assert {len(text.split()) for text in texts} == {33}
    for chosen in itertools.islice(itertools.combinations(texts, threshold), 12):
        assert shamir_mnemonic.combine_mnemonics(list(chosen)) == SECRET
        assert join_shares(chosen) == (set_id, SECRET)


@pytest.mark.parametrize("extendable", [True, False])
@pytest.mark.parametrize("exponent", [0, 2])
def test_we_read_the_reference_implementations(extendable: bool, exponent: int) -> None:
    (texts,) = shamir_mnemonic.generate_mnemonics(
        1, [(3, 5)], SECRET, passphrase=b"p", extendable=extendable, iteration_exponent=exponent
    )
    assert join_shares(texts[1:4], passphrase=b"p")[1] == SECRET
    assert join_shares(texts, passphrase=b"p")[1] == SECRET
    assert join_shares(texts, passphrase=b"q")[1] != SECRET


@given(st.data(), st.binary(min_size=16, max_size=64), st.integers(2, 16))
@settings(max_examples=40, deadline=None)
def test_any_k_of_n(data: st.DataObject, secret: bytes, shares: int) -> None:
    threshold = data.draw(st.integers(2, shares))
    values = dict(enumerate(split_secret(secret, threshold, shares)))
    places = data.draw(st.permutations(sorted(values)))
    assert combine_shares(threshold, {p: values[p] for p in places[:threshold]}) == secret
    with pytest.raises(Misuse) as info:
        combine_shares(threshold, {p: values[p] for p in places[: threshold - 1]})
    assert info.value.code == "shares.few"


def test_fewer_shares_say_nothing() -> None:
    """With one share less than needed, every secret is as likely: some last share leads to each of them."""
    values = split_secret(SECRET, 3, 3)
    known = {0: values[0], 1: values[1]}
    for secret in (bytes(32), b"\xff" * 32, SECRET):
        last = interpolate({**known, 255: secret}, 2)
        assert interpolate({**known, 2: last}, 255) == secret


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_changed_word_is_noticed(data: st.DataObject) -> None:
    _, texts = share_secret(SECRET, 2, 3)
    words = texts[0].split()
    place = data.draw(st.integers(0, len(words) - 1))
    words[place] = data.draw(st.sampled_from(WORDS).filter(lambda word: word != words[place]))
    with pytest.raises(Malformed) as info:
        join_shares([" ".join(words), texts[1]])
    assert info.value.code == "shares.checksum"


def test_a_forged_share_is_noticed() -> None:
    """With a right checksum, and also where it is one more than needed."""
    _, texts = share_secret(SECRET, 2, 3)
    share = Share.from_words(texts[2])
    value = bytes([share.value[0] ^ 1]) + share.value[1:]
    forged = Share(share.set_id, True, 0, 2, 2, value).to_words()
    for given_ in ([texts[0], forged], [texts[0], texts[1], forged]):
        with pytest.raises(Untrusted) as info:
            join_shares(given_)
        assert info.value.code == "shares.forged"


def test_how_shares_may_be_typed() -> None:
    _, texts = share_secret(SECRET, 2, 2)
    typed = [f"  {texts[0].upper()}\n", texts[1].replace(" ", "\t ")]
    assert join_shares(typed)[1] == SECRET


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        ([], "shares.few"),
        ([""], "shares.length"),
        (["academic " * 60], "shares.length"),
        (["academic " * 10**6], "shares.length"),
        (["academic " * 32 + "cloister"], "shares.word"),
        (["academic " * 33], "shares.checksum"),
    ],
)
def test_shares_out_of_form(texts: list[str], code: str) -> None:
    with pytest.raises(CloisterError) as info:
        join_shares(texts)
    assert info.value.code == code


def test_a_share_cannot_ask_for_hours() -> None:
    text = Share(1, True, 15, 0, 2, bytes(32)).to_words()
    with pytest.raises(Malformed) as info:
        Share.from_words(text)
    assert info.value.code == "shares.form"


@pytest.mark.parametrize(
    ("secret", "threshold", "shares", "code"),
    [
        (SECRET, 1, 1, "shares.count"),
        (SECRET, 1, 3, "shares.count"),
        (SECRET, 4, 3, "shares.count"),
        (SECRET, 2, 17, "shares.count"),
        (bytes(14), 2, 3, "shares.secret"),
        (bytes(33), 2, 3, "shares.secret"),
        (bytes(66), 2, 3, "shares.secret"),
    ],
)
def test_splits_that_are_refused(secret: bytes, threshold: int, shares: int, code: str) -> None:
    with pytest.raises(Misuse) as info:
        share_secret(secret, threshold, shares)
    assert info.value.code == code


def test_a_share_hides() -> None:
    share = Share.from_words(share_secret(SECRET, 2, 2)[1][0])
    assert share.value.hex() not in repr(share)
    assert repr(share.value) not in repr(share)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(share)
