"""Reference values: computed reproducibly, signed, read back, and turned into what a contract and a policy name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.attestation import Claims
from cloister.attestation.corim import ReferenceValue
from cloister.attestation.models import Device, guest_digest
from cloister.attestation.policy import PolicyDenied, read_policy
from cloister.attestation.snp.launch import SnpGuest, launch_digest
from cloister.attestation.tdx.launch import mrtd
from cloister.client import publishing
from cloister.client.reference_values import (
    Guest,
    compute_reference_values,
    read_reference_values,
    sign_reference_values,
)
from cloister.crypto import canonical_json
from cloister.errors import Malformed, Misuse, Untrusted
from tests import firmware_forge as forge
from tests.unit.test_releases import image

R = "66" * 48


@pytest.fixture
def key(tmp_path: Path) -> Path:
    publishing.create_secret_key(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def firmware(tmp_path: Path) -> dict[str, Path]:
    made = {"snp": forge.snp_image(), "tdx": forge.tdx_image()}
    for name, data in made.items():
        (tmp_path / f"{name}.fd").write_bytes(data)
    return {name: tmp_path / f"{name}.fd" for name in made}


def compute(**given: Any) -> tuple[Any, list[str]]:
    return compute_reference_values(**{"image": None, "measurements": [], "agents": [], "guest": None, **given})


def signed(values: Any, key: Path, **changes: Any) -> bytes:
    return sign_reference_values(values, **{"name": "r 1", "signer": "Us", "key": key, "not_after": None, **changes})


def read(data: bytes, key: Path, **changes: Any) -> dict[str, Any]:
    public = publishing.read_secret_key(key).public.hex().encode()
    return read_reference_values(data, [public], **{"vendor": False, "profiles": [], "now": 0, **changes})


def test_the_same_inputs_give_the_same_file(tmp_path: Path, key: Path, firmware: dict[str, Path]) -> None:
    files = []
    for name in ("one", "two"):
        built = image(tmp_path / name, "1.0")
        guest = Guest("snp", firmware["snp"], least={"tcb.snp": 22})
        values, _ = compute(image=built, agents=["22" * 32], guest=guest)
        files.append(signed(values, key))
    assert files[0] == files[1]


def test_values_of_an_snp_guest(key: Path, firmware: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"kernel")
    values, notes = compute(measurements=["11" * 32], guest=Guest("snp", firmware["snp"], tmp_path / "kernel", vcpus=2))
    assert notes == []
    found = read(signed(values, key), key)
    plain = launch_digest(SnpGuest(forge.snp_image(), 2, "EPYC-v4")).hex()
    (launch,) = [v["digests"][0] for v in found["values"] if v["name"] == "launch"]
    assert launch != plain, "the kernel counts"
    assert found["platform"]["agents"] == [guest_digest("snp", {"launch": launch})]
    assert found["platform"]["measurements"] == ["11" * 32]


def test_values_of_a_tdx_guest(key: Path, firmware: dict[str, Path]) -> None:
    build = mrtd(forge.tdx_image()).hex()
    values, notes = compute(guest=Guest("tdx", firmware["tdx"], registers={"rtmr1": R}))
    assert "RTMR0" in notes[0]
    assert read(signed(values, key), key)["platform"]["agents"] == []  # not all of the guest is known
    registers = {f"rtmr{n}": f"{n}" * 96 for n in range(3)}
    values, _ = compute(guest=Guest("tdx", firmware["tdx"], registers=registers))
    agents = read(signed(values, key), key)["platform"]["agents"]
    assert agents == [guest_digest("tdx", {"mrtd": build, **registers})]


def test_values_of_a_tpm(key: Path) -> None:
    registers = {"pcr0": "00" * 32, "pcr7": "77" * 32}
    values, notes = compute(guest=Guest("tpm", registers=registers))
    assert "PCRs" in notes[0]
    assert read(signed(values, key), key)["platform"]["pcrs"] == {"0": "00" * 32, "7": "77" * 32}


@pytest.mark.parametrize("name", ["xxx0", "0", "pcr", "pcr24", "pcr07", "PCR7", "pcr7 ", "pcr٧", "pcr-1"])
def test_something_of_a_tpm_that_is_no_pcr(key: Path, name: str) -> None:
    for register in (True, False):
        with pytest.raises(Malformed) as caught:
            read(signed([ReferenceValue("tpm", name, ("00" * 32,), register=register)], key), key)
        assert caught.value.code == "reference.pcr"


def test_a_policy_that_asks_for_the_values(key: Path, firmware: dict[str, Path]) -> None:
    values, _ = compute(guest=Guest("snp", firmware["snp"], least={"tcb.snp": 22}))
    found = read(signed(values, key), key)
    policy = read_policy(canonical_json(found["policy"]))
    launch = next(v["digests"][0] for v in found["values"] if v["name"] == "launch")
    good = Device("cpu0", "snp", "", {"launch": launch}, {"debug": False, "tcb.snp": 22})
    claims = Claims("snp", "cpu-tee", "", "", "", "", "", "", devices=(good,))
    policy.check(claims)
    for measured, tcb in (({"launch": "00" * 48}, 22), ({"launch": launch}, 21)):
        bad = Device("cpu0", "snp", "", measured, {"debug": False, "tcb.snp": tcb})
        with pytest.raises(PolicyDenied):
            policy.check(Claims("snp", "cpu-tee", "", "", "", "", "", "", devices=(bad,)))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"guest": Guest("sgx")},
        {"guest": Guest("snp")},
        {"guest": Guest("snp", Path("absent"))},
        {"guest": Guest("tdx")},
        {"guest": Guest("tpm", registers={"rtmr0": R})},
        {"guest": Guest("tpm", registers={"pcr24": "00" * 32})},
        {"guest": Guest("tpm", registers={"pcr7": R})},
        {"guest": Guest("tpm")},
        {"image": Path("absent")},
    ],
)
def test_inputs_that_are_missing_or_wrong(given: dict[str, Any]) -> None:
    with pytest.raises(Misuse):
        compute(**given)


def test_an_initrd_without_a_kernel(firmware: dict[str, Path]) -> None:
    for guest in (Guest("snp", firmware["snp"], initrd=firmware["snp"]), Guest("snp", firmware["snp"], cmdline="x")):
        with pytest.raises(Misuse):
            compute(guest=guest)


def test_firmware_of_another_platform(firmware: dict[str, Path]) -> None:
    for platform, other in (("snp", "tdx"), ("tdx", "snp")):
        with pytest.raises(Malformed):
            compute(guest=Guest(platform, firmware[other]))


def test_values_by_another_key_or_after_their_time(key: Path, tmp_path: Path) -> None:
    values, _ = compute(measurements=["11" * 32])
    publishing.create_secret_key(tmp_path / "other")
    with pytest.raises(Untrusted):
        read(signed(values, tmp_path / "other"), key)
    ending = signed(values, key, not_after=100)
    assert read(ending, key, now=99)["not_after"] == 100
    with pytest.raises(Untrusted):
        read(ending, key, now=100)
