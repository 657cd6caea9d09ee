"""A seeded, stratified split that depends on what the rows say and on the seed, not on the order of the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from decimal import Decimal

from ...crypto import frame, sha256
from ...errors import Misuse
from .models import Split

__all__ = ["joined_groups", "label_names", "rarest", "split_rows"]

_LEAST_ROWS = 10


def label_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels in sorted order; a label's number is its place there. Misuse if nothing can be learned."""
    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        raise Misuse("data.labels", "The label column holds one label only; a classifier needs at least two.")
    if len(names) > len(labels) // 2:
        raise Misuse("data.labels", "Most labels occur only once; check that 'columns.label' names the label column.")
    if any(not name.strip() for name in names):
        raise Misuse("data.labels", "Some rows have an empty label; label or drop them.")
    return names


def split_rows(
    texts: Sequence[str],
    labels: Sequence[str] | None,
    fraction: Decimal,
    seed: int,
    test: Decimal | None = None,
) -> Split:
    """Set about ``fraction`` of the rows aside for validation and, where it is given, ``test`` of them for the report;
    from each label its share.

    Rows with the same text stay together, so that no row that was set aside was seen in training, and none of the
    report chose anything. The validation rows are the same with ``test`` and without. A label with a single text stays
    in training. Misuse (``data.few``) where a part would be empty.
    """
    members: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        members.setdefault(text, []).append(row)
    strata: dict[str, list[str]] = {}
    for text, rows in members.items():
        strata.setdefault(_label(rows, labels), []).append(text)
    shares = [fraction] if test is None else [fraction, test]
    parts: list[list[int]] = [[] for _ in shares]
    for texts_of_label in strata.values():
        # The order by a keyed digest is a shuffle that is the same for the same texts and seed on every machine.
        shuffled = sorted(texts_of_label, key=lambda text: sha256(frame("cloister/split/v1", str(seed), text)))
        total = sum(len(members[text]) for text in shuffled)
        left = iter(shuffled[:-1])
        for share, part in zip(shares, parts, strict=True):
            taken, wanted = 0, int(total * share + Decimal("0.5"))
            while taken < wanted and (chosen := next(left, None)) is not None:
                part += members[chosen]
                taken += len(members[chosen])
    aside = {row for part in parts for row in part}
    if len(texts) < _LEAST_ROWS or not all(parts) or len(aside) == len(texts):
        what = "validation" if test is None else "validation and test"
        raise Misuse("data.few", f"The dataset is too small to set {what} rows aside; give {_LEAST_ROWS} or more.")
    return Split(tuple(r for r in range(len(texts)) if r not in aside), *(tuple(sorted(part)) for part in parts))


def rarest(labels: Sequence[Collection[str]]) -> list[str]:
    """Each row's rarest label, or an empty text: to stratify rows of several labels by."""
    counted = Counter(name for names in labels for name in set(names))
    return [min(names, key=lambda name: (counted[name], name), default="") for names in labels]


def joined_groups(*columns: Sequence[str]) -> list[str]:
    """A name for each row, the same for rows that share a text in any one of ``columns``, directly or through others.

    The name is the least text of the group's first column, so it does not depend on the order of the file.
    """
    leader: dict[tuple[int, str], tuple[int, str]] = {}

    def find(node: tuple[int, str]) -> tuple[int, str]:
        while leader.setdefault(node, node) != node:
            leader[node] = leader[leader[node]]  # halves the path each time, so a long chain stays cheap
            node = leader[node]
        return node

    for row in zip(*columns, strict=True):
        first, *others = (find((place, text)) for place, text in enumerate(row))
        for other in others:
            low, high = sorted((find(first), other))
            leader[high] = low
    # Nodes of the first column sort first, so each group's leader is the least of them.
    return [find((0, text))[1] for text in columns[0]]


def _label(rows: list[int], labels: Sequence[str] | None) -> str:
    if labels is None:
        return ""
    counted = Counter(labels[row] for row in rows)
    return min(counted, key=lambda name: (-counted[name], name))
