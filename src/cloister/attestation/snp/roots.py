"""AMD's roots: SHA-256 of each ARK's SubjectPublicKeyInfo, and how the authorities below them are called.

The keys are those of AMD's key distribution service, ``vcek/v1/{product}/cert_chain`` and ``vlek/v1/…``: an ARK stands
above both the product's ASK, which signs VCEKs (keys of a chip), and its ASVK, which signs VLEKs (keys that AMD hands
to a cloud provider). ASKs and ASVKs aren't pinned: AMD may replace and revoke them, the ARK vouches for them.

| product | also for | ARK | over VCEKs | over VLEKs |
|---|---|---|---|---|
| Milan | | ARK-Milan | SEV-Milan | SEV-VLEK-Milan |
| Genoa | Bergamo, Siena | ARK-Genoa | SEV-Genoa | SEV-VLEK-Genoa |
| Turin | | ARK-Turin | SEV-Turin | SEV-VLEK-Turin |
"""

from __future__ import annotations

from typing import Final

from .products import PRODUCTS

__all__ = ["AMD_ROOTS", "intermediate_name", "root_name"]

AMD_ROOTS: Final = {
    "milan": "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9",
    "genoa": "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831",
    "turin": "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08",
}


def root_name(product: str) -> str:
    """The common name of the product's ARK."""
    return f"ARK-{PRODUCTS[product]}"


def intermediate_name(product: str, signing_key: str) -> str:
    """The common name of the authority that signs the product's ``vcek`` or ``vlek`` certificates."""
    return f"SEV-VLEK-{PRODUCTS[product]}" if signing_key == "vlek" else f"SEV-{PRODUCTS[product]}"
