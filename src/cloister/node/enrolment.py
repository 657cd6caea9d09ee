"""The node's part of an enrolment: what an owner needs to know that an attestation key lives in a manufacturer's TPM.

It works beside a running agent where the TPM has a resource manager (``/dev/tpmrm0``): it extends nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..attestation.tpm.enrolment import Challenge, EnrolmentRequest, answer
from ..fields import Fields
from .swtpm import SoftwareTpm
from .tpm import Identity, Tpm

__all__ = ["ask", "open_tpm", "prove", "prove_document", "request_document"]


@contextlib.contextmanager
def open_tpm(kind: str, state: Path) -> Iterator[tuple[Tpm, Identity]]:
    """The TPM that ``kind`` names (swtpm, or a TCTI), with the attestation key that ``state`` keeps."""
    with contextlib.ExitStack() as closing:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        tcti = closing.enter_context(SoftwareTpm(state)).tcti if kind == "swtpm" else kind
        tpm = Tpm(tcti)
        closing.callback(tpm.close)
        yield tpm, tpm.load_identity(state)


def ask(tpm: Tpm, identity: Identity) -> EnrolmentRequest:
    """What an owner needs first. Raises Unavailable ``tpm.no-certificate`` for a TPM without a maker's certificate."""
    ek_public, certificate = tpm.endorsement()
    return EnrolmentRequest(identity.ak_public, ek_public, certificate)


def prove(tpm: Tpm, request: EnrolmentRequest, challenge: Challenge) -> bytes:
    """The proof (32 bytes) that answers an owner's challenge; Untrusted if that isn't for this TPM and key."""
    return answer(request, tpm.activate(request.ek_public, challenge.credential))


def request_document(kind: str, state: Path) -> dict[str, Any]:
    """The request, as a JSON document to carry to the owner."""
    with open_tpm(kind, state) as (tpm, identity):
        return ask(tpm, identity).to_wire()


def prove_document(kind: str, state: Path, document: Any) -> dict[str, Any]:
    """``{"id", "proof"}`` for the owner's ``{"challenge", "id"}``. Raises Malformed for another form."""
    f = Fields(document, "enrolment challenge")
    handle, challenge = f.hex("id", 16), Challenge.from_wire(f.raw("challenge"))
    f.done()
    with open_tpm(kind, state) as (tpm, identity):
        return {"id": handle.hex(), "proof": prove(tpm, ask(tpm, identity), challenge).hex()}
