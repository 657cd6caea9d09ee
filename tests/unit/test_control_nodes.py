"""What vouches for the node under ``cloister up``, and switches of a party's broker: remembered, shown, and refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from cloister.broker.__main__ import _arguments
from cloister.client import Home, operations, startup
from cloister.control import embedded
from cloister.control.brokers import SWITCHES, broker_arguments, read_switches
from cloister.control.embedded import Supervisor
from cloister.control.nodes import is_hardware, node_arguments, node_choice, node_folder
from cloister.errors import CloisterError, Misuse, Unavailable
from cloister.fields import Fields


def choice(attester: str | None = None, tpm: str | None = None, gpus: str | None = None) -> dict[str, Any] | None:
    return node_choice(argparse.Namespace(attester=attester, tpm=tpm, gpus=gpus))


def test_what_the_node_is_started_with() -> None:
    assert (choice(), node_arguments(None), node_folder(None), is_hardware(None)) == (None, (), "node", False)
    assert node_arguments(choice("tsm", gpus="nvidia")) == ("--attester=tsm", "--gpus=nvidia")
    named = choice(tpm="device:/dev/tpm1")
    assert node_arguments(named) == ("--attester=tpm", "--tpm=device:/dev/tpm1")
    assert (node_folder(named), is_hardware(named)) == ("node-tpm", True)
    assert (node_folder(choice("swtpm")), is_hardware(choice("swtpm"))) == ("node", False)


@pytest.mark.parametrize(
    "given",
    [("tsm", "swtpm"), ("swtpm", "device:/x"), ("tpm", "swtpm"), ("tpm", None, "nvidia"), (None, None, "nvidia")],
)
def test_options_that_contradict_each_other(given: tuple[str | None, ...]) -> None:
    with pytest.raises(Misuse) as caught:
        choice(*given)
    assert caught.value.code == "node.arguments"


@pytest.mark.parametrize("options", [{"attester": "insecure"}, {"gpus": "amd"}])
def test_an_unknown_attester_starts_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(Misuse) as caught:
        operations.up(Home(tmp_path / "h"), **options)
    assert (caught.value.code, (tmp_path / "h").exists()) == ("node.arguments", False)
    assert startup._node("tsm", None, "nvidia") == ["--attester=tsm", "--gpus=nvidia"]


class Parts:
    """Notes what would be started instead of starting it."""

    def __init__(self) -> None:
        self.started: dict[str, tuple[Any, ...]] = {}
        self.fail = ""
        self.claims: dict[str, Any] = {}
        self.running = False

    def start(self, part: Any, home: Path, **_: Any) -> Any:
        if part.name == self.fail:
            raise Unavailable("tsm.absent", "This is no confidential guest.")
        self.started[part.name] = part.arguments
        return self


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    made = Parts()
    monkeypatch.setattr(embedded, "PartProcess", made)
    monkeypatch.setattr(Supervisor, "_image", lambda self: self._home / "image")
    return made


def test_the_choice_is_remembered_once_the_node_came_up(parts: Parts, tmp_path: Path) -> None:
    parts.fail = "node"
    with pytest.raises(CloisterError):
        Supervisor(tmp_path, separate_users=False, node=choice("tsm")).start()
    assert not json.loads((tmp_path / "supervisor.json").read_text()).get("node")
    parts.fail = ""
    Supervisor(tmp_path, separate_users=False, node=choice("tsm", gpus="nvidia")).start()
    again = Supervisor(tmp_path, separate_users=False)
    again.start()
    assert parts.started["node"][-2:] == ("--attester=tsm", "--gpus=nvidia")
    assert str(tmp_path / "node-tsm") in parts.started["node"]
    assert again.status()["node"]["chosen"]["attester"] == "tsm"
    Supervisor(tmp_path, separate_users=False, node=choice("swtpm")).start()
    assert parts.started["node"][-1] == "--attester=swtpm"


def test_switches_of_a_broker_are_remembered_and_lifted(parts: Parts, tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path, separate_users=False)
    supervisor.start_party("lab", None, "pw", create=True, switches={"stock_guests": True})
    (tmp_path / "parties" / "lab" / "vault.json").touch()
    supervisor = Supervisor(tmp_path, separate_users=False)
    supervisor.start_party("lab", None, "pw", create=False, switches={"fetch_collateral": True})
    assert parts.started["party/lab"][-2:] == ("--fetch-collateral", "--stock-guests")
    assert supervisor.status()["parties"]["lab"]["switches"] == ["fetch_collateral", "stock_guests"]
    supervisor.start_party("lab", None, "pw", create=False, switches={"stock_guests": False})
    assert supervisor.status()["parties"]["lab"]["switches"] == ["fetch_collateral"]


def test_no_switch_lets_development_evidence_in() -> None:
    """Whatever vouches for the node, its parties' brokers are production ones."""
    arguments = broker_arguments(None, None, dict.fromkeys((*SWITCHES, "allow_insecure_attester"), True))
    parsed = _arguments(["--home", "/x", *arguments])
    assert (parsed.stock_guests, parsed.fetch_collateral, parsed.allow_insecure_attester) == (True, True, False)
    with pytest.raises(CloisterError):
        read_switches(Fields({"allow_insecure_attester": True}, "switches"))
