"""A whole vault over each key service's double: made, used, rotated, closed, opened again, an epoch destroyed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import Denied, Unavailable, Untrusted
from cloister.keys import DriverConfig, create_vault, open_vault
from tests.kms.aws import AwsDouble
from tests.kms.azure import TENANT, AzureDouble
from tests.kms.checks import refusal
from tests.kms.gcp import KEY_RING, GcpDouble, ServiceAccount
from tests.kms.server import Certificates, make_certificates
from tests.kms.transit import TransitDouble

Service = tuple[DriverConfig, bytes, Any]
DIGEST = bytes(range(32))
DEK = b"\x5a" * 32


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["transit", "aws", "gcp", "azure", "azure-hsm"])
def service(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Service]:
    made = _service(request.param, certificates)
    yield made
    made[2].server.stop()


def _service(name: str, certificates: Certificates) -> Service:
    ca = {"ca": str(certificates.ca)}
    if name == "transit":
        transit = TransitDouble(certificates)
        return DriverConfig(name, {"url": transit.server.url, **ca}), transit.token().encode(), transit
    if name == "aws":
        aws = AwsDouble(certificates)
        options = {"region": "eu-test-1", "endpoint": aws.server.url, **ca}
        return DriverConfig(name, options), b"AKIATEST:aws/secret+key", aws
    if name == "gcp":
        account = ServiceAccount()
        gcp = GcpDouble(certificates, account)
        return DriverConfig(name, {"key-ring": KEY_RING, "endpoint": gcp.url, **ca}), account.credential, gcp
    azure = AzureDouble(certificates)
    options = {"url": azure.server.url, "authority": azure.authority, **ca}
    options |= {"key": "oct-hsm"} if name == "azure-hsm" else {}
    return DriverConfig("azure", options), f"{TENANT}:client:{azure.secret}".encode(), azure


def test_the_life_of_a_vault(service: Service, tmp_path: Path) -> None:
    config, credential, double = service
    path = tmp_path / "vault"
    vault = create_vault(path, credential, "hospital", driver=config)
    assert any("experimental" in warning for warning in vault.warnings)
    vault.put_secret("tls", b"a secret")
    first = vault.wrap(DEK, DIGEST)
    assert vault.rotate_kek() == 2
    second = vault.rewrap(first, DIGEST)
    vault.close()
    assert credential not in path.read_bytes()

    vault = open_vault(path, credential, driver=config)
    assert vault.secret("tls") == b"a secret"
    assert vault.unwrap(first, DIGEST) == vault.unwrap(second, DIGEST) == DEK
    refusal(lambda: vault.unwrap(second, bytes(32)), Untrusted, "wrap.changed")
    vault.destroy_epoch(1)
    with pytest.raises(Denied):
        vault.unwrap(first, DIGEST)
    assert vault.unwrap(second, DIGEST) == DEK
    vault.close()

    double.server.stop()
    refusal(lambda: open_vault(path, credential, driver=config), Unavailable, "vault.unreachable")


def test_a_vault_sends_no_credential_to_another_service(
    service: Service, certificates: Certificates, tmp_path: Path
) -> None:
    """Which service gets the credential is the caller's word, not the file's."""
    config, credential, _ = service
    path = tmp_path / "vault"
    create_vault(path, credential, "hospital", driver=config).close()
    double = TransitDouble(certificates)
    elsewhere = DriverConfig("transit", {"url": double.server.url, "ca": str(certificates.ca)})
    before = path.read_bytes()
    token = double.token().encode()
    refusal(lambda: open_vault(path, token, driver=elsewhere), Denied, "vault.driver")
    assert double.server.requests == []
    assert path.read_bytes() == before
    double.server.stop()
