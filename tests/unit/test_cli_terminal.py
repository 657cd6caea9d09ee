"""The terminal's rules and passphrases, some of them on a real pseudo-terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from cloister.cli.passphrase import read_passphrase
from cloister.cli.reference import reference
from cloister.cli.terminal import Bars, ask, clean, columns, fail, result
from cloister.client import Step
from cloister.errors import Denied, Misuse

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_commands_is_up_to_date() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == reference(), "write it again: python -m cloister.cli.reference > docs/cli.md"


def test_words_from_elsewhere_cannot_steer_the_terminal() -> None:
    assert clean("a\x1b[2Jb\x07c\u202ed\r") == "a?[2Jb?c?d?"
    assert clean("two\nlines\u2028of\u2029one\x85text") == "two?lines?of?one?text"
    assert clean("half \ud800 a pair") == "half ? a pair"
    assert clean("Zürich · 東京") == "Zürich · 東京"


def test_columns_are_aligned() -> None:
    assert columns([("a", 1), ("long", 22, "x")]) == ["a     1", "long  22  x"]
    assert columns([]) == []


def test_a_cell_stays_one_line_of_bounded_width() -> None:
    assert columns([("purpose", "x\nleaves     nothing")]) == ["purpose  x?leaves nothing"]
    assert columns([("purpose", "x" + " " * 300 + "leaves     nothing")]) == ["purpose  x leaves nothing"]
    assert columns([("  indented", 1)]) == ["  indented  1"]
    (long,) = columns([("w", "x" * 500)])
    assert (len(long), long[-1]) == (203, "…")
    assert columns([("w", "x" * 500)], full=True) == ["w  " + "x" * 500]


def test_errors_are_one_sentence_and_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(Denied("x.y", "No\x1b way."), as_json=False) == 3
    assert capsys.readouterr() == ("", "cloister: No? way.\n")
    assert fail(Denied("x.y", "No."), as_json=True) == 3
    out, err = capsys.readouterr()
    assert '"code": "x.y"' in out
    assert err == "cloister: No.\n"


def test_results_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    result({"b": 1, "a": "é"}, ["line"], as_json=False)
    assert capsys.readouterr() == ("line\n", "")
    result({"b": 1, "a": "é"}, ["line"], as_json=True)
    assert capsys.readouterr().out == '{\n  "a": "\\u00e9",\n  "b": 1\n}\n'


def test_bars_are_silent_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for wanted in (False, True):
        with Bars(wanted) as bars:
            bars(Step("upload", 1 << 20, 3 << 20, "bytes"))
            bars(Step("upload", 10, 20, "bytes"))
            bars(Step("\x1bevil", 1, 0, "steps", {"loss": "0.5\x1b[link=x]"}))
        out, err = capsys.readouterr()
        assert out == ""
        assert ("upload" in err) is wanted
        assert ("?evil" in err) is wanted
        assert ("0.5?[link=x]" in err) is wanted


def test_nobody_is_asked_where_nobody_is() -> None:
    ask("Sure?", yes=True)
    with pytest.raises(Misuse) as caught:
        ask("Sure?", yes=False)
    assert caught.value.code == "terminal.question"


def test_a_passphrase_comes_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p"
    path.write_text("correct horse\r\nsecond line\n")
    path.chmod(0o600)
    assert read_passphrase("x", path, twice=True, environment={}) == "correct horse"
    assert (
        read_passphrase("x", None, twice=False, environment={"CLOISTER_PASSPHRASE_FILE": str(path)}) == "correct horse"
    )
    assert capsys.readouterr().err == ""
    path.chmod(0o644)
    read_passphrase("x", path, twice=False, environment={})
    assert "chmod 600" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "passphrase.empty"), (b"\nx", "passphrase.empty"), (b"\xff", "passphrase.text"), (b"x" * 5000, "file.size")],
)
def test_a_passphrase_file_that_is_none(tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "p"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(Misuse) as caught:
        read_passphrase("x", path, twice=False, environment={})
    assert caught.value.code == code


def test_a_passphrase_needs_a_file_or_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Misuse) as absent:
        read_passphrase("x", tmp_path / "none", twice=False, environment={})
    assert absent.value.code == "file.missing"
    with (tmp_path / "stdin").open("w+") as file:
        monkeypatch.setattr(sys, "stdin", file)
        with pytest.raises(Misuse) as caught:
            read_passphrase("x", None, twice=False, environment={})
    assert caught.value.code == "passphrase.absent"


def on_terminal(code: str) -> Any:
    program = f"""
from cloister.errors import CloisterError
try:
    {code}
except CloisterError as error:
    print("REFUSED", error.code)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CLOISTER_")}
    return pexpect.spawn(
        sys.executable, ["-c", program], timeout=30, encoding="utf-8", env={**environment, "TERM": "dumb"}
    )


READ = (
    "from cloister.cli.passphrase import read_passphrase; print('GOT', len(read_passphrase('lab', None, twice=True)))"
)
ASK = "from cloister.cli.terminal import ask; ask('Sign?', yes=False); print('YES')"


def test_a_passphrase_is_typed_twice_without_echo() -> None:
    child = on_terminal(READ)
    child.expect("vault of lab: ")
    child.sendline("hunter2")
    child.expect("again: ")
    child.sendline("hunter2")
    child.expect("GOT 7")
    child.expect(pexpect.EOF)
    child.close()
    assert "hunter2" not in str(child.before)


def test_two_different_passphrases_are_refused() -> None:
    child = on_terminal(READ)
    child.expect("vault of lab: ")
    child.sendline("hunter2")
    child.expect("again: ")
    child.sendline("hunter3")
    child.expect("REFUSED passphrase.differs")
    child.close()


@pytest.mark.parametrize(
    ("answer", "word"),
    [("y", "YES"), ("yes", "YES"), ("", "REFUSED terminal.declined"), ("n", "REFUSED terminal.declined")],
)
def test_a_question_at_a_terminal(answer: str, word: str) -> None:
    child = on_terminal(ASK)
    child.expect(r"Sign\? \[y/N\] ")
    child.sendline(answer)
    child.expect(word)
    child.close()
