"""Every bound of the control plane, in one frozen place."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds. A request beyond a bound is refused, never cut."""

    body: int = 256 * 1024
    contract_body: int = 2 * 1024 * 1024
    release_body: int = 4 * 1024 * 1024
    manifest: int = 4 * 1024 * 1024
    object_bytes: int = 1 << 42  # 4 TiB of ciphertext per object
    free_bytes: int = 64 * 1024 * 1024  # kept free on the disk of the store, so that the database can still write
    parties: int = 1000
    open_uploads: int = 16  # per party
    upload_seconds: int = 7 * 24 * 3600
    unsigned_contracts: int = 200  # per party: proposals that nobody signed yet
    queued_jobs: int = 50  # per contract
    events: int = 50_000  # per job; a longer run keeps its first events and its last state
    event_batch: int = 256
    remembered_requests: int = 200_000
    poll: int = 20
    attempts: int = 3
