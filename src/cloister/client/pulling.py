"""Pulling an output: check the whole story, ask the own broker for the key, decrypt, check the files."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..crypto import Envelope, parse_json
from ..errors import Denied, Malformed, Misuse, Unavailable, Untrusted
from ..sealed import OwnFolder, SealedObject, open_sealed
from .progress import Progress, Step, silent
from .supervisor import Home
from .verify import RELEASE_FILE, Verified, verify_bundle, verify_release

__all__ = ["Pulled", "pull"]

_RECORD = 16 << 20
_EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Pulled:
    """What lies in ``folder`` now: a bundle that ``verify`` accepts. ``figures``: metric → (base, tuned), decimal text,
    as the workload's own signed evaluation says."""

    folder: Path
    files: tuple[str, ...]
    verified: Verified
    figures: dict[str, tuple[str, str]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        figures = {metric: {"base": base, "tuned": tuned} for metric, (base, tuned) in self.figures.items()}
        return {"figures": figures, "files": list(self.files), "folder": str(self.folder), **self.verified.document()}


def pull(home: Home, output: str, to: Path, party: str, *, progress: Progress = silent) -> Pulled:
    """Fetch, verify and decrypt an output into the new folder ``to``. On any failure ``to`` is left absent or empty."""
    _check_target(to)
    client, agent = home.control(party), home.agent(party)
    answer = client.output(output)
    record = str(answer["release"]).encode()
    pins = agent.pinned_cards()
    # Before a key is asked for: contract, job, every owner's log entries, appraisals, permits.
    verified, run = verify_release(record, pins)
    request, manifest = _request(record, party)
    if verified.output != output or answer["manifest"] != manifest.digest.hex():
        raise Untrusted("pull.other", "The control plane answered with another output than the one that was asked for.")
    dek = agent.open_secret_output(request)
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent) as scratch:
        ciphertext, draft = Path(scratch, "sealed"), Path(scratch, "plain")
        client.download(manifest.digest.hex(), ciphertext, progress=progress)
        # Whoever could change the ciphertext in this scratch folder could change the plaintext beside it as well.
        own = OwnFolder(ciphertext)
        with open_sealed(own, dek=dek, expected_digest=manifest.digest, signer_keys=[run.signing]) as sealed:
            files = _decrypt(sealed, draft, progress)
            sealed.check_roots()
            sealed.require_complete()
        (draft / RELEASE_FILE).write_bytes(record)
        verified = verify_bundle(draft, pins)
        figures = _figures(draft / _EVALUATION)
        _publish(draft, to)
    return Pulled(to, files, verified, figures)


def _figures(path: Path) -> dict[str, tuple[str, str]]:
    """Of the untouched base and of the tuned model; the file is one that the workload signed."""
    if not path.is_file():
        return {}
    evaluation = parse_json(path.read_bytes(), limit=_RECORD)
    if not isinstance(evaluation, dict):
        raise Malformed("pull.evaluation", "The output's evaluation can't be read; update the client.")
    pairs = {metric: (evaluation.get(f"base_{metric}"), tuned) for metric, tuned in sorted(evaluation.items())}
    return {
        metric: (base, tuned)
        for metric, (base, tuned) in pairs.items()
        if isinstance(base, str) and isinstance(tuned, str)
    }


def _check_target(to: Path) -> None:
    if to.is_symlink() or (to.exists() and (not to.is_dir() or any(to.iterdir()))):
        raise Misuse("pull.exists", "The folder to write to is not empty; name a new one with --to.")


def _request(record: bytes, party: str) -> tuple[dict[str, Any], Envelope]:
    """(what the broker wants to see before it opens an output, the output's manifest)."""
    release = parse_json(record, limit=_RECORD)
    try:
        wraps = release["wraps"]
        if party not in wraps:
            raise Denied("output.recipient", f"{party} is not a recipient of this output.")
        request = {
            "contract": release["contract"],
            "job": release["job"],
            "manifest": release["manifest"],
            "permits": [entry["permit"] for _, entry in sorted(release["permits"].items())],
            "wrap": wraps[party]["sealed"],
        }
        return request, Envelope.from_bytes(release["manifest"].encode())
    except (KeyError, TypeError, AttributeError):
        raise Malformed("release.form", "The release record can't be read; update the client.") from None


def _decrypt(sealed: SealedObject, folder: Path, progress: Progress) -> tuple[str, ...]:
    total, done = sum(entry.plaintext_size for entry in sealed.manifest.files), 0
    try:
        folder.mkdir()
        for path in sealed.paths():  # checked by the manifest's parser: relative, and no way out of the folder
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            with sealed.open(path) as source, place.open("xb") as target:
                for piece in source.segments():
                    target.write(piece)
                    done += len(piece)
                    progress(Step("decrypt", done, total, "bytes"))
    except OSError:
        raise Unavailable("pull.disk", "The disk can't take the output; free space on it, then pull again.") from None
    return sealed.paths()


def _publish(draft: Path, to: Path) -> None:
    try:
        if to.is_dir():
            to.rmdir()
        shutil.move(str(draft), str(to))
    except OSError:
        raise Unavailable("pull.disk", "The folder to write to can't be made; check its permissions.") from None
