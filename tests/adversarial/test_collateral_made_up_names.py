"""Evidence that nobody has verified asks for pieces that don't exist, round after round."""

from __future__ import annotations

from pathlib import Path

from cloister.broker.collateral_store import CollateralStore
from cloister.broker.fetching import Fetcher, Refresher, Sources

OWN = ("amd-chain", "rome")


def keeper(store: CollateralStore) -> Refresher:
    """Nobody listens there; most names don't even become an address."""
    fetcher = Fetcher(Sources(*["http://127.0.0.1:9"] * 5), seconds=0.2, pause=lambda _: None)
    return Refresher(store, fetcher, lambda: 1_900_000_000, always=[OWN])


def test_notes_do_not_pile_up(tmp_path: Path) -> None:
    store = CollateralStore(tmp_path / "c")
    refresher = keeper(store)
    for turn in range(5):
        for number in range(64):
            store.find("amd-vcek", f"zz{turn}-{number}")
        assert refresher.look() == 0
        notes = refresher.notes()
        assert len(notes) == 9
        assert notes[0].startswith("Collateral amd-chain rome:")  # the owner's own is not hidden by the others
        assert notes[-1] == "Collateral: 57 more pieces could not be fetched."
        assert not any(f"zz{turn - 1}-" in note for note in notes)
    refresher.look()
    assert len(refresher.notes()) == 1  # nobody asks for the others any more


def test_a_name_moves_no_cursor_and_fills_no_screen(tmp_path: Path) -> None:
    store = CollateralStore(tmp_path / "c")
    store.find("nvidia-rim", "\x1b[2J" + "x" * 5000)
    refresher = keeper(store)
    refresher.look()
    assert len(refresher.notes()) == 2
    assert all(note.isprintable() and len(note) < 300 for note in refresher.notes())


def test_damaged_files_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:032}.collateral").write_bytes(b"x")
    notes = keeper(CollateralStore(folder)).notes()
    assert len(notes) == 9
    assert notes[-1] == "Collateral: 12 more files are damaged."
