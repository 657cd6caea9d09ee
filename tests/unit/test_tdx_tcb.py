"""TCB info and QE identities: Intel's rules for choosing a level, and for making one status of several."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attestation.collateral import CollateralSet, Staleness
from cloister.attestation.tdx import NOT_SUPPORTED, read_collateral, service_items, verify_quote
from cloister.attestation.tdx.documents import split_answer
from cloister.attestation.tdx.enclave import read_identity
from cloister.attestation.tdx.tcb import read_tcb_info
from cloister.errors import Malformed, Unavailable, Untrusted
from tests.tdx_forge import (
    COMPONENTS,
    DAY,
    FMSPC,
    NOW,
    PROCESSOR,
    TEE_TCB_SVN,
    Forge,
    level,
    platform_level,
    stamp,
)

TDX = Forge()
NEWER = Forge("tdx", 5, "td-1.5")
SGX = Forge("sgx", 3, authority=PROCESSOR)
MODULE = TDX.tcb_info()["tdxModuleIdentities"][0]
LOW = bytes([*COMPONENTS[:7], 2, *bytes(8)])
ZERO = bytes(16)


def judge(forge, *, info=None, identity=None, td=None, qe=None, staleness=None, now=NOW, **collateral):
    """The facts of a good quote under changed documents."""
    body = None if td is None else forge.td(**td)
    answers = {}
    if info is not None:
        answers["tcb_info"] = forge.answer("tcbInfo", forge.tcb_info(**info))
    if identity is not None:
        answers["qe_identity"] = forge.answer("enclaveIdentity", forge.qe_identity(**identity))
    return verify_quote(
        forge.quote(body, qe=qe),
        forge.collateral(**(answers | collateral)),
        now=now,
        staleness=staleness,
        roots=forge.roots,
    ).facts


def svn(minor, major, late=3):
    return bytes([minor, major, late, *bytes(13)])


# Levels


def test_the_first_level_that_is_reached_counts():
    facts = judge(TDX)
    assert facts["tcb_status"] == "UpToDate"
    assert [facts[f"tcb_evaluation{of}"] for of in ("", ".platform", ".qe")] == [19] * 3
    assert "tcb_status.running" not in facts  # a TD 1.0 body doesn't tell it
    assert facts["tcb_date"] == stamp(NOW - 100 * DAY)
    assert facts["advisories"] == []
    assert facts["fmspc"] == FMSPC.hex()
    assert (facts["tcb_status.platform"], facts["tcb_status.module"], facts["tcb_status.qe"]) == ("UpToDate",) * 3


@pytest.mark.parametrize("component", range(16))
def test_one_component_that_is_lower_takes_the_level_away(component):
    needed = bytearray(COMPONENTS)
    needed[component] += 1
    levels = [platform_level(bytes(needed), ZERO), platform_level(COMPONENTS, ZERO, status="OutOfDate")]
    assert judge(TDX, info={"tcbLevels": levels})["tcb_status"] == "OutOfDate"


def test_components_are_compared_one_by_one_not_as_a_number():
    higher_first = bytes([0, *([255] * 15)])  # as one number this is lower than the platform's
    assert judge(TDX, info={"tcbLevels": [platform_level(higher_first, ZERO)]})["tcb_status"] == NOT_SUPPORTED


def test_a_pcesvn_that_is_lower_takes_the_level_away():
    levels = [platform_level(COMPONENTS, ZERO, 14), platform_level(COMPONENTS, ZERO, 13, "OutOfDate")]
    assert judge(TDX, info={"tcbLevels": levels})["tcb_status"] == "OutOfDate"


@pytest.mark.parametrize("index", range(2, 16))
def test_one_tdx_component_that_is_lower_takes_the_level_away(index):
    needed = bytearray(TEE_TCB_SVN)
    needed[index] += 1
    assert judge(TDX, info={"tcbLevels": [platform_level(COMPONENTS, bytes(needed))]})["tcb_status"] == NOT_SUPPORTED


def test_the_modules_version_is_left_to_its_own_identity_from_1_5_on():
    levels = [platform_level(COMPONENTS, bytes([255, 255, 3, *bytes(13)]))]
    assert judge(TDX, info={"tcbLevels": levels}, td={"tee_tcb_svn": svn(6, 1)})["tcb_status"] == "UpToDate"


@pytest.mark.parametrize("needed", [svn(7, 0), svn(6, 1)])
def test_the_modules_version_is_a_component_before_1_5(needed):
    facts = judge(TDX, info={"tcbLevels": [platform_level(COMPONENTS, needed)]}, td={"tee_tcb_svn": svn(6, 0)})
    assert facts["tcb_status"] == NOT_SUPPORTED
    assert "tcb_date" not in facts


def test_a_1_0_module_needs_no_identity():
    facts = judge(TDX, info={"tdxModuleIdentities": []}, td={"tee_tcb_svn": svn(6, 0)})
    assert facts["tcb_status"] == "UpToDate"
    assert "tcb_status.module" not in facts


@pytest.mark.parametrize(
    ("minor", "status"), [(7, "UpToDate"), (6, "UpToDate"), (5, "OutOfDate"), (4, "OutOfDate"), (3, NOT_SUPPORTED)]
)
def test_the_modules_minor_version_chooses_its_level(minor, status):
    assert judge(TDX, td={"tee_tcb_svn": svn(minor, 1)})["tcb_status"] == status


def test_the_modules_identity_is_found_by_its_major_version():
    three = MODULE | {"id": "tdx_0A", "tcbLevels": [level(2, "OutOfDate")]}
    facts = judge(TDX, info={"tdxModuleIdentities": [three]}, td={"tee_tcb_svn": svn(2, 10)})
    assert facts["tcb_status"] == "OutOfDate"
    assert (facts["tcb.module_major"], facts["tcb.module_minor"]) == (10, 2)


@pytest.mark.parametrize("change", [{"tdxModuleIdentities": []}, {}])
def test_a_module_that_intel_does_not_know_is_untrusted(change):
    with pytest.raises(Untrusted) as error:
        judge(TDX, info=change, td={"tee_tcb_svn": svn(6, 1 if change else 2)})
    assert error.value.code == "tdx.module"


def test_version_2_of_the_document_is_read_for_sgx():
    tcb = {f"sgxtcbcomp{n:02}svn": value for n, value in enumerate(COMPONENTS, 1)} | {"pcesvn": 13}
    info = SGX.tcb_info(version=2, tcbLevels=[level(0, "SWHardeningNeeded") | {"tcb": tcb}])
    del info["id"]
    facts = judge(SGX, tcb_info=SGX.answer("tcbInfo", info))
    assert facts["tcb_status"] == "SWHardeningNeeded"


# Convergence


@pytest.mark.parametrize(
    ("platform", "together"),
    [
        ("UpToDate", "OutOfDate"),
        ("SWHardeningNeeded", "OutOfDate"),
        ("ConfigurationNeeded", "OutOfDateConfigurationNeeded"),
        ("ConfigurationAndSWHardeningNeeded", "OutOfDateConfigurationNeeded"),
        ("OutOfDate", "OutOfDate"),
        ("OutOfDateConfigurationNeeded", "OutOfDateConfigurationNeeded"),
    ],
)
@pytest.mark.parametrize("forge", [SGX, TDX])
def test_an_outdated_quoting_enclave_makes_the_whole_outdated(forge, platform, together):
    tdx = ZERO if forge is TDX else None
    info = {"tcbLevels": [platform_level(COMPONENTS, tdx, status=platform, advisories=("INTEL-SA-00009",))]}
    facts = judge(forge, info=info, qe={"svn": 5})
    assert facts["tcb_status"] == together
    assert facts["tcb_status.platform"] == platform
    assert facts["tcb_status.qe"] == "OutOfDate"
    assert facts["advisories"] == ["INTEL-SA-00009", "INTEL-SA-00003"]
    assert facts["tcb_date"] == stamp(NOW - 500 * DAY)
    assert judge(forge, info=info)["tcb_status"] == platform


def test_an_outdated_module_makes_the_whole_outdated():
    facts = judge(TDX, td={"tee_tcb_svn": svn(4, 1)})
    assert (facts["tcb_status"], facts["tcb_status.module"]) == ("OutOfDate", "OutOfDate")
    assert facts["advisories"] == ["INTEL-SA-00002"]
    assert facts["tcb_date"] == stamp(NOW - 300 * DAY)


# Relaunching (TDX 1.5)


def relaunch(first, now, **levels):
    return judge(NEWER, td={"tee_tcb_svn": svn(*first), "tee_tcb_svn2": svn(*now)}, **levels)["tcb_status"]


def test_a_domain_that_began_on_an_outdated_module_should_be_launched_again():
    assert relaunch((4, 1), (6, 1)) == "TDRelaunchAdvised"
    assert relaunch((4, 1), (4, 1)) == "OutOfDate"
    assert relaunch((6, 1), (6, 1)) == "UpToDate"


def test_a_relaunch_may_need_configuration_too():
    levels = {"tcbLevels": [platform_level(COMPONENTS, ZERO, status="ConfigurationNeeded")]}
    assert relaunch((4, 1), (6, 1), info=levels) == "TDRelaunchAdvisedConfigurationNeeded"


def running(now, first=(6, 1), **documents):
    return judge(NEWER, td={"tee_tcb_svn": svn(*first), "tee_tcb_svn2": svn(*now)}, **documents)


def test_a_module_that_runs_now_and_is_worse_counts():
    facts = running((4, 1))
    assert (facts["tcb_status"], facts["tcb_status.running"], facts["tcb_status.module"]) == ("OutOfDate",) * 3
    assert facts["advisories"] == ["INTEL-SA-00002"]
    assert facts["tcb_date"] == stamp(NOW - 300 * DAY)
    assert running((6, 1))["tcb_status.running"] == "UpToDate"


@pytest.mark.parametrize(
    ("first", "now", "together"),
    [
        ("UpToDate", "ConfigurationNeeded", "ConfigurationNeeded"),
        ("ConfigurationNeeded", "UpToDate", "ConfigurationNeeded"),
        ("UpToDate", "OutOfDateConfigurationNeeded", "OutOfDateConfigurationNeeded"),
        ("ConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("OutOfDate", "OutOfDateConfigurationNeeded", "OutOfDateConfigurationNeeded"),
        ("OutOfDate", "OutOfDate", "OutOfDate"),
        ("OutOfDate", "UpToDate", "TDRelaunchAdvised"),
        ("OutOfDate", "ConfigurationNeeded", "TDRelaunchAdvisedConfigurationNeeded"),
        ("OutOfDateConfigurationNeeded", "UpToDate", "TDRelaunchAdvisedConfigurationNeeded"),
    ],
)
@pytest.mark.parametrize("higher", ["first", "now"])
def test_what_was_launched_and_what_runs_come_to_the_worse(first, now, together, higher):
    advised = {"first": ("INTEL-SA-1", "INTEL-SA-9"), "now": ("INTEL-SA-2", "INTEL-SA-9")}
    minor = {"first": 8, "now": 7} if higher == "first" else {"first": 7, "now": 8}
    levels = [
        level(minor[name], status, date=NOW - minor[name] * DAY, advisories=advised[name])
        for name, status in (("first", first), ("now", now))
    ]
    levels.sort(key=lambda entry: -entry["tcb"]["isvsvn"])
    modules = [MODULE | {"tcbLevels": levels}]
    identity = {"tcbLevels": [level(8, date=NOW - DAY)]}
    platform = [platform_level(COMPONENTS, ZERO, date=NOW - DAY)]
    facts = running(
        (minor["now"], 1),
        (minor["first"], 1),
        info={"tdxModuleIdentities": modules, "tcbLevels": platform},
        identity=identity,
    )
    assert facts["tcb_status"] == together
    assert facts["advisories"] == ["INTEL-SA-1", "INTEL-SA-9", "INTEL-SA-2"]
    assert facts["tcb_date"] == stamp(NOW - 8 * DAY)


def test_a_module_that_runs_now_and_that_intel_says_nothing_about():
    for first in ((6, 1), (4, 1)):
        assert running((3, 1), first)["tcb_status"] == NOT_SUPPORTED
        with pytest.raises(Untrusted) as error:
            running((1, 2), first)
        assert error.value.code == "tdx.module"


def test_a_module_that_runs_now_and_was_revoked_is_refused():
    modules = [MODULE | {"tcbLevels": [level(6), level(4, "Revoked")]}]
    with pytest.raises(Untrusted) as error:
        running((4, 1), info={"tdxModuleIdentities": modules})
    assert error.value.code == "tdx.tcb-revoked"


def test_the_components_that_run_now_count():
    """Not only the module's version: the other TDX components may be lower now."""
    levels = [platform_level(COMPONENTS, svn(0, 0, 3)), platform_level(COMPONENTS, svn(0, 0, 2), status="OutOfDate")]
    td = {"tee_tcb_svn": svn(6, 1, 3), "tee_tcb_svn2": svn(6, 1, 2)}
    facts = judge(NEWER, info={"tcbLevels": levels}, td=td)
    assert (facts["tcb_status"], facts["tcb_status.platform"]) == ("OutOfDate", "OutOfDate")


# Rounds of evaluation


@pytest.mark.parametrize(("platform", "enclave"), [(19, 17), (17, 19), (18, 18)])
def test_the_older_of_two_rounds_of_evaluation_counts(platform, enclave):
    numbers = ({"tcbEvaluationDataNumber": number} for number in (platform, enclave))
    facts = judge(TDX, info=next(numbers), identity=next(numbers))
    assert facts["tcb_evaluation"] == min(platform, enclave)
    assert (facts["tcb_evaluation.platform"], facts["tcb_evaluation.qe"]) == (platform, enclave)


@pytest.mark.parametrize("forge", [SGX, TDX])
@pytest.mark.parametrize(
    ("status", "platform", "together"),
    [
        ("ConfigurationNeeded", "UpToDate", "ConfigurationNeeded"),
        ("ConfigurationNeeded", "SWHardeningNeeded", "ConfigurationAndSWHardeningNeeded"),
        ("ConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("OutOfDateConfigurationNeeded", "UpToDate", "OutOfDateConfigurationNeeded"),
        ("OutOfDateConfigurationNeeded", "SWHardeningNeeded", "OutOfDateConfigurationNeeded"),
    ],
)
def test_a_quoting_enclave_that_needs_configuration_is_not_up_to_date(forge, status, platform, together):
    levels = [platform_level(COMPONENTS, ZERO if forge is TDX else None, status=platform)]
    facts = judge(forge, info={"tcbLevels": levels}, identity={"tcbLevels": [level(9), level(8, status)]})
    assert (facts["tcb_status"], facts["tcb_status.qe"]) == (together, status)


@pytest.mark.parametrize("status", ["ConfigurationNeeded", "OutOfDateConfigurationNeeded"])
def test_a_module_that_needs_configuration_is_not_up_to_date(status):
    modules = [MODULE | {"tcbLevels": [level(6, status)]}]
    assert judge(TDX, info={"tdxModuleIdentities": modules})["tcb_status"] == status


# Documents


def test_a_revoked_state_is_refused_wherever_it_stands():
    cases = [
        {"info": {"tcbLevels": [platform_level(COMPONENTS, ZERO, status="Revoked")]}},
        {"identity": {"tcbLevels": [level(8, "Revoked")]}},
        {"info": {"tdxModuleIdentities": [MODULE | {"tcbLevels": [level(6, "Revoked")]}]}},
    ]
    for case in cases:
        with pytest.raises(Untrusted) as error:
            judge(TDX, **case)
        assert error.value.code == "tdx.tcb-revoked"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 4},
        {"version": 1},
        {"id": "QE"},
        {"tcbType": 1},
        {"tcbLevels": []},
        {"tcbLevels": None},
        {"tcbLevels": [platform_level(COMPONENTS[:15], ZERO)]},
        {"tcbLevels": [platform_level(COMPONENTS, ZERO + b"\0")]},
        {"tcbLevels": [platform_level(COMPONENTS, None)]},
        {"tcbLevels": [platform_level(COMPONENTS, ZERO, status="Fine")]},
        {"tcbLevels": [platform_level(COMPONENTS, ZERO, pcesvn=-1)]},
        {"tcbLevels": [platform_level(COMPONENTS, ZERO, advisories=("a\nb",))]},
        {"tcbLevels": [platform_level(COMPONENTS, ZERO) | {"tcbDate": "yesterday"}]},
        {"tcbLevels": [platform_level(COMPONENTS, ZERO)] * 257},
        {"tdxModule": None},
        {"tdxModuleIdentities": [MODULE] * 2},
        {"tdxModuleIdentities": [MODULE | {"id": "TDX_1"}]},
        {"tdxModuleIdentities": [MODULE | {"tcbLevels": [level(6, "SWHardeningNeeded")]}]},
        {"fmspc": "zz"},
        {"tcbEvaluationDataNumber": "19"},
    ],
)
def test_tcb_info_in_another_form_is_malformed(change):
    with pytest.raises(Malformed):
        read_tcb_info(TDX.tcb_info(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"id": "QVE"},
        {"miscselect": "00"},
        {"attributesMask": "FF"},
        {"mrsigner": 1},
        {"isvprodid": 70000},
        {"tcbLevels": []},
        {"tcbLevels": [level(-1)]},
        {"tcbLevels": [level(1, "SWHardeningNeeded")]},
        {"tcbLevels": [level(1, "ConfigurationAndSWHardeningNeeded")]},
    ],
)
def test_a_qe_identity_in_another_form_is_malformed(change):
    with pytest.raises(Malformed):
        read_identity(TDX.qe_identity(**change))


def test_what_is_signed_is_cut_out_as_it_was_sent():
    signature = b"ab" * 64
    for text in (
        b'{"tcbInfo":{"a":1},"signature":"%b"}' % signature,
        b'{"signature":"%b","tcbInfo":{"a":1}}' % signature,
        b' { "signature" : "%b" , "tcbInfo" : {"a":1} } \n' % signature,
    ):
        assert split_answer(text, "tcbInfo").body == b'{"a":1}'
    odd = b'{"tcbInfo":{ "signature":"}", "\\u0061" :[ {"b" : "\xc3\xa4"}\n] },"signature":"%b"}' % signature
    assert split_answer(odd, "tcbInfo").body == odd[11 : odd.rindex(b',"signature"')]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"tcbInfo":{},"signature":"%b"' % (b"ab" * 64),
        b'{"tcbInfo":{},"signature":"%b"}' % (b"ab" * 63),
        b'{"tcbInfo":[],"signature":"%b"}' % (b"ab" * 64),
        b'{"tcbInfo":{},"tcbInfo":{},"signature":"%b"}' % (b"ab" * 64),
        b'{"tcbInfo":{},"\\u0074cbInfo":{},"signature":"%b"}' % (b"ab" * 64),
        b'{"tcbInfo":{},"more":1,"signature":"%b"}' % (b"ab" * 64),
        b'{"tcbInfo":{"a":1.5},"signature":"%b"}' % (b"ab" * 64),
        b'{"tcbInfo":' + b'{"a":' * 40 + b"1" + b"}" * 40 + b',"signature":"%b"}' % (b"ab" * 64),
        b"[" * 100_000,
        b" " * 300_000,
        b"\xff",
    ],
)
def test_an_answer_in_another_form_is_malformed(text):
    with pytest.raises(Malformed):
        split_answer(text, "tcbInfo")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_an_answer_or_malformed(data):
    for read in (lambda d: split_answer(d, "tcbInfo"), lambda d: read_collateral(d, obtained=0)):
        with suppress(Malformed):
            read(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from(["0000", "UpToDate", "TDX"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(sorted(TDX.tcb_info())), JSON)
def test_any_value_in_tcb_info_is_read_or_malformed(key, value):
    with suppress(Malformed):
        read_tcb_info(TDX.tcb_info(**{key: value}))


@given(st.sampled_from(sorted(TDX.qe_identity())), JSON)
def test_any_value_in_a_qe_identity_is_read_or_malformed(key, value):
    with suppress(Malformed):
        read_identity(TDX.qe_identity(**{key: value}))


# Collateral


def collateral_file(forge, **changed):
    chain = (forge.signer.pem + forge.root.pem).decode()
    info, identity = (
        json.loads(forge.answer(key, body))
        for key, body in (("tcbInfo", forge.tcb_info()), ("enclaveIdentity", forge.qe_identity()))
    )
    return json.dumps(
        {
            "tcb_info": json.dumps(info["tcbInfo"], separators=(",", ":")),
            "tcb_info_signature": info["signature"],
            "tcb_info_issuer_chain": chain,
            "qe_identity": json.dumps(identity["enclaveIdentity"], separators=(",", ":")),
            "qe_identity_signature": identity["signature"],
            "qe_identity_issuer_chain": chain,
            "pck_crl": forge.authority.crl().hex(),
            "pck_crl_issuer_chain": chain,
            "root_ca_crl": forge.root.crl().hex(),
        }
        | changed
    ).encode()


@pytest.mark.parametrize("forge", [TDX, SGX])
def test_the_common_collateral_file_is_read(forge):
    items = read_collateral(collateral_file(forge, pck_certificate_chain="unused"), obtained=NOW)
    authority = "platform" if forge is TDX else "processor"
    assert [(i.kind, i.name) for i in items] == [
        ("intel-tcb", f"{FMSPC.hex()}-{forge.tee}"),
        ("intel-qe-identity", forge.tee),
        ("intel-pck-crl", authority),
        ("intel-root-crl", "root"),
    ]
    facts = verify_quote(forge.quote(), CollateralSet(items), now=NOW, roots=forge.roots).facts
    assert facts["tcb_status"] == "UpToDate"


@pytest.mark.parametrize(
    "change",
    [
        {"tcb_info": "[]"},
        {"tcb_info": '{"id":"TDX"},"signature":"00"},{"a":{}'},
        {"tcb_info_signature": '"}'},
        {"pck_crl": "00"},
        {"pck_crl": "zz"},
        {"root_ca_crl": Forge("sgx").signer.crl().hex()},
        {"qe_identity": None},
    ],
)
def test_a_collateral_file_in_another_form_is_malformed(change):
    with pytest.raises(Malformed):
        read_collateral(collateral_file(TDX, **change), obtained=NOW)


def test_revocation_lists_come_as_der_hex_or_pem():
    der = TDX.authority.crl()
    for data in (der, der.hex().encode(), der.hex().upper().encode() + b"\n"):
        assert service_items(pck_crl=data, obtained=NOW)[0].data == der


@pytest.mark.parametrize("kind", ["intel-tcb", "intel-qe-identity", "intel-pck-crl", "intel-root-crl"])
def test_what_is_missing_is_named(kind):
    items = [item for item in TDX.items() if item.kind != kind]
    with pytest.raises(Unavailable) as error:
        verify_quote(TDX.quote(), CollateralSet(items), now=NOW, roots=TDX.roots)
    assert error.value.code == "tdx.collateral"
    assert error.value.details["kind"] == kind


def test_one_documents_issuer_chain_does_for_the_other():
    chain = TDX.signer.pem + TDX.root.pem
    assert judge(TDX, tcb_info_chain=b"", qe_identity_chain=chain)["tcb_status"] == "UpToDate"
    with pytest.raises(Unavailable) as error:
        judge(TDX, tcb_info_chain=b"", qe_identity_chain=b"")
    assert error.value.code == "tdx.collateral"


def test_without_collateral_nothing_is_said_about_the_platforms_state():
    device = verify_quote(TDX.quote(), None, now=NOW, roots=TDX.roots)
    assert not any(name.startswith("tcb_") or name == "advisories" for name in device.facts)
    assert "not checked" in device.notes[0]


def test_collateral_may_be_used_a_while_after_its_end_where_the_owner_says_so():
    late = NOW + 35 * DAY
    with pytest.raises(Untrusted) as error:
        judge(TDX, now=late)
    assert error.value.code == "collateral.stale"
    assert judge(TDX, now=late, staleness=Staleness(grace=10 * DAY))["tcb_status"] == "UpToDate"


def test_a_clock_that_is_a_little_behind_refuses_nothing():
    assert judge(TDX, now=NOW - DAY - 11 * 3600)["tcb_status"] == "UpToDate"
    with pytest.raises(Untrusted) as error:
        judge(TDX, now=NOW - DAY - 13 * 3600)
    assert error.value.code == "collateral.future"
