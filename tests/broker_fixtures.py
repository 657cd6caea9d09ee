"""Fixtures over ``broker_world``. A test module takes them with ``pytest_plugins = ["tests.broker_fixtures"]``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.broker_world import World


@pytest.fixture(scope="session")
def fast_folder() -> Iterator[Path]:
    """In memory where the machine has that: these tests sync to disk thousands of times, and don't time it."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="cloister-", dir=shm if shm.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template(fast_folder: Path) -> World:
    world = World(fast_folder / "template").build()
    world.close()
    return world


@pytest.fixture
def folder(fast_folder: Path) -> Iterator[Path]:
    """An empty folder for one test."""
    place = Path(tempfile.mkdtemp(dir=fast_folder))
    yield place
    shutil.rmtree(place)


@pytest.fixture
def world(template: World, folder: Path) -> Iterator[World]:
    copy = template.copy_to(folder / "w")
    yield copy
    copy.close()


@pytest.fixture(scope="module")
def calm(template: World, fast_folder: Path) -> Iterator[World]:
    """One world for all those tests of a module in which nothing is granted, so that nothing changes."""
    place = Path(tempfile.mkdtemp(dir=fast_folder))
    copy = template.copy_to(place / "w")
    yield copy
    copy.close()
    shutil.rmtree(place)
