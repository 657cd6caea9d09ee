"""Wrong and hostile input, by owners and by clients that check nothing: one clear sentence, and nothing is lost."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloister.client import operations, sealing
from cloister.client.files import Source
from cloister.client.sealing import SealedAsset
from cloister.contracts import parse_recipe
from cloister.errors import Misuse, Untrusted
from tests.e2e.search import search
from tests.e2e.story import OUTPUT, Story, refused
from tests.e2e.story import story as story

_SEAL_IN_LITTLE_SPACE = """
import json, resource, sys
from pathlib import Path
from cloister.client import Home, operations
from cloister.errors import CloisterError
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    operations.seal(Home(Path(sys.argv[1])), Path(sys.argv[2]), "hospital/" + sys.argv[3])
except CloisterError as error:
    print(json.dumps([type(error).__name__, error.code, error.message]))
"""


@pytest.fixture(autouse=True)
def no_asset_is_lost(story: Story) -> Iterator[None]:
    """What was sealed before is there afterwards, version by version."""

    def known() -> list[tuple[str, int, str]]:
        assets = [a for party in ("hospital", "lab") for a in story.home.agent(party).assets()]
        return [(a["name"], a["version"], a["digest"]) for a in assets]

    before = known()
    yield
    assert set(before) <= set(known())


@pytest.fixture
def desk(story: Story) -> Path:
    """A folder of the owner's own, where plaintext belongs."""
    return Path(tempfile.mkdtemp(dir=story.sources))


def _versions(story: Story, name: str) -> list[int]:
    return [a["version"] for a in story.home.agent(name.partition("/")[0]).assets() if a["name"] == name]


# --- at sealing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("text,kind\nhello,greeting\n", "seal.schema"),
        ("category,text\ngreeting,hello\n", "seal.schema"),
        ("text,category\n", "seal.empty"),
        ("", "seal.empty"),
        ("\udcff\udcfe", "seal.csv"),
    ],
    ids=["wrong column", "wrong order", "header only", "empty", "not UTF-8"],
)
def test_a_table_that_is_not_what_its_owner_says(story: Story, desk: Path, text: str, code: str) -> None:
    path = desk / "table.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refused(lambda: story.seal(path, "hospital/wrong")) == ("Misuse", code)
    assert _versions(story, "hospital/wrong") == []


def test_a_schema_s_complaint_does_not_quote_the_first_row(story: Story, desk: Path) -> None:
    """A table without a header: its first line is data."""
    path = desk / "table.csv"
    path.write_text(f"{story.canary},label\nmore,label\n")
    with pytest.raises(Misuse) as caught:
        story.seal(path, "hospital/wrong")
    assert story.canary not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("pytorch_model.bin", pickle.dumps({"weight": [1.0]}), "seal.pickle"),
        ("hidden_in_plain_sight.txt", pickle.dumps(["x"], protocol=4), "seal.pickle"),
        ("modeling_evil.py", b"import os\n", "seal.code"),
    ],
    ids=["named pickle", "disguised pickle", "code"],
)
def test_a_model_folder_with_what_could_run(story: Story, desk: Path, name: str, data: bytes, code: str) -> None:
    folder = story.write_model(desk / "model")
    (folder / name).write_bytes(data)
    with pytest.raises(Misuse) as caught:
        story.seal(folder, "lab/evil")
    assert caught.value.code == code
    assert name in caught.value.message
    assert _versions(story, "lab/evil") == []


def test_a_link_out_of_a_model_folder(story: Story, desk: Path) -> None:
    folder = story.write_model(desk / "model")
    (folder / "vocab.txt").symlink_to("/etc/hostname")
    assert refused(lambda: story.seal(folder, "lab/evil")) == ("Misuse", "seal.link")


def test_a_disk_that_fills_up_while_sealing(story: Story) -> None:
    """The half-written object is gone, the asset keeps its versions, and sealing works when there is space."""
    first = story.seal(story.table, "hospital/space")
    code = _SEAL_IN_LITTLE_SPACE
    command = [sys.executable, "-c", code, str(story.home.path), str(story.table), "space"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    kind, code, message = json.loads(done.stdout)
    assert (kind, code) in [("Unavailable", "storage.full"), ("Unavailable", "storage.write")]
    assert "free space" in message or "check the storage" in message
    assert list((story.home.path / "outbox").iterdir()) == []
    assert _versions(story, "hospital/space") == [first.version]
    assert story.seal(story.table, "hospital/space").version == first.version + 1


def test_a_full_file_system_while_sealing(story: Story) -> None:
    outbox = story.home.path / "outbox"
    mounted = os.geteuid() == 0 and _run("mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "none", str(outbox))
    if not mounted:
        pytest.skip("only root can mount a tiny file system here")
    try:
        assert refused(lambda: story.seal(story.table, "hospital/full")) == ("Unavailable", "storage.full")
        assert list(outbox.iterdir()) == []
    finally:
        assert _run("umount", str(outbox))
    assert _versions(story, "hospital/full") == []
    assert story.seal(story.table, "hospital/full").version == 1


def _run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_an_object_that_is_damaged_on_its_way_to_the_store(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store keeps nothing of it; the sealed folder is kept, and can be sent again when it is whole."""
    client = story.home.control("hospital")
    genuine = type(client).upload
    kept: list[tuple[Path, bytes]] = []

    def damaging(self: object, folder: Path, **more: object) -> str:
        path = folder / "0000.sealed"
        kept.append((path, path.read_bytes()))
        data = bytearray(kept[0][1])
        data[100] ^= 1
        path.write_bytes(data)
        return genuine(self, folder, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(type(client), "upload", damaging)
        with pytest.raises(Untrusted) as caught:
            story.seal(story.table, "hospital/damaged")
    assert caught.value.code == "sealed.root"
    assert "cloister seal" in caught.value.message
    assert "hospital/damaged" not in {a["name"] for a in client.assets()}
    path, data = kept[0]
    path.write_bytes(data)
    assert operations.seal(story.home, path.parent, "hospital/damaged").version == 1
    assert "hospital/damaged" in {a["name"] for a in client.assets()}


# --- contracts and recipes ------------------------------------------------------------------------------------------


def test_a_contract_that_names_what_is_not_there(story: Story) -> None:
    for change, code in (
        ({"data": "hospital/nothing"}, "contract.asset"),
        ({"data": "stranger/rows"}, "contract.asset"),
        ({"parties": ["hospital", "lab", "stranger"]}, "contract.unpinned"),
        ({"leese_seconds": 5}, "contract.key"),
    ):
        with pytest.raises(Misuse) as caught:
            story.agree(**change)  # type: ignore[arg-type]
        assert caught.value.code == code


def test_a_recipe_with_a_key_that_does_not_exist(story: Story) -> None:
    agreement = story.agree()
    with pytest.raises(Misuse) as caught:
        story.submit(agreement, epoch=3)
    assert caught.value.code == "recipe.key"
    assert "'epochs'" in caught.value.message
    assert refused(lambda: story.submit(agreement, task="regression"))[1] == "recipe.value"
    jobs = story.home.control("hospital").jobs()
    assert not [job for job in jobs if job["contract"] == agreement.contract.digest.hex()]


# --- in the workload, where another client has sealed it -----------------------------------------------------------


@contextmanager
def _client_without_checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def gather(path: Path, *, schema: tuple[str, ...], asset_class: str | None = None) -> Source:
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        names = [p.name if path.is_file() else p.relative_to(path).as_posix() for p in files]
        found = "dataset" if path.suffix == ".csv" else "model"
        return Source(tuple(zip(names, files, strict=True)), found, ())

    with monkeypatch.context() as patch:
        patch.setattr(sealing, "gather", gather)
        yield


def _unchecked(story: Story, monkeypatch: pytest.MonkeyPatch, path: Path, name: str) -> SealedAsset:
    with _client_without_checks(monkeypatch):
        return story.seal(path, name)


def test_a_table_of_one_label_ends_the_run_and_uses_it_up(story: Story) -> None:
    """The reason is the job's error; it quotes no row and no label. One run was agreed, so there is no second one."""
    table = story.sources / "one.csv"
    table.write_text("text,category\n" + "".join(f"{story.canary} {n},{story.canary}\n" for n in range(40)))
    story.seal(table, "hospital/one")
    agreement = story.agree(data="hospital/one", runs=1)
    recipe = parse_recipe(story.recipe(data="hospital/one"))
    second = story.home.agent("hospital").sign_job(agreement.contract.envelope, recipe, OUTPUT)
    run = story.submit(agreement, data="hospital/one")
    assert run.ended() == ("failed", "data.labels")
    message = story.home.control("hospital").job(run.digest)["error"]["message"]
    assert "label" in message
    assert story.canary not in message
    assert search(story) == []
    # A second run, signed while there was one left: the control plane lets it through, the brokers have counted.
    digest = story.home.control("hospital").submit(second)["digest"]
    outcome = operations.follow(story.home.control("hospital"), digest)
    assert (outcome.job["state"], outcome.job["error"]["code"]) == ("denied", "budget.runs")
    assert not [e for party in story.passphrases for e in story.log(party, "key.released") if e["job"] == digest]
    assert refused(lambda: story.submit(agreement, data="hospital/one")) == ("Denied", "budget.runs")


def test_pickled_weights_and_code_are_refused_by_the_workload_too(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = story.write_model(story.sources / "evil")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "modeling_evil.py").write_text("raise SystemExit\n")
    _unchecked(story, monkeypatch, folder, "lab/evil")
    agreement = story.agree(base="lab/evil")
    run = story.submit(agreement, base="lab/evil")
    state, code = run.ended()
    assert state == "failed"
    assert code in ("model.pickle", "model.code")
    assert not (run.folder / "out" / "output").exists()
