"""What every KEK driver must do, whatever keeps its keys: one suite, a subclass for each driver.

    class TestFile(KekDriverConformance):
        @pytest.fixture
        def make(self) -> MakeDriver: ...

``make`` opens the **same** device, token or account each time, as another process would. See ``KekDriver`` for what is
promised.
"""

from __future__ import annotations

import pickle
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from cloister.crypto import verify_ed25519
from cloister.errors import CloisterError, Denied, Misuse, Untrusted
from cloister.keys.ports import KekDriver, SigningDriver

__all__ = ["KekDriverConformance", "MakeDriver", "SigningDriverConformance"]

MakeDriver = Callable[[], KekDriver]

MAX_HANDLE = 4096
MAX_BOX = 2048
DEK = bytes(range(32))
CONTEXT = b"cloister/wrap/v1, a context"
MESSAGE = b"what is signed"


def refused(call: Callable[[], object], kind: type[CloisterError], code: str) -> None:
    """The call raises exactly that, in one clear sentence which shows no key."""
    with pytest.raises(kind) as info:
        call()
    assert type(info.value) is kind
    assert info.value.code == code
    assert str(info.value).endswith(".")
    assert DEK.hex() not in str(info.value)


class KekDriverConformance:
    """Subclass as ``Test…`` and give it the fixture ``make``. Set the class variables where the driver differs."""

    #: The handle carries the KEK itself, sealed (a file, a TPM's blob): nothing can be listed, and only the vault's
    #: file can forget it.
    handles_carry_keys: ClassVar[bool] = False
    #: How many bits are flipped, threads used: fewer for a slow device.
    flips: ClassVar[int] = 48
    threads: ClassVar[int] = 6
    rounds: ClassVar[int] = 5

    @pytest.fixture
    def make(self) -> MakeDriver:
        """Opens the device that this test is about; each call gives another driver on it."""
        pytest.fail("a conformance class needs the fixture `make`")

    @pytest.fixture
    def hidden(self) -> list[bytes]:
        """What must never show: override it with the credential (PIN, token, passphrase)."""
        return []

    @pytest.fixture
    def driver(self, make: MakeDriver) -> Iterator[KekDriver]:
        driver = make()
        yield driver
        driver.close()

    @pytest.fixture
    def line(self) -> str:
        """A KEK id of this test alone, as a vault makes one."""
        return secrets.token_hex(16)

    @pytest.fixture
    def handle(self, driver: KekDriver, line: str) -> bytes:
        return driver.create(line, 1)

    def test_it_says_what_it_is(self, driver: KekDriver) -> None:
        assert driver.name in {"file", "tpm", "pkcs11", "transit", "aws", "gcp", "azure"}
        assert isinstance(driver.experimental, bool)
        assert 1 <= len(driver.algorithm) <= 64
        assert driver.algorithm.isascii()
        assert driver.algorithm.isprintable()

    def test_a_wrapped_key_comes_back(self, driver: KekDriver, handle: bytes) -> None:
        for dek in (DEK, bytes(32), b"\xff" * 32, secrets.token_bytes(32)):
            box = driver.wrap(handle, dek, CONTEXT)
            assert 1 <= len(box) <= MAX_BOX
            assert dek not in box
            assert driver.unwrap(handle, box, CONTEXT) == dek
        assert 1 <= len(handle) <= MAX_HANDLE

    def test_contexts_of_every_size(self, driver: KekDriver, handle: bytes) -> None:
        for context in (b"", b"\0", bytes(300), secrets.token_bytes(120)):
            assert driver.unwrap(handle, driver.wrap(handle, DEK, context), context) == DEK

    def test_another_process_opens_it(self, driver: KekDriver, make: MakeDriver, handle: bytes) -> None:
        box = driver.wrap(handle, DEK, CONTEXT)
        other = make()
        try:
            assert other.unwrap(handle, box, CONTEXT) == DEK
            assert driver.unwrap(handle, other.wrap(handle, DEK, CONTEXT), CONTEXT) == DEK
        finally:
            other.close()

    def test_another_context_is_refused(self, driver: KekDriver, handle: bytes) -> None:
        box = driver.wrap(handle, DEK, CONTEXT)
        for context in (b"", CONTEXT[:-1], CONTEXT + b"\0", CONTEXT.upper(), secrets.token_bytes(32)):
            refused(lambda context=context: driver.unwrap(handle, box, context), Untrusted, "wrap.changed")
        assert driver.unwrap(handle, box, CONTEXT) == DEK

    def test_another_kek_is_refused(self, driver: KekDriver, handle: bytes, line: str) -> None:
        """Another epoch's of the same line, and another line's."""
        box = driver.wrap(handle, DEK, CONTEXT)
        for other in (driver.create(line, 2), driver.create(secrets.token_hex(16), 1)):
            assert other != handle
            refused(lambda other=other: driver.unwrap(other, box, CONTEXT), Untrusted, "wrap.changed")

    def test_every_create_makes_another_kek(self, driver: KekDriver, handle: bytes, line: str) -> None:
        """Also for the same line and epoch: what a crashed rotation left is never taken up."""
        again = driver.create(line, 1)
        assert again != handle
        box = driver.wrap(handle, DEK, CONTEXT)
        refused(lambda: driver.unwrap(again, box, CONTEXT), Untrusted, "wrap.changed")

    def test_any_flipped_bit_is_refused(self, driver: KekDriver, handle: bytes) -> None:
        box = driver.wrap(handle, DEK, CONTEXT)
        bits = range(len(box) * 8)
        for bit in {0, len(bits) - 1, *secrets.SystemRandom().sample(bits, min(self.flips, len(bits)))}:
            flipped = bytearray(box)
            flipped[bit // 8] ^= 1 << bit % 8
            refused(lambda f=bytes(flipped): driver.unwrap(handle, f, CONTEXT), Untrusted, "wrap.changed")

    def test_cut_and_extended_boxes_are_refused(self, driver: KekDriver, handle: bytes) -> None:
        box = driver.wrap(handle, DEK, CONTEXT)
        other = driver.wrap(handle, bytes(32), CONTEXT)
        half = len(box) // 2
        wrong = [b"", b"\0", box[:-1], box[1:], box[:half], box + b"\0", b"\0" + box, box + box, bytes(len(box))]
        wrong += [box[:half] + other[half:], bytes(MAX_BOX), box[:8], box[:-8]]
        for changed in wrong:
            refused(lambda c=changed: driver.unwrap(handle, c, CONTEXT), Untrusted, "wrap.changed")

    def test_keys_have_32_bytes(self, driver: KekDriver, handle: bytes) -> None:
        for size in (0, 1, 16, 24, 31, 33, 64):
            refused(lambda size=size: driver.wrap(handle, bytes(size), CONTEXT), Misuse, "wrap.dek")

    def test_handles_that_name_nothing(self, driver: KekDriver, handle: bytes) -> None:
        box = driver.wrap(handle, DEK, CONTEXT)
        changed = bytes([handle[0] ^ 1]) + handle[1:]
        for wrong in (b"", b"\0" * 16, secrets.token_bytes(16), b"x" * MAX_HANDLE, handle + b"x", changed):
            refused(lambda w=wrong: driver.unwrap(w, box, CONTEXT), Denied, "wrap.gone")
            refused(lambda w=wrong: driver.wrap(w, DEK, CONTEXT), Denied, "wrap.gone")

    def test_a_destroyed_kek(self, driver: KekDriver, make: MakeDriver, handle: bytes, line: str) -> None:
        kept = driver.create(line, 2)
        box, kept_box = driver.wrap(handle, DEK, CONTEXT), driver.wrap(kept, DEK, CONTEXT)
        remains = driver.destroy(handle)
        assert remains is None or remains.endswith(".")
        assert driver.destroy(handle) in (None, remains)
        if self.handles_carry_keys:
            assert remains is not None, "copies of the handle still open: whoever destroys must be told"
        else:
            for seen in (driver, other := make()):
                refused(lambda seen=seen: seen.unwrap(handle, box, CONTEXT), Denied, "wrap.gone")
                refused(lambda seen=seen: seen.wrap(handle, DEK, CONTEXT), Denied, "wrap.gone")
            other.close()
        assert driver.unwrap(kept, kept_box, CONTEXT) == DEK

    def test_destroying_nothing(self, driver: KekDriver) -> None:
        for handle in (b"", secrets.token_bytes(16)):
            remains = driver.destroy(handle)
            assert remains is None or remains.endswith(".")

    def test_what_is_listed(self, driver: KekDriver, make: MakeDriver, line: str) -> None:
        if self.handles_carry_keys:
            driver.create(line, 1)
            assert list(driver.list(line)) == []
            return
        assert list(driver.list(line)) == []
        made = [driver.create(line, epoch) for epoch in (1, 2, 10)]
        elsewhere = driver.create(secrets.token_hex(16), 1)
        assert sorted(driver.list(line)) == sorted(made)
        driver.destroy(made[1])
        other = make()
        try:
            assert sorted(other.list(line)) == sorted([made[0], made[2]])
            assert elsewhere not in other.list(line)
        finally:
            other.close()

    def test_several_threads(self, driver: KekDriver, line: str) -> None:
        handles = [driver.create(line, 1), driver.create(line, 2)]
        start = threading.Barrier(self.threads)

        def work(number: int) -> None:
            start.wait()
            for turn in range(self.rounds):
                handle, dek = handles[(number + turn) % 2], secrets.token_bytes(32)
                context = b"%d %d" % (number, turn)
                assert driver.unwrap(handle, driver.wrap(handle, dek, context), context) == dek

        with ThreadPoolExecutor(self.threads) as pool:
            for done in [pool.submit(work, number) for number in range(self.threads)]:
                done.result()

    def test_a_closed_driver_does_nothing(self, make: MakeDriver) -> None:
        driver = make()
        handle = driver.create(secrets.token_hex(16), 1)
        box = driver.wrap(handle, DEK, CONTEXT)
        driver.close()
        driver.close()
        calls: list[Callable[[], object]] = [
            lambda: driver.create("0" * 32, 1),
            lambda: driver.wrap(handle, DEK, CONTEXT),
            lambda: driver.unwrap(handle, box, CONTEXT),
            lambda: driver.destroy(handle),
            lambda: driver.list("0" * 32),
        ]
        for call in calls:
            refused(call, Misuse, "vault.closed")

    def test_nothing_secret_shows(self, driver: KekDriver, handle: bytes, hidden: list[bytes]) -> None:
        box = driver.wrap(handle, DEK, CONTEXT)
        shown = f"{driver!r} {driver} {handle!r} {box!r}"
        for secret in (DEK, *hidden):
            for form in (secret.hex(), repr(secret), repr(secret)[2:-1]):
                assert form not in shown
            assert secret not in handle
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(driver)


class SigningDriverConformance(KekDriverConformance):
    """For a driver that keeps signing keys, too."""

    @pytest.fixture
    def signing(self, driver: KekDriver) -> SigningDriver:
        assert isinstance(driver, SigningDriver)
        return driver

    def test_a_signature_verifies(self, signing: SigningDriver, make: MakeDriver, line: str) -> None:
        handle, public = signing.create_signer(f"{line}/receipt/1")
        assert len(public) == 32
        assert 1 <= len(handle) <= MAX_HANDLE
        other = make()
        assert isinstance(other, SigningDriver)
        try:
            for signer in (signing.signer(handle), other.signer(handle)):
                assert signer.public == public
                for message in (b"", MESSAGE, secrets.token_bytes(100_000)):
                    signature = signer.sign(message)
                    assert len(signature) == 64
                    verify_ed25519(public, message, signature)
        finally:
            other.close()

    def test_signers_differ(self, signing: SigningDriver, line: str) -> None:
        made = [signing.create_signer(f"{line}/receipt/1") for _ in range(2)]
        assert len(set(made)) == 2
        with pytest.raises(Untrusted):
            verify_ed25519(made[0][1], MESSAGE, signing.signer(made[1][0]).sign(MESSAGE))

    def test_a_destroyed_signer(self, signing: SigningDriver, line: str) -> None:
        handle, _ = signing.create_signer(f"{line}/receipt/1")
        signer = signing.signer(handle)
        signing.destroy(handle)
        refused(lambda: signing.signer(handle).sign(MESSAGE), Denied, "sign.gone")
        refused(lambda: signer.sign(MESSAGE), Denied, "sign.gone")

    def test_signers_are_listed_with_their_line(self, signing: SigningDriver, line: str) -> None:
        """So that what a crash left behind can be found and destroyed."""
        kek = signing.create(line, 1)
        signer, _ = signing.create_signer(f"{line}/receipt/1")
        signing.create_signer(f"{secrets.token_hex(16)}/receipt/1")
        assert sorted(signing.list(line)) == sorted([kek, signer])
        signing.destroy(signer)
        assert list(signing.list(line)) == [kek]

    def test_a_signer_unwraps_nothing(self, signing: SigningDriver, line: str) -> None:
        """Nor does a KEK sign: a handle is for one use."""
        kek = signing.create(line, 1)
        signer, _ = signing.create_signer(f"{line}/receipt/1")
        box = signing.wrap(kek, DEK, CONTEXT)
        refused(lambda: signing.unwrap(signer, box, CONTEXT), Denied, "wrap.gone")
        refused(lambda: signing.signer(kek).sign(MESSAGE), Denied, "sign.gone")

    def test_several_threads_sign(self, signing: SigningDriver, line: str) -> None:
        handle, public = signing.create_signer(f"{line}/receipt/1")
        signer = signing.signer(handle)

        def work(number: int) -> None:
            for turn in range(self.rounds):
                message = b"%d %d" % (number, turn)
                verify_ed25519(public, message, signer.sign(message))

        with ThreadPoolExecutor(self.threads) as pool:
            for done in [pool.submit(work, number) for number in range(self.threads)]:
                done.result()

    def test_a_closed_driver_signs_nothing(self, make: MakeDriver, line: str) -> None:
        driver = make()
        assert isinstance(driver, SigningDriver)
        handle, _ = driver.create_signer(f"{line}/receipt/1")
        signer = driver.signer(handle)
        driver.close()
        refused(lambda: driver.create_signer(f"{line}/receipt/1"), Misuse, "vault.closed")
        refused(lambda: driver.signer(handle), Misuse, "vault.closed")
        refused(lambda: signer.sign(MESSAGE), Misuse, "vault.closed")
