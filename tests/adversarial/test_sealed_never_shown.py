"""What a changed object shows before it is refused: nothing but what is true. Whole objects of small segments; the
reader, the check of the roots and the independent checker each notice it alone. Left out, each check is missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cloister.crypto import Envelope, segments
from cloister.errors import Untrusted
from cloister.sealed import MANIFEST_TYPE, Manifest, check_ciphertext, checker
from tests.changed_objects import (
    CHANGES,
    FILES,
    SEGMENT,
    Memory,
    Shown,
    World,
    build,
    cases,
    downgrade,
    manifest_edited,
    removed,
    small_segments,
)
from tests.sealing import OWNER_KEY, opened

MANY, SOME = 4_000, 300


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    with small_segments():
        yield


@pytest.fixture(scope="module")
def world(small: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("never-shown"))


def test_nothing_changed_is_ever_shown(world: World) -> None:
    tried = cases(world, SOME)
    assert tried.total() > SOME * 3 // 4
    assert set(tried) == {change.__name__ for change in CHANGES}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_changed_is_ever_shown_in_very_many_cases(world: World, change: Any) -> None:
    few = change in (removed, downgrade, manifest_edited)  # Hypothesis ends when it has tried all
    tried = cases(world, SOME if few else MANY, [change])
    assert tried.total() >= (len(FILES) if few else MANY * 3 // 5)


def test_the_unchanged_object_is_read_and_released(world: World) -> None:
    """The control of the experiment; also the object of small segments is one of several blocks."""
    assert len(world.raw["0000.sealed"]) > 4 * SEGMENT
    with opened(Memory(dict(world.raw)), world.made) as sealed:
        assert {path: sealed.read(path) for path in sealed.paths()} == FILES
        sealed.check_roots()
        sealed.require_complete()
    for name, content in world.raw.items():
        assert (world.made.folder / name).read_bytes() == content
    check_ciphertext(world.made.folder, signer_keys=[OWNER_KEY.public])


# -- every check is needed ---------------------------------------------------------------------------------------------

_KEYS: dict[int, bytes] = {}


def no_tags(patch: pytest.MonkeyPatch) -> None:
    """AES-GCM without its tag: counter mode, as a library decrypts before it knows."""
    real, init = segments.SegmentCipher, segments.SegmentCipher.__init__

    def keep(self: Any, key: bytes, header: bytes, aad: bytes, form: Any, *, writing: bool) -> None:
        init(self, key, header, aad, form, writing=writing)
        _KEYS[id(self)] = segments.hkdf(key, salt=header[1:33], info=aad, length=32, hash_name=form.hash_name)

    def decrypt(self: Any, segment: int, last: bool, ciphertext: Any, out: Any) -> int:
        counter = self._nonce(segment, last) + (2).to_bytes(4, "big")
        stream = Cipher(algorithms.AES(_KEYS[id(self)]), modes.CTR(counter)).decryptor()
        memoryview(out)[:] = stream.update(bytes(ciphertext[:-16]))
        return len(out)

    patch.setattr(real, "__init__", keep)
    patch.setattr(real, "decrypt_into", decrypt)


def no_wiping(patch: pytest.MonkeyPatch) -> None:
    """Refused, but what was decrypted stays in the caller's memory."""
    real = segments.SegmentCipher.decrypt_into

    def decrypt(self: Any, segment: int, last: bool, ciphertext: Any, out: Any) -> int:
        try:
            return real(self, segment, last, ciphertext, out)
        except Untrusted:
            memoryview(out)[:] = b"\x5b" * len(out)
            raise

    patch.setattr(segments.SegmentCipher, "decrypt_into", decrypt)


def no_associated_data(patch: pytest.MonkeyPatch) -> None:
    for module in ("reader", "writer"):
        patch.setattr(f"cloister.sealed.{module}.associated_data", lambda *_: b"the same for all")


def no_roots(patch: pytest.MonkeyPatch) -> None:
    def enter(self: Any, table: Any, number: int, digest: bytes | None, mark: bytes | None) -> None:
        if digest is not None:
            table.settled = True

    patch.setattr("cloister.sealed.roots.RootLedger._enter", enter)


def no_digest(patch: pytest.MonkeyPatch) -> None:
    def verify(envelope: Envelope, **_: Any) -> Manifest:
        envelope.verify(MANIFEST_TYPE, [OWNER_KEY.public])
        return Manifest.from_payload(envelope.payload)

    patch.setattr("cloister.sealed.reader.verify_manifest", verify)


def blind_checker(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(checker, "_check_file", lambda *_: None)


@pytest.mark.parametrize("fault", [no_tags, no_wiping, no_associated_data, no_roots, no_digest, blind_checker])
def test_a_reader_that_leaves_out_one_check_is_found_out(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    if fault is no_associated_data:
        fault(monkeypatch)  # it concerns the writer as well
        world = build(tmp_path)
    else:
        world = build(tmp_path)
        fault(monkeypatch)
    with pytest.raises(Shown):
        cases(world, 2 * SOME, shrink=False)
