"""``key``: the life of the keys in a party's vault, from rotation to the end."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from ..client import operations
from ..client.times import day, parse_day, parse_span
from ..errors import Misuse
from .options import As, HomeFolder, Json, Reason, ShowProgress, Yes, at_home
from .recovery import recovery
from .terminal import Bars, ask_name, columns, note, result
from .trustee import trustee
from .vault import rekey, sweep

__all__ = ["key"]

key = typer.Typer(
    no_args_is_help=True, help="Keys in a party's vault: rotate, shred, keep, hold, and what they were used for."
)
key.add_typer(recovery, name="recovery")

_REKEY = (
    "If somebody else may have an old copy of the vault file and its passphrase, 'cloister key rekey' keeps them from "
    "opening the newest file with it. It can't close the copy itself, nor what that opens."
)

Asset = Annotated[str, typer.Argument(help="The asset's name: party/asset.", show_default=False)]


@key.command("rotate")
def rotate(party: As = None, progress: ShowProgress = False, home: HomeFolder = None, as_json: Json = False) -> None:
    """Give a vault a new key-encryption key: every data key is wrapped anew, then the old key is destroyed."""
    with at_home(home) as place, Bars(progress) as bars:
        acting = place.choose(party)
        done = operations.rotate_kek(place, acting, progress=bars)
    if not done["begun"]:
        note("A rotation was under way already; this joined it.")
    last = done["last"] or {}
    lines = [f"The vault of {acting} wraps its keys anew, epoch {done['epoch']}: {last.get('rewrapped', 0)} wrapped."]
    result(done, [*lines, *last.get("remains", []), *_lost(last)], as_json=as_json)


def _lost(last: dict[str, Any]) -> list[str]:
    return [f"The key of {name} was lost with a key-encryption key that is gone." for name in last.get("lost", [])]


@key.command("schedule")
def schedule(
    every: Annotated[str | None, typer.Option("--every", help="Time between rotations, such as 90d or 26w.")] = None,
    never: Annotated[bool, typer.Option("--never", help="Rotate by hand only.")] = False,
    party: As = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Rotate a vault's key-encryption key by itself. The broker looks while it runs; without options: what is set."""
    if every is not None and never:
        raise Misuse("schedule.both", "Give --every or --never, not both.")
    with at_home(home) as place:
        acting = place.choose(party)
        if every is None and not never:
            found = operations.list_keys(place, acting)["rotation"]["schedule"]
        else:
            span = None if every is None else parse_span(every, "--every")
            found = operations.schedule_rotation(place, acting, span)
    result({**found, "party": acting}, [_schedule(acting, found)], as_json=as_json)


def _schedule(party: str, found: dict[str, Any]) -> str:
    if found["every"] is None:
        return f"The vault of {party} is rotated by hand only."
    return f"The vault of {party} is rotated every {found['every'] // 86_400} days, next on {day(found['next'])}."


@key.command("status")
def status(party: As = None, home: HomeFolder = None, as_json: Json = False) -> None:
    """Whether a rotation is under way or due, and what its broker has to say about keys."""
    with at_home(home) as place:
        acting = place.choose(party)
        found = operations.list_keys(place, acting)
    rotation = found["rotation"]
    state = "under way" if rotation["pending"] else "none under way"
    lines = [
        f"epoch {found['epoch']} in the vault's driver {found['driver']}; rotation: {state}, "
        f"{rotation['done']} of {rotation['total']} keys",
        _schedule(acting, rotation["schedule"]),
        *([rotation["error"]] if rotation["error"] else []),
        *rotation["notes"],
        *(rotation["last"] or {}).get("remains", []),
        *found["warnings"],
    ]
    document = {k: found[k] for k in ("driver", "epoch", "party", "rotation", "warnings")}
    result(document, lines, as_json=as_json)


@key.command("list")
def list_keys(party: As = None, home: HomeFolder = None, as_json: Json = False) -> None:
    """All keys: the vault's own, and each asset's with its dates, holds and end."""
    with at_home(home) as place:
        found = operations.list_keys(place, place.choose(party))
    rows: list[tuple[object, ...]] = [
        (k["kind"], k["name"][:16], f"epoch {k['epoch']}", k["where"], "" if k["extractable"] else "can't be extracted")
        for k in found["keys"]
    ]
    rows += [("asset", a["name"], f"version {a['version']}", a["class"], _end(a)) for a in found["assets"]]
    rows += [
        ("task", t["name"], f"version {t['version']}", "re-encryption", day(t["started"]))
        for t in found["tasks"]
        if t["state"] == "running"
    ]
    result(found, columns(rows), as_json=as_json)


def _end(asset: dict[str, Any]) -> str:
    if asset["shredded"] is not None:
        return f"shredded on {day(asset['shredded'])}: {asset['reason']}"
    held = "" if asset["held"] is None else f"; held: {asset['held']}"
    return f"kept until {day(asset['keep_until'])}{held}"


@key.command("usage")
def usage(party: As = None, home: HomeFolder = None, as_json: Json = False) -> None:
    """What each key was used for, from the audit log alone; unusual use is marked, with the rule in words."""
    with at_home(home) as place:
        found = operations.key_usage(place, place.choose(party))
    rows: list[tuple[object, ...]] = [("key", "version", "releases", "jobs", "starts", "refused", "opened", "last", "")]
    rows += [
        (
            f"epoch {k['name']}" if k["kind"] == "kek" else k["name"],
            k["version"] or "",
            *(k[what] for what in ("releases", "jobs", "instances", "refused", "opened")),
            day(k["last"]) if k["last"] else "never",
            "UNUSUAL" if k["unusual"] else "",
        )
        for k in found["keys"]
    ]
    marks = [(k["name"], mark) for k in found["keys"] if k["kind"] == "asset" for mark in k["marks"]]
    lines = [f"{name}, entry {m['entry']}, {day(m['at'])}: {m['words']}." for name, m in marks]
    result(found, [*columns(rows), *lines], as_json=as_json)


@key.command("shred")
def shred(
    name: Asset,
    reason: Reason,
    version: Annotated[list[int] | None, typer.Option("--version", min=1, help="A version; several times.")] = None,
    all_versions: Annotated[bool, typer.Option("--all-versions", help="Every version.")] = False,
    yes: Yes = False,
    progress: ShowProgress = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Destroy the key of an asset here, for good. It then names what is out of reach and could still open a copy."""
    with at_home(home) as place:
        versions = operations.versions_to_shred(place, name, version or [], all_versions)
        which = "every version" if versions is None else f"version {', '.join(map(str, versions))}"
        ask_name(
            f"This destroys the key of {which} of {name}, for good. Type the asset's name to do it:", name, yes=yes
        )
        with Bars(progress) as bars:
            done = operations.shred(place, name, versions, reason=reason, progress=bars)
    lines = [f"{name} version {v['version']} is shredded: its key is destroyed here." for v in done.versions]
    if done.leases_cut:
        lines.append(f"{done.leases_cut} running jobs that held a key of it end within their lease.")
    lines += [f"Not to be recalled: {sentence}" for sentence in done.beyond_recall]
    if done.driver == "file":
        lines.append(_REKEY)
    result(done.document(), lines, as_json=as_json)


@key.command("retain")
def retain(
    name: Asset,
    until: Annotated[str, typer.Option("--until", help="A day such as 2027-11-20, or a time from now such as 90d.")],
    version: Annotated[int | None, typer.Option("--version", min=1, help="Only this version.")] = None,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Shred an asset by itself after a day. What a contract names is only ever kept for a shorter time than before."""
    with at_home(home) as place:
        changed = operations.retain(place, name, parse_day(until, "--until", now=int(time.time())), version=version)
    lines = [f"{c['name']} version {c['version']} is kept until {day(c['keep_until'])}." for c in changed]
    result({"changed": changed}, lines, as_json=as_json)


@key.command("hold")
def hold(name: Asset, reason: Reason, home: HomeFolder = None, as_json: Json = False) -> None:
    """A legal hold: nothing of an asset expires or is shredded. It does not lengthen what jobs may do with it."""
    with at_home(home) as place:
        answer = operations.hold(place, name, reason)
    result(answer, [f"{name} is held: {reason}"], as_json=as_json)


@key.command("unhold")
def unhold(name: Asset, reason: Reason, home: HomeFolder = None, as_json: Json = False) -> None:
    """Lift a legal hold. What was due meanwhile expires."""
    with at_home(home) as place:
        answer = operations.unhold(place, name, reason)
    result(answer, [f"The hold on {name} is lifted."], as_json=as_json)


@key.command("reencrypt")
def reencrypt(
    name: Asset,
    version: Annotated[
        int | None, typer.Option("--version", min=1, help="From this version, where the newest one is lost.")
    ] = None,
    shred_old: Annotated[
        bool,
        typer.Option("--shred-old", help="Then destroy the keys of older versions; one that was passed over is kept."),
    ] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="End one that was begun; its key is destroyed.")] = False,
    progress: ShowProgress = False,
    home: HomeFolder = None,
    as_json: Json = False,
) -> None:
    """Encrypt an asset anew under a fresh key, as its next version. If it is killed, the same command goes on."""
    if cancel and (version is not None or shred_old):
        raise Misuse("reencrypt.cancel", "Give --cancel alone: it ends whichever re-encryption runs.")
    with at_home(home) as place, Bars(progress) as bars:
        if cancel:
            answer = operations.cancel_reencryption(place, name)
            return result({**answer, "name": name}, [f"The re-encryption of {name} is ended."], as_json=as_json)
        done = operations.reencrypt(place, name, version=version, shred_old=shred_old, progress=bars)
    lines = [
        f"{name} version {done.asset.version} is sealed under a fresh key and stored.",
        f"digest  {done.asset.digest}",
    ]
    if done.from_older:
        lines.append(
            f"MADE FROM VERSION {done.source}, not from version {done.asset.version - 1}: "
            f"its files and terms are those of version {done.source}."
        )
    if done.resumed:
        lines.append("It went on where an earlier attempt had broken off.")
    if done.shredded is not None:
        lines += [f"Version {v['version']} is shredded." for v in done.shredded.versions]
        lines += [f"Not to be recalled: {sentence}" for sentence in done.shredded.beyond_recall]
    lines += [
        f"VERSION {kept} IS KEPT: it was passed over for an older one. 'cloister key shred {name} --version {kept}' "
        "destroys its key, too."
        for kept in done.kept
    ]
    return result(done.document(), lines, as_json=as_json)


@key.command("shred-checkpoints")
def shred_checkpoints(
    reason: Reason, party: As = None, yes: Yes = False, home: HomeFolder = None, as_json: Json = False
) -> None:
    """Make every checkpoint unreadable that a party's share went into. Its runs that are under way end."""
    with at_home(home) as place:
        acting = place.choose(party)
        question = f"No run of {acting} that broke off can go on afterwards. Type the party's name to do it:"
        ask_name(question, acting, yes=yes)
        done = operations.shred_checkpoints(place, acting, reason)
    lines = [f"The checkpoints of {acting} can't be opened any more; {done['leases_cut']} running jobs end."]
    result(done, lines, as_json=as_json)


key.command("rekey")(rekey)
key.command("sweep")(sweep)
key.command("trustee")(trustee)
