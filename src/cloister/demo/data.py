"""The demo's dataset: messages between invented patients and their clinic, with a category each.

Everything comes from a seed, so two runs give the same bytes on every machine. The rows look like what nobody may
see: names, dates, record and phone numbers in running text. None of it belongs to anyone (phone numbers are of the
block that is reserved for fiction).

The category is the topic of the last question. Earlier questions and passing remarks are about other topics, so that
an untuned sentence encoder is misled often enough for fine-tuning to show.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import Misuse

from .phrases import FIRST_NAMES, SLOTS, SURNAMES, TOPICS

__all__ = ["CANARY_EVERY", "CATEGORIES", "DEFAULT_ROWS", "Row", "generate", "write_csv"]

CATEGORIES = tuple(sorted(TOPICS))
DEFAULT_ROWS = 1600
# One row in so many carries the canary, the first of them always.
CANARY_EVERY = 100
# How often an earlier question of another topic was asked (and answered) before the one that counts.
_EARLIER_QUESTION = 0.25
_REMARK = 0.7
_CLOSING = 0.4

_ANSWERS = (
    "I have noted that.",
    "Thank you, we will come to that.",
    "Yes, that is in the chart.",
    "No, not as far as I can see.",
    "Let me write that down, {first}.",
    "Doctor {surname} knows about it.",
    "That is settled then.",
    "We can leave that for another time.",
)
_CLOSINGS = ("Thanks, {first}.", "You can reach me at {phone}.", "Best, {first} {last}", "Sorry for all the questions.")
_HEADERS = (
    "{date}, {first} {last}, MRN {mrn}.",
    "Patient {last}, {first} (born {birth}), record {mrn}.",
    "Message from {first} {last}, {phone}, {date}.",
    "{first} {last} called on {date} from {phone}, MRN {mrn}.",
    "Chart {mrn}, visit of {date}.",
)


@dataclass(frozen=True)
class Row:
    text: str
    category: str


def generate(rows: int = DEFAULT_ROWS, *, seed: int = 20, canary: str | None = None) -> list[Row]:
    """``rows`` dialogues, the categories as even as they can be, in an order that says nothing.

    ``canary`` is a text that stands nowhere else; it is woven into every ``CANARY_EVERY``-th row, so that a search of
    disks, logs and databases for it shows whether a row has leaked. Raises ``Misuse`` for fewer rows than categories
    and for a canary that is empty or spans lines.
    """
    if rows < len(CATEGORIES):
        raise Misuse("demo.rows", f"Ask for at least {len(CATEGORIES)} rows: one of each category.")
    if canary is not None and (not canary.strip() or len(canary.splitlines()) != 1):
        raise Misuse("demo.canary", "Give a canary of one line that isn't empty.")
    rng = random.Random(seed)
    made = [_dialogue(rng, CATEGORIES[index % len(CATEGORIES)]) for index in range(rows)]
    rng.shuffle(made)
    if canary is not None:
        made[::CANARY_EVERY] = [
            Row(f"The code on my letter is {canary}. {row.text}", row.category) for row in made[::CANARY_EVERY]
        ]
    return made


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A CSV file (RFC 4180 quoting, UTF-8, lines end in LF) with the header ``text,category``."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "category"))
        writer.writerows((row.text, row.category) for row in rows)


def _dialogue(rng: random.Random, category: str) -> Row:
    person = _person(rng)
    others = [name for name in CATEGORIES if name != category]
    parts = [rng.choice(_HEADERS)]
    # Beside the point: a remark on something else, and sometimes a question that was answered already.
    parts.append(rng.choice(TOPICS[rng.choice(others)].statements))
    if rng.random() < _EARLIER_QUESTION:
        parts += [rng.choice(TOPICS[rng.choice(others)].questions), rng.choice(_ANSWERS)]
    # What is asked about was often mentioned just before, as people talk.
    if rng.random() < _REMARK:
        parts.append(rng.choice(TOPICS[category].statements))
    parts.append(rng.choice(TOPICS[category].questions))
    if rng.random() < _CLOSING:
        parts.append(rng.choice(_CLOSINGS))
    return Row(" ".join(_fill(rng, part, person) for part in parts), category)


def _person(rng: random.Random) -> dict[str, str]:
    """One invented person: the same name and numbers throughout one dialogue."""
    year, month, day = rng.randint(2023, 2026), rng.choice(SLOTS["month"]), rng.randint(1, 28)
    number = SLOTS["month"].index(month) + 1
    return {
        "first": rng.choice(FIRST_NAMES),
        "last": rng.choice(SURNAMES),
        "date": rng.choice((f"{day} {month} {year}", f"{month} {day}, {year}", f"{number:02d}/{day:02d}/{year}")),
        "birth": f"{rng.randint(1, 12):02d}/{rng.randint(1, 28):02d}/{rng.randint(1938, 2007)}",
        "mrn": rng.choice(("{}-{}", "{}{}", "{} {}")).format(rng.randint(1000, 9999), rng.randint(100, 999)),
        "phone": f"({rng.randint(201, 989)}) 555-01{rng.randint(0, 99):02d}",
    }


def _fill(rng: random.Random, template: str, person: dict[str, str]) -> str:
    """``template`` with its slots filled; ``name2`` never repeats ``name``."""
    values = dict(person)
    for name, choices in SLOTS.items():
        values[name], values[f"{name}2"] = rng.sample(choices, 2)
    values["allergen_cap"] = values["allergen"].capitalize()
    values["surname"] = rng.choice(SURNAMES)
    values["year"] = str(rng.randint(1996, 2025))
    values["count"] = str(rng.randint(2, 9))
    values["age"] = str(rng.randint(31, 84))
    values["monthday"] = f"{rng.randint(4, 20)}th"
    return template.format_map(values)
