"""``cloister up --objects``: what reaches the supervisor, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloister.client import Home, operations, startup
from cloister.errors import Misuse


def test_what_was_chosen_is_named_and_nothing_else() -> None:
    chosen = startup._storage("s3://bucket/p", Path("/run/s3.json"), 64)
    assert chosen == ["--objects=s3://bucket/p", "--objects-credentials=/run/s3.json", "--objects-cache=64"]
    assert startup._storage("file:///srv/objects", None, None) == ["--objects=file:///srv/objects"]
    assert startup._storage(None, None, None) == []


@pytest.mark.parametrize("options", [{"credentials": Path("s3.json")}, {"cache_mib": 64}])
def test_options_without_their_store_start_nothing(tmp_path: Path, options: dict[str, object]) -> None:
    home = Home(tmp_path / "h")
    for use in (operations.up, operations.run_in_foreground):
        with pytest.raises(Misuse) as caught:
            use(home, **options)  # type: ignore[operator]
        assert caught.value.code == "control.objects"
    assert not (tmp_path / "h").exists()
