"""The binding of evidence to one release: fixed vectors, exact sizes, every input matters."""

import base64
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation import Binding, check_nonce, device_data, make_nonce, report_data
from cloister.attestation.binding import MAX_ADDITIONAL, MAX_NONCE, MIN_NONCE
from cloister.errors import Malformed, Untrusted

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "binding.json").read_text())
KINDS = {"malformed": Malformed, "untrusted": Untrusted}


def binding(fields: dict[str, str], **changed: str) -> Binding:
    values = fields | changed
    raw = {k: bytes.fromhex(v) for k, v in values.items() if k not in ("purpose", "lease_sequence")}
    return Binding(purpose=values["purpose"], lease_sequence=int(values["lease_sequence"]), **raw)


def first() -> Binding:
    return binding(VECTORS["good"][0]["binding"])


@pytest.mark.parametrize("case", VECTORS["good"], ids=lambda c: c["name"])
def test_vector_holds(case):
    ctx = binding(case["binding"]).ctx()
    assert ctx.hex() == case["ctx"]
    nonce = make_nonce(ctx, bytes.fromhex(case["random"]))
    assert nonce == case["nonce"]
    check_nonce(nonce, ctx)
    assert device_data(nonce, case["tee_pubkey"]).hex() == case["device"]
    assert report_data(nonce, case["tee_pubkey"], case["additional_evidence"]).hex() == case["report"]


@pytest.mark.parametrize("case", VECTORS["bad_bindings"], ids=lambda c: c["reason"])
def test_bad_binding_is_refused(case):
    with pytest.raises(Malformed) as caught:
        binding(VECTORS["good"][0]["binding"], **{case["field"]: case["value"]})
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("case", VECTORS["bad_nonces"], ids=lambda c: c["reason"])
def test_bad_nonce_is_refused(case):
    with pytest.raises(KINDS[case["error"]]) as caught:
        check_nonce(case["nonce"], first().ctx())
    assert caught.value.code == case["code"]


@pytest.mark.parametrize("value", [True, 1.0, "0", None])
def test_lease_sequence_must_be_an_integer(value):
    with pytest.raises(Malformed, match="lease sequence"):
        dataclasses.replace(first(), lease_sequence=value)


@pytest.mark.parametrize("value", ["0" * 32, bytearray(32), None])
def test_fields_must_be_bytes(value):
    with pytest.raises(Malformed) as caught:
        dataclasses.replace(first(), contract=value)
    assert caught.value.code == "binding.size"


@given(
    field=st.sampled_from(["broker_pin", "contract", "job", "instance", "hpke_public", "signing_public"]),
    position=st.integers(0, 10**6),
)
@settings(max_examples=60)
def test_every_bit_of_every_field_changes_ctx(field, position):
    value = bytearray(getattr(first(), field))
    at = position % (8 * len(value))
    value[at // 8] ^= 1 << (at % 8)
    assert dataclasses.replace(first(), **{field: bytes(value)}).ctx() != first().ctx()


def test_purpose_and_sequence_change_ctx():
    base = first()
    others = [dataclasses.replace(base, purpose=p) for p in ("renew", "resume")]
    others += [dataclasses.replace(base, lease_sequence=n) for n in (1, 256, 2**63)]
    assert len({b.ctx() for b in (base, *others)}) == 6


@pytest.mark.parametrize(("ctx", "random"), [(31, 32), (33, 32), (32, 31), (32, 33), (0, 64)])
def test_nonce_is_made_from_exact_sizes(ctx, random):
    with pytest.raises(Malformed) as caught:
        make_nonce(bytes(ctx), bytes(random))
    assert caught.value.code == "binding.size"


@pytest.mark.parametrize("nonce", ["a" * (MIN_NONCE - 1), "a" * (MAX_NONCE + 1), "ä" * 20, "", None, b"a" * 20])
def test_report_refuses_a_nonce_outside_the_limits(nonce):
    for make in (lambda: report_data(nonce, {"kty": "EC"}, ""), lambda: device_data(nonce, {"kty": "EC"})):
        with pytest.raises(Malformed) as caught:
            make()
        assert caught.value.code == "binding.nonce-size"


@pytest.mark.parametrize("key", [{}, [], None, "key", {"x": "a" * 5000}])
def test_report_refuses_a_key_that_is_none(key):
    with pytest.raises(Malformed) as caught:
        report_data("n" * 44, key, "")
    assert caught.value.code == "binding.tee-pubkey"


@pytest.mark.parametrize("additional", [None, b"", "a" * (MAX_ADDITIONAL + 1)])
def test_report_refuses_other_additional_evidence(additional):
    with pytest.raises(Malformed) as caught:
        report_data("n" * 44, {"kty": "EC"}, additional)
    assert caught.value.code == "binding.additional"


def test_report_distinguishes_where_a_text_stands():
    """Moving bytes between the fields must not keep the hash."""
    key = {"kty": "EC"}
    assert report_data("n" * 44, key, "x") != report_data("n" * 44 + "x", key, "")
    assert report_data("n" * 44, key, "") != device_data("n" * 44, key)


def test_check_nonce_accepts_only_text():
    with pytest.raises(Malformed) as caught:
        check_nonce(base64.b64encode(bytes(64)), bytes(32))  # type: ignore[arg-type]
    assert caught.value.code == "binding.nonce-form"
