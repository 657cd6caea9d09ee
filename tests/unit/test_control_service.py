"""The control plane's services without HTTP: migrations, the folder's lock, the directory, sweeping."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, text

from cloister.contracts import make_card
from cloister.control import ControlPlane, Limits
from cloister.control.database import Database
from cloister.control.directory import Directory
from cloister.control.sink import FileSink
from cloister.control.tables import metadata, parties, uploads
from cloister.crypto import SigningKey
from cloister.errors import Denied, Internal, Malformed, Misuse, Unavailable, Untrusted
from tests.control_world import Party

NODE_KEY = SigningKey.generate().public


def test_the_migrations_make_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    database = Database(tmp_path / "c.db")
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()
    Database(tmp_path / "c.db").close()  # a second start finds nothing to do


def test_migrating_leaves_logging_alone(tmp_path: Path) -> None:
    before = logging.getLogger().handlers[:], logging.getLogger().level
    Database(tmp_path / "c.db").close()
    assert (logging.getLogger().handlers[:], logging.getLogger().level) == before


def test_an_sql_error_carries_no_rows(tmp_path: Path) -> None:
    database = Database(tmp_path / "c.db")
    row = {"name": "x", "card": "canary", "signing": "s", "address": "a", "updated": 1}
    with pytest.raises(Internal) as caught, database.write() as connection:
        connection.execute(insert(parties), [row, row])
    assert caught.value.code == "store.database"
    assert "canary" not in str(caught.value.__cause__)
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM parties")).scalar() == 0
    database.close()


def test_one_folder_has_one_control_plane(tmp_path: Path) -> None:
    first = ControlPlane(tmp_path, node_key=NODE_KEY)
    with pytest.raises(Misuse) as caught:
        ControlPlane(tmp_path, node_key=NODE_KEY)
    assert caught.value.code == "control.running"
    name = first.id
    first.close()
    second = ControlPlane(tmp_path, node_key=NODE_KEY)
    assert second.id == name, "clients sign for this id: it survives a restart"
    second.close()


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(Database(tmp_path / "c.db"), node_key=NODE_KEY, limits=Limits(parties=2))


def test_the_first_card_of_a_name_stays(directory: Directory) -> None:
    hospital, thief = Party("hospital"), Party("hospital")
    directory.register(hospital.card, "127.0.0.1:1", now=1)
    with pytest.raises(Untrusted) as caught:
        directory.register(thief.card, "127.0.0.1:2", now=2)
    assert caught.value.code == "directory.taken"
    assert directory.key_of("hospital") == hospital.card.keys.signing
    assert directory.listing()["hospital"]["address"] == "127.0.0.1:1"


def test_a_successor_replaces_its_card(directory: Directory) -> None:
    old, new = Party("hospital"), Party("hospital")
    directory.register(old.card, "127.0.0.1:1", now=1)
    card = make_card("hospital", new.card.keys, (new.signing, old.signing), serial=2, issued=2)
    directory.register(card, "127.0.0.1:3", now=2)
    assert directory.key_of("hospital") == new.signing.public
    with pytest.raises(Untrusted):
        directory.register(old.card, "127.0.0.1:1", now=3)


def test_names_and_room(directory: Directory) -> None:
    with pytest.raises(Denied) as reserved:
        directory.register(Party("node").card, "127.0.0.1:1", now=1)
    assert reserved.value.code == "directory.reserved"
    assert directory.key_of("node") == NODE_KEY
    for name in ("a", "b"):
        directory.register(Party(name).card, "127.0.0.1:1", now=1)
    with pytest.raises(Denied) as full:
        directory.register(Party("c").card, "127.0.0.1:1", now=1)
    assert full.value.code == "directory.full"


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "http://x:1", "a b:1", "host:123456", "host:1\n"])
def test_addresses_have_a_form(directory: Directory, address: str) -> None:
    with pytest.raises(Malformed):
        directory.register(Party("hospital").card, address, now=1)


def test_a_sink_takes_exactly_what_was_announced(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "0000.sealed", 4)
    sink.write(b"ab")
    with pytest.raises(Untrusted) as short:
        sink.finish()
    assert short.value.code == "object.length"
    with pytest.raises(Untrusted):
        sink.write(b"cde")
    sink.discard()
    assert list(tmp_path.iterdir()) == []
    whole = FileSink(tmp_path / "0000.sealed", 4)
    whole.write(b"abcd")
    whole.finish()
    whole.discard()
    assert (tmp_path / "0000.sealed").read_bytes() == b"abcd"


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "x", 1 << 20)
    sink._file.close()
    with Path("/dev/full").open("wb", buffering=0) as full:
        sink._file = full  # type: ignore[assignment]
        with pytest.raises(Unavailable) as caught:
            sink.write(b"x" * 100)
    assert caught.value.code == "store.full"


def test_sweeping_forgets_old_uploads_and_unknown_folders(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path, node_key=NODE_KEY, clock=lambda: 1_000_000)
    with plane._database.write() as connection:
        connection.execute(insert(uploads).values(digest="aa" * 32, party="hospital", started=1))
        connection.execute(insert(uploads).values(digest="bb" * 32, party="hospital", started=999_999))
    for name in ("aa", "bb"):
        (tmp_path / "uploads" / f"{name * 32}.hospital").mkdir()
    (tmp_path / "objects" / ("cc" * 32)).mkdir()
    plane.objects.sweep(now=1_000_000)
    assert [p.name for p in (tmp_path / "uploads").iterdir()] == [f"{'bb' * 32}.hospital"]
    assert list((tmp_path / "objects").iterdir()) == []
    plane.close()
