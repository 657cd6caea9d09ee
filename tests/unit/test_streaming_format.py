"""The wire format: Tink's vectors, Tink's own library in both directions, lengths around segment borders."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import tink
from hypothesis import given, settings
from hypothesis import strategies as st
from tink import cleartext_keyset_handle, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, tink_pb2

from cloister.crypto.streaming import AES256_GCM_HKDF_1MB, SegmentCipher, StreamFormat, StreamReader, StreamWriter
from cloister.errors import Malformed, Misuse

VECTORS = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "tink"
SMALL = StreamFormat(segment_size=64)
KEY = bytes(range(32))
MIB = 1024 * 1024

streaming_aead.register()


def seal(plaintext: bytes, form: StreamFormat = SMALL, key: bytes = KEY, aad: bytes = b"aad") -> bytes:
    out = io.BytesIO()
    with StreamWriter(out, key, aad, form) as writer:
        writer.write(plaintext)
    return out.getvalue()


def unseal(ciphertext: bytes, form: StreamFormat = SMALL, key: bytes = KEY, aad: bytes = b"aad") -> bytes:
    with StreamReader(io.BytesIO(ciphertext), key, aad, form) as reader:
        return reader.readall()


class Kept(io.BytesIO):
    """Tink closes the file it writes to; keep what it wrote."""

    def close(self) -> None:
        if not self.closed:
            self.kept = self.getvalue()
        super().close()


def tink_primitive(key: bytes, segment_size: int) -> Any:
    """Tink's own streaming AEAD over a key that we know too."""
    params = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
        ciphertext_segment_size=segment_size, derived_key_size=32, hkdf_hash_type=3
    )
    proto = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(version=0, params=params, key_value=key)
    data = tink_pb2.KeyData(
        type_url="type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
        value=proto.SerializeToString(),
        key_material_type=tink_pb2.KeyData.SYMMETRIC,
    )
    entry = tink_pb2.Keyset.Key(key_data=data, status=tink_pb2.ENABLED, key_id=1, output_prefix_type=tink_pb2.RAW)
    keyset = tink_pb2.Keyset(primary_key_id=1, key=[entry])
    reader = tink.BinaryKeysetReader(keyset.SerializeToString())
    return cleartext_keyset_handle.read(reader).primitive(streaming_aead.StreamingAead)


def tink_seal(primitive: Any, plaintext: bytes, aad: bytes) -> bytes:
    out = Kept()
    with primitive.new_encrypting_stream(out, aad) as stream:
        stream.write(plaintext)
    return out.kept


@pytest.mark.skipif(not VECTORS.is_dir(), reason="shared vectors are not beside this checkout")
def test_tinks_published_vectors_open() -> None:
    cases = [case for path in sorted(VECTORS.glob("*.json")) for case in json.loads(path.read_text())["vectors"]]
    assert len(cases) >= 4
    for case in cases:
        form = StreamFormat(case["derivedKeySizeBytes"], case["ciphertextSegmentSizeBytes"], case["hkdfHash"].lower())
        key, aad = bytes.fromhex(case["inputKeyMaterial"]), bytes.fromhex(case["associatedData"])
        ciphertext = bytes.fromhex(case["ciphertext"])
        assert unseal(ciphertext, form, key, aad).hex() == case["plaintext"]
        assert form.ciphertext_size(len(case["plaintext"]) // 2) == len(ciphertext)


BORDERS = [0, 1, MIB - 57, MIB - 56, MIB - 55, 2 * MIB - 73, 2 * MIB - 72, 2 * MIB - 71]


@pytest.mark.parametrize("size", BORDERS)
def test_tink_opens_ours_and_we_open_tinks(size: int) -> None:
    plaintext = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    primitive = tink_primitive(KEY, MIB)
    ours = seal(plaintext, AES256_GCM_HKDF_1MB)
    with primitive.new_decrypting_stream(io.BytesIO(ours), b"aad") as stream:
        assert stream.read() == plaintext
    theirs = tink_seal(primitive, plaintext, b"aad")
    assert unseal(theirs, AES256_GCM_HKDF_1MB) == plaintext
    assert len(ours) == len(theirs) == AES256_GCM_HKDF_1MB.ciphertext_size(size)


@given(size=st.integers(0, 400))
@settings(max_examples=60, deadline=None)
def test_tink_agrees_about_small_segments(size: int) -> None:
    primitive = tink_primitive(KEY, 64)
    plaintext = bytes(i % 251 for i in range(size))
    theirs = tink_seal(primitive, plaintext, b"")
    assert len(theirs) == SMALL.ciphertext_size(size)
    assert unseal(theirs, aad=b"") == plaintext


def test_the_header_is_tinks() -> None:
    ciphertext = seal(b"", AES256_GCM_HKDF_1MB)
    assert ciphertext[0] == 0x28
    assert len(ciphertext) == 1 + 32 + 7 + 16
    assert seal(b"", AES256_GCM_HKDF_1MB)[:40] != ciphertext[:40]  # salt and prefix are fresh


@given(size=st.integers(0, 2**40), form=st.sampled_from([SMALL, AES256_GCM_HKDF_1MB, StreamFormat(16, 4096, "sha1")]))
def test_lengths_invert(size: int, form: StreamFormat) -> None:
    total = form.ciphertext_size(size)
    assert form.blocks(total) == form.segments(size)
    if form.blocks(total) <= 2**32:
        assert form.plaintext_size(total) == size


@given(total=st.integers(0, 2000))
def test_every_length_is_either_exact_or_refused(total: int) -> None:
    possible = {SMALL.ciphertext_size(n) for n in range(2000)}
    if total in possible:
        assert SMALL.ciphertext_size(SMALL.plaintext_size(total)) == total
    else:
        with pytest.raises(Malformed) as info:
            SMALL.plaintext_size(total)
        assert info.value.code == "stream.length"


def test_a_stream_that_would_wrap_the_segment_number_is_refused() -> None:
    with pytest.raises(Malformed) as info:
        SMALL.plaintext_size(SMALL.ciphertext_size(2**32 * SMALL.capacity))
    assert info.value.code == "stream.length"


@pytest.mark.parametrize("form", [(24, 64, "sha256"), (32, 64, "md5"), (32, 56, "sha256")])
def test_formats_outside_tinks_are_refused(form: tuple[int, int, str]) -> None:
    with pytest.raises(Misuse) as info:
        StreamFormat(*form)
    assert info.value.code == "stream.format"


def test_a_segment_is_never_encrypted_twice() -> None:
    cipher = SegmentCipher.for_writing(KEY, b"", SMALL)
    out = bytearray(17)
    assert cipher.encrypt_into(0, False, b"x", out) == 17
    for segment in (0, 2):  # again, and out of order: the first would repeat a nonce
        with pytest.raises(Misuse) as info:
            cipher.encrypt_into(segment, False, b"y", out)
        assert info.value.code == "stream.order"
    cipher.encrypt_into(1, True, b"x", out)
    with pytest.raises(Misuse):
        cipher.encrypt_into(2, True, b"x", out)


def test_a_cipher_for_reading_does_not_write_and_hides() -> None:
    cipher = SegmentCipher.for_reading(KEY, seal(b"")[:40], b"aad", SMALL)
    with pytest.raises(Misuse):
        cipher.encrypt_into(0, True, b"x", bytearray(17))
    assert KEY.hex() not in repr(cipher)
    with pytest.raises(TypeError, match="not pickled"):
        cipher.__reduce__()


def test_short_keys_are_refused() -> None:
    with pytest.raises(Misuse) as info:
        seal(b"", key=bytes(31))
    assert info.value.code == "stream.key"
