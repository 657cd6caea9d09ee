"""Somebody sits between the broker and its TPM, or plants a key of his own: nothing is learnt, nothing is used."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tpm2_pytss as tss

from cloister.errors import Denied, Untrusted
from cloister.keys.drivers import DriverConfig, open_driver, tpm_session
from cloister.keys.drivers import tpm as tpm_driver
from cloister.keys.drivers.tpm import TpmDriver
from cloister.node.swtpm import SoftwareTpm
from tests.tpm_bus import TpmBus
from tests.vault_conformance import CONTEXT, DEK, refused

CREDENTIAL = b"a credential of the owner"
LINE = "0" * 32
PCRS = "0,2,4,7"
UNSEAL = 0x15E  # TPM 2.0 Part 2 §6.5.2


def opened(tcti: str) -> TpmDriver:
    driver = open_driver(DriverConfig("tpm", {"tcti": tcti, "pcrs": PCRS}), CREDENTIAL)
    assert isinstance(driver, TpmDriver)
    return driver


@pytest.fixture
def swtpm(tmp_path: Path) -> Iterator[SoftwareTpm]:
    with SoftwareTpm(tmp_path / "state") as running:
        yield running


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path fits into a socket's address."""
    with tempfile.TemporaryDirectory(prefix="bus-") as folder:
        yield Path(folder)


def sealed(driver: TpmDriver) -> tuple[bytes, bytes]:
    handle = driver.create(LINE, 1)
    return handle, driver.wrap(handle, DEK, CONTEXT)


def test_who_listens_on_the_bus_learns_nothing(
    swtpm: SoftwareTpm, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kek = bytes(range(100, 132))
    monkeypatch.setattr(tpm_driver, "random_bytes", lambda size: kek[:size])
    with TpmBus(swtpm.tcti, short) as bus:
        driver = opened(bus.tcti)
        handle, box = sealed(driver)
        assert driver.unwrap(handle, box, CONTEXT) == DEK
        secret = [kek, driver._auth, CREDENTIAL, DEK]
        driver.close()
        assert len(bus.seen) > 1000
        for value in secret:
            assert value not in bus.seen
            assert value[:16] not in bus.seen


def test_a_changed_answer_is_noticed(swtpm: SoftwareTpm, short: Path) -> None:
    with TpmBus(swtpm.tcti, short) as bus:
        driver = opened(bus.tcti)
        handle, box = sealed(driver)

        def change(command: int, response: bytes) -> bytes:
            # Header (10), size of the parameters (4), size of the secret (2), the encrypted secret.
            return response[:20] + bytes([response[20] ^ 1]) + response[21:] if command == UNSEAL else response

        bus.change = change
        refused(lambda: driver.unwrap(handle, box, CONTEXT), Untrusted, "vault.tpm_answer")
        # Nothing was left in the TPM's three slots, though the interrupted connection could unload nothing.
        refused(lambda: driver.unwrap(handle, box, CONTEXT), Untrusted, "vault.tpm_answer")
        bus.change = lambda _, response: response
        assert driver.unwrap(handle, box, CONTEXT) == DEK
        driver.close()


def test_a_key_that_asks_for_no_credential_is_not_used(swtpm: SoftwareTpm) -> None:
    """Somebody at the machine seals a key of his own to the same PCRs and puts it into the vault's file."""
    driver = opened(swtpm.tcti)
    esapi = tss.ESAPI(swtpm.tcti)
    trial = esapi.start_auth_session(
        tss.ESYS_TR.NONE, tss.ESYS_TR.NONE, tss.TPM2_SE.TRIAL, tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL), "sha256"
    )
    esapi.policy_pcr(trial, b"", tss.TPML_PCR_SELECTION.parse(f"sha256:{PCRS}"))
    policy = bytes(esapi.policy_get_digest(trial))
    esapi.flush_context(trial)
    name, _, _ = tpm_driver._unpack(driver.create(LINE, 1))
    parent, *_ = esapi.create_primary(None, tpm_session._storage_template(), tss.ESYS_TR.OWNER)
    secret = tss.TPM2B_SENSITIVE_CREATE(tss.TPMS_SENSITIVE_CREATE(userAuth=b"", data=bytes(32)))
    private, public, *_ = esapi.create(parent, secret, tpm_driver._sealed_template(policy))
    esapi.flush_context(parent)
    esapi.close()
    planted = tpm_driver._pack(name, bytes(private), bytes(public.publicArea.marshal()))
    refused(lambda: driver.wrap(planted, DEK, CONTEXT), Denied, "vault.pcrs")
    driver.close()
