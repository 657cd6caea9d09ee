"""The driver for AWS KMS against a double (tests/kms/aws.py): conformance, and what goes wrong on the way."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.crypto import sha256
from cloister.errors import Denied, Misuse, Unavailable
from cloister.keys.drivers import DriverConfig, open_driver
from cloister.keys.drivers.aws import open_driver as open_aws
from cloister.keys.drivers.remote import Limits
from cloister.keys.ports import KekDriver
from tests.kms.aws import AwsDouble, error
from tests.kms.checks import LINE, QUICK, ServiceDriverTests, refusal
from tests.kms.server import Certificates, Reply, make_certificates
from tests.vault_conformance import CONTEXT, DEK, KekDriverConformance

KEYS = b"AKIATEST:aws/secret+key"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def double(certificates: Certificates) -> Iterator[AwsDouble]:
    double = AwsDouble(certificates)
    yield double
    double.server.stop()


@pytest.fixture
def options(double: AwsDouble, certificates: Certificates) -> dict[str, str]:
    return {"region": "eu-test-1", "endpoint": double.server.url, "ca": str(certificates.ca)}


class TestAws(KekDriverConformance, ServiceDriverTests):
    flips = 16

    @pytest.fixture
    def make(self, options: dict[str, str]) -> Callable[[], KekDriver]:
        return lambda: open_driver(DriverConfig("aws", options), KEYS)

    @pytest.fixture
    def hidden(self) -> list[bytes]:
        return [KEYS, b"aws/secret+key"]

    @pytest.fixture
    def quick(self, options: dict[str, str]) -> Callable[[Limits], KekDriver]:
        return lambda limits: open_aws(options, KEYS, limits=limits)

    forbidden = error(400, "AccessDeniedException")
    throttled = error(400, "ThrottlingException")
    broken = error(500, "KMSInternalException")


def test_only_the_contexts_digest_goes_to_the_service(double: AwsDouble, options: dict[str, str]) -> None:
    """It stands in the account's own logs."""
    driver = open_aws(options, KEYS)
    driver.wrap(driver.create(LINE, 1), DEK, CONTEXT)
    driver.close()
    sent = b" ".join(request.body for request in double.server.requests)
    assert CONTEXT not in sent
    assert sha256(CONTEXT).hex().encode() in sent


@pytest.mark.parametrize(
    "credential", [b"AKIAOTHER:aws/secret+key", b"AKIATEST:another", b"AKIATEST:aws/secret+key:old"]
)
def test_a_wrong_credential(options: dict[str, str], credential: bytes) -> None:
    refusal(lambda: open_aws(options, credential), Denied, "vault.credential")


def test_a_temporary_credential_and_its_end(double: AwsDouble, options: dict[str, str]) -> None:
    double.session_token = "a/session+token"
    driver = open_aws(options, KEYS + b":a/session+token", limits=QUICK)
    handle = driver.create(LINE, 1)
    double.session_token = "the next one"
    seen = len(double.server.requests)
    refusal(lambda: driver.wrap(handle, DEK, CONTEXT), Denied, "vault.credential")
    assert len(double.server.requests) == seen + 1, "there is nothing to log in with again"
    driver.close()


def test_a_credential_in_json(double: AwsDouble, options: dict[str, str]) -> None:
    double.session_token = "token"
    text = b'{"access_key": "AKIATEST", "secret_key": "aws/secret+key", "session_token": "token"}'
    driver = open_aws(options, text)
    assert driver.list(LINE) == []
    driver.close()


@pytest.mark.parametrize(
    ("change", "credential", "code"),
    [
        ({"region": ""}, KEYS, "driver.options"),
        ({"region": "eu-test-1.evil.example/"}, KEYS, "driver.options"),
        ({"deletion-days": "6"}, KEYS, "driver.options"),
        ({"deletion-days": "soon"}, KEYS, "driver.options"),
        ({"profile": "x"}, KEYS, "driver.options"),
        ({"endpoint": "http://10.0.0.1"}, KEYS, "driver.url"),
        ({}, b"", "driver.credential"),
        ({}, b"AKIATEST", "driver.credential"),
        ({}, b":secret", "driver.credential"),
        ({}, b"AKIATEST:\xff", "driver.credential"),
        ({}, b"{}", "driver.credential"),
        ({}, b'{"access_key": "a", "secret_key": "b", "profile": "c"}', "driver.credential"),
        ({}, b'{"access_key": "a", "secret_key": 7}', "driver.credential"),
        ({}, b"{broken", "driver.credential"),
    ],
)
def test_options_and_credentials_are_read_strictly(change: dict[str, str], credential: bytes, code: str) -> None:
    options = {"region": "eu-test-1", "endpoint": "https://127.0.0.1:1", **change}
    refusal(lambda: open_aws(options, credential), Misuse, code)


def test_a_destroyed_key_can_be_brought_back_until_its_day(double: AwsDouble, options: dict[str, str]) -> None:
    driver = open_aws({**options, "deletion-days": "9"}, KEYS)
    handle = driver.create(LINE, 1)
    sentence = driver.destroy(handle)
    assert sentence is not None
    assert "until then an administrator" in sentence
    assert driver.destroy(handle) == sentence
    key = double.keys[handle.decode()]
    assert key.state == "PendingDeletion"
    # Who takes the deletion back finds it disabled.
    key.state, key.deletion = "Disabled", 0.0
    refusal(lambda: driver.wrap(handle, DEK, CONTEXT), Denied, "wrap.gone")
    assert list(driver.list(LINE)) == [handle]
    driver.close()


def test_keys_of_others_in_the_account_are_passed_over(double: AwsDouble, options: dict[str, str]) -> None:
    driver = open_aws(options, KEYS)
    made = {driver.create(LINE, epoch) for epoch in range(1, 8)}
    hidden = made.pop()
    double.hidden.add(hidden.decode())
    for key in list(double.keys.values())[:1]:
        key.tags.append({"TagKey": "cost-centre", "TagValue": "7"})
    assert set(driver.list(LINE)) == made
    driver.close()


def test_a_lost_answer_to_create_makes_no_second_key(double: AwsDouble, options: dict[str, str]) -> None:
    """What it left is found by its tags, so that the vault can sweep it."""
    driver = open_aws(options, KEYS, limits=QUICK)
    double.server.fail("lost")
    refusal(lambda: driver.create(LINE, 1), Unavailable, "vault.unreachable")
    assert [handle.decode() for handle in driver.list(LINE)] == list(double.keys)
    assert len(double.keys) == 1
    double.server.fail(error(400, "ThrottlingException"))
    driver.create(LINE, 2)
    assert len(double.keys) == 2
    driver.close()


def test_an_answer_about_another_key_is_none(double: AwsDouble, options: dict[str, str]) -> None:
    driver = open_aws(options, KEYS, limits=QUICK)
    handle = driver.create(LINE, 1)
    box = driver.wrap(handle, DEK, CONTEXT)
    arn = "arn:aws:kms:eu-test-1:111122223333:key/"
    plain = base64.b64encode(DEK).decode()
    other = "00000000-0000-0000-0000-000000000000"
    bodies = [f'{{"Plaintext": "{plain}", "KeyId": "{arn}{other}"}}', f'{{"Plaintext": "{plain}"}}', "{}"]
    bodies += [f'{{"Plaintext": "AAAA", "KeyId": "{arn}{handle.decode()}"}}']
    for body in bodies:
        double.server.fail(Reply(200, body.encode(), {"Content-Type": "application/x-amz-json-1.1"}))
        refusal(lambda: driver.unwrap(handle, box, CONTEXT), Unavailable, "vault.answer")
    for box_text in ("", base64.b64encode(bytes(3000)).decode()):
        body = f'{{"CiphertextBlob": "{box_text}", "KeyId": "{arn}{handle.decode()}"}}'
        double.server.fail(Reply(200, body.encode(), {"Content-Type": "application/x-amz-json-1.1"}))
        refusal(lambda: driver.wrap(handle, DEK, CONTEXT), Unavailable, "vault.answer")
    driver.close()


def test_nothing_is_taken_from_environment_and_files(
    double: AwsDouble, options: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither a profile, nor another endpoint, proxy, CA or region; and the metadata service is never asked."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text("[profile p]\nregion = us-east-1\nendpoint_url = http://127.0.0.1:1\n")
    (tmp_path / ".aws/credentials").write_text("[p]\naws_access_key_id = AKIATEST\naws_secret_access_key = x\n")
    settings = {
        "HOME": str(tmp_path),
        "AWS_PROFILE": "p",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_KMS": "http://127.0.0.1:1",
        "AWS_CA_BUNDLE": str(tmp_path / "missing"),
        "AWS_DEFAULTS_MODE": "auto",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "AWS_CSM_ENABLED": "true",
        "AWS_MAX_ATTEMPTS": "50",
        "AWS_SESSION_TOKEN": "other",
        "HTTPS_PROXY": "http://127.0.0.1:1",
        "https_proxy": "http://127.0.0.1:1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    driver = open_aws(options, KEYS)
    assert driver.list(LINE) == []
    assert all("/eu-test-1/kms/" in request.headers["authorization"] for request in double.server.requests)
    driver.close()


def test_debug_logs_hold_no_keys(options: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """The library writes whole answers there."""
    caplog.set_level(logging.DEBUG)
    driver = open_aws(options, KEYS)
    handle = driver.create(LINE, 1)
    driver.unwrap(handle, driver.wrap(handle, DEK, CONTEXT), CONTEXT)
    driver.close()
    assert base64.b64encode(DEK).decode() not in caplog.text
    assert "aws/secret+key" not in caplog.text
