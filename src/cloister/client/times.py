"""Spans and dates as people write them: ``90d``, ``2027-11-20``."""

from __future__ import annotations

import datetime
import re

from ..errors import Misuse

__all__ = ["day", "parse_day", "parse_span"]

_UNITS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}


def parse_span(text: str, what: str) -> int:
    """``12h``, ``90d``, ``26w`` in seconds. Raises Misuse, naming ``what``."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", text)
    if found is None:
        raise Misuse("form.span", f"Give {what} as hours, days or weeks, for example 90d.")
    return int(found[1]) * _UNITS[found[2]]


def parse_day(text: str, what: str, *, now: int) -> int:
    """A day's beginning in UTC, or a span from now, in unix seconds. Raises Misuse, naming ``what``."""
    if re.fullmatch(r"[1-9][0-9]{0,4}[hdw]", text):
        return now + parse_span(text, what)
    try:
        moment = datetime.datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=datetime.UTC)
    except ValueError:
        raise Misuse("form.day", f"Give {what} as a day such as 2027-11-20, or a time from now such as 90d.") from None
    return int(moment.timestamp())


def day(seconds: int) -> str:
    """A day in UTC; "never" beyond the calendar's end."""
    if seconds >= 253_402_300_800:
        return "never"
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).strftime("%Y-%m-%d")
