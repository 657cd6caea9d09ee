"""``cloister verify``: check a release bundle offline. Numbered as in docs/spec/release.md; raises at a problem.

The release file is a container that anybody could have written. Every statement in it is signed, and the chain of trust
begins with the cards that the verifier pinned, never with a key that the bundle brings along.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..audit import Facts, Receipt, parse_event, verify_quorum
from ..contracts import (
    Card,
    Contract,
    Job,
    check_output,
    check_signatures,
    check_work,
    log_origin,
    read_contract,
    read_job,
    read_permit,
)
from ..crypto import Envelope, parse_canonical, parse_json
from ..errors import Denied, Malformed, Misuse, Untrusted
from ..fields import Fields
from ..sealed import MANIFEST_TYPE, Manifest
from .owners_results import check_result
from .references import is_beginning

__all__ = ["RELEASE_FILE", "Verified", "verify_bundle", "verify_release"]

RELEASE_FILE = "cloister-release.json"
PROVENANCE_FILE = "provenance.dsse.json"
PROVENANCE_TYPE = "application/vnd.in-toto+json"
_LIMIT = 16 * 1024 * 1024
_MAX_FILES = 10_000


@dataclass(frozen=True)
class Verified:
    """What holds. ``steps`` are sentences for people, in the order of the checks; ``permitted``: when the last owner's
    log says that it let the output out, POSIX seconds. ``unbound``: assets whose keys came from stock key brokers, as
    the contract says: of those owners there is no log entry, no appraisal and no permit."""

    output: str
    contract: str
    job: str
    measurement: str
    assurance: str
    parties: tuple[str, ...]
    recipients: tuple[str, ...]
    steps: tuple[str, ...]
    permitted: int = 0
    unbound: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        return {**vars(self), "verified": True}


@dataclass(frozen=True)
class _Run:
    """The one workload instance that all evidence in a bundle must be about."""

    instance: bytes
    signing: bytes
    measurement: str
    level: str


def verify_bundle(folder: Path, pins: Mapping[str, Card], *, expected_contract: str | None = None) -> Verified:
    """Check a pulled bundle against the cards that this verifier pinned. Raises Untrusted, Denied or Malformed.

    ``expected_contract``: the contract that it must be under: its name, its digest, or eight or more digits of that.
    """
    path = folder / RELEASE_FILE
    if not path.is_file():
        raise Misuse(
            "bundle.absent", f"There is no {RELEASE_FILE} in this folder; name the folder given to 'pull --to'."
        )
    verified, run = verify_release(_read(path), pins, expected_contract=expected_contract)
    # 8. The plaintext in this folder is what that workload made: its key signed every file's digest.
    _check_files(folder, run, verified)
    return Verified(
        **{**vars(verified), "steps": (*verified.steps, "every file in the folder is the one that the workload signed")}
    )


def verify_release(
    record: bytes, pins: Mapping[str, Card], *, expected_contract: str | None = None
) -> tuple[Verified, _Run]:
    """Steps 1 to 7: everything but the files. Used before an output's key is asked for, too."""
    f = Fields(parse_json(record, limit=_LIMIT), "release record")
    f.integer("version", low=1, high=1)
    # 1. Every party signed the contract, with keys pinned here.
    contract = read_contract(Envelope.from_bytes(f.text("contract", limit=_LIMIT).encode()))
    if not pins:
        raise Denied(
            "verify.unpinned", "No party's card is pinned here; give the cards that you compared with --trust."
        )
    check_signatures(contract, dict(pins))
    _check_expected(contract, expected_contract)
    # 2. The job belongs to it, and a party submitted it.
    job = read_job(Envelope.from_bytes(f.text("job", limit=_LIMIT).encode()), contract)
    check_work(contract, job)  # brokers that all let it pass may all be rigged
    # 3. Every owner logged its key releases first, to one instance of one measured workload.
    run = _check_keys(f.mapping("keys", lambda _, v: v, limit=64), contract, job)
    # 4. Every owner appraised that workload and found what the contract asks for, on what it pins.
    _check_tokens(f.mapping("tokens", lambda _, v: v, limit=64), contract, job, run)
    # 5. That workload signed the output's manifest, which is as the contract says. 7. With every gate passed.
    envelope = Envelope.from_bytes(f.text("manifest", limit=_LIMIT).encode())
    envelope.verify(MANIFEST_TYPE, [run.signing])
    output = check_output(Manifest.from_payload(envelope.payload), contract, job, run.instance)
    # 6. Every owner permitted exactly this manifest, and logged that.
    permitted = _check_permits(f.mapping("permits", lambda _, v: v, limit=64), contract, job, run, envelope.digest)
    f.raw("wraps")
    f.done()
    owners = ", ".join(contract.brokers())
    unbound = _unbound(contract, job)
    return (
        Verified(
            output=output.name,
            contract=contract.digest.hex(),
            job=job.digest.hex(),
            measurement=run.measurement,
            assurance=run.level,
            parties=tuple(sorted(contract.parties)),
            recipients=output.recipients,
            steps=(
                f"the contract {contract.name}, serial {contract.serial}, is signed by every party "
                f"({', '.join(sorted(contract.parties))}) with keys pinned here",
                f"the job was submitted by {job.submitter} under that contract",
                f"each owner ({owners}) logged its key releases before they happened",
                f"each owner appraised the workload: measurement {run.measurement[:16]}…, assurance level {run.level}",
                f"that workload signed {output.name}, form {output.form}, for {', '.join(output.recipients)}",
                f"each owner ({owners}) permitted and logged this output",
                f"all {len(contract.gates)} gates of the contract passed",
                *(
                    f"UNBOUND, as every party signed: the key of {name} came from a stock key broker of "
                    f"{name.partition('/')[0]}, who logged, appraised and permitted nothing of this run"
                    for name in unbound
                ),
            ),
            permitted=permitted,
            unbound=unbound,
        ),
        run,
    )


def _unbound(contract: Contract, job: Job) -> tuple[str, ...]:
    used = [contract.asset(digest) for digest in job.assets]
    return tuple(sorted({asset.name for asset in used if asset.owner in contract.trustees}))


def _check_expected(contract: Contract, expected: str | None) -> None:
    if expected is None or expected == contract.name:
        return
    if not (is_beginning(expected) and contract.digest.hex().startswith(expected)):
        raise Untrusted(
            "verify.contract",
            f"The bundle was made under {contract.name}, {contract.digest.hex()}, and not under the expected contract.",
        )


def _logged(wire: Any, party: str, contract: Contract) -> Facts:
    """The facts of a log entry that ``party``'s pinned log key covers."""
    receipt = Receipt.from_wire(wire)
    receipt.verify(log_origin(party), contract.parties[party].receipt)
    return parse_event(receipt.leaf)


def _about(facts: Facts, kind: str, contract: Contract, job: Job) -> Mapping[str, str | int]:
    details = facts.details
    same = facts.kind == kind and facts.outcome == "success"
    if not same or details.get("contract") != contract.digest.hex() or details.get("job") != job.digest.hex():
        raise Untrusted("verify.entry", "A log entry in the bundle is about something else than this run.")
    return details


def _check_keys(keys: dict[str, Any], contract: Contract, job: Job) -> _Run:
    runs: set[_Run] = set()
    if set(keys) != set(contract.brokers()):
        raise Untrusted("verify.keys", "The bundle lacks the key releases of an owner.")
    for owner, entries in keys.items():
        found: set[str] = set()
        for entry in entries if isinstance(entries, list) else ():
            details = _about(_logged(entry, owner, contract), "key.released", contract, job)
            if least := contract.platform.witness_quorum:
                verify_quorum(Receipt.from_wire(entry).checkpoint, contract.witnesses(owner), least, not_before=0)
            found.add(str(details.get("resource")))
            try:
                runs.add(
                    _Run(
                        bytes.fromhex(str(details["instance"])),
                        bytes.fromhex(str(details["signing"])),
                        str(details["measurement"]),
                        str(details["level"]),
                    )
                )
            except (KeyError, ValueError):
                raise Malformed("verify.entry", "A key release in the log lacks a field.") from None
        used = [a for a in contract.assets if a.owner == owner and a.digest in job.assets]
        own = {asset.digest.hex() for asset in used}
        if not own <= found:
            raise Untrusted(
                "verify.keys", f"The bundle does not show that {owner} logged the release of its asset's key."
            )
    if len(runs) != 1:
        raise Untrusted("verify.instance", "The key releases in the bundle are to different workload instances.")
    return runs.pop()


def _check_tokens(tokens: dict[str, Any], contract: Contract, job: Job, run: _Run) -> None:
    said = {"level": run.level, "measurement": run.measurement}
    if set(tokens) != set(contract.brokers()):
        raise Untrusted("verify.tokens", "The bundle lacks an owner's attestation result.")
    for owner, token in tokens.items():
        check_result(token, owner, contract, job=job.digest, instance=run.instance, said=said)


def _check_permits(permits: dict[str, Any], contract: Contract, job: Job, run: _Run, output: bytes) -> int:
    """When the last of them was logged."""
    times = []
    if set(permits) != set(contract.brokers()):
        raise Untrusted("verify.permits", "The bundle lacks an owner's permit.")
    for owner, entry in permits.items():
        f = Fields(entry, "permit entry")
        permit = read_permit(Envelope.from_bytes(f.text("permit", limit=_LIMIT).encode()), contract)
        facts = _logged(f.raw("receipt"), owner, contract)
        details = _about(facts, "permit.issued", contract, job)
        times.append(facts.time)
        f.done()
        same = (permit.owner, permit.job, permit.output, permit.instance) == (owner, job.digest, output, run.instance)
        if not same or details.get("output") != output.hex():
            raise Untrusted("verify.permit", f"The permit of {owner} is for another output.")
    return max(times, default=0)


def _check_files(folder: Path, run: _Run, verified: Verified) -> None:
    envelope = Envelope.from_bytes(_read(folder / PROVENANCE_FILE))
    envelope.verify(PROVENANCE_TYPE, [run.signing])
    statement = parse_canonical(envelope.payload)
    try:
        subjects = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
        parameters = statement["predicate"]["buildDefinition"]["externalParameters"]
        about = (parameters["contract"], parameters["job"], parameters["output"])
        internal = statement["predicate"]["buildDefinition"].get("internalParameters", {})
        said = sorted((str(key["binding"]), str(key["party"])) for key in internal.get("unbound", []))
    except (KeyError, TypeError, AttributeError):
        raise Malformed("verify.provenance", "The provenance statement lacks a field.") from None
    if about != (verified.contract, verified.job, verified.output):
        raise Untrusted("verify.provenance", "The provenance is of another run.")
    if said != sorted(("none", name.partition("/")[0]) for name in verified.unbound):
        raise Untrusted("verify.unbound", "The workload got its keys elsewhere than from where the contract says.")
    present = {name for name in _walk(folder) if name not in (RELEASE_FILE, PROVENANCE_FILE)}
    for name in sorted(set(subjects) - present):
        raise Untrusted("verify.missing", f"The file {name} is missing from the bundle.", file=name)
    for name in sorted(present - set(subjects)):
        raise Untrusted("verify.foreign", f"The file {name} is not part of the bundle; remove it.", file=name)
    for name in sorted(present):
        if _digest(folder / name) != subjects[name]:
            raise Untrusted("verify.changed", f"The file {name} is not the one that the workload made.", file=name)


def _walk(folder: Path) -> list[str]:
    names = []
    for root, folders, files in os.walk(folder, onerror=_unreadable):
        for name in (*files, *(d for d in folders if (Path(root) / d).is_symlink())):
            names.append((Path(root) / name).relative_to(folder).as_posix())
            if len(names) > _MAX_FILES:
                raise Misuse("bundle.size", "This folder holds too many files to be a bundle.")
    return names


def _plain(path: Path) -> Path:
    if path.is_symlink() or not path.is_file():
        raise Untrusted("verify.missing", f"The file {path.name} is missing from the bundle or is no plain file.")
    return path


def _read(path: Path) -> bytes:
    try:
        return _plain(path).read_bytes()
    except OSError as error:
        _unreadable(error)


def _digest(path: Path) -> str:
    try:
        with _plain(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        _unreadable(error)


def _unreadable(error: OSError) -> NoReturn:
    """What can't be looked at is not verified: a folder that can be entered but not listed may hold anything."""
    name = Path(os.fsdecode(error.filename or "")).name
    raise Untrusted(
        "verify.unreadable", f"{name} in the bundle can't be read, so it is not verified; mend its permissions."
    ) from None
