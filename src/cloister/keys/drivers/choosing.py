"""Which driver a vault names, and loading it: a client library is imported only where it is used."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from ...errors import Malformed, Misuse
from ..ports import KekDriver

__all__ = ["DRIVERS", "DriverConfig", "open_driver"]

DRIVERS = ("file", "tpm", "pkcs11", "transit", "aws", "gcp", "azure")
_OPTION = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_MAX_OPTIONS = 32
_MAX_VALUE = 4096


@dataclass(frozen=True)
class DriverConfig:
    """Which driver, and where to find its device or service. Options are public: they stand in the vault's file.

    Raises Misuse for a driver that does not exist, Malformed for options that are no short texts.
    """

    name: str = "file"
    options: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in DRIVERS:
            raise Misuse("driver.unknown", f"There is no such vault driver; choose one of {', '.join(DRIVERS)}.")
        well_formed = isinstance(self.options, Mapping) and len(self.options) <= _MAX_OPTIONS
        if not well_formed or not all(_is_option(key, value) for key, value in self.options.items()):
            raise Malformed("driver.options", "A vault driver's options are short texts under lower-case names.")


def _is_option(key: object, value: object) -> bool:
    named = isinstance(key, str) and _OPTION.fullmatch(key)
    return bool(named and isinstance(value, str) and len(value) <= _MAX_VALUE and value.isprintable())


def open_driver(config: DriverConfig, credential: bytes) -> KekDriver:
    """The driver that ``config`` names, connected with ``credential`` (PIN, token, key: never kept in a file).

    Raises Misuse (``driver.extra``: its client library isn't installed; or options are missing), Denied (the credential
    is refused), Unavailable (device or service can't be reached).
    """
    try:
        module = importlib.import_module(f".{config.name}", __package__)
        return cast("KekDriver", module.open_driver(config.options, credential))
    except ImportError as error:
        if (error.name or "").startswith("cloister"):
            raise  # a broken installation of Cloister itself; naming an extra would mislead
        raise Misuse(
            "driver.extra",
            f"The {config.name} driver needs a library that is not installed: pip install 'cloister[{config.name}]'.",
        ) from None
