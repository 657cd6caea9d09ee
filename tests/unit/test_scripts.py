"""The gates themselves: the coverage floor and the house rules must be able to fail."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace

import pytest
from coverage import Coverage, CoverageData

from scripts import check_coverage, check_house, run_tests


def report(**covered: int) -> dict:
    """A coverage report with one file of 100 lines per package."""
    summary = {name: {"summary": {"covered_lines": n, "num_statements": 100}} for name, n in covered.items()}
    return {"files": {f"src/cloister/{name}/a.py": entry for name, entry in summary.items()}}


def test_the_floor_is_over_the_guarded_packages_together() -> None:
    levels = dict.fromkeys(check_coverage.GUARDED, 92) | {"keys": 80, "cli": 0}
    table = check_coverage.rows(report(**levels))
    assert round(check_coverage.guarded(table).percent, 1) == 90.3
    assert "holds" in check_coverage.text(table)[-1]


def test_below_the_floor_it_says_so() -> None:
    table = check_coverage.rows(report(**dict.fromkeys(check_coverage.GUARDED, 89)))
    assert "FAILS" in check_coverage.text(table)[-1]


def test_a_package_that_was_not_measured_counts_as_uncovered() -> None:
    levels = dict.fromkeys(check_coverage.GUARDED, 100)
    del levels["broker"]
    assert check_coverage.guarded(check_coverage.rows(report(**levels))).percent == 0


def test_modules_directly_in_the_package_are_counted_apart() -> None:
    entry = {"summary": {"covered_lines": 1, "num_statements": 4}}
    (row,) = check_coverage.rows({"files": {"src/cloister/errors.py": entry}})
    assert (row.package, row.percent) == ("(top)", 25.0)


def measured(data: Path, suffix: str, lines: list[int]) -> Path:
    one = CoverageData(str(data), suffix)
    one.add_lines({"/a.py": lines})
    one.write()
    one.close()
    return Path(f"{data}.{suffix}")


def test_half_a_file_of_coverage_is_removed_and_whole_ones_count(tmp_path: Path) -> None:
    data = tmp_path / "coverage.data"
    whole = [measured(data, "a", [1, 2]), measured(data, "b", [3])]
    text = whole[0].read_bytes()
    for number, size in enumerate((0, 10, 512, 4096, len(text) // 2, len(text) - 4096)):
        (tmp_path / f"coverage.data.torn{number}").write_bytes(text[:size])
    (tmp_path / "coverage.data.garbled").write_bytes(text[:4096] + b"x" * 4096 + text[8192:])
    removed = check_coverage.remove_torn(data)
    assert sorted(removed) == ["coverage.data.garbled", *(f"coverage.data.torn{n}" for n in range(6))]
    assert sorted(tmp_path.iterdir()) == whole
    said: list[str] = []
    together = Coverage(data_file=str(data), messages=False)
    together.get_data()._warn = lambda text, **_: said.append(text)
    together.combine(strict=True)
    assert (together.get_data().lines("/a.py"), said) == ([1, 2, 3], [])
    assert check_coverage.remove_torn(data) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x = 1  # TO" + "DO later", "unfinished"),
        ("raise NotImplemented" + "Error", "unfinished"),
        ("p = '/ho" + "me/someone/data'", "one machine"),
        ("url = 'https://pypi" + ".example/simple'", "packages come from"),
    ],
)
def test_a_bad_line_is_found(line: str, said: str) -> None:
    path = check_house.ROOT / "src" / "cloister" / "x.py"
    (found,) = check_house.check_lines(path, line)
    assert found.startswith("src/cloister/x.py:1:")
    assert said in found


def test_long_files_and_functions_and_vanishing_errors_are_found() -> None:
    path = check_house.ROOT / "src" / "cloister" / "x.py"
    long_function = "def f():\n" + "    a = 1\n" * check_house.MOST_FUNCTION_LINES
    vanishing = "try:\n    f()\nexcept OSError:\n    # why\n    pass\n"
    found = [*check_house.check_tree(path, ast.parse(long_function + vanishing))]
    assert [f.split(": ", 1)[1].split(";")[0][:20] for f in found] == ["f has 71 lines", "an error vanishes he"]
    assert len([*check_house.check_lines(path, "a = 1\n" * (check_house.MOST_LINES + 1))]) == 1


def test_a_handled_error_and_a_package_with_a_tour_pass() -> None:
    handled = '"""A package that leads through itself."""\ntry:\n    f()\nexcept OSError:\n    g()\n'
    path = Path(check_house.ROOT / "src" / "cloister" / "x" / "__init__.py")
    assert [*check_house.check_tree(path, ast.parse(handled))] == []
    assert len([*check_house.check_tree(path, ast.parse("x = 1"))]) == 1


def test_a_second_look_is_for_one_or_two_failures_and_nothing_else() -> None:
    two, three = ["a::b", "c::d"], ["a::b", "c::d", "e::f"]
    assert run_tests.again(1, two, covered=True)
    assert not run_tests.again(0, [], covered=True)
    assert not run_tests.again(1, [], covered=True), "below the floor, or an error while collecting"
    assert not run_tests.again(1, two, covered=False)
    assert not run_tests.again(1, three, covered=True)
    assert not run_tests.again(2, two, covered=True), "interrupted"
    assert not run_tests.again(3, two, covered=True), "pytest itself failed"


@pytest.mark.parametrize(("passes", "code"), [(True, 0), (False, 1)])
def test_what_fails_again_fails_the_run(
    passes: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def run(command: list[str], *, check: bool) -> SimpleNamespace:
        calls.append(command)
        (tmp_path / "v" / "cache").mkdir(parents=True, exist_ok=True)
        (tmp_path / "v" / "cache" / "lastfailed").write_text('{"tests/x.py::test_y": true}')
        return SimpleNamespace(returncode=0 if passes and len(calls) == 2 else 1)

    monkeypatch.setattr(run_tests, "CACHE", tmp_path)
    monkeypatch.setattr(run_tests, "covered", lambda: True)
    monkeypatch.setattr("subprocess.run", run)
    assert run_tests.main() == code
    assert calls[1][-1] == "tests/x.py::test_y"
    assert len(calls) == 2
