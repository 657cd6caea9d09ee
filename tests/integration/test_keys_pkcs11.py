"""The pkcs11 driver against SoftHSM: the suite of all drivers, what the token really keeps, and everything that goes
wrong with tokens."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import Attribute, Mechanism, ObjectClass

from cloister.crypto import frame, hkdf, seal_box, verify_ed25519
from cloister.crypto.ecdh import ecdh_send
from cloister.errors import Denied, Misuse, Unavailable, Untrusted
from cloister.keys.drivers import DriverConfig, open_driver, pkcs11_errors, pkcs11_objects, pkcs11_session
from cloister.keys.drivers import pkcs11 as pkcs11_driver
from cloister.keys.drivers.pkcs11 import Pkcs11Driver
from cloister.keys.ports import SigningDriver
from tests.patience import until
from tests.softhsm import MODULE, SoftHsm
from tests.vault_conformance import CONTEXT, DEK, KekDriverConformance, MakeDriver, SigningDriverConformance, refused

PIN = b"user-pin-59312"
LABEL = "owner"
# The driver knows modules by their real path; python-pkcs11 must not initialize one a second time under another name.
REAL = os.path.realpath(MODULE)


@pytest.fixture(scope="module")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftHsm]:
    with SoftHsm(tmp_path_factory.mktemp("softhsm")) as softhsm:
        softhsm.create(LABEL, PIN)
        yield softhsm
        assert pkcs11_session._modules == {}, "a test left a driver open"


def opened(mechanism: str = "aes-kwp", token: str = LABEL, pin: bytes = PIN) -> Pkcs11Driver:
    driver = open_driver(DriverConfig("pkcs11", {"module": MODULE, "token": token, "mechanism": mechanism}), pin)
    assert isinstance(driver, Pkcs11Driver)
    return driver


@pytest.fixture
def driver(softhsm: SoftHsm) -> Iterator[Pkcs11Driver]:
    driver = opened()
    yield driver
    driver.close()


@pytest.fixture
def line() -> str:
    return secrets.token_hex(16)


class _OnSoftHsm(KekDriverConformance):
    mechanism = "aes-kwp"

    @pytest.fixture
    def make(self, softhsm: SoftHsm) -> MakeDriver:
        return lambda: opened(self.mechanism)

    @pytest.fixture
    def hidden(self) -> list[bytes]:
        return [PIN]


class TestAesKwp(_OnSoftHsm, SigningDriverConformance):
    pass


class TestAesKw(_OnSoftHsm):
    mechanism = "aes-kw"


class TestEcdh(_OnSoftHsm, SigningDriverConformance):
    mechanism = "ecdh"


def on_token(driver: Pkcs11Driver, look: Callable[[pkcs11.Session], object]) -> object:
    return driver._open().call(look)


def test_algorithms_are_named(softhsm: SoftHsm) -> None:
    names = {"aes-kwp": "A256KWP", "aes-kw": "A256KW", "ecdh": "ECDH-ES+A256GCM"}
    for mechanism, algorithm in names.items():
        driver = opened(mechanism)
        assert driver.algorithm == algorithm
        assert isinstance(driver, SigningDriver)
        assert driver.experimental is False
        driver.close()


@pytest.mark.parametrize("mechanism", ["aes-kwp", "aes-kw", "ecdh"])
def test_keys_can_not_leave_the_token(softhsm: SoftHsm, line: str, mechanism: str) -> None:
    driver = opened(mechanism)
    assert isinstance(driver, SigningDriver)
    private = (ObjectClass.SECRET_KEY, ObjectClass.PRIVATE_KEY)
    for handle in (driver.create(line, 1), driver.create_signer(f"{line}/receipt/1")[0]):

        def look(session: pkcs11.Session, handle: bytes = handle) -> None:
            found = list(session.get_objects({Attribute.ID: handle[:16], Attribute.PRIVATE: True}))
            (key,) = [item for item in found if item[Attribute.CLASS] in private]
            wanted = {
                Attribute.TOKEN: True,
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.ALWAYS_SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
                Attribute.NEVER_EXTRACTABLE: True,
                Attribute.LOCAL: True,
                Attribute.MODIFIABLE: False,
            }
            assert {name: key[name] for name in wanted} == wanted
            with pytest.raises(pkcs11.AttributeSensitive):
                key[Attribute.VALUE]
            with pytest.raises(pkcs11.PKCS11Error):
                key[Attribute.EXTRACTABLE] = True
            with pytest.raises(pkcs11.PKCS11Error):
                key[Attribute.SENSITIVE] = False

        on_token(driver, look)
    driver.close()


def test_a_kek_has_one_use(driver: Pkcs11Driver, line: str) -> None:
    """With CKA_DECRYPT a KEK could decrypt a wrapped key outside of key wrap; with CKA_DERIVE it could make others."""
    handle = driver.create(line, 7)

    def look(session: pkcs11.Session) -> None:
        key = session.get_key(id=handle)
        assert key[Attribute.LABEL] == f"cloister/{line}/7"
        uses = (Attribute.ENCRYPT, Attribute.DECRYPT, Attribute.SIGN, Attribute.VERIFY, Attribute.DERIVE)
        assert [key[use] for use in uses] == [False] * 5
        assert (key[Attribute.WRAP], key[Attribute.UNWRAP]) == (True, True)
        assert key[Attribute.VALUE_LEN] == 32

    on_token(driver, look)


def test_a_kek_can_not_be_wrapped_out(driver: Pkcs11Driver, line: str) -> None:
    """The classic attack on a token by somebody with the PIN: wrap one key under another, then decrypt that."""
    one, other = driver.create(line, 1), driver.create(line, 2)

    def steal(session: pkcs11.Session) -> None:
        with pytest.raises(pkcs11.KeyUnextractable):
            session.get_key(id=one).wrap_key(session.get_key(id=other), mechanism=Mechanism.AES_KEY_WRAP)

    on_token(driver, steal)


def test_no_data_key_stays_in_the_token(softhsm: SoftHsm, line: str) -> None:
    for mechanism in ("aes-kwp", "ecdh"):
        driver = opened(mechanism)
        handle = driver.create(line, 1)
        box = driver.wrap(handle, DEK, CONTEXT)
        driver.unwrap(handle, box, CONTEXT)
        refused(lambda d=driver, h=handle, b=box: d.unwrap(h, b, b"another"), Untrusted, "wrap.changed")
        assert on_token(driver, lambda session: list(session.get_objects({Attribute.TOKEN: False}))) == []
        driver.close()


def test_destroyed_means_gone_from_the_token(driver: Pkcs11Driver, line: str) -> None:
    assert isinstance(driver, SigningDriver)
    made = [driver.create(line, 1), driver.create_signer(f"{line}/status/1")[0]]
    for handle in made:
        said = driver.destroy(handle)
        assert said is not None
        assert "backups" in said
        assert driver.destroy(handle) is None
        left = on_token(driver, lambda session, h=handle: list(session.get_objects({Attribute.ID: h[:16]})))
        assert left == []


def test_keys_of_others_on_the_token_are_left_alone(driver: Pkcs11Driver) -> None:
    """An id that Cloister didn't choose, under a label that it didn't give."""
    key_id = secrets.token_bytes(16)

    def make(session: pkcs11.Session) -> None:
        session.generate_key(pkcs11.KeyType.AES, 256, id=key_id, label="payroll", store=True)

    on_token(driver, make)
    refused(lambda: driver.wrap(key_id, DEK, CONTEXT), Denied, "wrap.gone")
    assert driver.destroy(key_id) is None
    assert len(on_token(driver, lambda s: list(s.get_objects({Attribute.ID: key_id})))) == 1  # type: ignore[arg-type]


def test_another_schemes_boxes_do_not_open(softhsm: SoftHsm, line: str) -> None:
    kwp, kw, ecdh = opened("aes-kwp"), opened("aes-kw"), opened("ecdh")
    handle = kwp.create(line, 1)
    box = kwp.wrap(handle, DEK, CONTEXT)
    assert len(box) == len(kw.wrap(handle, DEK, CONTEXT)) == 72
    refused(lambda: kw.unwrap(handle, box, CONTEXT), Untrusted, "wrap.changed")
    refused(lambda: ecdh.unwrap(handle, box, CONTEXT), Denied, "wrap.gone")
    for driver in (kwp, kw, ecdh):
        driver.close()


def test_a_point_off_the_curve_never_reaches_the_token(softhsm: SoftHsm, line: str) -> None:
    driver = opened("ecdh")
    handle = driver.create(line, 1)
    box = driver.wrap(handle, DEK, CONTEXT)
    for point in (bytes(65), b"\x04" + bytes(64), b"\x04" + b"\xff" * 64, b"\x02" + box[1:65], b"\x06" + box[1:65]):
        refused(lambda p=point: driver.unwrap(handle, p + box[65:], CONTEXT), Untrusted, "wrap.changed")
    assert driver.unwrap(handle, box, CONTEXT) == DEK
    driver.close()


def test_who_knows_only_the_public_key_can_not_wrap(softhsm: SoftHsm, line: str) -> None:
    """Or anybody who can write to the vault's file could exchange all that is in it."""
    driver = opened("ecdh")
    handle = driver.create(line, 1)
    public = handle[16:]
    ephemeral, shared = ecdh_send(public)
    for static in (b"", bytes(32), shared):
        key = hkdf(shared + static, info=frame("cloister/pkcs11/ecdh/v1", ephemeral, public, CONTEXT))
        forged = ephemeral + seal_box(key, DEK, b"cloister/pkcs11/ecdh/v1")
        assert len(forged) == len(driver.wrap(handle, DEK, CONTEXT))
        refused(lambda f=forged: driver.unwrap(handle, f, CONTEXT), Untrusted, "wrap.changed")
    driver.close()


def test_an_exchanged_public_key_is_not_wrapped_to(softhsm: SoftHsm, line: str) -> None:
    driver = opened("ecdh")
    assert isinstance(driver, SigningDriver)
    mine, theirs = driver.create(line, 1), driver.create(line, 2)
    signer, other = driver.create_signer(f"{line}/a/1")[0], driver.create_signer(f"{line}/b/1")[0]
    refused(lambda: driver.wrap(mine[:16] + theirs[16:], DEK, CONTEXT), Denied, "wrap.gone")
    refused(lambda: driver.signer(signer[:16] + other[16:]).sign(b"message"), Denied, "sign.gone")
    driver.close()


def test_a_token_without_eddsa_keeps_keks_only(softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signing keys are then secrets of the vault. So does a mechanism that is missing say so."""
    has = {Mechanism.AES_KEY_WRAP_PAD, Mechanism.AES_KEY_WRAP, Mechanism.ECDH1_DERIVE, 0x80000001}
    monkeypatch.setattr(pkcs11_session.Connection, "mechanisms", lambda self: has)
    for mechanism in ("aes-kwp", "aes-kw", "ecdh"):
        driver = opened(mechanism)
        assert not isinstance(driver, SigningDriver)
        driver.close()
    has.clear()
    for mechanism in ("aes-kwp", "aes-kw", "ecdh"):
        refused(lambda m=mechanism: opened(m), Misuse, "driver.unsupported")


def test_tokens_that_want_the_curve_by_its_oid(
    driver: Pkcs11Driver, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(driver, SigningDriver)
    unknown = b"\x13\x07edwards"
    monkeypatch.setattr(pkcs11_driver, "_ED25519_PARAMETERS", (unknown, pkcs11_driver._ED25519_PARAMETERS[1]))
    handle, public = driver.create_signer(f"{line}/status/1")
    verify_ed25519(public, b"message", driver.signer(handle).sign(b"message"))


def test_a_signature_that_went_wrong_is_kept_back(
    driver: Pkcs11Driver, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one good and one faulty signature of the same message, whoever sees both computes the key."""
    assert isinstance(driver, SigningDriver)
    handle, _ = driver.create_signer(f"{line}/status/1")
    real = driver._open().call
    monkeypatch.setattr(driver._open(), "call", lambda work: bytes(64 - len(real(work)[32:])) + real(work)[32:])
    refused(lambda: driver.signer(handle).sign(b"message"), Unavailable, "vault.device")


# What goes wrong with the PIN


def test_a_wrong_pin_goes_to_the_token_once(softhsm: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (b"wrong-pin-1", b"", b"\xff\xfe", PIN + b"x", bytes(300)):
        refused(lambda wrong=wrong: opened(pin=wrong), Denied, "vault.pin")
    with pytest.raises(Denied) as info:
        opened(pin=b"wrong-pin-1")
    shown = [str(info.value), repr(info.value), repr(info.value.details), repr(info.value.__cause__)]
    assert not any("wrong-pin-1" in text for text in shown)
    driver = opened()
    driver.close()


def test_a_second_driver_needs_the_pin_too(driver: Pkcs11Driver) -> None:
    """To the token this process is logged in; it would take any PIN now."""
    refused(lambda: opened(pin=b"wrong-pin-1"), Denied, "vault.pin")
    handle = driver.create("0" * 32, 1)
    assert driver.unwrap(handle, driver.wrap(handle, DEK, CONTEXT), CONTEXT) == DEK
    driver.destroy(handle)


def test_a_login_of_somebody_else_in_the_process_is_not_taken_over(softhsm: SoftHsm) -> None:
    library = pkcs11.lib(REAL)
    session = library.get_token(token_label=LABEL).open(user_pin=PIN.decode())
    refused(lambda: opened(pin=b"wrong-pin-1"), Denied, "vault.pin")
    del session
    opened().close()


def test_a_pin_that_was_changed_meanwhile_is_not_tried_again(softhsm: SoftHsm, line: str) -> None:
    softhsm.create("changing", PIN)
    driver = opened(token="changing")
    handle = driver.create(line, 1)
    box = driver.wrap(handle, DEK, CONTEXT)
    on_token(driver, lambda session: session.set_pin(PIN.decode(), "new-user-pin"))
    assert driver.unwrap(handle, box, CONTEXT) == DEK
    lose_sessions()
    logins = count_logins(driver)
    for _ in range(3):
        refused(lambda: driver.unwrap(handle, box, CONTEXT), Denied, "vault.pin")
    assert logins == [1]
    again = opened(token="changing", pin=b"new-user-pin")
    assert again.unwrap(handle, box, CONTEXT) == DEK
    again.close()
    driver.close()


def count_logins(driver: Pkcs11Driver) -> list[int]:
    connection, count = driver._open(), [0]
    real = connection._log_in

    def counted(pin: str) -> object:
        count[0] += 1
        return real(pin)

    connection._log_in = counted  # type: ignore[method-assign]
    return count


@pytest.mark.parametrize(
    ("flag", "code"),
    [
        (pkcs11.TokenFlag.USER_PIN_LOCKED, "vault.pin_locked"),
        (pkcs11.TokenFlag.USER_PIN_FINAL_TRY, "vault.pin_last_try"),
    ],
)
def test_the_last_try_before_a_lock_is_left_to_a_person(flag: pkcs11.TokenFlag, code: str) -> None:
    refused(lambda: pkcs11_errors.check_tries(flag | pkcs11.TokenFlag.LOGIN_REQUIRED), Denied, code)
    pkcs11_errors.check_tries(pkcs11.TokenFlag.LOGIN_REQUIRED)


# What goes wrong with sessions, tokens and modules


def lose_sessions() -> None:
    """All sessions of this process end, and with them the login, behind the driver's back."""
    library = ctypes.CDLL(REAL)
    for slot in pkcs11.lib(REAL).get_slots():
        assert library.C_CloseAllSessions(ctypes.c_ulong(slot.slot_id)) == 0


def finalize() -> None:
    assert ctypes.CDLL(REAL).C_Finalize(None) == 0


@pytest.mark.parametrize("lose", [lose_sessions, finalize])
def test_a_session_lost_in_mid_job(driver: Pkcs11Driver, line: str, lose: Callable[[], None]) -> None:
    assert isinstance(driver, SigningDriver)
    handle = driver.create(line, 1)
    signer = driver.signer(driver.create_signer(f"{line}/receipt/1")[0])
    box = driver.wrap(handle, DEK, CONTEXT)
    calls: list[Callable[[], object]] = [
        lambda: driver.unwrap(handle, box, CONTEXT),
        lambda: driver.wrap(handle, DEK, CONTEXT),
        lambda: signer.sign(b"message"),
        lambda: driver.create(line, 2),
        lambda: driver.list(line),
        lambda: driver.destroy(handle),
    ]
    for call in calls:
        lose()
        assert call()
    assert len(driver.list(line)) == 2  # the signer and the second epoch


def test_a_session_lost_while_threads_work(driver: Pkcs11Driver, line: str) -> None:
    handle = driver.create(line, 1)
    done, turns = threading.Event(), [0] * 4

    def work(number: int) -> None:
        while not done.is_set():
            dek = secrets.token_bytes(32)
            assert driver.unwrap(handle, driver.wrap(handle, dek, b"%d" % number), b"%d" % number) == dek
            turns[number] += 1

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(work, number) for number in range(4)]
        try:
            for _ in range(10):
                # In turn with the calls, as the module was told that one thread at a time calls it.
                with driver._open()._module.lock:
                    lose_sessions()
                before = sum(turns)
                until("more calls", lambda before=before: sum(turns) > before or any(r.done() for r in running))
            until("a call of each", lambda: all(turns) or any(r.done() for r in running))
        finally:
            done.set()
        for future in running:
            future.result()
    assert all(turns)


def test_a_token_that_is_removed_and_comes_back(softhsm: SoftHsm, line: str) -> None:
    folder = softhsm.create("removable", PIN)
    driver, another = opened(token="removable"), opened(token="removable")
    handle = driver.create(line, 1)
    box = driver.wrap(handle, DEK, CONTEXT)
    calls: list[Callable[[], object]] = [
        lambda: driver.unwrap(handle, box, CONTEXT),
        lambda: driver.list(line),
        lambda: driver.create(line, 2),
        lambda: driver.destroy(handle),
        lambda: another.wrap(handle, DEK, CONTEXT),
    ]
    for call in calls:
        with softhsm.removed(folder):
            # Not "gone": the key is where the token is, and nobody must conclude that it was destroyed.
            refused(call, Unavailable, "vault.token")
        assert driver.unwrap(handle, box, CONTEXT) == DEK
        assert list(driver.list(line)) == [handle]
    driver.close()
    another.close()


def test_two_tokens_of_one_module(softhsm: SoftHsm, line: str) -> None:
    """A restart of the module for one ends the other's sessions; they must not keep doing that to each other."""
    folder = softhsm.create("second", b"another-pin")
    first, second = opened(), opened(token="second", pin=b"another-pin")
    handles = [driver.create(line, 1) for driver in (first, second)]
    boxes = [driver.wrap(h, DEK, CONTEXT) for driver, h in zip((first, second), handles, strict=True)]
    refused(lambda: first.unwrap(handles[1], boxes[1], CONTEXT), Denied, "wrap.gone")
    with softhsm.removed(folder):
        refused(lambda: second.unwrap(handles[1], boxes[1], CONTEXT), Unavailable, "vault.token")
        assert first.unwrap(handles[0], boxes[0], CONTEXT) == DEK
    for _ in range(3):
        assert second.unwrap(handles[1], boxes[1], CONTEXT) == DEK
        assert first.unwrap(handles[0], boxes[0], CONTEXT) == DEK
    generation = first._open()._module.generation
    assert second.unwrap(handles[1], boxes[1], CONTEXT) == DEK
    assert first._open()._module.generation == generation
    first.close()
    assert second.unwrap(handles[1], boxes[1], CONTEXT) == DEK
    second.close()


def test_a_key_destroyed_by_another_process(driver: Pkcs11Driver, line: str) -> None:
    """The running broker must not go on with a key that ``key shred`` destroyed beside it."""
    handle = driver.create(line, 1)
    box = driver.wrap(handle, DEK, CONTEXT)
    assert driver.unwrap(handle, box, CONTEXT) == DEK  # its handle on the token is kept by now
    assert in_a_new_process(_destroy, handle) == "done"
    refused(lambda: driver.unwrap(handle, box, CONTEXT), Denied, "wrap.gone")


def test_a_key_of_another_process_is_seen(driver: Pkcs11Driver, line: str) -> None:
    assert list(driver.list(line)) == []
    assert in_a_new_process(_create, line) == "done"
    (handle,) = driver.list(line)
    assert driver.unwrap(handle, driver.wrap(handle, DEK, CONTEXT), CONTEXT) == DEK


def in_a_new_process(work: Callable[..., None], *arguments: object) -> str:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_run, (work, arguments))


def _run(work: Callable[..., None], arguments: tuple[object, ...]) -> str:
    work(*arguments)
    return "done"


def _destroy(handle: bytes) -> None:
    driver = opened()
    driver.destroy(handle)
    driver.close()


def _create(line: str) -> None:
    driver = opened()
    driver.create(line, 1)
    driver.close()


def test_after_a_fork(driver: Pkcs11Driver, line: str) -> None:
    """The child has no sessions of its own, and a lock that a thread held in the parent is held for ever."""
    handle = driver.create(line, 1)
    box = driver.wrap(handle, DEK, CONTEXT)
    with driver._open()._module.lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if driver.unwrap(handle, box, CONTEXT) == DEK and _another_opens() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert driver.unwrap(handle, box, CONTEXT) == DEK


def _another_opens() -> bool:
    driver = opened()
    driver.close()
    return True


# What goes wrong with options


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({}, "driver.options"),
        ({"module": MODULE}, "driver.options"),
        ({"module": MODULE, "token": LABEL, "pin": "1234"}, "driver.options"),
        ({"module": MODULE, "token": LABEL, "mechanism": "rsa-oaep"}, "driver.options"),
        ({"module": "libsofthsm2.so", "token": LABEL}, "driver.module"),
        ({"module": "/nowhere/libsofthsm2.so", "token": LABEL}, "driver.module"),
    ],
)
def test_bad_options(softhsm: SoftHsm, options: dict[str, str], code: str) -> None:
    refused(lambda: open_driver(DriverConfig("pkcs11", options), PIN), Misuse, code)


def test_a_file_that_is_no_module(softhsm: SoftHsm, tmp_path: Path) -> None:
    (tmp_path / "no.so").write_bytes(b"no library")
    options = {"module": str(tmp_path / "no.so"), "token": LABEL}
    refused(lambda: open_driver(DriverConfig("pkcs11", options), PIN), Unavailable, "vault.module")


def test_a_module_that_others_can_exchange_is_not_loaded(softhsm: SoftHsm, tmp_path: Path) -> None:
    """Its path stands in a file; it would run in this process and be given the PIN."""
    copy = tmp_path / "module.so"
    copy.write_bytes(Path(MODULE).read_bytes())
    copy.chmod(0o775)
    options = {"module": str(copy), "token": LABEL}
    refused(lambda: open_driver(DriverConfig("pkcs11", options), PIN), Misuse, "driver.module")
    copy.chmod(0o755)
    tmp_path.chmod(0o777)
    refused(lambda: open_driver(DriverConfig("pkcs11", options), PIN), Misuse, "driver.module")


def test_a_token_that_is_not_there(softhsm: SoftHsm) -> None:
    refused(lambda: opened(token="nobody"), Unavailable, "vault.token")


def test_two_tokens_of_one_label(softhsm: SoftHsm) -> None:
    for _ in range(2):
        softhsm.create("twins", PIN)
    refused(lambda: opened(token="twins"), Misuse, "driver.token")


def test_what_a_token_can_not_do_is_said(driver: Pkcs11Driver) -> None:
    kwp = Mechanism.AES_KEY_WRAP_KWP  # SoftHSM has it under its older number only

    def wrap(session: pkcs11.Session) -> object:
        key = session.generate_key(pkcs11.KeyType.AES, 256, store=False, template=pkcs11_objects.EPHEMERAL_SECRET)
        return key.wrap_key(key, mechanism=kwp)

    with pytest.raises(Misuse, match="MechanismInvalid") as info:
        on_token(driver, wrap)
    assert info.value.code == "driver.unsupported"
    with pytest.raises(Unavailable, match="NoSuchKey") as failed:
        on_token(driver, lambda session: session.get_key(id=b"nothing"))
    assert failed.value.code == "vault.device"
