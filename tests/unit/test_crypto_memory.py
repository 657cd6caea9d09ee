"""The one memory of signatures that held."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloister.crypto import Envelope, SigningKey, memory, sign_document
from cloister.crypto.memory import once_held
from cloister.errors import Untrusted

KEY, OTHER = SigningKey(b"k" * 32), SigningKey(b"o" * 32)
TYPE = "application/vnd.cloister.test+json"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    memory.forget()
    yield
    memory.forget()


def test_what_held_is_not_computed_again() -> None:
    asked: list[int] = []
    for _ in range(3):
        once_held(("a", b"key", b"digest", b"signature"), lambda: asked.append(1))
    assert asked == [1]
    once_held(("b", b"key", b"digest", b"signature"), lambda: asked.append(2))
    assert asked == [1, 2], "another format is another signature"


def test_what_did_not_hold_is_never_remembered() -> None:
    def fails() -> None:
        raise Untrusted("signature.invalid", "It does not verify.")

    for _ in range(2):
        with pytest.raises(Untrusted):
            once_held(("a", b"forged"), fails)
    assert not memory._HELD


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST", 3)
    for number in range(10):
        once_held(("a", number), lambda: None)
    assert 0 < len(memory._HELD) <= 3


@pytest.mark.parametrize("part", ["type", "payload", "signature", "key"])
def test_a_document_that_held_vouches_for_no_other(part: str) -> None:
    envelope = sign_document(TYPE, {"a": 1}, KEY)
    envelope.verify(TYPE, [KEY.public])
    ((keyid, signature),) = envelope.signatures
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    other = {
        "type": Envelope(TYPE + "x", envelope.payload, envelope.signatures),
        "payload": Envelope(TYPE, b'{"a":2}', envelope.signatures),
        "signature": Envelope(TYPE, envelope.payload, ((keyid, flipped),)),
        "key": envelope,
    }[part]
    with pytest.raises(Untrusted):
        other.verify(other.payload_type, [OTHER.public if part == "key" else KEY.public])
    envelope.verify(TYPE, [KEY.public])
