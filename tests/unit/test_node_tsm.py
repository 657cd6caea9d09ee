"""The attester of a confidential guest, against a folder that behaves like Linux' configfs-tsm, and verified."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.attestation import Evidence, make_nonce
from cloister.attestation.binding import report_data
from cloister.attestation.collateral import Staleness
from cloister.attestation.snp import SnpVerifier, attester_id
from cloister.crypto import JweKey, sha256
from cloister.errors import Denied, Malformed, Unavailable
from cloister.node.configfs import ConfigFs, make_quote
from cloister.node.tsm import TsmAttester, certificate_table
from tests.snp_forge import CHIP, CSP_ID, NOW, TURIN_CHIP, Forge

AGENT, WORKLOAD, CONTRACT, JOB = (bytes([n]) * 32 for n in range(4))
INSTANCE = b"i" * 16
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "tdx"


class Kernel(ConfigFs):
    """Attributes that the kernel's driver would make, in a folder. ``write`` does what it does when a file is closed.

    ``answer`` makes the report over what was written; ``lost`` writes are forgotten, ``meddle`` is what somebody else
    does meanwhile.
    """

    def __init__(self, folder: Path, forge: Forge | None = None, **behaviour: Any) -> None:
        super().__init__(folder)
        self.folder, self.forge = folder, forge
        self.provider: str = behaviour.get("provider", "sev_guest")
        self.floor: int | None = behaviour.get("floor", 0)
        self.table: bytes | None = behaviour.get("table", b"")
        self.answer: Callable[[bytes], bytes] = behaviour.get("answer") or self.sign
        self.lost: bool = behaviour.get("lost", False)
        self.meddle: bool = behaviour.get("meddle", False)
        self.data: list[bytes] = []
        self.privileges: list[bytes] = []

    def make(self, entry: str) -> None:
        super().make(entry)
        attributes = {"inblob": b"", "privlevel": b"", "generation": b"0\n", "provider": f"{self.provider}\n".encode()}
        if self.floor is not None:
            attributes["privlevel_floor"] = f"{self.floor}\n".encode()
        for attribute, value in attributes.items():
            (self.folder / entry / attribute).write_bytes(value)

    def write(self, entry: str, attribute: str, value: bytes) -> None:
        super().write(entry, attribute, value)
        if self.lost:
            return
        self.step(entry)
        if attribute == "privlevel":
            self.privileges.append(value)
            return
        self.data.append(value)
        (self.folder / entry / "outblob").write_bytes(self.answer(value))
        if self.table is not None:
            (self.folder / entry / "auxblob").write_bytes(self.table)
        if self.meddle:
            self.step(entry)

    def sign(self, data: bytes) -> bytes:
        assert self.forge is not None
        return self.forge.report(report_data=data)

    def step(self, entry: str) -> None:
        path = self.folder / entry / "generation"
        path.write_bytes(b"%d\n" % (int(path.read_bytes()) + 1))

    def remove(self, entry: str) -> None:
        for file in (self.folder / entry).iterdir():
            file.unlink()
        super().remove(entry)


def table(*certificates: bytes, tail: bytes = b"") -> bytes:
    """A host's certificate table: entries, a zero entry, the certificates."""
    start = 24 * (len(certificates) + 1)
    entries, blobs = b"", b""
    for number, der in enumerate(certificates):
        entries += bytes([number + 1]) * 16 + struct.pack("<II", start + len(blobs), len(der))
        blobs += der
    return entries + bytes(24) + blobs + tail


def host_table(forge: Forge) -> bytes:
    return table(*(c.der for c in reversed((forge.leaf(), *forge.chain()))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "report"
    path.mkdir()
    return path


def launched(kernel: Kernel) -> TsmAttester:
    attester = TsmAttester(AGENT, files=kernel)
    attester.extend_launch(INSTANCE, WORKLOAD, CONTRACT, JOB)
    return attester


def challenge() -> tuple[str, dict[str, Any]]:
    return make_nonce(sha256(b"ctx"), b"n" * 32), dict(JweKey().public_jwk)


@pytest.mark.parametrize(
    ("case", "with_table"),
    [
        (("milan", "vcek", 2), True),
        (("milan", "vcek", 2), False),
        (("genoa", "vlek", 5), True),  # nobody but the host has a VLEK's certificate
        (("turin", "vcek", 5), True),
        (("turin", "vcek", 5), False),
    ],
)
def test_evidence_from_a_guest_is_what_a_broker_verifies(folder, case, with_table):
    forge = Forge(*case)
    kernel = Kernel(folder, forge, table=host_table(forge) if with_table else b"")
    nonce, key = challenge()
    with launched(kernel) as attester:
        evidence = Evidence.from_wire(attester.evidence(INSTANCE, nonce, key))
        assert attester.tee == "snp"
    assert len(evidence.primary["certificates"]) == (3 if with_table else 0)
    verifier = SnpVerifier(forge.collateral(), Staleness(), roots=forge.roots)
    claims = verifier.verify(evidence, report_data(nonce, key, evidence.additional), now=NOW)
    assert (claims.level, claims.measurement, claims.instance) == ("cpu-tee", WORKLOAD.hex(), INSTANCE.hex())
    assert (claims.contract, claims.job) == (CONTRACT.hex(), JOB.hex())
    assert claims.attester == attester.attester_id
    assert list(folder.iterdir()) == []
    assert [len(data) for data in kernel.data] == [64, 64]


def test_the_attester_is_named_by_the_chip_or_the_provider(folder):
    milan, turin, vlek = Forge("milan", "vcek", 2), Forge("turin", "vcek", 2), Forge("milan", "vlek", 3)
    for forge, expected in (
        (milan, attester_id("vcek", CHIP.hex())),
        (turin, attester_id("vcek", TURIN_CHIP.hex())),
        (vlek, attester_id("vlek", CSP_ID)),
    ):
        assert TsmAttester(AGENT, files=Kernel(folder, forge, table=host_table(forge))).attester_id == expected
        if forge is not vlek:
            assert TsmAttester(AGENT, files=Kernel(folder, forge)).attester_id == expected


def test_a_guest_that_nobody_can_name_does_not_start(folder):
    for forge in (Forge("milan", "vlek", 3), Forge()):
        hidden = forge.report(chip_id=0)
        with pytest.raises(Unavailable) as caught:
            TsmAttester(AGENT, files=Kernel(folder, answer=lambda _, hidden=hidden: hidden))
        assert caught.value.code == "tsm.identity"


def test_tenancy_and_instances_are_the_journals_to_decide(folder):
    attester = launched(Kernel(folder, Forge()))
    with pytest.raises(Denied) as used:
        attester.extend_launch(INSTANCE, WORKLOAD, CONTRACT, JOB)
    assert used.value.code == "attester.instance-used"
    with pytest.raises(Denied) as alone:
        attester.extend_launch(b"j" * 16, WORKLOAD, CONTRACT, JOB, exclusive=True)
    assert alone.value.code == "attester.exclusive"
    attester.retire(INSTANCE)
    with pytest.raises(Denied) as gone:
        attester.evidence(INSTANCE, *challenge())
    assert gone.value.code == "attester.instance"
    attester.close()
    attester.close()
    with pytest.raises(Unavailable) as closed:
        attester.evidence(INSTANCE, *challenge())
    assert closed.value.code == "attester.unusable"


def test_two_askers_at_once_each_get_their_own_report(folder):
    forge = Forge()
    attester = launched(Kernel(folder, forge, table=host_table(forge)))
    verifier = SnpVerifier(forge.collateral(), Staleness(), roots=forge.roots)
    done: list[str] = []

    def ask() -> None:
        nonce, key = challenge()
        evidence = Evidence.from_wire(attester.evidence(INSTANCE, nonce, key))
        done.append(verifier.verify(evidence, report_data(nonce, key, evidence.additional), now=NOW).level)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert done == ["cpu-tee"] * 4


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        ({"meddle": True}, "tsm.conflict"),
        ({"lost": True}, "tsm.attribute"),
        ({"provider": "arm_cca_guest"}, "tsm.provider"),
        ({"answer": lambda _: b"x" * (32 * 1024 + 1)}, "tsm.size"),
        ({"answer": lambda _: b""}, "tsm.attribute"),
        ({"floor": "none"}, "tsm.attribute"),
    ],
)
def test_a_report_that_may_be_over_other_data_is_not_used(folder, behaviour, code):
    with pytest.raises(Unavailable) as caught:
        make_quote(Kernel(folder, Forge(), **behaviour), bytes(64))
    assert caught.value.code == code
    assert list(folder.iterdir()) == [], "an entry stayed behind"


def test_a_lost_write_behind_an_older_report_is_noticed(folder):
    """The kernel can't say that closing a file failed; its counter tells."""

    class Lossy(Kernel):
        def write(self, entry: str, attribute: str, value: bytes) -> None:
            (self.folder / entry / "outblob").write_bytes(b"an older report")

    with pytest.raises(Unavailable) as caught:
        make_quote(Lossy(folder, Forge()), bytes(64))
    assert caught.value.code == "tsm.conflict"


def test_a_report_over_other_data_is_not_sent(folder):
    forge = Forge()
    kernel = Kernel(folder, forge)
    attester = launched(kernel)
    kernel.answer = lambda _: forge.report()
    with pytest.raises(Unavailable) as caught:
        attester.evidence(INSTANCE, *challenge())
    assert caught.value.code == "tsm.report"


def test_a_driver_that_becomes_another_one_is_noticed(folder):
    kernel = Kernel(folder, Forge())
    attester = launched(kernel)
    kernel.provider = "tdx_guest"
    with pytest.raises(Unavailable) as caught:
        attester.evidence(INSTANCE, *challenge())
    assert caught.value.code == "tsm.provider"


def test_under_a_service_module_the_guest_asks_for_its_own_level(folder):
    kernel = Kernel(folder, Forge(), floor=2)
    assert make_quote(kernel, bytes(64)).tee == "snp"
    assert kernel.privileges == [b"2"]
    unaware = Kernel(folder, Forge(), floor=None, table=None)
    assert make_quote(unaware, bytes(64)).auxiliary == b""
    assert unaware.privileges == []


def test_only_64_bytes_are_asked_for(folder):
    for size in (0, 32, 63, 65):
        with pytest.raises(Malformed) as caught:
            make_quote(Kernel(folder, Forge()), bytes(size))
        assert caught.value.code == "tsm.data"


def test_a_guest_without_configfs_tsm(tmp_path):
    with pytest.raises(Unavailable) as caught:
        TsmAttester(AGENT, files=ConfigFs(tmp_path / "missing"))
    assert caught.value.code == "tsm.absent"
    assert "configfs" in caught.value.message


@pytest.mark.parametrize("report", [b"no report", bytes(1184)])
@pytest.mark.parametrize("provider", ["sev_guest", "tdx_guest"])
def test_a_report_of_no_known_form(folder, report, provider):
    with pytest.raises(Unavailable) as caught:
        TsmAttester(AGENT, files=Kernel(folder, answer=lambda _: report, provider=provider))
    assert caught.value.code == "tsm.report"


def test_a_hosts_table_is_read_in_any_order_and_never_trusted():
    forge, other = Forge(), Forge("milan", "vlek", 3)
    ders = [c.der for c in (forge.leaf(), *forge.chain())]
    assert [c.der for c in certificate_table(table(*ders))] == ders
    assert [c.der for c in certificate_table(table(b"junk", ders[0], b"", tail=b"\xff"))] == [ders[0]]
    endless = b"\x01" * 16 + struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    for broken in (b"", bytes(24), endless, endless * 2000, table(*ders)[:60], b"\xff" * 32768):
        assert certificate_table(broken) == []
    # Certificates of both keys: the one that signed is sent, with its own authority.
    both = table(*(c.der for c in (other.leaf(), *other.chain(), forge.leaf(), forge.intermediate())))
    assert len(certificate_table(both)) == 5


def test_of_a_table_for_several_keys_the_signing_keys_certificates_are_sent(folder):
    forge, other = Forge(), Forge("milan", "vlek", 3)
    both = table(*(c.der for c in (other.leaf(), *other.chain(), forge.leaf(), forge.intermediate())))
    attester = launched(Kernel(folder, forge, table=both))
    nonce, key = challenge()
    evidence = Evidence.from_wire(attester.evidence(INSTANCE, nonce, key))
    verifier = SnpVerifier(forge.collateral(), Staleness(), roots=forge.roots)
    assert verifier.verify(evidence, report_data(nonce, key, evidence.additional), now=NOW).level == "cpu-tee"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared vectors folder is not beside the checkout")
def test_a_tdx_guest_sends_its_quote(folder):
    """A real quote stands in for a fresh one; it is over other data, so it is named but never sent."""
    quote = (SHARED / "tdx_v4_quote.dat").read_bytes()
    kernel = Kernel(folder, answer=lambda _: quote, provider="tdx_guest", floor=None, table=None)
    attester = launched(kernel)
    assert (attester.tee, len(attester.attester_id)) == ("tdx", 64)
    with pytest.raises(Unavailable) as caught:
        attester.evidence(INSTANCE, *challenge())
    assert caught.value.code == "tsm.report"
    kernel.answer = lambda data: quote[:568] + data + quote[632:]
    evidence = Evidence.from_wire(attester.evidence(INSTANCE, *challenge()))
    assert (evidence.tee, set(evidence.primary)) == ("tdx", {"quote"})
