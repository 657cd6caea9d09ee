"""A picture of what a job told while it ran: as much of it as its contract lets out."""

from __future__ import annotations

import math
from typing import Any

from ..errors import Malformed, Misuse, Unavailable
from ..plots import draw_curves
from .control import ControlClient

__all__ = ["plot_job"]

_MOST = 10_000  # events of one job; the workload tells a hundred a stage
_BY_THE_RIGHT = ("learning_rate", "tokens_per_second", "memory_mib", "eta_seconds", "gradient_norm")


def plot_job(client: ControlClient, digest: str) -> bytes:
    """A PNG of every figure that the job's stages told, over their steps.

    Raises Misuse (``job.no-figures``) where it told none, Malformed, and Unavailable without the extra ``plot``, or
    where the control plane answers without end.
    """
    try:
        curves = _curves(_events(client, digest))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Malformed(
            "event.form", "The control plane's account of the job can't be read; update the client."
        ) from None
    if not curves:
        raise Misuse(
            "job.no-figures", "This job told no figures; only those leave a run that the contract's telemetry names."
        )
    right = {name: curve for name, curve in curves.items() if name in _BY_THE_RIGHT}
    left = {name: curve for name, curve in curves.items() if name not in right}
    if not left:
        left, right = right, {}
    return draw_curves(f"job {digest[:16]}", left, right)


def _curves(events: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        for name, text in event["values"].items():
            value = float(text)
            if math.isfinite(value):
                shown = name if event["stage"] == "train" else f"{event['stage']} {name}"
                curves.setdefault(shown, []).append((int(event["step"]), value))
    return curves


def _events(client: ControlClient, digest: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while len(found) <= _MOST:
        entries = client.events(digest, len(found) and int(found[-1]["seq"]), wait=0)["events"]
        if not entries:
            return [entry["event"] for entry in found if entry["event"]["kind"] == "progress"]
        found += entries
    raise Unavailable("job.events", "The control plane tells more of this job than a job can tell; look at its log.")
