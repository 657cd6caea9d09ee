"""Fixtures over ``postgres`` and ``replicas``. A test module takes them beside ``tests.broker_fixtures``."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.patience import until
from tests.postgres import Postgres, programs
from tests.replicas import SharedWorld


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    installed = programs()
    if installed is None:
        pytest.skip("PostgreSQL isn't installed here; scripts/install.sh names the package")
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="cloister-pg-", dir=shm if shm.is_dir() else None))
    server: Postgres | None = None
    try:
        server = Postgres.start(folder, installed)
        until("PostgreSQL", lambda: _answers(server))
        yield server
    finally:
        if server is not None:
            server.stop("immediate")
        shutil.rmtree(folder)


def _answers(server: Postgres | None) -> bool:
    with contextlib.suppress(psycopg.OperationalError):
        assert server is not None
        server.connect().close()
        return True
    return False


@pytest.fixture
def empty(postgres: Postgres) -> Iterator[str]:
    """The name of a database with nothing in it."""
    name = postgres.database()
    yield name
    postgres.drop(name)


@pytest.fixture(scope="session")
def shared_template(fast_folder: Path, postgres: Postgres) -> SharedWorld:
    world = SharedWorld(fast_folder / "shared", server=postgres, database=postgres.database())
    world.build()
    world.close()
    return world


@pytest.fixture
def shared_world(shared_template: SharedWorld, folder: Path) -> Iterator[SharedWorld]:
    copy = shared_template.copy_to(folder / "w")
    yield copy
    copy.close()
    copy.server.drop(copy.database)
