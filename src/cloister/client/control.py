"""The control plane's API. It is trusted for availability only: what comes from here is checked where it matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import httpx

from ..contracts import Card
from ..crypto import Envelope, canonical_json, sha256
from ..errors import Misuse, Unavailable
from ..sealed import MANIFEST_NAME, Manifest, member_name, read_envelope
from .progress import Progress, Step, silent
from .wire import Wire

__all__ = ["ControlClient", "Signer"]

_CHUNK = 1 << 20


class Signer(Protocol):
    """Signs requests for one party. ``OwnerAgent`` is one."""

    @property
    def party(self) -> str: ...

    def authorize(self, method: str, path: str, body: str | None, audience: str) -> str: ...


class ControlClient:
    """Without ``signer`` only ``info`` works. Raises the server's own errors, Unavailable when it does not run."""

    def __init__(self, url: str, signer: Signer | None = None, *, transport: httpx.BaseTransport | None = None) -> None:
        # Loading the machine's certificates takes long, and plain HTTP (loopback) has no use for them.
        tls = url.startswith("https:")
        client = httpx.Client(base_url=url, trust_env=False, transport=transport, verify=tls)
        self._wire = Wire(
            client, name="The control plane", code="control", mend="start it with 'cloister up' or check its address"
        )
        self._signer = signer
        self._id: str | None = None

    def close(self) -> None:
        self._wire.close()

    # --- signed requests -------------------------------------------------------------------------------------------

    @property
    def audience(self) -> str:
        if self._id is None:
            self._id = str(self.info()["id"])
        return self._id

    def _headers(self, method: str, path: str, body: str | None) -> dict[str, str]:
        if self._signer is None:
            raise Misuse("control.signer", "This request needs a party that signs it; name one with --as.")
        return {"Authorization": self._signer.authorize(method, path, body, self.audience)}

    def _get(self, path: str, **query: str | int) -> Any:
        path += f"?{urlencode(query)}" if query else ""
        return self._wire.json("GET", path, headers=self._headers("GET", path, None))

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        content = canonical_json(body)
        headers = self._headers("POST", path, sha256(content).hex()) | {"Content-Type": "application/json"}
        return self._wire.json("POST", path, content=content, headers=headers)

    # --- who and what is there -------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        return dict(self._wire.json("GET", "/v1/info"))

    def directory(self) -> dict[str, dict[str, str]]:
        return dict(self._get("/v1/directory")["parties"])

    def publish(self, card: Card, address: str) -> None:
        self._post("/v1/directory", {"address": address, "card": card.envelope.to_bytes().decode()})

    def assets(self, name: str | None = None) -> list[dict[str, Any]]:
        return list(self._get("/v1/assets", **({"name": name} if name else {}))["assets"])

    # --- sealed objects --------------------------------------------------------------------------------------------

    def upload(self, folder: Path, *, progress: Progress = silent) -> str:
        """Store a sealed folder; what the store has of it already is not sent again. Returns the digest in hex."""
        envelope = read_envelope(folder)
        data = envelope.to_bytes()
        digest = envelope.digest.hex()
        path = f"/v1/objects/{digest}/manifest"
        answer = self._wire.json("PUT", path, content=data, headers=self._headers("PUT", path, None))
        if answer["state"] == "stored":
            return digest
        files = Manifest.from_payload(envelope.payload).files
        total, sent = sum(f.ciphertext_size for f in files), 0
        for index, entry in enumerate(files):
            if index not in answer["have"]:
                path = f"/v1/objects/{digest}/files/{index}"
                body = _read(folder / member_name(index), partial(_tell, progress, sent, total))
                headers = self._headers("PUT", path, None) | {"Content-Length": str(entry.ciphertext_size)}
                self._wire.json("PUT", path, content=body, headers=headers)
            sent += entry.ciphertext_size
        self._post(f"/v1/objects/{digest}/commit", {})
        return digest

    def manifest(self, digest: str) -> Envelope:
        path = f"/v1/objects/{digest}/manifest"
        return Envelope.from_bytes(b"".join(self._wire.stream(path, self._headers("GET", path, None))))

    def file(self, digest: str, index: int) -> Iterator[bytes]:
        """One file's ciphertext as it comes; nothing is checked here."""
        path = f"/v1/objects/{digest}/files/{index}"
        return self._wire.stream(path, self._headers("GET", path, None))

    def download(self, digest: str, folder: Path, *, progress: Progress = silent) -> None:
        """Fetch a sealed object into ``folder``. Nothing is checked here; ``sealed`` checks every byte when reading."""
        envelope = self.manifest(digest)
        files = Manifest.from_payload(envelope.payload).files
        total, got = sum(f.ciphertext_size for f in files), 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST_NAME).write_bytes(envelope.to_bytes())
            for index in range(len(files)):
                with (folder / member_name(index)).open("wb") as out:
                    for chunk in self.file(digest, index):
                        out.write(chunk)
                        got += len(chunk)
                        progress(Step("download", got, total, "bytes"))
        except OSError:
            raise Unavailable(
                "pull.disk", "The disk can't take the download; free space on it, then pull again."
            ) from None

    # --- contracts -------------------------------------------------------------------------------------------------

    def contracts(self) -> list[dict[str, Any]]:
        return list(self._get("/v1/contracts")["contracts"])

    def contract(self, reference: str) -> dict[str, Any]:
        return dict(self._get(f"/v1/contracts/{quote(reference, safe='')}"))

    def offer(self, contract: Envelope) -> dict[str, Any]:
        return dict(self._post("/v1/contracts", {"contract": contract.to_bytes().decode()}))

    def report_revocation(self, digest: str, revocation: Envelope) -> None:
        self._post(f"/v1/contracts/{digest}/revocations", {"revocation": revocation.to_bytes().decode()})

    # --- jobs and outputs ------------------------------------------------------------------------------------------

    def submit(self, job: Envelope) -> dict[str, Any]:
        return dict(self._post("/v1/jobs", {"job": job.to_bytes().decode()}))

    def jobs(self) -> list[dict[str, Any]]:
        return list(self._get("/v1/jobs")["jobs"])

    def job(self, digest: str) -> dict[str, Any]:
        return dict(self._get(f"/v1/jobs/{quote(digest, safe='')}"))

    def events(self, digest: str, after: int, *, wait: int = 20) -> dict[str, Any]:
        return dict(self._get(f"/v1/jobs/{digest}/events", after=after, wait=wait))

    def cancel(self, digest: str) -> dict[str, Any]:
        return dict(self._post(f"/v1/jobs/{digest}/cancel", {}))

    def release(self, digest: str) -> bytes:
        path = f"/v1/jobs/{digest}/release"
        return b"".join(self._wire.stream(path, self._headers("GET", path, None)))

    def output(self, name: str) -> dict[str, Any]:
        return dict(self._get(f"/v1/outputs/{quote(name)}"))


def _tell(progress: Progress, before: int, total: int, done: int) -> None:
    progress(Step("upload", before + done, total, "bytes"))


def _read(path: Path, tell: Callable[[int], None]) -> Iterator[bytes]:
    done = 0
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
                done += len(chunk)
                tell(done)
    except OSError:
        raise Unavailable("upload.read", "A file of the sealed folder can't be read; check the disk.") from None
