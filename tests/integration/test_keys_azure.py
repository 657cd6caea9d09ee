"""The driver for Azure Key Vault and Managed HSM against a double (tests/kms/azure.py): conformance, and what goes
wrong on the way."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.errors import Denied, Misuse, Unavailable, Untrusted
from cloister.keys.drivers import DriverConfig, open_driver
from cloister.keys.drivers.azure import open_driver as open_azure
from cloister.keys.drivers.remote import Limits
from cloister.keys.ports import KekDriver
from tests.kms.azure import TENANT, AzureDouble, error
from tests.kms.checks import LINE, QUICK, ServiceDriverTests, refusal
from tests.kms.server import Certificates, Reply, make_certificates
from tests.vault_conformance import CONTEXT, DEK, KekDriverConformance

APPLICATION = f"{TENANT}:client:a~secret:with.colons".encode()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def double(certificates: Certificates) -> Iterator[AzureDouble]:
    double = AzureDouble(certificates)
    yield double
    double.server.stop()


@pytest.fixture
def options(double: AzureDouble, certificates: Certificates) -> dict[str, str]:
    return {"url": double.server.url, "authority": double.authority, "ca": str(certificates.ca)}


class TestRsa(KekDriverConformance, ServiceDriverTests):
    flips = 16

    @pytest.fixture
    def make(self, options: dict[str, str]) -> Callable[[], KekDriver]:
        return lambda: open_driver(DriverConfig("azure", options), APPLICATION)

    @pytest.fixture
    def hidden(self) -> list[bytes]:
        return [APPLICATION, b"a~secret:with.colons"]

    @pytest.fixture
    def quick(self, options: dict[str, str]) -> Callable[[Limits], KekDriver]:
        return lambda limits: open_azure(options, APPLICATION, limits=limits)

    forbidden = error(403, "Forbidden", "ForbiddenByRbac")
    throttled = error(429, "Throttled")
    broken = error(500, "InternalError")
    only = "keys"


class TestManagedHsm(KekDriverConformance):
    flips = 16

    @pytest.fixture
    def make(self, options: dict[str, str]) -> Callable[[], KekDriver]:
        return lambda: open_driver(DriverConfig("azure", {**options, "key": "oct-hsm"}), APPLICATION)

    def test_the_algorithm_is_named(self, driver: KekDriver) -> None:
        assert driver.algorithm == "A256KW"


def test_a_refused_token_is_replaced(double: AzureDouble, options: dict[str, str]) -> None:
    driver = open_azure(options, APPLICATION, limits=QUICK)
    handle = driver.create(LINE, 1)
    box = driver.wrap(handle, DEK, CONTEXT)
    double.tokens.clear()
    assert driver.unwrap(handle, box, CONTEXT) == DEK
    driver.close()


def test_a_secret_that_ended(double: AzureDouble, options: dict[str, str]) -> None:
    driver = open_azure(options, APPLICATION, limits=QUICK)
    handle = driver.create(LINE, 1)
    double.secret = "the next one"
    double.tokens.clear()
    error = refusal(lambda: driver.wrap(handle, DEK, CONTEXT), Denied, "vault.credential")
    assert "AADSTS" not in str(error)
    refusal(lambda: open_azure(options, APPLICATION, limits=QUICK), Denied, "vault.credential")
    driver.close()


def test_a_key_that_is_disabled(double: AzureDouble, options: dict[str, str]) -> None:
    driver = open_azure(options, APPLICATION, limits=QUICK)
    handle = driver.create(LINE, 1)
    next(iter(double.keys.values())).enabled = False
    refusal(lambda: driver.wrap(handle, DEK, CONTEXT), Denied, "wrap.gone")
    assert list(driver.list(LINE)) == [handle]
    driver.close()


@pytest.mark.parametrize("purge", ["forbidden", "protected", "slow"])
def test_what_can_not_be_purged_is_said(certificates: Certificates, purge: str) -> None:
    double = AzureDouble(certificates, purge=purge)
    options = {"url": double.server.url, "authority": double.authority, "ca": str(certificates.ca)}
    driver = open_azure(options, APPLICATION, limits=QUICK)
    handle = driver.create(LINE, 1)
    box = driver.wrap(handle, DEK, CONTEXT)
    sentence = driver.destroy(handle)
    assert sentence is not None
    assert "bring it back" in sentence
    refusal(lambda: driver.unwrap(handle, box, CONTEXT), Denied, "wrap.gone")
    # Again: the same, unless purging works by now.
    assert driver.destroy(handle) == (None if purge == "slow" else sentence)
    assert (double.deleted == {}) == (purge == "slow")
    driver.close()
    double.server.stop()


def test_a_key_that_somebody_rotated_keeps_its_handle(double: AzureDouble, options: dict[str, str]) -> None:
    driver = open_azure(options, APPLICATION, limits=QUICK)
    handle = driver.create(LINE, 1)
    box = driver.wrap(handle, DEK, CONTEXT)
    key = next(iter(double.keys.values()))
    key.versions["f" * 32] = (next(double.clock), key.versions[handle.decode().split("/")[1]][1])
    assert list(driver.list(LINE)) == [handle]
    assert driver.unwrap(handle, box, CONTEXT) == DEK
    driver.close()


def test_a_lost_answer_to_create_is_not_repeated(double: AzureDouble, options: dict[str, str]) -> None:
    driver = open_azure(options, APPLICATION, limits=QUICK)
    double.server.fail("lost", only="/create")
    refusal(lambda: driver.create(LINE, 1), Unavailable, "vault.unreachable")
    assert len(driver.list(LINE)) == len(double.keys) == 1
    driver.close()


def test_keys_can_not_be_read_out(double: AzureDouble, options: dict[str, str]) -> None:
    for change in ({}, {"hsm": "yes"}, {"key": "oct-hsm"}):
        driver = open_azure({**options, **change}, APPLICATION)
        driver.create(LINE, 1)
        driver.close()
    made = [request for request in double.server.requests if request.path.endswith("/create")]
    assert [b'"RSA"' in made[0].body, b'"RSA-HSM"' in made[1].body, b'"oct-HSM"' in made[2].body] == [True] * 3
    assert not any(b'"exportable": true' in request.body for request in made)


def test_answers_that_are_no_answers(double: AzureDouble, options: dict[str, str]) -> None:
    driver = open_azure(options, APPLICATION, limits=QUICK)
    handle = driver.create(LINE, 1)
    box = driver.wrap(handle, DEK, CONTEXT)
    kid = f"{double.server.url}/keys/{handle.decode()}"
    bodies = ["[]", "null", "{}", "<html>", f'{{"kid": "{kid}"}}', f'{{"kid": "{kid}", "value": 7}}']
    bodies += [f'{{"kid": "{kid}", "value": "=!"}}', f'{{"kid": "{kid}0", "value": "{"A" * 86}"}}']
    for body in bodies:
        double.server.fail(Reply(200, body.encode()), only="/unwrapkey")
        refusal(lambda: driver.unwrap(handle, box, CONTEXT), Unavailable, "vault.answer")
    # An answer of the right form whose bound digest is another's is no data key.
    for size in (0, 32, 63, 64, 65):
        value = base64.urlsafe_b64encode(bytes(size)).decode().rstrip("=")
        double.server.fail(Reply(200, f'{{"kid": "{kid}", "value": "{value}"}}'.encode()), only="/unwrapkey")
        refusal(lambda: driver.unwrap(handle, box, CONTEXT), Untrusted, "wrap.changed")
    driver.close()


@pytest.mark.parametrize(
    ("change", "credential", "code"),
    [
        ({"url": ""}, APPLICATION, "driver.options"),
        ({"key": "ec"}, APPLICATION, "driver.options"),
        ({"hsm": "maybe"}, APPLICATION, "driver.options"),
        ({"vault": "x"}, APPLICATION, "driver.options"),
        ({"url": "http://127.0.0.1:1"}, APPLICATION, "driver.url"),
        ({"authority": "http://127.0.0.1:1"}, APPLICATION, "driver.url"),
        ({}, b"", "driver.credential"),
        ({}, b"tenant:client", "driver.credential"),
        ({}, b"tenant:client:", "driver.credential"),
        ({}, b"../x:client:secret", "driver.credential"),
        ({}, b"tenant:client:\xff", "driver.credential"),
    ],
)
def test_options_and_credentials_are_read_strictly(change: dict[str, str], credential: bytes, code: str) -> None:
    options = {"url": "https://127.0.0.1:1", "authority": "https://127.0.0.1:1", **change}
    refusal(lambda: open_azure(options, credential), Misuse, code)


def test_nothing_is_taken_from_the_environment(
    options: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in (
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "AZURE_AUTHORITY_HOST",
        "MSI_ENDPOINT",
        "IDENTITY_ENDPOINT",
    ):
        monkeypatch.setenv(name, "https://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing"))
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "other")
    driver = open_azure(options, APPLICATION)
    assert driver.list(LINE) == []
    driver.close()
    # The one variable that the library can't be told to leave alone: it asks the metadata service.
    monkeypatch.setenv("AZURE_REGIONAL_AUTHORITY_NAME", "TryAutoDetect")
    refusal(lambda: open_azure(options, APPLICATION), Misuse, "driver.options")


def test_debug_logs_hold_no_keys(
    options: dict[str, str], caplog: pytest.LogCaptureFixture, double: AzureDouble
) -> None:
    caplog.set_level(logging.DEBUG)
    driver = open_azure(options, APPLICATION)
    handle = driver.create(LINE, 1)
    driver.unwrap(handle, driver.wrap(handle, DEK, CONTEXT), CONTEXT)
    driver.close()
    assert base64.urlsafe_b64encode(DEK).decode()[:40] not in caplog.text
    assert "a~secret" not in caplog.text
    assert not any(token in caplog.text for token in double.tokens)
