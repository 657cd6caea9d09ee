"""Re-encryption at the owner's broker: the data key of the version to come is made here, and kept wrapped, so that a
client that is killed half-way goes on with the same key. The streaming is the client's (``client/reencrypt.py``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from ..crypto import Envelope, frame, random_bytes, sha256
from ..errors import Denied, Misuse
from ..keys import DEK_SIZE
from ..sealed import dek_commitment
from .assets import Assets
from .ledger import Ledger
from .party import OwnKeys
from .retention import Retention, check_held
from .state import Change, Row
from .wrapped import is_gone, unwrap_secret, wrapped_columns

__all__ = ["Opening", "Reencryptions"]


@dataclass(frozen=True, repr=False)
class Opening:
    """What the owner's client needs: the source's signed manifest and key, and the next version's. ``previous``: the
    digest of the newest version until then, which is not the source's where the owner chose an older one."""

    task: str
    source: Envelope
    source_secret_dek: bytes
    secret_dek: bytes
    version: int
    previous: bytes
    resumed: bool

    def __reduce__(self) -> NoReturn:
        raise TypeError("an opening holds keys and is not pickled")


class Reencryptions:
    """Tasks by asset name, at most one running for each. A task ends when its version is sealed, when another one is,
    when what it reads is shredded, or when it is cancelled; then its key is gone, unless it became the version's."""

    def __init__(
        self, keys: OwnKeys, assets: Assets, retention: Retention, ledger: Ledger, clock: Callable[[], int]
    ) -> None:
        self._vault = keys.vault
        self._assets = assets
        self._retention = retention
        self._ledger = ledger
        self._clock = clock

    def open(self, name: str, *, version: int | None = None, shred_old: bool = False) -> Opening:
        """Start the re-encryption of the newest version, or go on with the one that runs. Logged before keys go out.

        ``version``: an older one, on the owner's own word only, for where the newest one's ciphertext is lost. What is
        made is the next version in any case, and the log names what it was made from.
        ``shred_old``: what is held can't be shredded afterwards, so that is refused now. Raises Misuse, Denied.
        """
        if shred_old:
            check_held(name, self._retention.held().get(name))
        with self._ledger.turn():
            source, newest = self._source(name, version)
            _check_readable(source)
            running = self._running(name, source)
            task = running or self._start(name, source, newest["version"] + 1)
            details: dict[str, str | int] = {"name": name, "task": task["task"], "version": source["version"]}
            self._ledger.append("asset.opened", target=source["digest"], details=details)
        digest = bytes.fromhex(source["digest"])
        return Opening(
            task=task["task"],
            source=self._assets.signed(digest),
            source_secret_dek=self._assets.unwrap_secret_dek(digest),
            secret_dek=self._unwrap_secret(task["task"]),
            version=task["version"],
            previous=bytes.fromhex(newest["digest"]),
            resumed=running is not None,
        )

    def listing(self) -> list[dict[str, Any]]:
        shown = ("task", "name", "source", "version", "state", "started")
        return [{key: row[key] for key in shown} for row in self._ledger.state.rows("tasks")]

    def cancel(self, name: str) -> str:
        """End the running task of an asset; its id."""
        with self._ledger.turn():
            row = self._ledger.state.row("tasks", name=name, state="running")
            if row is None:
                raise Misuse("task.none", f"No re-encryption of {name} is running.")
            self._commit(name, "cancelled", row["version"], [_ended(row)])
            return str(row["task"])

    def _source(self, name: str, version: int | None) -> tuple[Row, Row]:
        """The version to read, and the newest."""
        rows = self._assets.versions(name)
        if not rows:
            raise Misuse("asset.unknown", f"This broker has no asset {name}; 'cloister key list' shows them.")
        chosen = [row for row in rows if version in (None, row["version"])]
        if not chosen:
            raise Misuse(
                "asset.version", f"{name} has no version {version}; 'cloister key list' shows those there are."
            )
        return chosen[-1], rows[-1]

    def _running(self, name: str, source: Row) -> Row | None:
        row = self._ledger.state.row("tasks", name=name, state="running")
        return row if row is not None and row["source"] == source["digest"] else None

    def _start(self, name: str, source: Row, version: int) -> Row:
        """A fresh key, wrapped for this task only. Call it within a turn."""
        task, dek = random_bytes(16), random_bytes(DEK_SIZE)
        context = sha256(frame("cloister/reencrypt/v1", task, bytes.fromhex(source["digest"]), version))
        row = {
            "task": task.hex(),
            "name": name,
            "source": source["digest"],
            "asset_id": source["asset_id"],
            "version": version,
            "commitment": dek_commitment(dek, bytes.fromhex(source["asset_id"]), version).hex(),
            "context": context.hex(),
            "state": "running",
            "started": self._clock(),
            **wrapped_columns(self._vault.wrap(dek, context)),
        }
        stale = [_ended(old) for old in self._ledger.state.rows("tasks", name=name, state="running")]
        self._commit(name, "started", version, [*stale, Change("tasks", row)], source=source["version"])
        return row

    def _commit(self, name: str, stage: str, version: int, changes: list[Change], **more: int) -> None:
        details: dict[str, str | int] = {"name": name, "stage": stage, "version": version, **more}
        self._ledger.commit("asset.reencrypting", target=name, details=details, changes=changes)

    def _unwrap_secret(self, task: str) -> bytes:
        """As ``Assets.unwrap_secret_dek``: a rotation may be under way."""
        row = self._row(task)
        while True:
            if row["wrapped"] is None:
                raise Denied("task.ended", "This re-encryption was ended meanwhile; start it again.")
            try:
                return unwrap_secret(self._vault, "tasks", row)
            except Denied as refusal:
                newer = self._row(task)
                if not is_gone(refusal) or newer["wrapped"] == row["wrapped"]:
                    raise
                row = newer

    def _row(self, task: str) -> Row:
        row = self._ledger.state.row("tasks", task=task)
        if row is None:
            raise Misuse("task.none", "There is no such re-encryption.")
        return row


def _check_readable(source: Row) -> None:
    """An older version is not taken for a newest one that was shredded: what is in it may be what somebody ended."""
    if source["shredded"] is not None:
        raise Denied(
            "asset.shredded",
            f"The key of {source['name']} version {source['version']} was destroyed for good; an older version whose "
            "key exists is re-encrypted only with --version.",
        )


def _ended(row: Row) -> Change:
    return Change("tasks", {**row, "epoch": None, "state": "ended", "wrapped": None})
