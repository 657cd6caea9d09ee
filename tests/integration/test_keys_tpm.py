"""The tpm driver on swtpm: the suite of all drivers, and what ties a key to a machine, its PCRs and a credential."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tpm2_pytss as tss

from cloister.crypto import frame
from cloister.errors import Denied, Misuse, Unavailable
from cloister.keys.drivers import DriverConfig, open_driver
from cloister.keys.drivers import tpm as tpm_driver
from cloister.keys.drivers.tpm import TpmDriver
from cloister.keys.ports import SigningDriver
from cloister.node.swtpm import SoftwareTpm
from cloister.node.tpm import Tpm
from tests.vault_conformance import CONTEXT, DEK, KekDriverConformance, MakeDriver, refused

CREDENTIAL = b"a credential of the owner"
LINE = "0" * 32
PCRS = "0,2,4,7"


def opened(tcti: str, credential: bytes = CREDENTIAL, pcrs: str = PCRS) -> TpmDriver:
    driver = open_driver(DriverConfig("tpm", {"tcti": tcti, "pcrs": pcrs}), credential)
    assert isinstance(driver, TpmDriver)
    return driver


@pytest.fixture(scope="module")
def shared_tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with SoftwareTpm(tmp_path_factory.mktemp("swtpm")) as running:
        yield running.tcti


@pytest.fixture
def swtpm(tmp_path: Path) -> Iterator[SoftwareTpm]:
    with SoftwareTpm(tmp_path / "state") as running:
        yield running


@pytest.fixture
def driver(swtpm: SoftwareTpm) -> Iterator[TpmDriver]:
    driver = opened(swtpm.tcti)
    yield driver
    driver.close()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path fits into a socket's address."""
    with tempfile.TemporaryDirectory(prefix="bus-") as folder:
        yield Path(folder)


class TestOnSoftwareTpm(KekDriverConformance):
    handles_carry_keys = True
    flips = 12

    @pytest.fixture
    def make(self, shared_tpm: str) -> MakeDriver:
        return lambda: opened(shared_tpm)

    @pytest.fixture
    def hidden(self) -> list[bytes]:
        return [CREDENTIAL]


def sealed(driver: TpmDriver) -> tuple[bytes, bytes]:
    handle = driver.create(LINE, 1)
    return handle, driver.wrap(handle, DEK, CONTEXT)


def extend(tcti: str, pcr: int) -> None:
    tpm = Tpm(tcti)
    tpm.extend(pcr, b"x" * 32)
    tpm.close()


def loaded(tcti: str) -> list[int]:
    """Handles of what is loaded in the TPM: keys (80…), sessions (02…, 03…)."""
    esapi = tss.ESAPI(tcti)
    found: list[int] = []
    for first in (0x80000000, 0x02000000, 0x03000000):
        _, data = esapi.get_capability(tss.TPM2_CAP.HANDLES, first, 16)
        found += [int(handle) for handle in data.data.handles if int(handle) >> 24 == first >> 24]
    esapi.close()
    return found


def test_it_says_what_it_is(driver: TpmDriver) -> None:
    assert (driver.algorithm, driver.experimental) == ("TPM2+A256GCM", False)
    assert not isinstance(driver, SigningDriver)


# What a key is tied to


@pytest.mark.parametrize("pcr", [0, 7])
def test_changed_pcrs(driver: TpmDriver, swtpm: SoftwareTpm, pcr: int) -> None:
    handle, box = sealed(driver)
    extend(swtpm.tcti, pcr)
    refused(lambda: driver.unwrap(handle, box, CONTEXT), Denied, "vault.pcrs")
    refused(lambda: driver.wrap(handle, DEK, CONTEXT), Denied, "vault.pcrs")
    with pytest.raises(Denied, match="recovery shares"):
        driver.unwrap(handle, box, CONTEXT)
    # A key that is sealed now is tied to the PCRs as they are now; nothing is locked.
    new = sealed(driver)
    assert driver.unwrap(*new, CONTEXT) == DEK
    extend(swtpm.tcti, pcr)
    refused(lambda: driver.unwrap(*new, CONTEXT), Denied, "vault.pcrs")


def test_other_pcrs_may_change(driver: TpmDriver, swtpm: SoftwareTpm) -> None:
    handle, box = sealed(driver)
    extend(swtpm.tcti, 15)
    assert driver.unwrap(handle, box, CONTEXT) == DEK


def test_a_pcr_extended_between_policy_and_use(
    driver: TpmDriver, swtpm: SoftwareTpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The TPM then refuses the session, whichever PCR it was: looked at again, ours are the same, or they are not."""
    handle, box = sealed(driver)
    real = tss.ESAPI.unseal
    for pcr in (15, 7):
        pending = [pcr]

        def unseal(esapi: Any, *arguments: Any, pending: list[int] = pending, **options: Any) -> Any:
            if pending:
                extend(swtpm.tcti, pending.pop())
            return real(esapi, *arguments, **options)

        monkeypatch.setattr(tss.ESAPI, "unseal", unseal)
        if pcr == 15:
            assert driver.unwrap(handle, box, CONTEXT) == DEK
        else:
            refused(lambda: driver.unwrap(handle, box, CONTEXT), Denied, "vault.pcrs")
    assert loaded(swtpm.tcti) == []


def test_edited_pcr_option(driver: TpmDriver, swtpm: SoftwareTpm) -> None:
    handle, box = sealed(driver)
    edited = opened(swtpm.tcti, pcrs="0,2,4")
    refused(lambda: edited.unwrap(handle, box, CONTEXT), Denied, "vault.pcrs")
    edited.close()


def test_another_tpm(driver: TpmDriver, tmp_path: Path) -> None:
    handle, box = sealed(driver)
    with SoftwareTpm(tmp_path / "another") as another:
        elsewhere = opened(another.tcti)
        refused(lambda: elsewhere.unwrap(handle, box, CONTEXT), Denied, "vault.tpm_other")
        elsewhere.close()
    assert driver.unwrap(handle, box, CONTEXT) == DEK


def test_a_blob_moved_under_another_tpms_name(driver: TpmDriver, tmp_path: Path) -> None:
    handle, box = sealed(driver)
    _, private, public = tpm_driver._unpack(handle)
    with SoftwareTpm(tmp_path / "another") as another:
        elsewhere = opened(another.tcti)
        name = tpm_driver._unpack(elsewhere.create(LINE, 1))[0]
        moved = tpm_driver._pack(name, private, public)
        refused(lambda: elsewhere.unwrap(moved, box, CONTEXT), Denied, "wrap.gone")
        elsewhere.close()


# The credential


def test_a_wrong_credential_is_tried_once(driver: TpmDriver, swtpm: SoftwareTpm) -> None:
    handle, box = sealed(driver)
    wrong = opened(swtpm.tcti, b"another credential")
    for _ in range(5):  # more than the tries that a TPM gives
        refused(lambda: wrong.unwrap(handle, box, CONTEXT), Denied, "vault.credential")
    wrong.close()
    assert driver.unwrap(handle, box, CONTEXT) == DEK
    assert loaded(swtpm.tcti) == []


def test_threads_with_a_wrong_credential_try_once_together(driver: TpmDriver, swtpm: SoftwareTpm) -> None:
    handle, box = sealed(driver)
    wrong = opened(swtpm.tcti, b"another credential")
    start = threading.Barrier(6)

    def work(_: int) -> None:
        start.wait()
        refused(lambda: wrong.unwrap(handle, box, CONTEXT), Denied, "vault.credential")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    wrong.close()
    assert driver.unwrap(handle, box, CONTEXT) == DEK


def test_a_tpm_that_locked(driver: TpmDriver, swtpm: SoftwareTpm) -> None:
    handle, box = sealed(driver)
    codes = []
    for _ in range(8):
        wrong = opened(swtpm.tcti, b"another credential")
        with pytest.raises(Denied) as info:
            wrong.unwrap(handle, box, CONTEXT)
        codes.append(info.value.code)
        wrong.close()
    assert codes[0] == "vault.credential"
    assert codes[-1] == "vault.tpm_locked"
    refused(lambda: driver.unwrap(handle, box, CONTEXT), Denied, "vault.tpm_locked")
    esapi = tss.ESAPI(swtpm.tcti)
    esapi.dictionary_attack_lock_reset()
    esapi.close()
    assert driver.unwrap(handle, box, CONTEXT) == DEK


# What goes wrong with the TPM itself


def test_nothing_stays_loaded(driver: TpmDriver, swtpm: SoftwareTpm) -> None:
    """There are three slots for keys and three for sessions; what is left behind blocks the machine's TPM."""
    handle, box = sealed(driver)
    wrong = opened(swtpm.tcti, b"another credential")
    for _ in range(3):
        assert driver.unwrap(handle, box, CONTEXT) == DEK
        refused(lambda: wrong.unwrap(handle, box, CONTEXT), Denied, "vault.credential")
        refused(lambda: driver.unwrap(handle + b"\0", box, CONTEXT), Denied, "wrap.gone")
        assert loaded(swtpm.tcti) == []
    wrong.close()


def test_a_tpm_that_is_gone_and_comes_back(tmp_path: Path, short: Path) -> None:
    """The machine restarted, or the TPM's service: no state of before is left in the TPM but its seeds."""
    link = short / "tpm-folder"

    def running() -> SoftwareTpm:
        tpm = SoftwareTpm(tmp_path / "state")
        link.unlink(missing_ok=True)
        link.symlink_to(Path(tpm.tcti.removeprefix("swtpm:path=")).parent)
        return tpm

    first = running()
    driver = opened(f"swtpm:path={link}/tpm")
    handle, box = sealed(driver)
    os.kill(first.pid, signal.SIGKILL)
    first.close()
    for call in (
        lambda: driver.unwrap(handle, box, CONTEXT),
        lambda: driver.create(LINE, 2),
        lambda: opened(f"swtpm:path={link}/tpm"),
    ):
        refused(call, Unavailable, "vault.tpm")
    with running():
        assert driver.unwrap(handle, box, CONTEXT) == DEK
    refused(lambda: driver.unwrap(handle, box, CONTEXT), Unavailable, "vault.tpm")
    driver.close()


def test_a_tpm_that_was_reset_under_an_open_connection(driver: TpmDriver, swtpm: SoftwareTpm) -> None:
    """Saved contexts are worth nothing any more; the storage key is derived again."""
    handle, box = sealed(driver)
    esapi = tss.ESAPI(swtpm.tcti)
    esapi.clear(tss.ESYS_TR.LOCKOUT)  # a new storage seed: what was sealed is lost, and that is said
    esapi.close()
    refused(lambda: driver.unwrap(handle, box, CONTEXT), Denied, "vault.tpm_other")
    assert driver.unwrap(*sealed(driver), CONTEXT) == DEK


def test_a_tpm_whose_owner_set_a_password(swtpm: SoftwareTpm) -> None:
    esapi = tss.ESAPI(swtpm.tcti)
    esapi.hierarchy_change_auth(tss.ESYS_TR.OWNER, b"owner password")
    esapi.close()
    driver = opened(swtpm.tcti)
    refused(lambda: driver.create(LINE, 1), Denied, "vault.tpm_owner")
    driver.close()


def test_after_a_fork(driver: TpmDriver) -> None:
    handle, box = sealed(driver)
    child = os.fork()
    if child == 0:
        os._exit(0 if driver.unwrap(handle, box, CONTEXT) == DEK else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert driver.unwrap(handle, box, CONTEXT) == DEK


# Options and handles


@pytest.mark.parametrize(
    "options",
    [
        {"pcr": "0"},
        {"pcrs": ""},
        {"pcrs": "7,0"},
        {"pcrs": "0,0"},
        {"pcrs": "00"},
        {"pcrs": "0, 2"},
        {"pcrs": "16"},
        {"pcrs": "0,23"},
        {"pcrs": "24"},
        {"pcrs": "٣"},
        {"tcti": "cmd:touch owned"},
        {"tcti": "/tmp/evil.so"},
        {"tcti": "libevil"},
        {"tcti": "device:/tmp/x"},
        {"tcti": ""},
    ],
)
def test_bad_options(options: dict[str, str]) -> None:
    refused(lambda: open_driver(DriverConfig("tpm", options), CREDENTIAL), Misuse, "driver.options")


def test_a_device_that_is_not_there() -> None:
    refused(lambda: opened("device:/dev/tpmrm999"), Unavailable, "vault.tpm")


@pytest.mark.parametrize(
    "handle",
    [
        b"\x01",
        b"\x01" + frame(b"", b"", b""),
        b"\x02" + frame(b"x" * 34, b"y", b"z"),
        b"\x01" + frame(b"x" * 34, b"y"),
        b"\x01" + frame(b"x", b"y", b"z", b"w"),
        b"\x01" + b"\xff" * 100,
        b"\x01" + frame(b"x" * 34, b"y" * 5000, b"z"),
    ],
)
def test_handles_of_another_form(shared_tpm: str, handle: bytes) -> None:
    driver = opened(shared_tpm)
    with pytest.raises(Denied) as info:
        driver.wrap(handle, DEK, CONTEXT)
    assert info.value.code in ("wrap.gone", "vault.tpm_other")
    driver.close()


def test_every_changed_byte_of_a_handle(shared_tpm: str) -> None:
    """The vault authenticates handles; but its own root handle is used before it can check that."""
    driver = opened(shared_tpm)
    handle, box = sealed(driver)
    for position in range(0, len(handle), 7):
        changed = bytearray(handle)
        changed[position] ^= 0x10
        with pytest.raises((Denied, Unavailable)):
            driver.unwrap(bytes(changed), box, CONTEXT)
    assert driver.unwrap(handle, box, CONTEXT) == DEK
    driver.close()


def test_changed_handles_cost_no_tries(driver: TpmDriver, swtpm: SoftwareTpm) -> None:
    handle, box = sealed(driver)
    name, private, public = tpm_driver._unpack(handle)
    calls: list[Callable[[], object]] = [
        lambda: driver.unwrap(tpm_driver._pack(name, private[:-1] + b"\0", public), box, CONTEXT),
        lambda: driver.unwrap(tpm_driver._pack(name, private, public[:-1]), box, CONTEXT),
        lambda: driver.unwrap(tpm_driver._pack(name[:-1] + b"\0", private, public), box, CONTEXT),
    ]
    for _ in range(3):
        for call in calls:
            with pytest.raises(Denied):
                call()
    assert driver.unwrap(handle, box, CONTEXT) == DEK
