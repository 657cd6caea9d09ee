"""in-toto Statement v1 with SLSA provenance v1: which files, from which inputs, by which measured builder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...contracts import Contract, Job
from ...crypto import Envelope, SigningKey, sha256, sign_document

__all__ = ["PROVENANCE_TYPE", "provenance_statement"]

PROVENANCE_TYPE = "application/vnd.in-toto+json"
BUILD_TYPE = "https://cloister.invalid/build/fine-tuning/v1"


def provenance_statement(
    files: Mapping[str, bytes],
    contract: Contract,
    job: Job,
    instance: bytes,
    measurement: str,
    key: SigningKey,
    *,
    unbound: Sequence[Mapping[str, str]] = (),
) -> Envelope:
    """Signed by the workload's attested key. ``files`` maps every other file of the bundle to its bytes.

    Plaintext digests stand here and not in the manifest: this statement is itself sealed, and reaches only
    those who receive the plaintext. ``unbound``: of keys that came from stock key brokers; see ``trustee.UnboundKey``.
    """
    statement: dict[str, Any] = {
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": "https://slsa.dev/provenance/v1",
        "subject": [{"digest": {"sha256": sha256(data).hex()}, "name": name} for name, data in sorted(files.items())],
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "contract": contract.digest.hex(),
                    "job": job.digest.hex(),
                    "output": job.output,
                    "recipe": job.recipe.to_document(),
                },
                "resolvedDependencies": [
                    {"digest": {"sha256": digest.hex()}, "name": contract.asset(digest).name} for digest in job.assets
                ],
            },
            "runDetails": {
                "builder": {"id": f"https://cloister.invalid/workload/{measurement}"},
                "metadata": {"invocationId": instance.hex()},
            },
        },
    }
    if unbound:
        # SLSA: what the builder sets itself. Absent where every key was bound to this run.
        statement["predicate"]["buildDefinition"]["internalParameters"] = {"unbound": [dict(key) for key in unbound]}
    return sign_document(PROVENANCE_TYPE, statement, key)
