"""Reference values as signed CoRIMs (draft-ietf-rats-corim-11): what a measurement should be, said by who should know.

Ours have one profile: deterministic CBOR, a COSE_Sign1 around it, one CoMID, and reference triples only. A platform is
an environment, named by its class's vendor and model; a measured thing is named by a text. Vendors' files are read more
leniently in form, and as strictly in meaning: whatever could narrow a value and isn't understood refuses the file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ..crypto import Signer
from ..crypto.cbor import Tag, cbor, parse_cbor
from ..crypto.cose import CoseKey, cose_sign1, cose_verify1
from ..errors import Malformed, Untrusted

__all__ = ["PLATFORMS", "PROFILE", "Manifest", "ReferenceValue", "read_corim", "write_corim"]

PROFILE: Final = "urn:cloister:corim:v1"
MAX_CORIM: Final = 1 << 20
PLATFORMS: Final[dict[str, tuple[str, str]]] = {
    "agent": ("Cloister", "agent"),
    "nvidia": ("NVIDIA", "GPU"),
    "sgx": ("Intel", "SGX"),
    "snp": ("AMD", "SEV-SNP"),
    "tdx": ("Intel", "TDX"),
    "tpm": ("TCG", "TPM 2.0"),
    "workload": ("Cloister", "workload"),
}
"""Vendor and model of the classes of our profile, by the word that the rest of Cloister has for them."""

# Tags of the draft (its section 11.2, and RFC 8949 for 1 and 32), and numbers of the maps' members.
_CORIM, _COMID, _SVN, _MIN_SVN, _URI, _TIME = 501, 506, 552, 553, 32, 1
_OLD_TAGS: Final = bytes.fromhex("d901f4d901f6")  # 500 and 502, which earlier drafts put around a signed CoRIM
_ID, _TAGS, _PROFILE, _VALIDITY, _ENTITIES = 0, 1, 3, 4, 5
_TAG_IDENTITY, _TRIPLES, _REFERENCE = 1, 4, 0
_CLASS, _VENDOR, _MODEL = 0, 1, 2
_MEMBERS: Final = {0: "id", _VENDOR: "vendor", _MODEL: "model", 3: "layer", 4: "index"}
_VENDORS: Final = "vendor:"  # begins the name of every platform that is not one of ours
_MKEY, _MVAL = 0, 1
_MV_SVN, _MV_DIGESTS, _MV_REGISTERS = 1, 2, 14
_CONTENT_TYPE, _META, _RIM = 3, 8, "application/rim+cbor"
_HASHES: Final = {1: ("sha-256", 32), 7: ("sha-384", 48), 8: ("sha-512", 64)}  # IANA: Named Information Hash Algorithms
_NUMBERS: Final = {32: 1, 48: 7, 64: 8}

_HEX = re.compile(r"(?:[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128})")
_MAX_VALUES = 4096
_MAX_TEXT = 256
_MAX_TIME = 1 << 40


@dataclass(frozen=True)
class ReferenceValue:
    """One thing on one platform: any of ``digests`` (hex) is right, or, for a version number, ``least`` and above.

    ``register``: it grows by extension (a PCR, an RTMR) and is written so.
    """

    platform: str
    name: str
    digests: tuple[str, ...] = ()
    least: int | None = None
    register: bool = False

    def __post_init__(self) -> None:
        fine = bool(self.digests) != (self.least is not None) and all(_HEX.fullmatch(d) for d in self.digests)
        if not fine or not _printable(self.name) or (self.least is not None and not 0 <= self.least < 1 << 63):
            raise Malformed("corim.value", "A reference value is a name with digests in hex, or with a least number.")


@dataclass(frozen=True)
class Manifest:
    """What a CoRIM says, and who signed it. Times are POSIX seconds; None: not limited."""

    name: str
    signer: str
    key: CoseKey
    values: tuple[ReferenceValue, ...]
    not_before: int | None = None
    not_after: int | None = None

    def named(self, platform: str, name: str) -> frozenset[str]:
        """All digests that are right for one thing."""
        found = (v.digests for v in self.values if (v.platform, v.name) == (platform, name))
        return frozenset(digest for digests in found for digest in digests)


def write_corim(
    values: Iterable[ReferenceValue],
    *,
    name: str,
    signer_name: str,
    key: Signer,
    not_after: int | None = None,
) -> bytes:
    """Sign reference values. The same values under the same name and key give the same bytes, in whatever order."""
    plain = (replace(value, digests=tuple(sorted(set(value.digests)))) for value in values)
    ordered = sorted(plain, key=lambda v: (v.platform, v.name, v.digests, v.least or 0))
    if not ordered or not {value.platform for value in ordered} <= set(PLATFORMS):
        raise Malformed("corim.value", "Reference values are of the platforms " + ", ".join(PLATFORMS) + ".")
    triples = [[_environment(value.platform), [found]] for value in ordered for found in _measurements(value)]
    comid = cbor({_TAG_IDENTITY: {0: name}, _TRIPLES: {_REFERENCE: triples}})
    corim: dict[int, Any] = {_ID: name, _TAGS: [Tag(_COMID, comid)], _PROFILE: Tag(_URI, PROFILE)}
    if not_after is not None:
        corim[_VALIDITY] = {1: Tag(_TIME, not_after)}
    meta = cbor({0: {0: signer_name}})
    data = cose_sign1(cbor(Tag(_CORIM, corim)), {_CONTENT_TYPE: _RIM, _META: meta}, key)
    read_corim(data, [CoseKey.ed25519(key.public)], now=0)  # what no reader takes is not written
    return data


def _environment(platform: str) -> dict[int, Any]:
    vendor, model = PLATFORMS[platform]
    return {_CLASS: {_VENDOR: vendor, _MODEL: model}}


def _measurements(value: ReferenceValue) -> Iterable[dict[int, Any]]:
    """One for each state that is right: the draft wants other states in other triples (5.1.5). Only registers list
    several (5.1.4.7)."""
    digests = [[_NUMBERS[len(d) // 2], bytes.fromhex(d)] for d in value.digests]
    if value.least is not None:
        yield {_MKEY: value.name, _MVAL: {_MV_SVN: Tag(_MIN_SVN, value.least)}}
    elif value.register:
        yield {_MKEY: value.name, _MVAL: {_MV_REGISTERS: {value.name: digests}}}
    else:
        yield from ({_MKEY: value.name, _MVAL: {_MV_DIGESTS: [digest]}} for digest in digests)


def read_corim(
    data: bytes, keys: Collection[CoseKey], *, now: int, vendor: bool = False, profiles: Collection[str] = ()
) -> Manifest:
    """A signed CoRIM by one of ``keys``, in its time. Raises Malformed or Untrusted.

    ``vendor`` reads one that isn't of our profile: other encodings, entities, several tags, no profile or one of
    ``profiles``. The draft asks to reject a profile that isn't understood.
    """
    if vendor:
        data = data.removeprefix(_OLD_TAGS)
    signed = cose_verify1(data, keys, limit=MAX_CORIM, strict=not vendor)
    if signed.protected.get(_CONTENT_TYPE) != _RIM:
        raise Malformed("corim.content", "The signed file is not a CoRIM.")
    signer, meta_times = _meta(signed.protected.get(_META), vendor)
    tagged = parse_cbor(signed.payload, limit=MAX_CORIM, strict=not vendor)
    corim = tagged.value if isinstance(tagged, Tag) and tagged.number == _CORIM else None
    known = {_ID, _TAGS, _PROFILE, _VALIDITY} | ({2, _ENTITIES} if vendor else set())
    corim = _map(corim, known, {_ID, _TAGS} if vendor else {_ID, _TAGS, _PROFILE})
    _check_profile(corim.get(_PROFILE), vendor, profiles)
    times = [meta_times, _times(corim.get(_VALIDITY))]
    before = max((t[0] for t in times if t[0] is not None), default=None)
    after = min((t[1] for t in times if t[1] is not None), default=None)
    if (before is not None and now < before) or (after is not None and now >= after):
        raise Untrusted("corim.time", "The reference values are not in their time; get newer ones from who signs them.")
    values = _merged(value for tag in _list(corim[_TAGS]) for value in _comid(tag, vendor))
    if not values:
        raise Malformed("corim.count", "The CoRIM holds no reference value.")
    return Manifest(_id(corim[_ID]), signer, signed.key, tuple(values), before, after)


def _merged(values: Iterable[ReferenceValue]) -> list[ReferenceValue]:
    """One value for each thing, with every digest that is right for it; for a least number the highest."""
    things: dict[tuple[str, str, bool, bool], list[ReferenceValue]] = {}
    for count, value in enumerate(values):
        if count >= _MAX_VALUES:
            raise Malformed("corim.count", f"A CoRIM holds at most {_MAX_VALUES} reference values.")
        things.setdefault((value.platform, value.name, value.register, value.least is None), []).append(value)
    return [_one(same) for same in things.values()]


def _one(same: list[ReferenceValue]) -> ReferenceValue:
    """What several values say of one thing; put together once, since a thing may have thousands of digests."""
    least = [value.least for value in same if value.least is not None]
    if least:
        return replace(same[0], least=max(least))
    return replace(same[0], digests=tuple(dict.fromkeys(digest for value in same for digest in value.digests)))


def _check_profile(value: Any, vendor: bool, profiles: Collection[str]) -> None:
    if value is None and vendor:
        return
    name = value.value if isinstance(value, Tag) and value.number == _URI else value
    accepted = {*profiles, PROFILE} if vendor else {PROFILE}
    if not isinstance(name, str) or name not in accepted:
        raise Untrusted("corim.profile", "The CoRIM has a profile that is not understood here.")


def _meta(raw: Any, vendor: bool) -> tuple[str, tuple[int | None, int | None]]:
    """The signer's name as it stands in the header, and for how long the signature counts."""
    if not isinstance(raw, bytes):
        raise Malformed("corim.meta", "The CoRIM does not say who signed it.")
    meta = _map(parse_cbor(raw, limit=MAX_CORIM, strict=not vendor), {0, 1}, {0})
    signer = _map(meta[0], {0, 1}, {0})
    return _line(signer[0]), _times(meta.get(1))


def _times(value: Any) -> tuple[int | None, int | None]:
    if value is None:
        return None, None
    found = _map(value, {0, 1}, {1})
    return _time(found.get(0)), _time(found[1])


def _time(value: Any) -> int | None:
    if value is None:
        return None
    number = value.value if isinstance(value, Tag) and value.number == _TIME else None
    if not isinstance(number, int) or not _number(number) or not 0 <= number < _MAX_TIME:
        raise Malformed("corim.time", "A time in the CoRIM is not whole POSIX seconds.")
    return number


def _comid(tag: Any, vendor: bool) -> Iterable[ReferenceValue]:
    if not isinstance(tag, Tag) or tag.number != _COMID or not isinstance(tag.value, bytes):
        raise Malformed("corim.tag", "The CoRIM holds something else than CoMIDs; those alone are read here.")
    known = {_TAG_IDENTITY, _TRIPLES} | ({0, 2, 3} if vendor else set())
    comid = _map(parse_cbor(tag.value, limit=MAX_CORIM, strict=not vendor), known, {_TAG_IDENTITY, _TRIPLES})
    # A vendor's other triples (endorsements, keys) add nothing that is accepted here, so they may be passed over.
    triples = comid[_TRIPLES]
    if not isinstance(triples, dict) or (not vendor and set(triples) != {_REFERENCE}):
        raise Malformed("corim.triples", "The CoMID holds something else than reference values.")
    for triple in _list(triples.get(_REFERENCE, [])):
        if not isinstance(triple, list) or len(triple) != 2:
            raise Malformed("corim.triples", "A reference triple is not an environment and its measurements.")
        platform = _platform(triple[0], vendor)
        for measurement in _list(triple[1]):
            yield from _value(platform, measurement)


def _platform(environment: Any, vendor: bool) -> str:
    found = _map(environment, {_CLASS}, {_CLASS})
    # Members that name a class more exactly (an id, a layer) would be lost: a name is made of all of them.
    cls = _map(found[_CLASS], {0, _VENDOR, _MODEL, 3, 4} if vendor else {_VENDOR, _MODEL}, set())
    pair = (cls.get(_VENDOR), cls.get(_MODEL))
    for platform, names in PLATFORMS.items():
        if names == pair and set(cls) == {_VENDOR, _MODEL}:
            return platform
    if not vendor:
        raise Malformed("corim.class", "The CoRIM is about a platform that is not known here.")
    # Never a word of ours, whatever the file says: a class with the model "workload" alone is nobody's workload here.
    return _VENDORS + "/".join(f"{_MEMBERS[key]}={_word(cls[key])}" for key in sorted(cls))


def _word(value: Any) -> str:
    """A class's or a measured thing's name, of whatever type, as text."""
    if isinstance(value, Tag):
        value = value.value
    if isinstance(value, bytes) and len(value) <= _MAX_TEXT:
        return value.hex()
    if _number(value):
        return str(value)
    return _line(value)


def _value(platform: str, measurement: Any) -> Iterable[ReferenceValue]:
    found = _map(measurement, {_MKEY, _MVAL}, {_MVAL})
    name = "" if _MKEY not in found else _word(found[_MKEY])
    # Flags, masks, raw values, versions: what isn't understood could have ruled a measurement out.
    values = _map(found[_MVAL], {_MV_SVN, _MV_DIGESTS, _MV_REGISTERS}, set())
    if not values:
        raise Malformed("corim.value", "A measurement in the CoRIM has no value.")
    if _MV_SVN in values:
        yield ReferenceValue(platform, name or "svn", least=_svn(values[_MV_SVN]))
    if _MV_DIGESTS in values:
        yield ReferenceValue(platform, name or "digest", digests=_digests(values[_MV_DIGESTS]))
    if _MV_REGISTERS in values:
        if not isinstance(values[_MV_REGISTERS], dict):
            raise Malformed("corim.value", "Registers in the CoRIM are not a map.")
        for register, digests in values[_MV_REGISTERS].items():
            yield ReferenceValue(platform, _word(register), digests=_digests(digests), register=True)


def _svn(value: Any) -> int:
    """A least version number. An exact one is not read: evidence with a newer version would be turned away."""
    if not isinstance(value, Tag) or value.number != _MIN_SVN or not _number(value.value):
        raise Malformed("corim.svn", "A version number in the CoRIM is not a least one.")
    return int(value.value)


def _digests(value: Any) -> tuple[str, ...]:
    out = []
    for entry in _list(value):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], bytes):
            raise Malformed("corim.digest", "A digest in the CoRIM is not an algorithm and its value.")
        algorithm = _HASHES.get(entry[0]) if _number(entry[0]) else None
        if algorithm is None or len(entry[1]) != algorithm[1]:
            raise Malformed("corim.digest", "A digest in the CoRIM is not SHA-256, SHA-384 or SHA-512.")
        out.append(entry[1].hex())
    return tuple(out)


def _number(value: Any) -> bool:
    """A whole number. Python's True is 1 too, and CBOR's is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _map(value: Any, known: set[int], needed: set[int]) -> dict[Any, Any]:
    if not isinstance(value, dict) or not needed <= set(value) <= known:
        raise Malformed("corim.form", "The CoRIM lacks a member or has one that is not understood here.")
    return value


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list) or not value or len(value) > _MAX_VALUES:
        raise Malformed("corim.form", f"A list in the CoRIM does not have 1 to {_MAX_VALUES} entries.")
    return value


def _id(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) and len(value) == 16 else _line(value)


def _line(value: Any) -> str:
    if not isinstance(value, str) or not _printable(value):
        raise Malformed("corim.text", "A text in the CoRIM is not one line of printable characters.")
    return value


def _printable(text: str) -> bool:
    return 0 < len(text) <= _MAX_TEXT and text.isprintable()
