"""AMD's SEV-SNP products: which processor is which, and how each writes its TCB version.

Sources: AMD 57230 (VCEK certificate and KDS interface) for names and CPUID, AMD 56860 (SEV-SNP firmware ABI) for
TCB_VERSION. Bergamo and Siena are Genoa to AMD's keys. What isn't listed here is refused: the layout of its TCB isn't
known, and a floor over bytes of unknown meaning would be no floor.
"""

from __future__ import annotations

import re
from typing import Final

from ...errors import Malformed

__all__ = ["PRODUCTS", "covers", "product_of_cpuid", "product_of_name", "split_tcb"]

PRODUCTS: Final = {"milan": "Milan", "genoa": "Genoa", "turin": "Turin"}
"""Our name and AMD's, which stands in the names of its certificate authorities."""

_CPUID: Final = (
    # family, first and last model, product
    (0x19, 0x00, 0x0F, "milan"),
    (0x19, 0x10, 0x1F, "genoa"),
    (0x19, 0xA0, 0xAF, "genoa"),
    (0x1A, 0x00, 0x1F, "turin"),
)
_NAMES: Final = {"Milan": "milan", "Genoa": "genoa", "Bergamo": "genoa", "Siena": "genoa", "Turin": "turin"}
# A stepping may follow ("Milan-B0"); certificates of some chips, and all VLEKs, have none.
_NAME = re.compile(r"([A-Z][a-z]+)(?:-[A-Z][0-9])?")
_RESERVED: Final = ""
_BEFORE_TURIN: Final = ("bootloader", "tee", _RESERVED, _RESERVED, _RESERVED, _RESERVED, "snp", "microcode")
_LAYOUTS: Final = {
    "milan": _BEFORE_TURIN,
    "genoa": _BEFORE_TURIN,
    "turin": ("fmc", "bootloader", "tee", "snp", _RESERVED, _RESERVED, _RESERVED, "microcode"),
}


def product_of_cpuid(family: int, model: int) -> str | None:
    """The product with this (combined) CPUID family and model; None where it is unknown."""
    return next((p for f, first, last, p in _CPUID if f == family and first <= model <= last), None)


def product_of_name(name: str) -> str | None:
    """The product that a certificate's product name, with or without a stepping, stands for; None for another."""
    match = _NAME.fullmatch(name)
    return _NAMES.get(match.group(1)) if match else None


def split_tcb(tcb: bytes, product: str) -> dict[str, int]:
    """The parts of an 8-byte TCB_VERSION of ``product``, by name: security versions from 0 to 255.

    Raises Malformed ``snp.tcb`` for reserved bytes that aren't zero: they could be parts that this version ignores.
    """
    layout = _LAYOUTS[product]
    if len(tcb) != len(layout) or any(v for name, v in zip(layout, tcb, strict=True) if name == _RESERVED):
        raise Malformed("snp.tcb", "A TCB version has reserved bytes that are not zero; it is of an unknown kind.")
    return {name: v for name, v in zip(layout, tcb, strict=True) if name != _RESERVED}


def covers(higher: dict[str, int], lower: dict[str, int]) -> bool:
    """Whether every part of ``lower`` is at most that of ``higher``. Parts are independent: there is no total order."""
    return all(lower[name] <= higher[name] for name in lower)
