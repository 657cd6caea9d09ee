"""A contract in words that a person can agree to. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from ..contracts import Contract, PrivacyRule, Terms, decimal_text

__all__ = ["ASSURANCE", "describe"]

ASSURANCE = {
    "none": "none: the protocol is checked, the hardware is not; whoever runs the machine can read its memory",
    "tpm": "tpm: measured boot and a TPM's word; whoever is root on the machine can still read its memory",
    "cpu-tee": "cpu-tee: memory is encrypted against the machine's owner, short of physical attacks",
    "gpu-tee": "gpu-tee: memory of CPU and GPU is encrypted against the machine's owner, short of physical attacks; "
    "this version's node attests GPUs and still trains on the CPU",
}


def describe(contract: Contract, *, here: Mapping[str, str] | None = None, full: bool = False) -> list[tuple[str, str]]:
    """(what, in words) rows, in the order in which one would ask.

    ``here``: this installation's ``agent`` and ``measurement``, to compare the contract's platform with; ``full``:
    digests in full. The contract's own digest always is: it is what people compare.
    """
    platform, recipes = contract.platform, contract.recipes
    rows = [
        ("contract", f"{contract.name}, serial {contract.serial}"),
        ("digest", contract.digest.hex()),
        ("parties", ", ".join(sorted(contract.parties))),
        ("purpose", contract.purpose),
    ]
    rows += [
        ("uses", f"{a.name} as {a.use}, {_short(a.digest.hex(), full)}, {_terms(a.terms)}") for a in contract.assets
    ]
    rows += [("leaves", f"{o.name} as {o.form}, to {', '.join(o.recipients)} alone") for o in contract.outputs]
    rows += [
        ("telemetry", ", ".join(contract.telemetry) or "no figures leave while a run goes on"),
        ("gates", "; ".join(f"{g.metric} at least {g.margin} above the base" for g in contract.gates) or "none"),
        ("runs", f"at most {contract.runs}: {'/'.join(recipes.methods)} for {'/'.join(recipes.tasks)}, "
                 f"up to {recipes.max_epochs} epochs"),
        *_privacy(recipes.privacy),
        ("rows", _memorization(contract)),
        ("assurance", ASSURANCE[platform.assurance]),
        *_permitted("workload", platform.measurements, here, "measurement", full),
        *_permitted("agent", platform.agents, here, "agent", full),
        *_permitted("attester", platform.attesters, None, "attester", full),
        *_devices(platform.devices, full),
        *_tenancy(platform.tenancy),
        *_stock_guests(platform.stock_guests),
        *_trustees(contract),
        ("regions", ", ".join(platform.regions) or "any"),
        ("stops", _stops(contract)),
        ("in force", f"{_day(contract.not_before)} to {_day(contract.expires)}"),
    ]  # fmt: skip
    return rows


def _permitted(
    what: str, digests: tuple[str, ...], here: Mapping[str, str] | None, key: str, full: bool
) -> list[tuple[str, str]]:
    """A row for each digest: one that is not this installation's must not hide behind one that is."""
    return [(what, _short(d, full) + _compared(d, here, key)) for d in digests] or [(what, "none permitted")]


def _devices(pinned: Mapping[str, tuple[str, ...]], full: bool) -> list[tuple[str, str]]:
    """A row for each: whoever signs sees every machine that may run it."""
    return [("device", f"{kind} {_short(one, full)}, no other {kind}") for kind, ids in pinned.items() for one in ids]


def _tenancy(tenancy: str | None) -> list[tuple[str, str]]:
    words = {
        "exclusive": "exclusive: nobody else's work runs on the machine meanwhile, as its measured agent says",
        "shared": "shared: other parties' work may run on the machine meanwhile, each in its own sandbox",
    }
    return [] if tenancy is None else [("tenancy", words[tenancy])]


def _stock_guests(allowed: bool) -> list[tuple[str, str]]:
    words = (
        "allowed: any number of guests that are both an agent and a workload above get the keys of the job that they "
        "were started for, all of them as one run; recipe, gates and outputs bind them only as far as their own "
        "measured image does; their lease can't be renewed, and nobody can take the keys back"
    )
    return [("stock guests", words)] if allowed else []


def _trustees(contract: Contract) -> list[tuple[str, str]]:
    """A warning for each: whoever signs accepts what is missing."""
    rows = []
    for party, entry in sorted(contract.trustees.items()):
        kept = ", ".join(a.name for a in contract.assets if a.owner == party)
        rows.append(
            (
                "UNBOUND",
                f"{party} keeps the keys of {kept} in a stock key broker ({entry.address}, repository "
                f"{entry.repository}, TLS key {entry.tls_pin.hex()}): nothing binds their release to a job, no log or "
                f"lease of {party}'s shows or ends it, and outputs leave without a permit of {party}'s",
            )
        )
    if rows:
        rows.append(("checkpoints", "none: a run that is interrupted begins anew"))
    return rows


def _compared(digest: str, here: Mapping[str, str] | None, key: str) -> str:
    if here is None:
        return ""
    if key not in here:
        return ", nothing runs here to compare it with"
    return ", matches this installation" if here[key] == digest else ", does NOT match this installation"


def _stops(contract: Contract) -> str:
    within = f"within {contract.lease_seconds} seconds after any one party revokes"
    if not contract.trustees:
        return within
    return f"{within}, once a broker of {' or '.join(contract.brokers())} has heard of it"


def _privacy(rule: PrivacyRule | None) -> list[tuple[str, str]]:
    if rule is None:
        return []
    bounds = f"epsilon at most {decimal_text(rule.max_epsilon)}, delta at most {decimal_text(rule.max_delta)}"
    return [("privacy", f"every run is trained with differential privacy for each {rule.unit}, {bounds}")]


def _memorization(contract: Contract) -> str:
    if not contract.unbounded_memorization:
        asked = "" if contract.recipes.privacy is None else ", beyond what differential privacy lets through"
        return f"no data owner accepts that what leaves can contain rows{asked}"
    who = ", ".join(contract.unbounded_memorization)
    return f"{who} accept(s) that a model trained without differential privacy can contain rows"


def _terms(terms: Terms) -> str:
    licences = "/".join(terms.licences) or "no licence named"
    return f"{terms.sensitivity}, {licences}, may leave as {'/'.join(terms.forms)}"


def _short(digest: str, full: bool) -> str:
    return digest if full else f"{digest[:16]}…"


def _day(when: int) -> str:
    try:
        return datetime.datetime.fromtimestamp(when, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, ValueError, OSError):
        return "no end"
