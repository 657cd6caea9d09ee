"""Init-data: read strictly, hashed as it is, and compared with what the hardware signed, exactly."""

from __future__ import annotations

import hashlib
import json
import time
import tomllib
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.models import Device
from cloister.broker.init_data import MAX_INIT_DATA, InitData, check_init_data
from cloister.errors import Malformed, Untrusted

POLICY = "package agent_policy\n\ndefault AllowRequests := false\nallowed { input.path[0] == \"a.b\" }  # 'quoted'\n"
TOML = f"""algorithm = "sha384"
version = "0.1.0"   # the specification's only one

[data]
"aa.toml" = '''
[token_configs.kbs]
url = 'https://kbs:8080'
'''
"policy.rego" = '''
{POLICY}'''
key1 = "value1"
"""
JSON = json.dumps({"algorithm": "sha256", "version": "0.1.0", "data": {"key1": "value1", "key2": "value2"}}, indent=2)


def read(body: Any, form: Any = "toml") -> InitData:
    return InitData.read({"format": form, "body": body})


def test_toml_as_guests_write_it() -> None:
    init = read(TOML)
    assert init.algorithm == "sha384"
    assert init.digest == hashlib.sha384(TOML.encode()).digest()
    assert init.data["policy.rego"] == POLICY
    assert "https://kbs:8080" in init.data["aa.toml"]


def test_json() -> None:
    init = read(JSON, "json")
    assert init.digest == hashlib.sha256(JSON.encode()).digest()
    assert init.data == {"key1": "value1", "key2": "value2"}


def test_another_encoding_of_the_same_data_has_another_digest() -> None:
    """The specification says so: the text itself is hashed."""
    compact = json.dumps(json.loads(JSON), separators=(",", ":"))
    assert read(compact, "json").data == read(JSON, "json").data
    assert read(compact, "json").digest != read(JSON, "json").digest


@pytest.mark.parametrize("name", ["sha256", "sha-256", "sha384", "sha-384", "sha512", "sha-512"])
def test_names_of_hash_functions(name: str) -> None:
    text = JSON.replace("sha256", name)
    expected = hashlib.new(name.replace("-", ""), text.encode()).digest()
    assert read(text, "json").digest == expected


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "form.object"),
        ({"format": "toml"}, "form.missing"),
        ({"format": "toml", "body": TOML, "x": 1}, "form.unknown"),
        ({"format": "yaml", "body": TOML}, "form.field"),
        ({"format": "toml", "body": 5}, "form.field"),
        ({"format": "toml", "body": "x" * (MAX_INIT_DATA + 1)}, "form.field"),
        ({"format": "toml", "body": "# ä" + "ä" * (MAX_INIT_DATA // 2)}, "init-data.form"),
        ({"format": "toml", "body": "\ud800"}, "init-data.form"),
        ({"format": "toml", "body": JSON}, "init-data.form"),
        ({"format": "json", "body": TOML}, "json.syntax"),
        ({"format": "json", "body": "[]"}, "form.object"),
        ({"format": "json", "body": JSON.replace("0.1.0", "0.2.0")}, "form.field"),
        ({"format": "json", "body": JSON.replace("sha256", "md5")}, "form.field"),
        ({"format": "json", "body": JSON.replace('"value1"', "5")}, "init-data.form"),
        ({"format": "json", "body": JSON.replace("key1", "k" * 129)}, "init-data.form"),
        ({"format": "json", "body": JSON.replace('"version"', '"more": 1, "version"')}, "form.unknown"),
        ({"format": "toml", "body": TOML + "\n[more]\na = 1\n"}, "form.unknown"),
        ({"format": "toml", "body": TOML + "key1 = 'again'\n"}, "init-data.form"),
        ({"format": "toml", "body": TOML + "key2 = 1979-05-27\n"}, "init-data.form"),
        ({"format": "toml", "body": TOML + "key2 = ['a']\n"}, "init-data.form"),
        ({"format": "toml", "body": TOML + "".join(f"k{n} = 'x'\n" for n in range(65))}, "form.field"),
    ],
)
def test_what_is_no_init_data(value: Any, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        InitData.read(value)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "body",
    [
        "a" + ".a" * 30_000 + " = 1",
        '"a"' + '."a"' * 15_000 + " = 1",
        "a = " + "[" * 30_000,
        "a = " + "{b = " * 12_000,
        "a = [" + "1," * 32_000 + "]",
        "'''\n" * 16_000,
        '"""' + '\\"""' * 16_000,
        '"' + "\\" * 65_000,
        "'\n" * 32_000,
        "a = " + "9" * 65_000,
        "[a]\n" * 16_000,
        "[[a.b]]\n" * 8_000,
        "\n" * 65_000,
        "a = '''" + "'" * 65_000,
        TOML + '"x" = """' + "\\u0041" * 9_000 + '"""',
        '\\"""\n' * 13_000,
        '"' + '\\"' * 16_000,
        '"' + '\\"' * 32_000,
        "''" * 32_000,
        "#\n" * 32_000,
        "'''\n" + "''a'\n" * 8_000,
        TOML + '"x" = """' + '\\"' * 32_000,
        TOML + '"x" = """' + '""x' * 20_000,
    ],
)
def test_texts_that_are_made_to_take_long(body: str) -> None:
    start = time.thread_time()
    with suppress(Malformed):
        read(body)
    assert time.thread_time() - start < 1  # seconds of a runaway; it takes a few milliseconds


@pytest.mark.parametrize(
    "value",
    [
        '"a # \\" b"',
        "'a # \" b'",
        '"""a " "" \\""" # b"""',
        "'''a ' '' # b'''",
        '"""a"""""',
        "'''a'''''",
        '"[{.,"  # [{.,',
    ],
)
def test_nothing_in_a_string_counts_as_form(value: str) -> None:
    body = TOML + f"key2 = {value}\n" + f"key3 = '''\n{'[{., ' * 100}'''\n"
    assert read(body).data["key2"] == tomllib.loads(body)["data"]["key2"]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300), st.sampled_from(["toml", "json"]))
def test_any_text_is_read_or_refused_in_words_of_ours(body: str, form: str) -> None:
    with suppress(Malformed):
        assert read(body, form).digest


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(TOML) - 1), st.sampled_from("'\"\\\n[]{}.=#a\x00"))
def test_one_other_character_is_another_digest(at: int, other: str) -> None:
    changed = TOML[:at] + other + TOML[at + 1 :]
    if changed == TOML:
        return
    with suppress(Malformed):
        assert read(changed).digest != read(TOML).digest


# --- what the hardware says ---------------------------------------------------------------------------------------


def init(algorithm: str) -> InitData:
    return read(JSON.replace("sha256", algorithm), "json")


def device(tee: str, value: Any, name: str) -> Device:
    where = "facts" if name == "host_data" else "measurements"
    return Device("cpu0", tee, **{where: {name: value}})  # type: ignore[arg-type]


def pcr8(digest: bytes) -> str:
    return hashlib.sha256(bytes(32) + digest).hexdigest()


@pytest.mark.parametrize(
    ("tee", "name", "algorithm"),
    [("snp", "host_data", "sha256"), ("tdx", "mrconfigid", "sha384"), ("tpm", "pcr8", "sha256")],
)
def test_the_field_of_each_platform(tee: str, name: str, algorithm: str) -> None:
    shown = init(algorithm)
    value = pcr8(shown.digest) if tee == "tpm" else shown.digest.hex()
    check_init_data(shown, device(tee, value, name))
    for other in ("00" * (len(value) // 2), value[:-2], value + "00", value.upper() + " ", "", None, 5):
        with pytest.raises(Untrusted) as caught:
            check_init_data(shown, device(tee, other, name))
        assert caught.value.code == "init-data.other"
    with pytest.raises(Untrusted):
        check_init_data(shown, device(tee, value, "another"))


@pytest.mark.parametrize(
    ("tee", "name", "algorithm"),
    [
        ("snp", "host_data", "sha384"),
        ("snp", "host_data", "sha512"),
        ("tdx", "mrconfigid", "sha256"),
        ("tdx", "mrconfigid", "sha512"),
        ("tpm", "pcr8", "sha384"),
    ],
)
def test_a_digest_of_another_length_is_neither_padded_nor_cut(tee: str, name: str, algorithm: str) -> None:
    shown = init(algorithm)
    size = 48 if tee == "tdx" else 32
    fitted = (shown.digest + bytes(64))[:size].hex()  # what the specification would compare with
    with pytest.raises(Untrusted) as caught:
        check_init_data(shown, device(tee, fitted, name))
    assert caught.value.code == "init-data.size"


@pytest.mark.parametrize("tee", ["sgx", "nvidia", "insecure", "ear", ""])
def test_platforms_without_such_a_field(tee: str) -> None:
    shown = init("sha256")
    with pytest.raises(Untrusted) as caught:
        check_init_data(shown, device(tee, shown.digest.hex(), "host_data"))
    assert caught.value.code == "init-data.platform"
