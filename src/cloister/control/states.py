"""A job's life, and what a running one may tell. Pure: values in, values or a refusal out."""

from __future__ import annotations

import re
from typing import Any

from ..errors import Malformed, Misuse
from ..fields import Fields

__all__ = ["FINAL", "STATES", "check_transition", "read_error", "read_event", "read_timings"]

STATES = ("queued", "running", "succeeded", "failed", "denied", "revoked", "cancelled")
FINAL = frozenset(STATES[2:])
_NEXT = {"queued": frozenset({"running", "cancelled", "revoked", "denied", "failed"}), "running": FINAL | {"queued"}}
_STAGE = re.compile(r"[a-z][a-z0-9 ._-]{0,63}")
_METRIC = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_DECIMAL = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,12})?(E[+-]?[0-9]{1,3})?|nan")
_CODE = re.compile(r"[a-z][a-z0-9.-]{0,63}")
_MAX_VALUES = 64


def check_transition(old: str, new: str) -> None:
    """Raises Misuse unless a job may go from ``old`` to ``new``. A final state is final."""
    if new not in _NEXT.get(old, frozenset()):
        raise Misuse("job.state", f"A job that is {old} can't become {new}.")


def _matching(pattern: re.Pattern[str], value: Any, what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise Malformed("event.form", f"An event's {what} is not of the permitted form.")
    return value


def read_event(value: Any) -> dict[str, Any]:
    """A node's event, of a form that has no room for free text. Raises Malformed.

    Only the last state's ``error`` holds a sentence; it is one of Cloister's own, which never quote data.
    """
    f = Fields(value, "event")
    kind = f.text("kind", choices=("progress", "state"))
    event: dict[str, Any] = {"kind": kind}
    if kind == "state":
        event["code"] = _matching(_CODE, f.raw("code"), "code")
        error = f.raw("error", optional=True)
        if error is not None:
            event["error"] = read_error(error)
    else:
        event["stage"] = _matching(_STAGE, f.raw("stage"), "stage")
        event["step"], event["total"] = f.integer("step"), f.integer("total")
        event["values"] = f.mapping("values", _value, limit=_MAX_VALUES)
    f.done()
    return event


def _value(name: str, value: Any) -> str:
    _matching(_METRIC, name, "metric")
    return _matching(_DECIMAL, value, "value")


def read_error(value: Any) -> dict[str, Any]:
    """A wire error, bounded. Raises Malformed."""
    f = Fields(value, "error")
    error: dict[str, Any] = {
        "code": _matching(_CODE, f.raw("code"), "error code"),
        "details": f.mapping("details", _detail, limit=16) if f.raw("details", optional=True) is not None else {},
        "kind": f.text("kind", limit=16),
        "message": f.text("message", limit=1000),
    }
    f.done()
    return error


def _detail(name: str, value: Any) -> str | int | bool:
    if len(name) > 64 or not isinstance(value, str | int | bool) or len(str(value)) > 256:
        raise Malformed("event.form", "An error's detail is not of the permitted form.")
    return value


def read_timings(value: Any) -> dict[str, str]:
    """Stage → seconds, as decimal text. Raises Malformed."""
    if value is None:
        return {}
    f = Fields({"timings": value}, "state")

    def seconds(name: str, item: Any) -> str:
        _matching(_STAGE, name, "stage")
        return _matching(
            _DECIMAL, str(item) if isinstance(item, int) and not isinstance(item, bool) else item, "timing"
        )

    return f.mapping("timings", seconds, limit=_MAX_VALUES)
