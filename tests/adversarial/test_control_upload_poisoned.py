"""Uploads that are not what their manifest says, or not whose it says, or that aim outside of the store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import delete

import cloister.control.objects
from cloister.control.tables import objects, parties
from cloister.crypto import SigningKey, sha256
from cloister.errors import CloisterError, Denied, Misuse, Unavailable, Untrusted
from cloister.sealed import MANIFEST_NAME, Manifest, read_envelope
from tests.control_world import CANARY, Party, World, running_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running_world(tmp_path) as made:
        yield made


def everything(world: World) -> list[str]:
    """Every file below the control plane's store and uploads."""
    home = world.home / "control"
    return sorted(str(p.relative_to(home)) for top in ("objects", "uploads") for p in (home / top).rglob("*"))


def flip(path: Path, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def put(world: World, party: Party, path: str, body: bytes) -> httpx.Response:
    headers = {"Authorization": party.authorize("PUT", path, None, world.plane.id)}
    return httpx.put(world.url + path, content=body, headers=headers)


def test_a_file_that_is_not_the_manifests_is_refused_and_leaves_nothing(world: World) -> None:
    folder = world.sealed(world.hospital, "hospital/queries", "dataset")
    flip(folder / "0000.sealed")
    with pytest.raises(Untrusted) as caught:
        world.client(world.hospital).upload(folder)
    assert caught.value.code == "sealed.root"
    assert everything(world) == []
    assert world.client(world.hospital).assets() == []
    flip(folder / "0000.sealed")
    world.client(world.hospital).upload(folder)  # the right bytes are welcome afterwards


@pytest.mark.parametrize("size", [-1, 1])
def test_a_file_of_another_size_is_refused(world: World, size: int) -> None:
    folder = world.sealed(world.hospital, "hospital/queries", "dataset")
    digest = read_envelope(folder).digest.hex()
    assert (
        put(world, world.hospital, f"/v1/objects/{digest}/manifest", (folder / MANIFEST_NAME).read_bytes()).status_code
        == 200
    )
    data = (folder / "0000.sealed").read_bytes()
    answer = put(world, world.hospital, f"/v1/objects/{digest}/files/0", data[:size] if size < 0 else data + b"x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "object.length")
    assert [p for p in everything(world) if "sealed" in p] == []


def test_a_manifest_signed_by_an_unknown_key_is_refused(world: World) -> None:
    folder = world.home / "sealed" / "forged"
    world.seal_into(folder, SigningKey.generate(), "hospital", "hospital/queries", "dataset", b"text,label\n1,2\n")
    with pytest.raises(Untrusted) as caught:
        world.client(world.hospital).upload(folder)
    assert caught.value.code == "dsse.unsigned"
    assert everything(world) == []


def test_a_party_cannot_store_under_anothers_name(world: World) -> None:
    """Signed by lab's true key, but in hospital's name; and hospital's true manifest, sent by lab."""
    forged = world.home / "sealed" / "forged"
    world.seal_into(forged, world.lab.signing, "hospital", "hospital/queries", "dataset", b"text,label\n1,2\n")
    stolen = world.sealed(world.hospital, "hospital/queries", "dataset")
    for folder in (forged, stolen):
        with pytest.raises(Untrusted):
            world.client(world.lab).upload(folder)
    assert everything(world) == []


def test_a_manifest_under_another_digest_is_refused(world: World) -> None:
    folder = world.sealed(world.hospital, "hospital/queries", "dataset")
    answer = put(world, world.hospital, f"/v1/objects/{'ab' * 32}/manifest", (folder / MANIFEST_NAME).read_bytes())
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "sealed.digest")
    assert everything(world) == []


def test_a_manifest_swapped_before_commit_is_judged_again(world: World) -> None:
    folder = world.sealed(world.hospital, "hospital/queries", "dataset")
    digest = read_envelope(folder).digest.hex()
    put(world, world.hospital, f"/v1/objects/{digest}/manifest", (folder / MANIFEST_NAME).read_bytes())
    for index in (0, 1):
        put(world, world.hospital, f"/v1/objects/{digest}/files/{index}", (folder / f"000{index}.sealed").read_bytes())
    other = world.home / "sealed" / "other"
    world.seal_into(other, world.lab.signing, "hospital", "hospital/queries", "dataset", b"text,label\n1,2\n")
    landed = world.home / "control" / "uploads" / f"{digest}.hospital" / MANIFEST_NAME
    landed.write_bytes((other / MANIFEST_NAME).read_bytes())
    with pytest.raises(Untrusted):
        world.client(world.hospital)._post(f"/v1/objects/{digest}/commit", {})
    assert everything(world) == []


def test_a_commit_without_all_files_is_refused_and_can_go_on(world: World) -> None:
    folder = world.sealed(world.hospital, "hospital/queries", "dataset")
    digest = read_envelope(folder).digest.hex()
    put(world, world.hospital, f"/v1/objects/{digest}/manifest", (folder / MANIFEST_NAME).read_bytes())
    client = world.client(world.hospital)
    with pytest.raises(Misuse) as caught:
        client._post(f"/v1/objects/{digest}/commit", {})
    assert caught.value.code == "object.incomplete"
    client.upload(folder)
    assert client.assets()[0]["digest"] == digest


@pytest.mark.parametrize(
    "digest",
    [
        "..",
        "../../etc",
        "%2e%2e%2f%2e%2e%2fetc",
        "..%2f..%2fcatalogue.db",
        "a" * 63,
        "A" * 64,
        "a" * 65,
        "a" * 64 + "%00",
        "a" * 64 + ".lab",
    ],
)
def test_a_digest_that_climbs_out_of_the_store(world: World, digest: str) -> None:
    before = everything(world)
    for method, suffix in (
        ("GET", "manifest"),
        ("GET", "files/0"),
        ("PUT", "manifest"),
        ("PUT", "files/0"),
        ("POST", "commit"),
    ):
        path = f"/v1/objects/{digest}/{suffix}"
        header = {"Authorization": world.hospital.authorize(method, path, None, world.plane.id)}
        answer = httpx.request(method, httpx.URL(world.url, raw_path=path.encode()), headers=header)
        assert answer.status_code in (400, 401, 404, 405), (method, path, answer.text)
        assert "SQLite" not in answer.text
    assert everything(world) == before


@pytest.mark.parametrize("index", ["-1", "2", "00", "0000", "99999", "1e0", "0.sealed", "..%2fmanifest.json", "٠"])
def test_an_index_that_is_no_index(world: World, index: str) -> None:
    folder = world.sealed(world.hospital, "hospital/queries", "dataset")
    digest = world.client(world.hospital).upload(folder)
    path = f"/v1/objects/{digest}/files/{index}"
    raw = httpx.URL(world.url).copy_with(path=path).raw_path if not index.isascii() else path.encode()
    header = {"Authorization": world.hospital.authorize("GET", raw.decode("ascii"), None, world.plane.id)}
    answer = httpx.get(httpx.URL(world.url, raw_path=raw), headers=header)
    assert (answer.status_code, answer.json()["error"]["code"]) in ((400, "object.index"), (404, "route.unknown"))


def test_a_link_in_the_uploads_is_not_followed(world: World, tmp_path: Path) -> None:
    folder = world.sealed(world.hospital, "hospital/queries", "dataset")
    digest = read_envelope(folder).digest.hex()
    put(world, world.hospital, f"/v1/objects/{digest}/manifest", (folder / MANIFEST_NAME).read_bytes())
    landed = world.home / "control" / "uploads" / f"{digest}.hospital"
    for index in (0, 1):
        os.symlink(folder / f"000{index}.sealed", landed / f"000{index}.sealed")
    with pytest.raises(CloisterError):
        world.client(world.hospital)._post(f"/v1/objects/{digest}/commit", {})
    assert world.client(world.hospital).assets() == []


def test_a_pile_of_unfinished_uploads_is_bounded(world: World) -> None:
    world.plane.objects._limits = type(world.plane.limits)(open_uploads=1)
    first = world.sealed(world.hospital, "hospital/one", "dataset")
    second = world.sealed(world.hospital, "hospital/two", "dataset")
    paths = [f"/v1/objects/{read_envelope(f).digest.hex()}/manifest" for f in (first, second)]
    assert put(world, world.hospital, paths[0], (first / MANIFEST_NAME).read_bytes()).status_code == 200
    answer = put(world, world.hospital, paths[1], (second / MANIFEST_NAME).read_bytes())
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "object.uploads")


def test_a_disk_without_room_is_refused_before_it_is_full(world: World) -> None:
    world.plane.objects._limits = type(world.plane.limits)(free_bytes=1 << 60)
    folder = world.sealed(world.hospital, "hospital/queries", "dataset")
    with pytest.raises(Unavailable) as caught:
        world.client(world.hospital).upload(folder)
    assert caught.value.code == "store.full"


def test_an_object_beyond_the_bound_is_refused(world: World) -> None:
    world.plane.objects._limits = type(world.plane.limits)(object_bytes=10)
    folder = world.sealed(world.hospital, "hospital/queries", "dataset")
    with pytest.raises(Denied) as caught:
        world.client(world.hospital).upload(folder)
    assert caught.value.code == "object.size"


def test_files_before_their_manifest_find_no_place(world: World) -> None:
    answer = put(world, world.hospital, f"/v1/objects/{'ab' * 32}/files/0", b"x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "object.unknown")
    assert everything(world) == []


def test_the_node_stores_nothing_but_outputs(world: World) -> None:
    folder = world.sealed(world.hospital, "hospital/queries", "dataset")
    with pytest.raises(Denied) as caught:
        world.node.upload(folder)
    assert caught.value.code == "object.node"
    output = world.home / "sealed" / "output"
    unknown = {"contract": sha256(b"c"), "job": sha256(b"j")}
    world.seal_into(output, SigningKey.generate(), "hospital", "hospital/adapter", "artifact", b"w", **unknown)
    with pytest.raises(Denied):
        world.node.upload(output)
    assert everything(world) == []


def test_a_body_that_is_no_manifest(world: World) -> None:
    for body in (b"", b"{}", CANARY.encode()):
        answer = put(world, world.hospital, f"/v1/objects/{sha256(body).hex()}/manifest", body)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (400, "malformed")
    assert CANARY not in world.log.getvalue()
    assert everything(world) == []


def upload_all(world: World, folder: Path) -> str:
    """Manifest and files of ``folder``, without the commit."""
    digest = read_envelope(folder).digest.hex()
    put(world, world.hospital, f"/v1/objects/{digest}/manifest", (folder / MANIFEST_NAME).read_bytes())
    for index in (0, 1):
        put(world, world.hospital, f"/v1/objects/{digest}/files/{index}", (folder / f"000{index}.sealed").read_bytes())
    return digest


def test_a_file_replaced_between_the_check_and_the_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary second request, and one that began before: neither reaches what was checked."""
    folder = world.sealed(world.hospital, "hospital/queries", "dataset")
    digest = upload_all(world, folder)
    good, check = (folder / "0000.sealed").read_bytes(), cloister.control.objects.check_ciphertext
    began = world.plane.objects.receive(digest, "0", "hospital")
    refused: list[str] = []

    def slow(checked: Path) -> Manifest:
        manifest = check(checked)
        for path in (f"/v1/objects/{digest}/files/0", f"/v1/objects/{digest}/manifest"):
            body = bytes(len(good)) if path.endswith("0") else (folder / MANIFEST_NAME).read_bytes()
            refused.append(put(world, world.hospital, path, body).json()["error"]["code"])
        began.write(bytes(len(good)))
        with pytest.raises(Misuse) as late:
            began.finish()
        refused.append(late.value.code)
        with pytest.raises(Unavailable) as second:
            world.plane.objects.commit(digest, "hospital", now=1)
        refused.append(second.value.code)
        return manifest

    monkeypatch.setattr(cloister.control.objects, "check_ciphertext", slow)
    world.client(world.hospital)._post(f"/v1/objects/{digest}/commit", {})
    began.discard()
    assert refused == ["object.checking"] * 3 + ["object.busy"]
    kept = world.home / "control" / "objects" / digest
    assert (kept / "0000.sealed").read_bytes() == good
    assert everything(world) == [f"objects/{digest}"] + [f"objects/{digest}/{p.name}" for p in sorted(kept.iterdir())]


@pytest.mark.parametrize("death", [Unavailable("storage.read", "The disk is away."), KeyboardInterrupt()])
def test_an_upload_whose_check_broke_off_can_be_committed_again(
    world: World, monkeypatch: pytest.MonkeyPatch, death: BaseException
) -> None:
    digest = upload_all(world, world.sealed(world.hospital, "hospital/queries", "dataset"))
    store, now = world.plane.objects, world.plane.now()

    def fails(_: Path) -> Manifest:
        raise death

    with monkeypatch.context() as patch:
        patch.setattr(cloister.control.objects, "check_ciphertext", fails)
        with pytest.raises(type(death)):
            store.commit(digest, "hospital", now=now)
    uploads = world.home / "control" / "uploads"
    assert [p.name for p in uploads.iterdir()] == [f"{digest}.hospital"]
    (uploads / f"{digest}.hospital").rename(uploads / f".{digest}.hospital")  # as a power cut leaves it
    store.sweep(now=now)
    assert store.commit(digest, "hospital", now=now)["state"] == "stored"
    assert list(uploads.iterdir()) == []


def forget_objects(world: World) -> None:
    """As a copy of the catalogue from before has it."""
    with world.plane.objects._database.write() as connection:
        connection.execute(delete(objects))


def test_an_older_catalogue_loses_no_ciphertext(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    folder = world.sealed(world.hospital, "hospital/queries", "dataset")
    digest = world.client(world.hospital).upload(folder)
    before, listed = everything(world), world.client(world.hospital).assets()
    forget_objects(world)
    world.plane.objects.sweep(now=world.plane.now())
    assert everything(world) == before
    (found,) = world.client(world.hospital).assets()
    assert {**found, "stored": 0} == {**listed[0], "stored": 0}
    assert world.client(world.lab).assets() == []
    assert (digest in (said := capsys.readouterr().err), "object.adopted" in said) == (True, True)


@pytest.mark.parametrize("change", ["damaged", "stranger"])
def test_unknown_objects_that_do_not_hold_are_kept_but_not_served(
    world: World, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = world.client(world.hospital).upload(world.sealed(world.hospital, "hospital/queries", "dataset"))
    home = world.home / "control"
    files = {p.name: p.read_bytes() for p in (home / "objects" / digest).iterdir()}
    for _ in range(2):  # the second finds the name taken
        forget_objects(world)
        if change == "damaged":
            flip(home / "objects" / digest / "0000.sealed")
        else:
            with world.plane.objects._database.write() as connection:
                connection.execute(delete(parties).where(parties.c.name == "hospital"))
        world.plane.objects.sweep(now=world.plane.now())
        assert list((home / "objects").iterdir()) == []
        assert world.plane.objects.listing("hospital", None) == []
        aside = sorted((home / "unknown").iterdir())
        (home / "objects" / digest).mkdir()
        for name, data in files.items():
            (home / "objects" / digest / name).write_bytes(data)
    assert [p.name[:64] for p in aside] == [digest, digest]
    assert (aside[0] / "0001.sealed").read_bytes() == files["0001.sealed"]
    assert capsys.readouterr().err.count("object.unknown") == 2
