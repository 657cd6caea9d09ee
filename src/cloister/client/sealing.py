"""Sealing: encrypt here, hand the key to the own broker, send ciphertext to the store. Plaintext never leaves."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..contracts import FORMS, SENSITIVITIES, Terms
from ..crypto import Envelope, random_bytes
from ..errors import CloisterError, Misuse, Unavailable
from ..fields import Fields
from ..sealed import MANIFEST_NAME, Manifest, SealIdentity, check_ciphertext, read_envelope, seal_object
from .agent import OwnerAgent
from .files import Source, gather
from .progress import Progress, Step, silent
from .supervisor import Home

__all__ = ["SealOptions", "SealedAsset", "seal", "upload_again"]


@dataclass(frozen=True)
class SealOptions:
    """What the owner says about an asset. ``schema``: columns in order; ``forms``: how what is derived may leave."""

    schema: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    sensitivity: str = "confidential"
    forms: tuple[str, ...] = FORMS
    asset_class: str | None = None
    keep_until: int | None = None

    def terms(self) -> dict[str, Any]:
        """The manifest's terms. Raises Misuse for a word that isn't one."""
        if self.sensitivity not in SENSITIVITIES:
            raise Misuse("seal.sensitivity", "The sensitivity is one of " + ", ".join(SENSITIVITIES) + ".")
        unknown = [form for form in self.forms if form not in FORMS]
        if unknown or not self.forms:
            raise Misuse("seal.forms", "Forms are a list of " + ", ".join(FORMS) + ".")
        forms = tuple(form for form in FORMS if form in self.forms)
        kept = {} if self.keep_until is None else {"keep_until": self.keep_until}
        terms = Terms(tuple(sorted(set(self.licences))), self.sensitivity, forms, **kept)
        return {"schema": list(self.schema), "terms": terms.document()}


@dataclass(frozen=True)
class SealedAsset:
    """A sealed and stored asset. ``size``: bytes of plaintext."""

    name: str
    version: int
    digest: str
    files: int
    size: int
    manifest: Envelope
    notes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        keys = ("digest", "files", "name", "size", "version")
        return {**{key: getattr(self, key) for key in keys}, "notes": list(self.notes)}


def seal(
    home: Home, path: Path, as_name: str, options: SealOptions | None = None, *, progress: Progress = silent
) -> SealedAsset:
    """Seal a file or folder as ``party/asset`` and store it.

    The ciphertext lies in the home's outbox until the store has it. Raises Misuse (wrong data), Unavailable (disk,
    broker, store: then the message says how to go on).
    """
    party = _owner(as_name)
    if (path / MANIFEST_NAME).is_file():
        return upload_again(home, path, as_name, progress=progress)
    options = options or SealOptions()
    terms = options.terms()
    source = gather(path, schema=options.schema, asset_class=options.asset_class)
    agent = home.agent(party)
    asset_id, version, previous = agent.next_version(as_name)
    identity = SealIdentity(
        owner=party,
        asset_id=asset_id,
        name=as_name,
        version=version,
        asset_class=source.asset_class,
        created=int(time.time()),
        previous=previous,
    )
    folder = _outbox(home) / f"{as_name.replace('/', '-')}-v{version}-{random_bytes(4).hex()}"
    _encrypt(agent, source, folder, identity, terms, progress)
    return _deliver(home, folder, party, source.notes, progress)


def _owner(name: str) -> str:
    return Fields({"--as": name}, "command").asset("--as").partition("/")[0]


def _outbox(home: Home) -> Path:
    outbox = home.path / "outbox"
    try:
        outbox.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        raise Unavailable("seal.outbox", "The home folder can't be written; check its permissions and space.") from None
    return outbox


def _encrypt(
    agent: OwnerAgent, source: Source, folder: Path, identity: SealIdentity, terms: dict[str, Any], progress: Progress
) -> None:
    total, sizes = source.size, dict[str, int]()

    def tell(path: str, done: int) -> None:
        sizes[path] = done
        progress(Step("seal", sum(sizes.values()), total, "bytes"))

    # A bytearray, so that it can be overwritten. That is best effort: the interpreter and the JSON on its way to the
    # broker hold copies for a moment, in this process, which belongs to the owner.
    dek = bytearray(random_bytes(32))
    try:
        seal_object(
            source.files,
            folder,
            dek=cast(bytes, dek),
            identity=identity,
            sign=lambda _, payload: agent.register_secret_dek(payload, dek),
            terms=terms,
            progress=tell,
        )
    finally:
        dek[:] = bytes(len(dek))


def upload_again(home: Home, folder: Path, as_name: str, *, progress: Progress = silent) -> SealedAsset:
    """Go on where an upload broke off: ``folder`` is the sealed folder that was kept."""
    party = _owner(as_name)
    if check_ciphertext(folder, signer_keys=[home.agent(party).card.keys.signing]).name != as_name:
        raise Misuse("seal.other", "The sealed folder is of another asset; name that one with --as.")
    return _deliver(home, folder, party, (), progress)


def _deliver(home: Home, folder: Path, party: str, notes: tuple[str, ...], progress: Progress) -> SealedAsset:
    envelope = read_envelope(folder)
    manifest = Manifest.from_payload(envelope.payload)
    try:
        home.control(party).upload(folder, progress=progress)
    except CloisterError as error:
        again = f"it is sealed and kept; go on with: cloister seal {folder} --as {manifest.name}"
        raise type(error)(error.code, f"{error.message.rstrip('.')}; {again}", **error.details) from None
    if folder.parent == home.path / "outbox":
        shutil.rmtree(folder, ignore_errors=True)
    return SealedAsset(
        name=manifest.name,
        version=manifest.version,
        digest=envelope.digest.hex(),
        files=len(manifest.files),
        size=sum(entry.plaintext_size for entry in manifest.files),
        manifest=envelope,
        notes=notes,
    )
