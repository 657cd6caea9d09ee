"""The driver for Google Cloud KMS against a double (tests/kms/gcp.py): conformance, and what goes wrong on the way."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator

import grpc
import pytest
from google.cloud import kms_v1

from cloister.errors import Denied, Misuse, Unavailable, Untrusted
from cloister.keys.drivers import DriverConfig, open_driver
from cloister.keys.drivers.gcp import open_driver as open_gcp
from cloister.keys.drivers.gcp_client import crc32c
from cloister.keys.drivers.remote import Limits
from cloister.keys.ports import KekDriver
from tests.kms.checks import LINE, QUICK, ServiceDriverTests, refusal
from tests.kms.gcp import KEY_RING, GcpDouble, ServiceAccount
from tests.kms.server import Certificates, make_certificates
from tests.vault_conformance import CONTEXT, DEK, KekDriverConformance

State = kms_v1.CryptoKeyVersion.CryptoKeyVersionState


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def account() -> ServiceAccount:
    return ServiceAccount()


@pytest.fixture
def double(certificates: Certificates, account: ServiceAccount) -> Iterator[GcpDouble]:
    double = GcpDouble(certificates, account)
    yield double
    double.server.stop()


@pytest.fixture
def options(double: GcpDouble, certificates: Certificates) -> dict[str, str]:
    return {"key-ring": KEY_RING, "endpoint": double.url, "ca": str(certificates.ca)}


class TestGcp(KekDriverConformance, ServiceDriverTests):
    @pytest.fixture
    def make(self, options: dict[str, str], account: ServiceAccount) -> Callable[[], KekDriver]:
        return lambda: open_driver(DriverConfig("gcp", options), account.credential)

    @pytest.fixture
    def hidden(self, account: ServiceAccount) -> list[bytes]:
        return [account.credential, account.private.encode()]

    @pytest.fixture
    def quick(self, options: dict[str, str], account: ServiceAccount) -> Callable[[Limits], KekDriver]:
        return lambda limits: open_gcp(options, account.credential, limits=limits)

    forbidden = grpc.StatusCode.PERMISSION_DENIED
    throttled = grpc.StatusCode.RESOURCE_EXHAUSTED
    broken = grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)],
)
def test_crc32c(data: bytes, value: int) -> None:
    """RFC 3720, appendix B.4, and the check value of the catalogue of CRCs."""
    assert crc32c(data) == value


def test_a_refused_token_is_made_anew_once(
    double: GcpDouble, options: dict[str, str], account: ServiceAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = open_gcp(options, account.credential, limits=QUICK)
    handle = driver.create(LINE, 1)
    double.server.fail(grpc.StatusCode.UNAUTHENTICATED)
    box = driver.wrap(handle, DEK, CONTEXT)
    assert driver.unwrap(handle, box, CONTEXT) == DEK
    double.server.fail(*[grpc.StatusCode.UNAUTHENTICATED] * 2)
    refusal(lambda: driver.unwrap(handle, box, CONTEXT), Denied, "vault.credential")
    assert double.server.pending == 0
    driver.close()


def test_another_accounts_key(options: dict[str, str]) -> None:
    refusal(lambda: open_gcp(options, ServiceAccount().credential), Denied, "vault.credential")


def test_a_bit_that_changed_on_the_way_is_noticed(
    double: GcpDouble, options: dict[str, str], account: ServiceAccount
) -> None:
    driver = open_gcp(options, account.credential, limits=QUICK)
    handle = driver.create(LINE, 1)
    double.server.fail("half", "half")
    box = driver.wrap(handle, DEK, CONTEXT)
    double.server.fail("half", "half")
    assert driver.unwrap(handle, box, CONTEXT) == DEK
    double.server.fail("half", "half", "half")
    refusal(lambda: driver.unwrap(handle, box, CONTEXT), Unavailable, "vault.answer")
    driver.close()


def test_a_lost_answer_to_create_makes_no_second_key(
    double: GcpDouble, options: dict[str, str], account: ServiceAccount
) -> None:
    driver = open_gcp(options, account.credential, limits=QUICK)
    double.server.fail("lost", only="CreateCryptoKey")
    handle = driver.create(LINE, 1)
    assert list(double.keys) == [f"{KEY_RING}/cryptoKeys/{handle.decode()}"]
    assert driver.unwrap(handle, driver.wrap(handle, DEK, CONTEXT), CONTEXT) == DEK
    driver.close()


def test_what_a_key_is_made_with(double: GcpDouble, options: dict[str, str], account: ServiceAccount) -> None:
    for protection, level in (("hsm", kms_v1.ProtectionLevel.HSM), ("software", kms_v1.ProtectionLevel.SOFTWARE)):
        driver = open_gcp({**options, "protection": protection, "destroy-hours": "48"}, account.credential)
        key = double.keys[f"{KEY_RING}/cryptoKeys/{driver.create(LINE, 3).decode()}"].message
        driver.close()
        assert key.version_template.protection_level == level
        assert key.destroy_scheduled_duration.total_seconds() == 48 * 3600
        assert dict(key.labels) == {"cloister-kek": LINE, "cloister-epoch": "3"}


def test_destroying_says_until_when_it_can_be_taken_back(
    double: GcpDouble, options: dict[str, str], account: ServiceAccount
) -> None:
    driver = open_gcp(options, account.credential)
    handle = driver.create(LINE, 1)
    box = driver.wrap(handle, DEK, CONTEXT)
    sentence = driver.destroy(handle)
    assert sentence is not None
    assert "until then an administrator" in sentence
    assert driver.destroy(handle) == sentence
    key = next(iter(double.keys.values()))
    key.state = State.DESTROYED
    assert driver.destroy(handle) is None
    refusal(lambda: driver.unwrap(handle, box, CONTEXT), Denied, "wrap.gone")
    # A version that somebody disabled is refused, but still there.
    key.state = State.DISABLED
    refusal(lambda: driver.unwrap(handle, box, CONTEXT), Denied, "wrap.gone")
    assert list(driver.list(LINE)) == [handle]
    driver.close()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"key-ring": ""}, "driver.options"),
        ({"key-ring": "projects/a/locations/b"}, "driver.options"),
        ({"key-ring": "projects/../locations/b/keyRings/c"}, "driver.options"),
        ({"protection": "none"}, "driver.options"),
        ({"destroy-hours": "23"}, "driver.options"),
        ({"destroy-hours": "2881"}, "driver.options"),
        ({"destroy-hours": "-30"}, "driver.options"),
        ({"ca": "/nonexistent/ca.pem"}, "driver.options"),
        ({"project": "x"}, "driver.options"),
        ({"endpoint": "http://127.0.0.1:1"}, "driver.url"),
        ({"endpoint": "cloudkms.googleapis.com"}, "driver.url"),
    ],
)
def test_options_are_read_strictly(account: ServiceAccount, change: dict[str, str], code: str) -> None:
    options = {"key-ring": KEY_RING, "endpoint": "https://127.0.0.1:1", **change}
    refusal(lambda: open_gcp(options, account.credential), Misuse, code)


def test_credentials_are_read_strictly(account: ServiceAccount) -> None:
    fields = json.loads(account.credential)
    wrong = [b"", b"[]", b"\xff", b"{}", account.credential[:-9]]
    wrong += [json.dumps({**fields, name: 7}).encode() for name in ("private_key", "client_email", "private_key_id")]
    wrong += [json.dumps({**fields, "type": "authorized_user"}).encode()]
    wrong += [json.dumps({**fields, "private_key": "-----BEGIN PRIVATE KEY-----\nAAAA\n"}).encode()]
    options = {"key-ring": KEY_RING, "endpoint": "https://127.0.0.1:1"}
    for credential in wrong:
        refusal(lambda c=credential: open_gcp(options, c), Misuse, "driver.credential")


def test_nothing_is_taken_from_the_environment(
    options: dict[str, str], account: ServiceAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "http_proxy", "grpc_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "other")
    monkeypatch.setenv("GOOGLE_API_USE_MTLS_ENDPOINT", "always")
    driver = open_gcp(options, account.credential)
    assert driver.list(LINE) == []
    driver.close()


def test_a_default_root_from_the_environment_does_not_count(
    options: dict[str, str], account: ServiceAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", options.pop("ca"))
    refusal(lambda: open_gcp(options, account.credential), Untrusted, "vault.tls")


def test_debug_logs_hold_no_keys(
    double: GcpDouble, options: dict[str, str], account: ServiceAccount, caplog: pytest.LogCaptureFixture
) -> None:
    import base64

    caplog.set_level(logging.DEBUG)
    driver = open_gcp(options, account.credential)
    handle = driver.create(LINE, 1)
    driver.unwrap(handle, driver.wrap(handle, DEK, CONTEXT), CONTEXT)
    driver.close()
    assert base64.b64encode(DEK).decode() not in caplog.text
    assert repr(DEK) not in caplog.text
    assert not any(token in caplog.text for token in double.server.tokens)
