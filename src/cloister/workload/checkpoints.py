"""Sealed checkpoints. No single party holds their key: it is derived from one share of every owner."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ..contracts import Terms
from ..crypto import Envelope, SigningKey, frame, hkdf, sign_document
from ..errors import Untrusted
from ..sealed import SealIdentity, open_sealed, seal_object
from .key_session import RunContext

__all__ = ["CHECKPOINT_TAG", "RecordCheckpoint", "SealedCheckpoints", "checkpoint_secret"]

CHECKPOINT_TAG = "checkpoint"
RECORD_TYPE = "application/vnd.cloister.checkpoint+json"
_KEEP = 2


class RecordCheckpoint(Protocol):
    """Tells every owner's broker where the run stands; raises unless all of them logged it."""

    def __call__(self, record: str) -> None: ...


def checkpoint_secret(run: RunContext, shares: Mapping[str, bytes]) -> bytes:
    """PROTOCOL §3: n of n. Leaving out or changing any owner's share gives an unrelated key."""
    together = frame(*(shares[owner] for owner in sorted(shares)))
    return hkdf(together, info=frame("cloister/derived/v1", run.contract.digest, run.job.digest, CHECKPOINT_TAG))


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

    def save(self, step: int, blobs: Mapping[str, bytes]) -> None:
        """Seal, then have every owner's broker record it. A kill in between leaves the older one as the newest."""
        target = self._folder / f"{step:08d}"
        if target.exists():  # sealed before the last kill, but perhaps never recorded: make it anew
            shutil.rmtree(target)
        run = self._run
        parents = (run.job.data, run.job.base)
        terms = Terms.intersect([run.contract.asset(p).terms for p in parents])
        sealed = seal_object(
            ((name, io.BytesIO(blob)) for name, blob in sorted(blobs.items())),
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
        body = {
            "contract": run.contract.digest.hex(),
            "instance": run.instance.hex(),
            "job": run.job.digest.hex(),
            "root": sealed.digest.hex(),
            "step": step,
            "type": "checkpoint/v1",
        }
        self._record(sign_document(RECORD_TYPE, body, run.identity.signing).to_bytes().decode())
        self._known = (step, sealed.digest)
        self._prune()

    def latest(self) -> tuple[int, Mapping[str, bytes]] | None:
        """The checkpoint that the brokers recorded, and no other: an older one on disk is a rollback."""
        if self._known is None:
            return None
        step, root = self._known
        folder = self._folder / f"{step:08d}"
        if not folder.is_dir():
            raise Untrusted(
                "checkpoint.missing", f"The recorded checkpoint of step {step} is not in the output folder."
            )
        with open_sealed(
            folder, dek=self._key(step), expected_digest=root, signer_keys=[self._signer.public]
        ) as sealed:
            sealed.check_roots()
            sealed.require_complete()
            return step, {path: sealed.read(path) for path in sealed.paths()}

    def _key(self, step: int) -> bytes:
        return hkdf(self._secret, info=frame("cloister/checkpoint-dek/v1", step))

    def _prune(self) -> None:
        for old in sorted(p for p in self._folder.iterdir() if p.is_dir() and p.name.isdigit())[:-_KEEP]:
            shutil.rmtree(old)
