"""The contract document: read strictly, whole, and signed by all with pinned keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.contracts import (
    CONTRACT_TYPE,
    LEVELS,
    Contract,
    check_signatures,
    contract_document,
    make_card,
    read_contract,
)
from cloister.crypto import Envelope, SigningKey, canonical_json, dsse, sign_document
from cloister.crypto.memory import forget
from cloister.errors import CloisterError, Denied, Malformed, Untrusted
from tests.bundles import HOSPITAL, LAB, NOW, PINS, contract_fields, make_contract

DOCUMENT = contract_document(contract_fields(), PINS)


def read(document: dict[str, Any]) -> Contract:
    return read_contract(sign_document(CONTRACT_TYPE, document))


def changed(**changes: Any) -> dict[str, Any]:
    return {**DOCUMENT, **changes}


def test_a_contract_is_read_back_and_named_by_its_payload() -> None:
    contract = make_contract()
    again = read_contract(Envelope.from_bytes(contract.envelope.to_bytes()))
    assert again == contract
    unsigned = read(DOCUMENT)
    assert unsigned.digest == contract.digest, "signatures are not part of the name"
    assert contract.owners() == ("hospital", "lab")
    assert contract.asset(contract.assets[0].digest) is contract.assets[0]


def test_an_asset_that_is_not_named() -> None:
    with pytest.raises(Denied) as refused:
        make_contract().asset(bytes(32))
    assert refused.value.code == "contract.asset"


def test_a_document_of_another_type() -> None:
    with pytest.raises(Malformed) as refused:
        read_contract(Envelope("application/vnd.cloister.job+json", canonical_json(DOCUMENT)))
    assert refused.value.code == "contract.type"


ASSET = DOCUMENT["assets"][0]
PLATFORM = DOCUMENT["platform"]
OUTPUT = DOCUMENT["outputs"][0]
GATE = DOCUMENT["gates"][0]


@pytest.mark.parametrize("name", sorted(DOCUMENT))
def test_every_field_is_needed(name: str) -> None:
    document = {key: value for key, value in DOCUMENT.items() if key != name}
    with pytest.raises(Malformed) as refused:
        read(document)
    assert refused.value.code == "form.missing"


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (changed(surprise=1), "form.unknown"),
        (changed(type="contract/v2"), "form.field"),
        (changed(name="Not A Name"), "form.field"),
        (changed(serial=0), "form.field"),
        (changed(runs=0), "form.field"),
        (changed(runs=1_000_001), "form.field"),
        (changed(lease_seconds=4), "form.field"),
        (changed(lease_seconds=3601), "form.field"),
        (changed(not_before=NOW + 20_000), "contract.expiry"),
        (changed(not_before=DOCUMENT["expires"]), "contract.expiry"),
        (changed(parties={}), "contract.parties"),
        (changed(parties={"hospital": DOCUMENT["parties"]["hospital"]}), "contract.parties"),
        (changed(assets=[ASSET, ASSET]), "contract.assets"),
        (changed(assets=[{**ASSET, "name": "lab/queries"}]), "contract.owner"),
        (changed(assets=[{**ASSET, "use": "test"}]), "form.field"),
        (changed(assets=[{**ASSET, "more": 1}]), "form.unknown"),
        (changed(recipes={"tasks": [], "methods": [], "max_epochs": 0}), "form.field"),
        (changed(platform={**PLATFORM, "assurance": "perfect"}), "form.field"),
        (changed(platform={**PLATFORM, "assurance": "tpm"}), "contract.witnesses"),
        (changed(platform={**PLATFORM, "measurements": ["AA" * 32]}), "form.field"),
        (changed(platform={**PLATFORM, "pcrs": {"16": "00" * 32}}), "contract.pcr"),
        (changed(platform={**PLATFORM, "pcrs": {"x": "00" * 32}}), "contract.pcr"),
        (changed(platform={**PLATFORM, "pcrs": {"²": "00" * 32}}), "contract.pcr"),
        (changed(platform={**PLATFORM, "pcrs": {"٣": "00" * 32}}), "contract.pcr"),
        (changed(platform={**PLATFORM, "pcrs": {"03": "00" * 32}}), "contract.pcr"),
        (changed(platform={**PLATFORM, "pcrs": {"0": "00"}}), "form.field"),
        (changed(platform={**PLATFORM, "more": 1}), "form.unknown"),
        (changed(gates=[{**GATE, "better_than_base_by": "x"}]), "contract.margin"),
        (changed(gates=[{**GATE, "better_than_base_by": "Infinity"}]), "contract.margin"),
        (changed(gates=[{**GATE, "better_than_base_by": "sNaN"}]), "contract.margin"),
        (changed(gates=[{**GATE, "more": 1}]), "form.unknown"),
        (changed(outputs=[OUTPUT, OUTPUT]), "contract.outputs"),
        (changed(outputs=[{**OUTPUT, "form": "weights"}]), "contract.form"),
        (changed(outputs=[{**OUTPUT, "form": "rows"}]), "form.field"),
        (changed(outputs=[{**OUTPUT, "recipients": []}]), "contract.recipients"),
        (changed(outputs=[{**OUTPUT, "recipients": ["mallory"]}]), "contract.parties"),
        (changed(unbounded_memorization=[]), "contract.memorization"),
        (changed(unbounded_memorization=["lab"]), "contract.memorization"),
        (changed(assets=[], unbounded_memorization=[]), "contract.form"),
    ],
)
def test_contracts_that_make_no_sense(document: dict[str, Any], code: str) -> None:
    with pytest.raises(Malformed) as refused:
        read(document)
    assert refused.value.code == code


@pytest.mark.parametrize("level", LEVELS[1:])
def test_above_level_none_a_witness_is_named(level: str) -> None:
    contract = read(changed(platform={**PLATFORM, "assurance": level, "witness_quorum": 1}))
    assert contract.platform.assurance == level


def test_all_signed() -> None:
    check_signatures(make_contract(), PINS)


@pytest.mark.parametrize("signers", [(HOSPITAL,), (LAB,)])
def test_a_signature_is_missing(signers: Any) -> None:
    with pytest.raises(Denied) as refused:
        check_signatures(make_contract(*signers), PINS)
    assert refused.value.code == "contract.unsigned"


def with_signatures(*signatures: tuple[str, bytes]) -> Contract:
    envelope = make_contract().envelope
    return read_contract(Envelope(CONTRACT_TYPE, envelope.payload, signatures))


def test_key_ids_are_hints_and_junk_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty strangers' signatures, and many that name nobody: at most three are tried for each party."""
    forget()
    seen: list[bytes] = []
    genuine = dsse.verify_ed25519

    def counted(key: bytes, message: bytes, signature: bytes) -> None:
        seen.append(signature)
        genuine(key, message, signature)

    monkeypatch.setattr(dsse, "verify_ed25519", counted)
    first, second = make_contract().envelope.signatures
    strangers = [(f"{n:064x}", bytes(64)) for n in range(60)]
    check_signatures(with_signatures(*strangers, first, second), PINS)
    assert seen == [first[1], second[1]]
    check_signatures(with_signatures(("", first[1]), ("", second[1])), PINS)
    del seen[:]
    nobodys = [("", bytes([n]) * 64) for n in range(62)]
    check_signatures(with_signatures(*nobodys, second, first), PINS)
    with pytest.raises(Denied) as refused:
        check_signatures(with_signatures(*nobodys, ("", first[1]), ("", second[1])), PINS)
    assert refused.value.code == "contract.unsigned"
    assert len(seen) <= 3 * len(PINS)


def test_a_signature_under_another_partys_name() -> None:
    (hospital, _), (lab, signature) = make_contract().envelope.signatures
    for signatures in ([(hospital, signature), (lab, signature)], [(lab, signature), (lab, signature)]):
        with pytest.raises(Denied) as refused:
            check_signatures(with_signatures(*signatures), PINS)
        assert refused.value.code == "contract.unsigned"


def test_a_party_is_not_pinned() -> None:
    with pytest.raises(Denied) as refused:
        check_signatures(make_contract(), {"hospital": HOSPITAL.card})
    assert refused.value.code == "contract.unpinned"


@pytest.mark.parametrize("role", ["signing", "status", "receipt", "tls"])
def test_another_key_is_pinned(role: str) -> None:
    """Any of the five: a contract that carried another TLS or receipt key would send the workload to a thief."""
    new = SigningKey.generate()
    keys = replace(LAB.card.keys, **{role: new.public})
    signer = new if role == "signing" else LAB.secret("signing")
    card = make_card("lab", keys, (signer,), serial=2, issued=NOW)
    with pytest.raises(Untrusted) as refused:
        check_signatures(make_contract(), {**PINS, "lab": card})
    assert refused.value.code == "contract.keys"


PATHS = st.lists(st.integers(0, 30), min_size=1, max_size=4)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-5, 2**54), st.text(max_size=8), st.just([]), st.just({}))


def replaced(value: Any, path: list[int], new: Any) -> Any:
    """``value`` with whatever lies at ``path`` replaced."""
    if not path or not value or not isinstance(value, dict | list):
        return new
    if isinstance(value, dict):
        name = sorted(value)[path[0] % len(value)]
        return {**value, name: replaced(value[name], path[1:], new)}
    index = path[0] % len(value)
    return [*value[:index], replaced(value[index], path[1:], new), *value[index + 1 :]]


@settings(max_examples=300, deadline=None)
@given(PATHS, VALUES)
def test_whatever_is_read_says_what_is_written(path: list[int], new: Any) -> None:
    """A reader either refuses with one of our errors, or every field of the document counts: nothing is dropped."""
    document = replaced(DOCUMENT, path, new)
    try:
        contract = read(document)
    except CloisterError:
        return
    assert (contract.envelope.document() == DOCUMENT) == (contract.digest == read(DOCUMENT).digest)
    if document != DOCUMENT:
        rest = {name: getattr(contract, name) for name in vars(contract) if name != "envelope"}
        assert rest != {name: getattr(read(DOCUMENT), name) for name in rest}, "a changed field was ignored"


@settings(max_examples=200, deadline=None)
@given(st.integers(min_value=0), st.integers(0, 7))
def test_one_flipped_bit_ends_the_signatures(place: int, bit: int) -> None:
    envelope = make_contract().envelope
    payload = bytearray(envelope.payload)
    payload[place % len(payload)] ^= 1 << bit
    with pytest.raises(CloisterError):
        check_signatures(read_contract(Envelope(CONTRACT_TYPE, bytes(payload), envelope.signatures)), PINS)
