"""HTTP for the owner's keys, beside ``admin`` on the same Unix socket: ``/v1/keys``, and ``/v1/budgets``."""

from __future__ import annotations

import base64
from dataclasses import asdict
from functools import partial
from typing import Any

from starlette.routing import Route

from ..contracts import UNITS
from ..errors import Misuse
from ..fields import Fields
from .admin import json_route
from .assets import Assets
from .budgets import Budgets
from .config import Limits
from .http import Call
from .lifecycle import Lifecycle

__all__ = ["budget_routes", "key_routes"]

_REASON = 500
_VERSIONS = 400


def budget_routes(budgets: Budgets, limits: Limits) -> list[Route]:
    """``/v1/budgets``: the privacy budgets of datasets."""

    def show(call: Call) -> Any:
        name = call.query.get("name")
        return {"budgets": budgets.listing()} if name is None else budgets.show(name)

    def put(call: Call) -> Any:
        f = Fields(call.body(), "privacy budget")
        name, unit = f.asset("name"), f.optional_text("unit", limit=16)
        epsilon, delta = f.optional_text("epsilon", limit=32), f.optional_text("delta", limit=32)
        if unit is not None:
            f.text("unit", choices=UNITS)
        f.done()
        return budgets.set(name, epsilon, delta, unit)

    get, post = partial(json_route, "GET", limits=limits), partial(json_route, "POST", limits=limits)
    return [get("/v1/budgets", show), post("/v1/budgets", put)]


def key_routes(life: Lifecycle, assets: Assets, limits: Limits) -> list[Route]:
    keys = _Keys(life, assets)
    get, post = partial(json_route, "GET", limits=limits), partial(json_route, "POST", limits=limits)
    return [
        get("/v1/keys", keys.keys),
        get("/v1/keys/usage", keys.usage),
        get("/v1/keys/rotation", keys.rotation),
        post("/v1/keys/rotate", keys.rotate),
        post("/v1/keys/schedule", keys.schedule),
        post("/v1/keys/shred", keys.shred),
        post("/v1/keys/retain", keys.retain),
        post("/v1/keys/hold", keys.hold),
        post("/v1/keys/unhold", keys.unhold),
        get("/v1/keys/tasks", keys.tasks),
        post("/v1/keys/reencrypt", keys.reencrypt),
        post("/v1/keys/reencrypt/cancel", keys.cancel),
        post("/v1/keys/manifest", keys.manifest),
        post("/v1/keys/checkpoints/shred", keys.shred_checkpoints),
        post("/v1/keys/recovery/split", keys.split),
        post("/v1/keys/rekey", keys.rekey),
        get("/v1/keys/orphans", keys.orphans),
        post("/v1/keys/sweep", keys.sweep),
    ]


class _Keys:
    """One method an endpoint: parse, call, answer."""

    def __init__(self, life: Lifecycle, assets: Assets) -> None:
        self._life = life
        self._assets = assets

    # What there is, and what it was used for.

    def keys(self, _: Call) -> Any:
        vault = self._life.vault
        infos = vault.keys()
        return {
            "assets": self._assets.listing(),
            "driver": vault.driver,
            "epoch": vault.epoch,
            "keys": [asdict(key) for key in infos],
            "recovery_split": self._life.roots.was_split,
            "tasks": self._life.tasks.listing(),
            "warnings": list(vault.warnings),
        }

    def usage(self, _: Call) -> Any:
        return self._life.usage.document()

    # Rotation. It begins here and goes on in the keeper's thread: whoever asked looks at its progress.

    def rotate(self, call: Call) -> Any:
        Fields(call.body(), "rotation request").done()
        begun = self._life.rotation.begin("demand")
        self._life.keeper.wake()
        return {**self._progress(), "begun": begun}

    def rotation(self, _: Call) -> Any:
        return self._progress()

    def _progress(self) -> dict[str, Any]:
        life = self._life
        return {**life.rotation.progress(), "notes": life.notes(), "schedule": life.schedule.document()}

    def schedule(self, call: Call) -> Any:
        f = Fields(call.body(), "schedule")
        every = None if f.raw("every", optional=True) is None else f.integer("every", low=1)
        f.done()
        answer = self._life.schedule.set(every)
        self._life.keeper.wake()
        return answer

    # Ends: shredding, dates, holds.

    def shred(self, call: Call) -> Any:
        f = Fields(call.body(), "shredding request")
        name, reason = f.asset("name"), _reason(f)
        wanted = f.raw("versions", optional=True)
        versions = None if wanted is None else f.items("versions", _version, limit=_VERSIONS)
        f.done()
        answer = self._life.shredder.shred(name, versions, reason)
        self._life.keeper.wake()
        return {**answer, "driver": self._life.vault.driver, "rotation": self._progress()}

    def retain(self, call: Call) -> Any:
        f = Fields(call.body(), "retention request")
        name, until = f.asset("name"), f.integer("until", low=1)
        version = None if f.raw("version", optional=True) is None else f.integer("version", low=1)
        f.done()
        return {"changed": self._life.retention.retain(name, version, until)}

    def hold(self, call: Call) -> Any:
        name, reason = _name_and_reason(call, "hold")
        self._life.retention.hold(name, reason)
        return {"held": reason, "name": name}

    def unhold(self, call: Call) -> Any:
        name, reason = _name_and_reason(call, "end of a hold")
        self._life.retention.unhold(name, reason)
        return {"held": None, "name": name}

    # Re-encryption.

    def tasks(self, _: Call) -> Any:
        return {"tasks": self._life.tasks.listing()}

    def reencrypt(self, call: Call) -> Any:
        f = Fields(call.body(), "re-encryption request")
        name, shred_old = f.asset("name"), f.boolean("shred_old")
        version = None if f.raw("version", optional=True) is None else f.integer("version", low=1)
        f.done()
        opened = self._life.tasks.open(name, version=version, shred_old=shred_old)
        return {
            "dek": base64.b64encode(opened.secret_dek).decode(),
            "previous": opened.previous.hex(),
            "resumed": opened.resumed,
            "source": opened.source.to_bytes().decode(),
            "source_dek": base64.b64encode(opened.source_secret_dek).decode(),
            "task": opened.task,
            "version": opened.version,
        }

    def cancel(self, call: Call) -> Any:
        f = Fields(call.body(), "cancellation")
        name = f.asset("name")
        f.done()
        return {"task": self._life.tasks.cancel(name)}

    def manifest(self, call: Call) -> Any:
        f = Fields(call.body(), "manifest request")
        digest = f.hex("digest", 32)
        f.done()
        return {"manifest": self._assets.signed(digest).to_bytes().decode()}

    # The vault's roots.

    def shred_checkpoints(self, call: Call) -> Any:
        f = Fields(call.body(), "shredding request")
        reason = _reason(f)
        f.done()
        return {"leases_cut": self._life.roots.shred_checkpoints(reason)}

    def rekey(self, call: Call) -> Any:
        f = Fields(call.body(), "rekeying request")
        credential = f.optional_text("credential")
        f.done()
        vault = self._life.vault
        if credential is None and vault.driver == "file":
            raise Misuse("rekey.credential", "Give the vault's passphrase: its file is sealed under it anew.")
        remains = self._life.roots.rekey((credential or "").encode())
        return {"recovery_split": self._life.roots.was_split, "remains": list(remains), "revision": vault.revision}

    def orphans(self, _: Call) -> Any:
        return self._life.roots.orphans()

    def sweep(self, call: Call) -> Any:
        f = Fields(call.body(), "sweeping request")
        which = f.hex("which", 32)
        f.done()
        try:
            return self._life.roots.sweep(which.hex())
        finally:
            self._life.keeper.wake()  # a rotation may have waited for it, and a part may be enough

    def split(self, call: Call) -> Any:
        f = Fields(call.body(), "recovery request")
        threshold, shares = f.integer("threshold", low=1), f.integer("shares", low=1)
        f.done()
        return {"shares": self._life.roots.split(threshold, shares)}


def _version(value: Any) -> int:
    return Fields({"version": value}, "shredding request").integer("version", low=1)


def _name_and_reason(call: Call, what: str) -> tuple[str, str]:
    f = Fields(call.body(), what)
    name, reason = f.asset("name"), _reason(f)
    f.done()
    return name, reason


def _reason(f: Fields) -> str:
    """What somebody reads in the log in a year: never empty."""
    reason = f.text("reason", limit=_REASON).strip()
    if not reason:
        raise Misuse("form.reason", "Give the reason in a few words; it stands in the log.")
    return reason
