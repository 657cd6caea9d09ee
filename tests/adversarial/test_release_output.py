"""Something else leaves than the contract lets out, or somebody opens an output without every owner's permit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.contracts import permit_envelope
from cloister.crypto import Envelope, HpkePrivateKey, SigningKey, frame, hpke_seal, random_bytes
from cloister.errors import CloisterError, Denied, Malformed, Untrusted
from cloister.sealed import Sealed, check_dek
from tests.broker_world import LEASE, NOW, OUTPUT, Workload, World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]

GATE = {"base": "0.9", "margin": "0.01", "metric": "accuracy", "passed": True, "tuned": "0.95"}
LOOSE = {"forms": ["metrics", "adapter", "weights"], "keep_until": 2**53 - 1, "licences": [], "sensitivity": "public"}


def permit(world: World, sealed: Sealed) -> Envelope:
    return world.hospital.broker.permits.permit(sealed.envelope)[0]


def test_an_honest_output_is_permitted_once(world: World, folder: Path) -> None:
    sealed = world.workload().run().output(folder / "o")
    first, receipt = world.hospital.broker.permits.permit(sealed.envelope)
    with nothing_granted(world.hospital):
        again, other = world.hospital.broker.permits.permit(sealed.envelope)
    assert (again.to_bytes(), other.index, other.leaf) == (first.to_bytes(), receipt.index, receipt.leaf)
    facts = world.hospital.log()[receipt.index]
    assert (facts.kind, facts.details["output"]) == ("permit.issued", sealed.digest.hex())


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"form": "weights"}, "output.form"),
        ({"recipients": ["lab"]}, "output.recipients"),
        ({"recipients": ["hospital", "lab"]}, "output.recipients"),
        ({"recipients": []}, "output.recipients"),
        ({"terms": LOOSE}, "output.terms"),
        ({"gates": []}, "output.gate"),
        ({"gates": [{**GATE, "passed": False}]}, "output.gate"),
        ({"gates": [{**GATE, "passed": "true"}]}, "output.gate"),
        ({"gates": [{**GATE, "margin": "0"}]}, "output.gate"),
        ({"gates": [{**GATE, "metric": "f1"}]}, "output.gate"),
        ({"gates": [GATE, {**GATE, "metric": "f1", "passed": False}]}, "output.gate"),
        ({"gates": [GATE, "passed"]}, "output.gate"),
    ],
)
def test_an_output_that_the_contract_does_not_let_out(
    world: World, folder: Path, terms: dict[str, Any], code: str
) -> None:
    sealed = world.workload().run().output(folder / "o", **terms)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        permit(world, sealed)
    assert refused.value.code == code
    assert world.hospital.log()[-1].kind == "permit.refused"


def test_an_output_with_a_rule_that_nobody_reads(world: World, folder: Path) -> None:
    sealed = world.workload().run().output(folder / "o", surprise="x")
    with nothing_granted(world.hospital), pytest.raises(Malformed) as refused:
        permit(world, sealed)
    assert refused.value.code == "form.unknown"


@pytest.mark.parametrize(
    ("identity", "code"),
    [
        ({"name": "hospital/other"}, "output.name"),
        ({"asset_class": "checkpoint"}, "output.name"),
        ({"parents": ()}, "output.parents"),
        ({"parents": (b"\x01" * 32, b"\x02" * 32)}, "output.parents"),
        ({"job": b"\x01" * 32}, "lease.unknown"),
        ({"contract": b"\x01" * 32}, "lease.unknown"),
        ({"contract": None, "job": None}, "lease.unknown"),
    ],
)
def test_an_output_of_another_origin(world: World, folder: Path, identity: dict[str, Any], code: str) -> None:
    sealed = world.workload().run().output(folder / "o", identity=identity)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        permit(world, sealed)
    assert refused.value.code == code


def test_an_output_that_names_another_instance(world: World, folder: Path) -> None:
    sealed = world.workload().run().output(folder / "o", instance="00" * 16)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        permit(world, sealed)
    assert refused.value.code == "lease.unknown"


def test_an_output_that_the_instance_did_not_sign(world: World, folder: Path) -> None:
    workload = world.workload().run()
    workload.signing = SigningKey.generate()
    with nothing_granted(world.hospital), pytest.raises(Untrusted) as refused:
        permit(world, workload.output(folder / "o"))
    assert refused.value.code == "dsse.unsigned"


def test_a_second_output_of_one_instance(world: World, folder: Path) -> None:
    workload = world.workload().run()
    permit(world, workload.output(folder / "a"))
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        permit(world, workload.output(folder / "b"))
    assert refused.value.code == "permit.other"


def test_a_frozen_copy_releases_after_its_lease(world: World, folder: Path) -> None:
    sealed = world.workload().run().output(folder / "o")
    world.clock.pass_seconds(LEASE)
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        permit(world, sealed)
    assert refused.value.code == "lease.expired"


def test_an_old_instance_releases_after_a_new_one_began(world: World, folder: Path) -> None:
    sealed = world.workload().run().output(folder / "o")
    world.workload().run("resume")
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        permit(world, sealed)
    assert refused.value.code == "lease.cut"


# Opening.


class Delivered:
    """A finished output with everything that its recipient needs."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        self.dek = random_bytes(32)
        self.workload: Workload = world.workload().run()
        self.sealed = self.workload.output(folder / "output", dek=self.dek)
        self.permits = [party.broker.permits.permit(self.sealed.envelope)[0] for party in world.parties.values()]

    def wrap(self, dek: bytes | None = None, to: bytes | None = None) -> bytes:
        contract, job = self.world.contract, self.world.job
        info = frame("cloister/output/v1", contract.digest, job.digest, self.sealed.digest)
        return hpke_seal(to or contract.parties["hospital"].hpke, dek or self.dek, info)

    def open(self, party: str = "hospital", **changes: Any) -> bytes:
        arguments = {
            "contract_envelope": self.world.contract.envelope,
            "job_envelope": self.world.job.envelope,
            "manifest_envelope": self.sealed.envelope,
            "wrap": self.wrap(),
            "permits": self.permits,
            **changes,
        }
        return self.world.parties[party].broker.permits.open_secret_output(**arguments)


@pytest.fixture
def delivered(world: World, folder: Path) -> Delivered:
    return Delivered(world, folder)


def test_the_recipient_opens_its_output_and_the_log_has_it(delivered: Delivered) -> None:
    dek = delivered.open()
    check_dek(delivered.sealed.manifest, dek)
    assert dek == delivered.dek
    assert delivered.world.hospital.kinds()[-1] == "output.unwrapped"


@pytest.mark.parametrize("missing", [0, 1])
def test_an_owners_permit_is_missing(delivered: Delivered, missing: int) -> None:
    permits = [p for i, p in enumerate(delivered.permits) if i != missing]
    with nothing_granted(delivered.world.hospital), pytest.raises(Denied) as refused:
        delivered.open(permits=permits)
    assert refused.value.code == "permit.missing"


def forged_permit(
    delivered: Delivered, *, owner: str = "lab", key: SigningKey | None = None, **changes: Any
) -> Envelope:
    world, workload = delivered.world, delivered.workload
    fields: dict[str, Any] = {
        "contract": world.contract.digest,
        "job": world.job.digest,
        "output": delivered.sealed.digest,
        "instance": workload.instance,
        **changes,
    }
    signer = key or world.parties[owner].broker.core.keys.receipt
    return permit_envelope(owner, key=signer, now=NOW, **fields)


@pytest.mark.parametrize(
    ("changes", "error", "code"),
    [
        ({"key": SigningKey(b"thief".ljust(32))}, Untrusted, "dsse.unsigned"),
        ({"output": b"\x01" * 32}, Untrusted, "permit.output"),
        ({"job": b"\x01" * 32}, Untrusted, "permit.output"),
        ({"contract": b"\x01" * 32}, Malformed, "permit.other"),
        ({"instance": b"\x01" * 16}, Untrusted, "permit.instance"),
        ({"owner": "mallory", "key": SigningKey(b"thief".ljust(32))}, Malformed, "permit.other"),
    ],
)
def test_a_permit_is_forged_or_of_something_else(
    delivered: Delivered, changes: dict[str, Any], error: type[CloisterError], code: str
) -> None:
    permits = [delivered.permits[0], forged_permit(delivered, **changes)]
    with nothing_granted(delivered.world.hospital), pytest.raises(error) as refused:
        delivered.open(permits=permits)
    assert refused.value.code == code


def test_a_party_opens_what_it_does_not_receive(delivered: Delivered) -> None:
    lab = delivered.world.contract.parties["lab"].hpke
    with nothing_granted(delivered.world.lab), pytest.raises(Denied) as refused:
        delivered.open("lab", wrap=delivered.wrap(to=lab))
    assert refused.value.code == "output.recipient"


@pytest.mark.parametrize("changes", [{"form": "weights"}, {"recipients": ["hospital", "lab"]}, {"gates": []}])
def test_all_owners_permit_what_the_contract_does_not_let_out(world: World, folder: Path, changes: Any) -> None:
    """Even a workload and owners that conspire can't make the recipient's broker open another form."""
    delivered = Delivered(world, folder)
    delivered.sealed = delivered.workload.output(folder / "other", dek=delivered.dek, **changes)
    delivered.permits = [forged_permit(delivered, owner=owner) for owner in ("hospital", "lab")]
    with nothing_granted(world.hospital), pytest.raises(Denied) as refused:
        delivered.open()
    assert refused.value.code.startswith("output.")


def test_the_wrapped_key_is_another(delivered: Delivered) -> None:
    with pytest.raises(Untrusted) as refused:
        delivered.open(wrap=delivered.wrap(dek=random_bytes(32)))
    assert refused.value.code == "sealed.dek_commit"
    with pytest.raises(Untrusted) as refused:
        delivered.open(wrap=delivered.wrap(to=HpkePrivateKey.generate().public))
    assert refused.value.code == "hpke.open"


def test_an_owners_keys_are_lost_and_its_permit_worth_nothing(delivered: Delivered) -> None:
    delivered.world.hospital.broker.core.parties.distrust("lab", None)
    with nothing_granted(delivered.world.hospital), pytest.raises(Denied) as refused:
        delivered.open()
    assert refused.value.code == "party.compromised"


def test_a_document_of_another_type_stands_for_the_manifest(delivered: Delivered) -> None:
    other = Envelope("application/vnd.cloister.other+json", delivered.sealed.envelope.payload)
    with nothing_granted(delivered.world.hospital), pytest.raises(Untrusted) as refused:
        delivered.open(manifest_envelope=other)
    assert refused.value.code == "output.manifest"


def test_the_log_cannot_be_written_when_an_output_is_opened(
    delivered: Delivered, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(entry: bytes) -> None:
        raise OSError(len(entry))

    monkeypatch.setattr(delivered.world.hospital.broker.core.ledger.log, "append", broken)
    with pytest.raises(OSError, match=r"\d+"):
        delivered.open()


def test_the_outputs_name_is_the_contracts(delivered: Delivered) -> None:
    assert delivered.sealed.manifest.name == OUTPUT
