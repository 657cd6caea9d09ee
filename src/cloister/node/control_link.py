"""The node's side of the control plane's API. Carries ciphertext and coded events; never a key."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import httpx

from ..contracts.requests import authorization_header
from ..crypto import Envelope, SigningKey, canonical_json
from ..errors import Unavailable, error_from_wire
from ..sealed import Manifest, check_ciphertext

__all__ = ["ControlLink"]

_CHUNK = 1024 * 1024


class ControlLink:
    """Requests signed as party ``node``. Raises Unavailable when the control plane can't be reached."""

    def __init__(self, url: str, key: SigningKey) -> None:
        self._http = httpx.Client(base_url=url, timeout=60.0, trust_env=False)
        self._key = key
        self._audience = str(self._json("GET", "/v1/info", signed=False)["id"])

    def close(self) -> None:
        self._http.close()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._json("POST", path, canonical_json(body))

    def download(self, digest: str, into: Path) -> None:
        """Fetch a sealed object unless it is there already, and check its ciphertext."""
        target = into / digest
        if target.is_dir():
            return
        draft = into / f".{digest}"
        draft.mkdir(parents=True, exist_ok=True)
        self._fetch(f"/v1/objects/{digest}/manifest", draft / "manifest.json")
        manifest = Manifest.from_payload(Envelope.from_bytes((draft / "manifest.json").read_bytes()).payload)
        for index in range(len(manifest.files)):
            self._fetch(f"/v1/objects/{digest}/files/{index}", draft / f"{index:04d}.sealed")
        check_ciphertext(draft)
        draft.rename(target)

    def upload(self, digest: str, folder: Path) -> None:
        """Hand over a sealed object; the control plane checks its roots before it keeps it."""
        self._put_file(f"/v1/objects/{digest}/manifest", folder / "manifest.json")
        for path in sorted(folder.glob("*.sealed")):
            self._put_file(f"/v1/objects/{digest}/files/{int(path.stem)}", path)
        self.post(f"/v1/objects/{digest}/commit", {})

    def put(self, path: str, body: bytes) -> None:
        self._checked(self._request("PUT", path, body))

    def _headers(self, method: str, path: str, body: str | None) -> dict[str, str]:
        value = authorization_header(
            "node", self._key, method=method, path=path, body=body, audience=self._audience, now=int(time.time())
        )
        return {"Authorization": value}

    def _request(self, method: str, path: str, body: bytes | None, *, signed: bool = True) -> httpx.Response:
        digest = None if body is None else hashlib.sha256(body).hexdigest()
        headers = self._headers(method, path, digest) if signed else {}
        try:
            return self._http.request(method, path, content=body, headers=headers)
        except httpx.HTTPError:
            raise Unavailable("control.unreachable", "The control plane does not answer; is it running?") from None

    def _json(self, method: str, path: str, body: bytes | None = None, *, signed: bool = True) -> Any:
        return self._checked(self._request(method, path, body, signed=signed)).json()

    @staticmethod
    def _checked(response: httpx.Response) -> httpx.Response:
        if response.status_code != 200:
            body = response.json() if response.headers.get("content-type", "").startswith("application/json") else None
            raise error_from_wire(body.get("error", body) if isinstance(body, dict) else body)
        return response

    def _fetch(self, path: str, target: Path) -> None:
        try:
            headers = self._headers("GET", path, None)
            with self._http.stream("GET", path, headers=headers) as response, target.open("wb") as out:
                if response.status_code != 200:
                    response.read()
                self._checked(response)
                for chunk in response.iter_bytes(_CHUNK):
                    out.write(chunk)
        except httpx.HTTPError:
            raise Unavailable("control.unreachable", "The control plane broke off a download; try again.") from None
        except OSError:
            raise Unavailable(
                "node.disk", "The node's disk can't hold the job's ciphertext; free space on it."
            ) from None

    def _put_file(self, path: str, source: Path) -> None:
        try:
            with source.open("rb") as stream:
                response = self._http.put(path, content=stream, headers=self._headers("PUT", path, None))
        except httpx.HTTPError:
            raise Unavailable("control.unreachable", "The control plane broke off an upload; try again.") from None
        self._checked(response)
