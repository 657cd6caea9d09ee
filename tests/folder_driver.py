"""A device for tests: a folder in which each key is a file. It keeps what it is asked to keep, forgets what it is asked
to destroy, outlives the process, and fails where a test says so. It protects nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, NoReturn

import pytest

from cloister.crypto import Signer, SigningKey, open_box, seal_box
from cloister.errors import CloisterError, Denied, Misuse, Unavailable, Untrusted
from cloister.keys import DriverConfig
from cloister.keys.drivers import open_driver as open_real_driver

PIN = b"123456"


class FolderDriver:
    """``SigningDriver`` over ``folder``. ``before`` is called with the name of each operation, and may raise."""

    name: ClassVar[str] = "pkcs11"
    experimental: ClassVar[bool] = False
    algorithm: ClassVar[str] = "folder"

    def __init__(self, folder: Path, before: Callable[[str], None] = lambda _: None) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._before, self._open = folder, before, True

    def _start(self, what: str) -> None:
        if not self._open:
            raise Misuse("vault.closed", "The vault is locked; unlock it again.")
        self._before(what)

    def _keep(self, kind: str, label: str, value: bytes) -> bytes:
        name = f"{kind}.{label.replace('/', '_')}.{os.urandom(8).hex()}"
        (self._folder / f"{name}.tmp").write_bytes(value)
        os.rename(self._folder / f"{name}.tmp", self._folder / name)
        return name.encode()

    def _value(self, kind: str, handle: bytes) -> bytes:
        name = handle.decode("latin-1")
        if name.startswith(f"{kind}.") and name in os.listdir(self._folder):
            return (self._folder / name).read_bytes()
        raise Denied("wrap.gone" if kind == "kek" else "sign.gone", "The device does not hold that key any more.")

    def create(self, kek_id: str, epoch: int) -> bytes:
        self._start("create")
        return self._keep("kek", f"{kek_id}/{epoch}", os.urandom(32))

    def wrap(self, handle: bytes, dek: bytes, context: bytes) -> bytes:
        self._start("wrap")
        kek = self._value("kek", handle)
        if len(dek) != 32:
            raise Misuse("wrap.dek", "A data key has exactly 32 bytes.")
        return seal_box(kek, dek, context)

    def unwrap(self, handle: bytes, box: bytes, context: bytes) -> bytes:
        self._start("unwrap")
        kek = self._value("kek", handle)
        try:
            return open_box(kek, box, context)
        except Untrusted:
            raise Untrusted("wrap.changed", "A wrapped key does not open.") from None

    def destroy(self, handle: bytes) -> str | None:
        self._start("destroy")
        name = handle.decode("latin-1")
        if name in os.listdir(self._folder):
            (self._folder / name).unlink()
        return None

    def list(self, kek_id: str) -> Sequence[bytes]:
        self._start("list")
        names = (name for name in os.listdir(self._folder) if not name.endswith(".tmp"))
        return sorted(name.encode() for name in names if name.split(".")[1].startswith(kek_id))

    def create_signer(self, name: str) -> tuple[bytes, bytes]:
        self._start("create_signer")
        seed = os.urandom(32)
        return self._keep("sign", name, seed), SigningKey(seed).public

    def signer(self, handle: bytes) -> Signer:
        self._start("signer")
        return _FolderSigner(self, handle)

    def close(self) -> None:
        self._open = False

    def __repr__(self) -> str:
        return "FolderDriver(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a vault's driver is not pickled")


class _FolderSigner:
    def __init__(self, driver: FolderDriver, handle: bytes) -> None:
        self._driver, self._handle = driver, handle
        self.public = SigningKey(driver._value("sign", handle)).public

    def sign(self, message: bytes) -> bytes:
        self._driver._start("sign")
        return SigningKey(self._driver._value("sign", self._handle)).sign(message)


class Device:
    """What a test does to the device: ``fails`` maps operations to the error that they raise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = DriverConfig("pkcs11", {"module": "folder", "token": "test"})
        self.fails: dict[str, CloisterError] = {}

    def before(self, operation: str) -> None:
        if operation in self.fails:
            raise self.fails[operation]

    @contextmanager
    def gone(self, *operations: str) -> Iterator[None]:
        """Unreachable for these operations."""
        error = Unavailable("device.gone", "The device can't be reached; connect it again.")
        self.fails.update(dict.fromkeys(operations, error))
        yield
        for operation in operations:
            del self.fails[operation]

    def held(self) -> set[bytes]:
        return {name.encode() for name in os.listdir(self.folder) if not name.endswith(".tmp")}

    def open(self, config: DriverConfig, credential: bytes) -> object:
        """In the place of ``open_driver``."""
        if config.name == "file":
            return open_real_driver(config, credential)
        if credential != PIN:
            raise Denied("vault.pin", "The device refuses the PIN.")
        return FolderDriver(self.folder, self.before)

    def plug_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("opening", "recovery"):
            monkeypatch.setattr(f"cloister.keys.{module}.open_driver", self.open)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """Plugged in for one test. A module takes it with ``from tests.folder_driver import device as device``."""
    made = Device(tmp_path / "device")
    made.plug_in(monkeypatch)
    return made
