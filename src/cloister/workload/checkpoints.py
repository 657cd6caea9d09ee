"""Sealed checkpoints. No single party holds their key: it is derived from one share of every owner.

The order of every ``save`` is what makes a kill at any moment harmless: seal (a folder that appears by one rename when
all of it is on disk) → every owner's broker records it → remove what is older than the one before. What is newest is
what brokers recorded, never what lies in the folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from ..contracts import Terms
from ..crypto import Envelope, SigningKey, frame, hkdf, sign_document
from ..errors import Internal, Untrusted
from ..sealed import Sealed, SealedObject, SealIdentity, open_sealed, seal_object
from .key_session import RunContext

__all__ = ["CHECKPOINT_TAG", "NoCheckpoints", "RecordCheckpoint", "SealedCheckpoints", "checkpoint_secret"]

CHECKPOINT_TAG = "checkpoint"
RECORD_TYPE = "application/vnd.cloister.checkpoint+json"
_REMOVED = ".removed"
_OLDER = 1  # checkpoints that are kept beside the newest


class RecordCheckpoint(Protocol):
    """Tells every owner's broker where the run stands; raises unless all of them logged it."""

    def __call__(self, record: str) -> None: ...


def checkpoint_secret(run: RunContext, shares: Mapping[str, bytes]) -> bytes:
    """PROTOCOL §3: n of n. Leaving out or changing any owner's share gives an unrelated key."""
    together = frame(*(shares[owner] for owner in sorted(shares)))
    return hkdf(together, info=frame("cloister/derived/v1", run.contract.digest, run.job.digest, CHECKPOINT_TAG))


class NoCheckpoints:
    """The sink of a run some of whose keys come from a stock key broker: that has no share of a checkpoint's key, and
    without it a single owner could open one. Brokers admit only recipes that want none."""

    def save(self, step: int, files: Iterable[tuple[str, BinaryIO]]) -> None:
        del files
        raise Internal("checkpoint.none", "A run with keys of a stock key broker writes no checkpoints.", step=step)

    def latest(self) -> None:
        return None


class SealedCheckpoints:
    """The training engine's checkpoint sink (``training.ports.CheckpointSink``)."""

    def __init__(
        self,
        run: RunContext,
        secret: bytes,
        folder: Path,
        *,
        known: tuple[int, bytes] | None,
        record: RecordCheckpoint,
    ) -> None:
        self._run, self._secret, self._folder, self._record = run, secret, folder, record
        self._known = known
        # Derived from the shares, so that a later instance of the same job can check an earlier one's manifest.
        self._signer = SigningKey(hkdf(secret, info=frame("cloister/checkpoint-signer/v1")))

    def save(self, step: int, files: Iterable[tuple[str, BinaryIO]]) -> None:
        """Seal, then have every owner's broker record it. A kill in between leaves the older one as the newest.

        No lock is held while brokers are asked, and nothing here is used by renewals: a slow broker slows neither the
        training nor its leases. Raises Internal for a step that doesn't grow, and what sealing and recording raise.
        """
        if self._known is not None and step <= self._known[0]:
            raise Internal("checkpoint.step", "A checkpoint is not newer than the recorded one.")
        target = self._folder / f"{step:08d}"
        if target.exists():  # sealed before the last kill and never recorded: make it anew
            self._remove(target)
        sealed = self._seal(step, files, target)
        self._record(self._entry(step, sealed))
        self._known = (step, sealed.digest)
        self._prune(step)

    def _seal(self, step: int, files: Iterable[tuple[str, BinaryIO]], target: Path) -> Sealed:
        run = self._run
        parents = run.job.assets
        terms = Terms.intersect([run.contract.asset(p).terms for p in parents])
        return seal_object(
            files,
            target,
            dek=self._key(step),
            identity=SealIdentity(
                owner=run.job.submitter,
                asset_id=run.job.digest[:16],
                name=f"{run.job.submitter}/checkpoint",
                version=step,
                asset_class="checkpoint",
                created=run.job.created,
                contract=run.contract.digest,
                job=run.job.digest,
                parents=parents,
            ),
            sign=lambda kind, payload: Envelope(kind, payload).signed_by(self._signer),
            terms={"terms": terms.document()},
        )

    def _entry(self, step: int, sealed: Sealed) -> str:
        """What brokers are to log, signed by this instance's attested key."""
        body = {
            "contract": self._run.contract.digest.hex(),
            "instance": self._run.instance.hex(),
            "job": self._run.job.digest.hex(),
            "root": sealed.digest.hex(),
            "step": step,
            "type": "checkpoint/v1",
        }
        return sign_document(RECORD_TYPE, body, self._run.identity.signing).to_bytes().decode()

    def latest(self) -> tuple[int, SealedObject] | None:
        """The checkpoint that the brokers recorded, and no other: an older one on disk is a rollback. It is open, and
        all of it was compared with the recorded root; the caller closes it."""
        if self._known is None:
            return None
        step, root = self._known
        folder = self._folder / f"{step:08d}"
        if not folder.is_dir():
            raise Untrusted(
                "checkpoint.missing", f"The recorded checkpoint of step {step} is not in the output folder."
            )
        sealed = open_sealed(folder, dek=self._key(step), expected_digest=root, signer_keys=[self._signer.public])
        try:
            sealed.check_roots()
            sealed.require_complete()
        except BaseException:
            sealed.close()
            raise
        return step, sealed

    def _key(self, step: int) -> bytes:
        return hkdf(self._secret, info=frame("cloister/checkpoint-dek/v1", step))

    def _prune(self, newest: int) -> None:
        """Only what is older than ``newest``, which is recorded by now: whatever else lies here can't push it out."""
        folders = (p for p in self._folder.iterdir() if p.is_dir() and p.name.isdecimal() and int(p.name) < newest)
        for old in sorted(folders, key=lambda p: int(p.name))[:-_OLDER]:
            self._remove(old)
        for left in self._folder.glob(f".*{_REMOVED}"):  # of a kill in the middle of a removal
            shutil.rmtree(left)

    def _remove(self, folder: Path) -> None:
        """Away by one rename: what has a checkpoint's name is a whole checkpoint at every moment."""
        away = folder.with_name(f".{folder.name}{_REMOVED}")
        if away.exists():
            shutil.rmtree(away)
        folder.rename(away)
        shutil.rmtree(away)
