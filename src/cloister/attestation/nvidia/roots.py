"""NVIDIA's roots, by SHA-256 of their SubjectPublicKeyInfo: facts, and all that is pinned.

Computed from the root certificates that NVIDIA publishes with its open verifiers. Every device chain carries its root,
every reference manifest its own, so the certificates themselves are not needed here.
"""

from __future__ import annotations

from typing import Final

__all__ = ["DEVICE_ROOTS", "MANIFEST_ROOTS"]

DEVICE_ROOTS: Final = {
    "a90c4eb5acfd3e3d03a25db6a26b84f720ad0503196c627c21ddd48dd85b06a4": "NVIDIA Device Identity CA",
}
"""What GPUs and switches of all generations so far lead to."""
MANIFEST_ROOTS: Final = {
    "dec1dc316477aa851eebdf51327ae9f864bc8d89254657ed1e7eb9168af1e1a3": "NVIDIA CoRIM signing Root CA",
}
"""What signers of reference manifests lead to."""
