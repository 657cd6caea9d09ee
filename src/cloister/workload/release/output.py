"""Seal the output, let every owner's broker permit it, wrap its key for the recipients, write the record.

Order matters: nobody can open the output before the recipients' brokers hold every owner's permit, and a
permit is logged before it is signed.
"""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...contracts import Output, Terms
from ...crypto import Envelope, frame, hpke_seal, random_bytes
from ...sealed import Sealed, SealIdentity, seal_object
from ..key_session import ReleasedKey, RunContext

__all__ = ["OutputRelease"]

AskPermit = Callable[[str, str], dict[str, Any]]  # (owner, manifest text) → {"permit": text, "receipt": wire}


class OutputRelease:
    """One output of one run. ``folder`` is the sandbox's output folder, which the operator reads."""

    def __init__(self, run: RunContext, folder: Path, ask_permit: AskPermit) -> None:
        self._run, self._folder, self._ask_permit = run, folder, ask_permit
        self._output: Output = next(o for o in run.contract.outputs if o.name == run.job.output)

    def terms(self) -> Terms:
        """The intersection of the parents' terms (invariant 4)."""
        run = self._run
        return Terms.intersect([run.contract.asset(d).terms for d in run.job.assets])

    def release(
        self,
        files: Mapping[str, bytes],
        gates: Sequence[Mapping[str, Any]],
        keys: Mapping[str, Sequence[ReleasedKey]],
        tokens: Mapping[str, str],
    ) -> None:
        """Everything that leaves this run leaves here."""
        dek = random_bytes(32)
        sealed = self._seal(files, gates, dek)
        manifest = sealed.envelope.to_bytes().decode()
        permits = {owner: self._ask_permit(owner, manifest) for owner in self._run.contract.brokers()}
        self._write_record(sealed, manifest, permits, keys, tokens, dek)

    def _seal(self, files: Mapping[str, bytes], gates: Sequence[Mapping[str, Any]], dek: bytes) -> Sealed:
        run = self._run
        terms = {
            "form": self._output.form,
            "gates": list(gates),
            "instance": run.instance.hex(),
            "recipients": list(self._output.recipients),
            "terms": self.terms().document(),
        }
        place = self._folder / "output"
        if place.exists():  # of an instance that was killed before it had every permit: nobody can open it
            shutil.rmtree(place)
        return seal_object(
            ((name, io.BytesIO(data)) for name, data in sorted(files.items())),
            place,
            dek=dek,
            identity=SealIdentity(
                owner=self._output.name.partition("/")[0],
                asset_id=run.job.digest[:16],
                name=self._output.name,
                version=1,
                asset_class="artifact",
                created=run.job.created,
                contract=run.contract.digest,
                job=run.job.digest,
                parents=tuple(sorted(run.job.assets)),
            ),
            sign=lambda kind, payload: Envelope(kind, payload).signed_by(run.identity.signing),
            terms=terms,
        )

    def _write_record(
        self,
        sealed: Sealed,
        manifest: str,
        permits: Mapping[str, dict[str, Any]],
        keys: Mapping[str, Sequence[ReleasedKey]],
        tokens: Mapping[str, str],
        dek: bytes,
    ) -> None:
        run = self._run
        info = frame("cloister/output/v1", run.contract.digest, run.job.digest, sealed.digest)
        wraps = {
            name: {"sealed": base64.b64encode(hpke_seal(run.contract.parties[name].hpke, dek, info)).decode()}
            for name in self._output.recipients
        }
        record = {
            "contract": run.contract.envelope.to_bytes().decode(),
            "job": run.job.envelope.to_bytes().decode(),
            "keys": {owner: [key.receipt.to_wire() for key in released] for owner, released in keys.items()},
            "manifest": manifest,
            "permits": dict(permits),
            "tokens": dict(tokens),
            "version": 1,
            "wraps": wraps,
        }
        target = self._folder / "release.json"
        draft = target.with_suffix(".draft")
        draft.write_text(json.dumps(record, sort_keys=True))
        draft.rename(target)
