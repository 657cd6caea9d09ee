"""What may be sealed, and the one sentence for what may not. No message quotes a file's content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloister.client.files import gather
from cloister.errors import Misuse

ROWS = "text,label\nhello,a\n"


def refused(code: str, path: Path, *, schema: tuple[str, ...] = (), **options: str) -> str:
    with pytest.raises(Misuse) as caught:
        gather(path, schema=schema, **options)
    assert caught.value.code == code
    assert "secret" not in caught.value.message
    return caught.value.message


def model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "sub").mkdir()
    (folder / "sub" / "tokenizer.json").write_text("{}")
    return folder


def test_a_file_is_one_file_of_its_object(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(ROWS)
    source = gather(path, schema=("text", "label"))
    assert (source.files, source.asset_class, source.notes) == ((("rows.csv", path),), "dataset", ())
    assert source.size == len(ROWS)


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.py").write_text("ignored")
    (folder / ".hidden").write_text("ignored")
    source = gather(folder, schema=())
    assert [name for name, _ in source.files] == ["config.json", "model.safetensors", "sub/tokenizer.json"]
    assert source.asset_class == "model"
    assert source.notes == ("2 hidden files and folders were left out.",)


@pytest.mark.parametrize("name", ["run.py", "lib.so", "x.sh", "__init__.pyc"])
def test_code_is_refused(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path / "m")
    (folder / "sub" / name).write_text("secret")
    assert name in refused("seal.code", folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "w.pt", "w.pth", "x.pkl", "x.ckpt", "x.joblib"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = model(tmp_path / "m")
    (folder / name).write_bytes(b"secret")
    refused("seal.pickle", folder)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_refused_by_their_first_bytes(tmp_path: Path, protocol: int) -> None:
    folder = model(tmp_path / "m")
    (folder / "innocent.dat").write_bytes(bytes([0x80, protocol]) + b"secret.")
    refused("seal.pickle", folder)


def test_links_are_refused_wherever_they_are(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    os.symlink("/etc/hostname", folder / "sub" / "link.json")
    refused("seal.link", folder)
    (folder / "sub" / "link.json").unlink()
    os.symlink("/etc", folder / "etc")
    refused("seal.link", folder)
    os.symlink(folder, tmp_path / "alias")
    refused("seal.path", tmp_path / "alias")


def test_special_files_are_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    os.mkfifo(folder / "pipe")
    refused("seal.link", folder)


def test_nothing_is_refused(tmp_path: Path) -> None:
    refused("seal.path", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    refused("seal.empty", tmp_path / "empty")
    (tmp_path / "empty.csv").touch()
    refused("seal.empty", tmp_path / "empty.csv")
    (tmp_path / "header.csv").write_text("text,label\n")
    refused("seal.empty", tmp_path / "header.csv")


@pytest.mark.parametrize(
    "content", ["label,text\nsecret,b\n", "text\nsecret\n", "secret row,a\nb,c\n", "text,label,more\n1,2,3\n"]
)
def test_a_csv_file_must_have_the_schema(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    assert "text,label" in refused("seal.schema", path, schema=("text", "label"))


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbf" + ROWS.encode())
    assert gather(path, schema=("text", "label")).asset_class == "dataset"


@pytest.mark.parametrize("content", [b"\xff\xfe\x00secret", b'text,label\n"' + b"secret" * 4_000_000 + b'",x\n'])
def test_what_is_no_csv(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    refused("seal.csv", path, schema=("text", "label"))


def test_jsonl_is_checked_by_its_first_record(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "x", "label": "y"}\n')
    assert gather(path, schema=("text", "label")).asset_class == "dataset"
    refused("seal.schema", path, schema=("text", "category"))
    path.write_text("[secret")
    refused("seal.jsonl", path)


def test_parquet_is_said_not_to_be_checked(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1")
    assert gather(path, schema=("a",)).notes == (
        "The columns of rows.parquet are not checked here; a run checks them.",
    )


def test_the_class_is_asked_for_where_files_do_not_show_it(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("x")
    refused("seal.class", path)
    assert gather(path, schema=(), asset_class="dataset").asset_class == "dataset"
    refused("seal.schema", model(tmp_path / "m"), schema=("text",))
