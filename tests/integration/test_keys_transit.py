"""The driver for OpenBao's and Vault's transit engine against a double (tests/kms/transit.py): conformance, and what
goes wrong on the way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister.errors import CloisterError, Denied, Misuse, Unavailable, Untrusted
from cloister.keys.drivers import DriverConfig, open_driver
from cloister.keys.drivers.remote import Limits
from cloister.keys.drivers.transit import TransitDriver
from cloister.keys.drivers.transit import open_driver as open_transit
from cloister.keys.ports import KekDriver
from tests.kms.checks import LINE, QUICK, ServiceDriverTests, refusal
from tests.kms.server import Certificates, Reply, make_certificates
from tests.kms.transit import TransitDouble
from tests.vault_conformance import CONTEXT, DEK, KekDriverConformance


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def double(certificates: Certificates) -> Iterator[TransitDouble]:
    double = TransitDouble(certificates)
    yield double
    double.server.stop()


@pytest.fixture
def options(double: TransitDouble, certificates: Certificates) -> dict[str, str]:
    return {"url": double.server.url, "ca": str(certificates.ca)}


@pytest.fixture
def token(double: TransitDouble) -> bytes:
    return double.token().encode()


class TestTransit(KekDriverConformance, ServiceDriverTests):
    flips = 16

    @pytest.fixture
    def make(self, options: dict[str, str], token: bytes) -> Callable[[], KekDriver]:
        return lambda: open_driver(DriverConfig("transit", options), token)

    @pytest.fixture
    def hidden(self, token: bytes) -> list[bytes]:
        return [token]

    @pytest.fixture
    def quick(self, options: dict[str, str], token: bytes) -> Callable[[Limits], KekDriver]:
        return lambda limits: open_transit(options, token, limits=limits)

    forbidden = Reply(403, b'{"errors": ["permission denied"]}')
    throttled = Reply(429, b'{"errors": ["rate limit quota exceeded"]}')
    broken = Reply(500, b'{"errors": ["internal error"]}')


def approle(double: TransitDouble, options: dict[str, str], *, limits: Limits = QUICK) -> TransitDriver:
    double.roles["role"] = "secret"
    return open_transit({**options, "auth": "approle"}, b"role:secret", limits=limits)


def test_an_expired_token_of_a_role_is_replaced_once(double: TransitDouble, options: dict[str, str]) -> None:
    driver = approle(double, options)
    handle = driver.create(LINE, 1)
    box = driver.wrap(handle, DEK, CONTEXT)
    double.tokens.clear()
    assert driver.unwrap(handle, box, CONTEXT) == DEK
    assert double.logins == 2
    double.tokens.clear()
    double.roles.clear()
    refusal(lambda: driver.unwrap(handle, box, CONTEXT), Denied, "vault.credential")
    driver.close()


def test_a_role_that_may_not_is_refused_after_one_new_login(double: TransitDouble, options: dict[str, str]) -> None:
    driver = approle(double, options)
    handle = driver.create(LINE, 1)
    double.server.fail(*[TestTransit.forbidden] * 2, only="/keys/")
    refusal(lambda: driver.wrap(handle, DEK, CONTEXT), Denied, "vault.credential")
    assert (double.logins, double.server.pending) == (2, 0)
    driver.close()


def test_a_wrong_secret_id(double: TransitDouble, options: dict[str, str]) -> None:
    double.roles["role"] = "another"
    refusal(lambda: open_transit({**options, "auth": "approle"}, b"role:secret"), Denied, "vault.credential")


def test_a_role_at_another_mount(double: TransitDouble, options: dict[str, str]) -> None:
    other = {**options, "auth": "approle", "approle-mount": "elsewhere"}
    refusal(lambda: open_transit(other, b"role:secret"), Misuse, "driver.mount")


def test_tokens_are_renewed(double: TransitDouble, options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At two thirds of their time: nothing is refused meanwhile."""
    now = [1000.0]
    monkeypatch.setattr("cloister.keys.drivers.transit.time.monotonic", lambda: now[0])
    monkeypatch.setattr("cloister.keys.drivers.remote.time.monotonic", lambda: now[0])
    driver = open_transit(options, double.token(ttl=900, renewable=True).encode())
    driver.list(LINE)
    assert double.renewals == 0
    now[0] += 601
    driver.list(LINE)
    driver.list(LINE)
    assert double.renewals == 1
    driver.close()


def test_a_role_whose_token_cannot_be_renewed_any_more_logs_in_again(
    double: TransitDouble, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr("cloister.keys.drivers.transit.time.monotonic", lambda: now[0])
    monkeypatch.setattr("cloister.keys.drivers.remote.time.monotonic", lambda: now[0])
    double.lease, double.renewable = 90, True
    driver = approle(double, options)
    double.tokens.clear()
    now[0] += 61
    assert driver.list(LINE) == []
    assert double.logins == 2
    driver.close()


def test_wrapping_under_a_key_that_is_gone_makes_no_new_one(
    double: TransitDouble, options: dict[str, str], token: bytes
) -> None:
    driver = open_transit(options, token)
    handle = driver.create(LINE, 1)
    driver.destroy(handle)
    refusal(lambda: driver.wrap(handle, DEK, CONTEXT), Denied, "wrap.gone")
    assert double.keys == {}
    driver.close()


def test_a_key_that_somebody_made_exportable_wraps_nothing_more(
    double: TransitDouble, options: dict[str, str], token: bytes
) -> None:
    driver = open_transit(options, token)
    handle = driver.create(LINE, 1)
    box = driver.wrap(handle, DEK, CONTEXT)
    for setting in ("exportable", "allow_plaintext_backup", "derived"):
        double.keys[handle.decode()].config[setting] = True
        refusal(lambda: driver.wrap(handle, DEK, CONTEXT), Untrusted, "vault.extractable")
        double.keys[handle.decode()].config[setting] = False
    assert driver.unwrap(handle, box, CONTEXT) == DEK
    driver.close()


def test_a_key_that_somebody_rotated_still_unwraps(
    double: TransitDouble, options: dict[str, str], token: bytes
) -> None:
    driver = open_transit(options, token)
    handle = driver.create(LINE, 1)
    before = driver.wrap(handle, DEK, CONTEXT)
    double.rotate(handle.decode())
    after = driver.wrap(handle, DEK, CONTEXT)
    assert (before[:4], after[:4]) == (b"\0\0\0\1", b"\0\0\0\2")
    assert driver.unwrap(handle, before, CONTEXT) == driver.unwrap(handle, after, CONTEXT) == DEK
    # The version belongs to what is authenticated: under another version's key nothing opens.
    refusal(lambda: driver.unwrap(handle, after[:4] + before[4:], CONTEXT), Untrusted, "wrap.changed")
    driver.close()


def test_namespace_and_mount(certificates: Certificates) -> None:
    double = TransitDouble(certificates, mount="keys/cloister", namespace="team")
    options = {"url": double.server.url, "ca": str(certificates.ca), "mount": "keys/cloister", "namespace": "team"}
    driver = open_transit(options, double.token().encode())
    assert driver.list(LINE) == []
    for wrong in ({"mount": "transit"}, {"namespace": "other"}):
        refusal(lambda w=wrong: open_transit({**options, **w}, double.token().encode()), Misuse, "driver.mount")
    driver.close()
    double.server.stop()


def test_plain_http_is_for_loopback_only() -> None:
    double = TransitDouble(None)
    driver = open_transit({"url": double.server.url}, double.token().encode())
    assert driver.list(LINE) == []
    driver.close()
    double.server.stop()
    for url in ("http://10.0.0.1:8200", "http://vault.example", "ftp://127.0.0.1", "127.0.0.1:8200", "https://"):
        refusal(lambda url=url: open_transit({"url": url}, b"token"), Misuse, "driver.url")
    for url in ("https://user:pass@vault.example", "https://vault.example?token=x", "https://a\\@b", "https://a:b"):
        refusal(lambda url=url: open_transit({"url": url}, b"token"), Misuse, "driver.url")


@pytest.mark.parametrize(
    ("change", "credential", "code"),
    [
        ({"auth": "ldap"}, b"token", "driver.options"),
        ({"adress": "x"}, b"token", "driver.options"),
        ({"url": ""}, b"token", "driver.options"),
        ({"mount": "../sys"}, b"token", "driver.options"),
        ({"mount": "a b"}, b"token", "driver.options"),
        ({}, b"", "driver.credential"),
        ({}, b"to ken", "driver.credential"),
        ({}, b"\xff\xfe", "driver.credential"),
        ({}, b"token\r\nX-Evil: 1", "driver.credential"),
        ({"auth": "approle"}, b"role", "driver.credential"),
        ({"auth": "approle"}, b"role:secret:more", "driver.credential"),
    ],
)
def test_options_and_credentials_are_read_strictly(change: dict[str, str], credential: bytes, code: str) -> None:
    options = {"url": "https://127.0.0.1:1", **change}
    refusal(lambda: open_transit(options, credential), Misuse, code)


def test_nothing_is_taken_from_the_environment(
    double: TransitDouble,
    options: dict[str, str],
    token: bytes,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / ".vault-token").write_text(token.decode())
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VAULT_TOKEN", token.decode())
    monkeypatch.setenv("VAULT_ADDR", "https://127.0.0.1:1")
    monkeypatch.setenv("VAULT_NAMESPACE", "elsewhere")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    driver = open_transit(options, token)
    assert driver.list(LINE) == []
    driver.close()
    refusal(lambda: open_transit(options, b"s.another"), Denied, "vault.credential")
    assert not any("authorization" in request.headers for request in double.server.requests)


def test_answers_that_are_no_answers(double: TransitDouble, options: dict[str, str], token: bytes) -> None:
    """Each is well-formed JSON, and none is what was asked for."""
    driver = open_transit(options, token, limits=QUICK)
    handle = driver.create(LINE, 1)
    box = driver.wrap(handle, DEK, CONTEXT)
    bodies = [b"[]", b"null", b"{}", b'{"data": null}', b'{"data": {"plaintext": 7}}', b'{"data": {"plaintext": "!"}}']
    bodies += [b'{"data": {"plaintext": ""}}', b'{"data": {"plaintext": "AAAA"}}', b"<html>", b"\xff", b""]
    for body in bodies:
        double.server.fail(Reply(200, body), only="/decrypt/")
        refusal(lambda: driver.unwrap(handle, box, CONTEXT), Unavailable, "vault.answer")
    for text in (
        "vault:v1:",
        "vault:v0:" + "A" * 80,
        "vault:v1:" + "A" * 79,
        "other:v1:" + "A" * 80,
        "vault:v99999999999:",
    ):
        double.server.fail(Reply(200, b'{"data": {"ciphertext": "%s"}}' % text.encode()), only="/encrypt/")
        refusal(lambda: driver.wrap(handle, DEK, CONTEXT), Unavailable, "vault.answer")
    driver.close()


def test_no_redirect_carries_the_token_away(double: TransitDouble, options: dict[str, str], token: bytes) -> None:
    driver = open_transit(options, token, limits=QUICK)
    double.server.fail(Reply(307, b"", {"Location": "https://127.0.0.1:1/v1/transit/keys"}))
    with pytest.raises(CloisterError) as info:
        driver.list(LINE)
    assert info.value.code == "vault.answer"
    driver.close()


def test_debug_logs_hold_no_keys(options: dict[str, str], token: bytes, caplog: pytest.LogCaptureFixture) -> None:
    import base64

    caplog.set_level(logging.DEBUG)
    driver = open_transit(options, token)
    handle = driver.create(LINE, 1)
    driver.unwrap(handle, driver.wrap(handle, DEK, CONTEXT), CONTEXT)
    driver.close()
    assert token.decode() not in caplog.text
    assert base64.b64encode(DEK).decode() not in caplog.text
