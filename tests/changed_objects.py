"""Whole sealed objects of small segments, every kind of change of them, and what must hold for a changed one.

The code is the product's, with segments of 64 bytes instead of a megabyte: a thousand times as many cases a second."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cloister.crypto import Envelope, canonical_json
from cloister.crypto.segments import AES256_GCM_HKDF_1MB as FORM
from cloister.errors import CloisterError, Malformed, Untrusted
from cloister.sealed import MANIFEST_TYPE, SealedObject, check_ciphertext, checker
from tests.sealing import DEK, OTHER_KEY, OWNER_KEY, Made, make, opened

SEGMENT = 64  # 8 plaintext bytes in the first segment, 48 in the others
ON_DISK = 20  # one case in so many goes to a folder and the checker as well

Raw = dict[str, bytes]  # an object as a store holds it


@dataclass
class Memory:
    """``ObjectSource`` over bytes; several threads may read."""

    raw: Raw

    def envelope(self) -> bytes:
        return self.raw["manifest.json"]

    def open(self, name: str, size: int) -> Any:
        data = self.raw.get(name)
        if data is None:
            raise Untrusted("sealed.incomplete", "missing")
        if len(data) != size:
            raise Untrusted("sealed.size", "another size")
        return _MemoryFile(data)


class _MemoryFile(io.BytesIO):
    def read_at(self, offset: int, buffer: memoryview) -> int:
        part = self.getvalue()[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)


def raw_of(made: Made) -> Raw:
    return {path.name: path.read_bytes() for path in made.folder.iterdir()}


def text(size: int, salt: int) -> bytes:
    return bytes((i * 37 + i // 251 + salt) % 256 for i in range(size))


FILES = {"a": text(500, 1), "b/c": text(500, 2), "d": b"", "e": text(57, 3), "f": text(8 + 48 * 3, 4)}
NEWER = {path: bytes(b ^ 0x55 for b in data) for path, data in FILES.items()}


@dataclass
class World:
    """One object, and what else an attacker has: others of the same shape, mostly under the same key."""

    made: Made
    raw: Raw
    others: dict[str, Raw]
    place: Path


def _resize(segment_size: int) -> None:
    object.__setattr__(FORM, "segment_size", segment_size)
    FORM.__post_init__()


@contextmanager
def small_segments() -> Iterator[None]:
    """While it lasts, nothing that has real segments may be used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checker, "_BLOCK", SEGMENT)
        _resize(SEGMENT)
        try:
            yield
        finally:
            _resize(1 << 20)


def build(folder: Path) -> World:
    made = make(folder / "mine", FILES, version=2)
    others = {
        "older": make(folder / "older", NEWER, version=1),
        "newer": make(folder / "newer", NEWER, version=3, previous=made.sealed.digest),
        "asset": make(folder / "asset", NEWER, version=2, asset_id=b"another asset id"),
        "class": make(folder / "class", NEWER, version=2, asset_class="model"),
        "job": make(folder / "job", NEWER, version=2, contract=b"c" * 32, job=b"j" * 32),
        "key": make(folder / "key", NEWER, version=2, dek=DEK[::-1]),
        "twin": make(folder / "twin", NEWER, version=2),  # only the root tells it from the right one
    }
    return World(made, raw_of(made), {name: raw_of(other) for name, other in others.items()}, folder / "place")


# -- changes -----------------------------------------------------------------------------------------------------------


def member(data: st.DataObject, raw: Raw) -> str:
    return data.draw(st.sampled_from(sorted(n for n in raw if n != "manifest.json")))


def blocks(content: bytes) -> list[bytes]:
    return [content[i : i + SEGMENT] for i in range(0, len(content), SEGMENT)]


def any_bit(data: st.DataObject, world: World, raw: Raw) -> None:
    name = member(data, raw)
    content = bytearray(raw[name])
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    content[bit // 8] ^= 1 << bit % 8
    raw[name] = bytes(content)


def header(data: st.DataObject, world: World, raw: Raw) -> None:
    name = member(data, raw)
    at = data.draw(st.integers(0, FORM.header_size - 1))
    new = data.draw(st.binary(min_size=1, max_size=FORM.header_size - at))
    raw[name] = raw[name][:at] + new + raw[name][at + len(new) :]


def segments_within(data: st.DataObject, world: World, raw: Raw) -> None:
    name = member(data, raw)
    parts = blocks(raw[name])
    one, two = (data.draw(st.integers(0, len(parts) - 1)) for _ in range(2))
    how = data.draw(st.sampled_from(["swap", "copy"]))
    parts[one], parts[two] = (parts[two], parts[one]) if how == "swap" else (parts[two], parts[two])
    raw[name] = b"".join(parts)


def segments_between(data: st.DataObject, world: World, raw: Raw) -> None:
    """From another file, or from the same or another file of another object or version."""
    name = member(data, raw)
    source = data.draw(st.sampled_from(["mine", *sorted(world.others)]))
    from_raw = world.raw if source == "mine" else world.others[source]
    theirs, parts = blocks(from_raw[member(data, from_raw)]), blocks(raw[name])
    first = data.draw(st.integers(0, len(parts) - 1))
    count = data.draw(st.integers(1, len(parts) - first))
    taken = data.draw(st.integers(0, len(theirs) - 1))
    parts[first : first + count] = theirs[taken : taken + count]
    raw[name] = b"".join(parts)


def files_swapped(data: st.DataObject, world: World, raw: Raw) -> None:
    one, two = member(data, raw), member(data, raw)
    source = data.draw(st.sampled_from(["mine", *sorted(world.others)]))
    if source == "mine":
        raw[one], raw[two] = raw[two], raw[one]
    else:
        raw[one] = world.others[source][data.draw(st.sampled_from([one, two]))]


def cut_or_extended(data: st.DataObject, world: World, raw: Raw) -> None:
    name = member(data, raw)
    if data.draw(st.booleans()):
        raw[name] = raw[name][: data.draw(st.integers(0, len(raw[name]) - 1))]
    else:
        some = st.sampled_from(blocks(raw["0000.sealed"]))
        raw[name] += data.draw(st.one_of(st.binary(min_size=1, max_size=130), some))


def removed(data: st.DataObject, world: World, raw: Raw) -> None:
    del raw[member(data, raw)]


def downgrade(data: st.DataObject, world: World, raw: Raw) -> None:
    """Another manifest of the same owner, rightly signed, with its files or with ours."""
    other = world.others[data.draw(st.sampled_from(sorted(world.others)))]
    if data.draw(st.booleans()):
        raw.update(other)
    raw["manifest.json"] = other["manifest.json"]


EDITS: list[Callable[[dict[str, Any]], Any]] = [
    lambda d: d.update(schema="cloister/manifest/v0"),
    lambda d: d.update(suite="AES128_GCM_HKDF_1MB"),
    lambda d: d.update(suite="none"),
    lambda d: d.update(version=d["version"] + 1),
    lambda d: d.update({"class": "model"}),
    lambda d: d.update(owner="bank", name="bank/visits"),
    lambda d: d.update(dek_commit="00" * 32),
    lambda d: d.update(terms={}),
    lambda d: d.update(extra=1),
    lambda d: d.pop("parents"),
    lambda d: d["files"].reverse(),
    lambda d: (d["files"].pop(), d.update(file_count=len(d["files"]))),
    lambda d: d["files"][0].update(root="11" * 32),
    lambda d: d["files"][0].update(path="b"),
]


def manifest_edited(data: st.DataObject, world: World, raw: Raw) -> None:
    """Signed anew by somebody else, or with the old signature."""
    envelope = world.made.sealed.envelope
    document = json.loads(envelope.payload)
    data.draw(st.sampled_from(EDITS))(document)
    edited = Envelope(MANIFEST_TYPE, canonical_json(document), envelope.signatures)
    raw["manifest.json"] = (edited.signed_by(OTHER_KEY) if data.draw(st.booleans()) else edited).to_bytes()


def manifest_payload_bit(data: st.DataObject, world: World, raw: Raw) -> None:
    envelope = world.made.sealed.envelope
    payload = bytearray(envelope.payload)
    bit = data.draw(st.integers(0, len(payload) * 8 - 1))
    payload[bit // 8] ^= 1 << bit % 8
    raw["manifest.json"] = Envelope(envelope.payload_type, bytes(payload), envelope.signatures).to_bytes()


CHANGES = [any_bit, header, segments_within, segments_between, files_swapped, cut_or_extended, removed]
CHANGES += [downgrade, manifest_edited, manifest_payload_bit]


# -- what must hold ----------------------------------------------------------------------------------------------------


class Shown(AssertionError):
    """Something got through that should not have."""


def look_around(data: st.DataObject, sealed: SealedObject, *, twins: bool) -> bool:
    """Read here and there until something is refused, and compare all that was given out. True if it was refused."""
    for path in data.draw(st.permutations(sorted(sealed.paths()))):
        right = {FILES[path], NEWER[path]} if twins else {FILES[path]}
        try:
            with sealed.open(path) as file:
                for at, size in data.draw(st.lists(st.tuples(st.integers(0, 520), st.integers(1, 200)), max_size=3)):
                    file.seek(at)
                    found = file.read(size)
                    if not any(found == whole[at : at + size] for whole in right):
                        raise Shown(f"{path} from {at}")
                out = bytearray(b"\xaa" * file.size)
                try:
                    file.raw.seek(0)
                    file.raw.readinto(out)  # as a large read does it: straight into the caller's memory
                except CloisterError:
                    # What was decrypted before the refusal may stand there; what was refused must not.
                    shown_only_right(out, right)
                    raise
                if bytes(out) not in right:
                    raise Shown(path)
        except (Untrusted, Malformed):
            return True
    return False


def shown_only_right(out: bytearray, right: set[bytes]) -> None:
    """Segment by segment: the true text, zeros where it was wiped, or what the caller had put there."""
    for start, end in zip([0, *range(8, len(out), 48)], [*range(8, len(out), 48), len(out)], strict=True):
        piece = bytes(out[start:end])
        allowed = {whole[start:end] for whole in right} | {bytes(len(piece)), b"\xaa" * len(piece)}
        if piece not in allowed:
            raise Shown(f"refused bytes at {start}")


def refused_by(call: Callable[[], object]) -> bool:
    try:
        call()
    except (Untrusted, Malformed):
        return True
    return False


def try_change(data: st.DataObject, world: World, raw: Raw, *, disk: bool) -> None:
    """Each way in must notice it by itself. A twin that only the root tells apart may be read, and never released."""
    threads = data.draw(st.sampled_from([1, 2]))
    if refused_by(lambda: opened(Memory(raw), world.made, threads=threads).close()):
        if disk:
            check_on_disk(world, raw, opens=False)
        return
    twins = any(raw[n] == world.others["twin"][n] != world.raw[n] for n in raw if n != "manifest.json")
    with opened(Memory(raw), world.made, threads=threads) as sealed:
        refused = look_around(data, sealed, twins=twins)
        if not refused and not twins:
            raise Shown("all of it could be read")
        if not refused_by(lambda: (sealed.check_roots(), sealed.require_complete())):
            raise Shown("the roots held after reading")
        if not refused_by(sealed.require_complete):
            raise Shown("it could be released after all")
    with opened(Memory(raw), world.made, threads=threads) as sealed:
        sealed.check_roots(background=True)
        if not refused_by(sealed.require_complete):
            raise Shown("the roots held without reading")
    if disk:
        check_on_disk(world, raw, opens=True)


def check_on_disk(world: World, raw: Raw, *, opens: bool) -> None:
    shutil.rmtree(world.place, ignore_errors=True)
    world.place.mkdir()
    for name, content in raw.items():
        (world.place / name).write_bytes(content)
    ours = opens or raw["manifest.json"] == world.raw["manifest.json"]
    if ours and not refused_by(lambda: check_ciphertext(world.place, signer_keys=[OWNER_KEY.public])):
        raise Shown("the checker took it")
    if not ours and not refused_by(lambda: opened(world.place, world.made)):
        raise Shown("it opened from a folder")


def cases(world: World, wanted: int, changes: list[Any] = CHANGES, *, shrink: bool = True) -> Counter[str]:
    """How many really changed objects of each kind were tried."""
    tried: Counter[str] = Counter()

    @given(data=st.data())
    @settings(
        max_examples=wanted,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
    )
    def run(data: st.DataObject) -> None:
        raw, disk = dict(world.raw), data.draw(st.integers(1, ON_DISK)) == ON_DISK
        change = data.draw(st.sampled_from(changes))
        change(data, world, raw)
        if raw != world.raw:
            tried[change.__name__] += 1
            try_change(data, world, raw, disk=disk)

    run()
    return tried
