"""The client of AWS KMS: what it takes from the owner, and that it takes nothing else."""

from __future__ import annotations

import io
import os
from typing import Any

import botocore.config
import botocore.session
import certifi
import urllib3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse

from ...crypto import parse_json
from ...errors import Malformed, Misuse
from .remote import BadAnswer, Limits, quiet

__all__ = ["Sender", "kms_client", "read_credential"]


class Sender:
    """Sends what the client signed. Its own way would read an answer of any length, and look for proxies and
    certificates in the environment."""

    def __init__(self, ca: str, limits: Limits) -> None:
        self._longest = limits.answer
        self.pool = urllib3.PoolManager(
            cert_reqs="CERT_REQUIRED",
            ca_certs=ca or certifi.where(),
            timeout=urllib3.Timeout(connect=limits.connect, read=limits.read),
            maxsize=limits.at_once,
            retries=False,
        )

    def __call__(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        answer = self.pool.urlopen(
            request.method,
            request.url,
            body=request.body,
            headers=request.headers,
            preload_content=False,
            redirect=False,
        )
        body = answer.read(self._longest + 1)
        if len(body) > self._longest:
            answer.close()
            raise BadAnswer
        answer.release_conn()
        whole = urllib3.HTTPResponse(io.BytesIO(body), preload_content=False)
        return AWSResponse(request.url, answer.status, answer.headers, whole)


def kms_client(region: str, endpoint: str | None, keys: tuple[str, str, str | None], sender: Sender) -> Any:
    """A client that takes nothing from the environment, from files or from an instance's metadata service."""
    quiet("botocore", "urllib3")
    # Every setting that a variable or a profile could change is read from its default alone.
    isolated = {
        name: (None, None, default, conversion)
        for name, (_, _, default, conversion) in botocore.session.Session.SESSION_VARIABLES.items()
    }
    isolated["config_file"] = isolated["credentials_file"] = (None, None, os.devnull, None)
    session = botocore.session.Session(session_vars=isolated)
    config = botocore.config.Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        proxies={},
        ignore_configured_endpoint_urls=True,
        use_fips_endpoint=False,
        use_dualstack_endpoint=False,
        defaults_mode="standard",
    )
    client = session.create_client(
        "kms",
        region_name=region,
        endpoint_url=endpoint,
        verify=True,
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
        aws_session_token=keys[2],
        config=config,
    )
    client.meta.events.register("before-send.kms", sender)
    return client


def read_credential(credential: bytes) -> tuple[str, str, str | None]:
    """``ACCESS_KEY:SECRET_KEY[:SESSION_TOKEN]``, or a JSON object with these names in lower case."""
    try:
        parts = _fields(parse_json(credential)) if credential.lstrip().startswith(b"{") else _parts(credential)
    except (Malformed, KeyError, UnicodeDecodeError):
        parts = []
    if len(parts) in (2, 3) and all(isinstance(part, str) and part and part.isprintable() for part in parts):
        return parts[0], parts[1], parts[2] if len(parts) == 3 else None
    raise Misuse(
        "driver.credential", 'The credential is "ACCESS_KEY:SECRET_KEY", then ":SESSION_TOKEN" if there is one.'
    )


def _fields(fields: dict[str, Any]) -> list[Any]:
    if not {"access_key", "secret_key", "session_token"} >= set(fields):
        return []
    return [fields["access_key"], fields["secret_key"], *[fields[n] for n in ("session_token",) if n in fields]]


def _parts(credential: bytes) -> list[Any]:
    return list(credential.decode("ascii").split(":", 2))
