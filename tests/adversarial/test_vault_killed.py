"""``kill -9`` at random points while a vault rotates, destroys, wraps, gets new master keys and keeps secrets. After
each it opens; every wrapped key that should open opens, and none that should not; and a device holds what the file
names, and no more."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError, Denied
from cloister.keys import Vault, WrappedKey, create_vault, open_vault, rekey
from tests.folder_driver import PIN, Device
from tests.sealing import CHEAP

DIGEST = b"manifest digest of 32 bytes....."
PASSPHRASE = b"correct horse battery"
KILLS = 100  # of each driver
Say = Callable[..., None]


@dataclass
class Story:
    """What the killed processes said that they did, in order. ``started`` things may or may not have happened."""

    wrapped: list[tuple[WrappedKey, bytes]] = field(default_factory=list)
    destroyed: set[int] = field(default_factory=set)
    epochs: int = 1
    secrets: dict[str, bytes] = field(default_factory=dict)
    started: dict[str, bytes] = field(default_factory=dict)

    def hear(self, line: str) -> None:
        what, *rest = json.loads(line)
        if what == "wrapped":
            self.wrapped.append((WrappedKey.from_document(rest[0]), bytes.fromhex(rest[1])))
        elif what == "rotated":
            self.epochs = max(self.epochs, rest[0])
        elif what == "destroyed":
            self.destroyed.add(rest[0])
        elif what == "putting":
            self.started[rest[0]] = bytes.fromhex(rest[1])
        elif what == "put":
            self.secrets[rest[0]] = self.started[rest[0]]


def work(vault: Vault, credential: bytes, say: Say) -> None:
    """Until it is killed. The pipe takes each line at once, so what was said outlives the process."""
    number = random.randrange(3)
    while True:
        number += 1
        dek, value, name = os.urandom(32), os.urandom(24), f"s{random.randrange(8)}"
        say("wrapped", vault.wrap(dek, DIGEST).to_document(), dek.hex())
        say("putting", name, value.hex())
        vault.put_secret(name, value, replace=True)
        say("put", name)
        say("rotated", vault.rotate_kek())
        vault.create_signing_key("receipt", replace=True)
        if len(vault.epochs()) > 3:
            epoch = vault.epochs()[0]
            vault.destroy_epoch(epoch)
            say("destroyed", epoch)
        if number % 3 == 0:
            rekey(vault, credential)


def killed_child(run: Callable[[Say], None], after: float) -> list[str]:
    """Run it in a child, kill -9 it that many seconds after its first line if it lives, and return what it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            run(lambda *line: os.write(writing, (json.dumps(line) + "\n").encode()) and None)
        finally:
            os._exit(7)  # it may only end by being killed
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        heard = [pipe.readline()]
        end = time.monotonic() + after
        while time.monotonic() < end and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
        heard += pipe.readlines()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child failed before it was killed"
    return [line for line in heard if line.endswith("\n")]


def check(vault: Vault, story: Story) -> tuple[int, int]:
    """The independent check. Returns how many keys opened and how many were refused."""
    held = set(vault.epochs())
    assert max(held) >= story.epochs, "a rotation that was finished is there"
    assert not held & story.destroyed, "an epoch that was destroyed is not"
    opened = refused = 0
    for wrapped, dek in story.wrapped:
        if wrapped.epoch in held:
            assert vault.unwrap(wrapped, DIGEST) == dek
            opened += 1
        else:
            with pytest.raises(Denied) as info:
                vault.unwrap(wrapped, DIGEST)
            assert info.value.code == "wrap.epoch"
            refused += 1
    for name, value in story.secrets.items():
        assert vault.secret(name) in {value, story.started[name]}
        story.secrets[name] = vault.secret(name)
    for wrapped, _ in story.wrapped:
        # Only the oldest epochs were ever given up: nothing that should open is gone.
        assert wrapped.epoch in held or wrapped.epoch < min(held)
    return opened, refused


def kill_often(path: Path, credential: bytes, unlock: Callable[[], Vault], after_each: Callable[[Vault], Any]) -> None:
    story, chance = Story(), random.Random(20)
    opened = refused = 0
    for _ in range(KILLS):
        for line in killed_child(lambda say: work(unlock(), credential, say), chance.uniform(0, 0.1)):
            story.hear(line)
        with unlock() as vault:
            some = check(vault, story)
            after_each(vault)
        opened, refused = opened + some[0], refused + some[1]
        story.wrapped = story.wrapped[-200:]
    assert opened > KILLS
    assert refused > KILLS
    assert story.destroyed
    assert os.listdir(path.parent) == ["vault.json"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_file_vault_killed_at_random(tmp_path: Path) -> None:
    path = tmp_path / "v" / "vault.json"
    create_vault(path, PASSPHRASE, "hospital", params=CHEAP).close()
    kill_often(
        path,
        PASSPHRASE,
        lambda: open_vault(path, PASSPHRASE),
        lambda vault: vault.put_secret("tidy", b"", replace=True),
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_vault_over_a_device_killed_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(tmp_path / "device")
    device.plug_in(monkeypatch)
    path = tmp_path / "v" / "vault.json"
    create_vault(path, PIN, "hospital", driver=device.config).close()

    def tidy(vault: Vault) -> None:
        named = set(vault._held().document.handles())
        assert named <= device.held(), "every key that the file names is in the device"
        assert vault._held().document.destroying == (), "what was given up is destroyed at the next opening"
        vault.put_secret("tidy", b"", replace=True)  # a change removes the temporary files of who was killed
        vault.sweep_orphans(known_revision=vault.revision)
        assert device.held() == named

    kill_often(path, PIN, lambda: open_vault(path, PIN, driver=device.config), tidy)


def test_a_child_that_fails_is_not_taken_for_a_killed_one(tmp_path: Path) -> None:
    def fails(say: Say) -> None:
        say("wrapped")
        raise CloisterError("test.fails", "It fails.")

    with pytest.raises(AssertionError, match="failed before"):
        killed_child(fails, 60)
