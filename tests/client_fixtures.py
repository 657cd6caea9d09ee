"""Fixtures over ``client_home``. A test module takes them with ``pytest_plugins = ["tests.client_fixtures"]``."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.cli import main
from cloister.client import SealOptions, operations
from tests.client_home import CONTRACT, OPTIONS, PASSPHRASE, LocalHome, Ran, Run, local_home, model, rows


@pytest.fixture(scope="module")
def local() -> Iterator[LocalHome]:
    """An empty home. In memory where the machine has that: brokers sync to disk with every step."""
    shm = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="cl-", dir=shm if shm.is_dir() else None))
    with local_home(folder / "h") as made:
        yield made
    shutil.rmtree(folder)


@pytest.fixture
def run(local: LocalHome, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("CLOISTER_HOME", str(local.folder))
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "passphrase"
    secret.write_text(PASSPHRASE + "\n")
    secret.chmod(0o600)
    monkeypatch.setenv("CLOISTER_PASSPHRASE_FILE", str(secret))

    def call(*words: str) -> Ran:
        capsys.readouterr()
        code = main(list(words))
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return call


@pytest.fixture(scope="module")
def agreed(local: LocalHome) -> LocalHome:
    """Two parties, two assets, a contract in force: what most commands need. Made by the commands themselves."""
    local.report_node()
    folder = local.folder.parent
    (folder / "passphrase").write_text(PASSPHRASE + "\n")
    (folder / "passphrase").chmod(0o600)
    (folder / "rows.csv").write_text("text,label\nhello,a\n")
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"w" * 100)
    (folder / "model" / ".hidden").touch()
    (folder / "contract.yaml").write_text(CONTRACT)
    home = ["--home", str(local.folder)]
    for words in (
        ["org", "create", "hospital", "--passphrase-file", str(folder / "passphrase")],
        ["org", "create", "lab", "--passphrase-file", str(folder / "passphrase")],
        ["seal", str(folder / "rows.csv"), "--as", "hospital/queries", "--schema", "text,label", "--licence", "MIT"],
        ["seal", str(folder / "model"), "--as", "lab/minilm", "--manifest-to", str(folder / "minilm.json")],
        ["contract", "new", str(folder / "contract.yaml")],
        ["contract", "sign", "intents", "--as", "hospital", "--yes"],
        ["contract", "sign", "intents", "--as", "lab", "--yes"],
    ):
        assert main([*words, *home]) == 0, words
    assert (folder / "minilm.json").is_file()
    return local


@pytest.fixture(scope="module")
def sealed(local: LocalHome) -> LocalHome:
    """Hospital and lab, each with a sealed asset, made through the client. Tests make contracts of their own."""
    local.report_node()
    for name in ("hospital", "lab"):
        operations.create_party(local.home, name, PASSPHRASE)
    folder = local.folder.parent
    operations.seal(local.home, rows(folder), "hospital/queries", OPTIONS)
    operations.seal(local.home, model(folder), "lab/minilm", SealOptions(licences=("Apache-2.0",)))
    return local
