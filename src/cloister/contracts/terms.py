"""Terms that travel with an asset, and their intersection for what is derived (invariant 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import Malformed, Misuse
from ..fields import Fields

__all__ = ["FORMS", "SENSITIVITIES", "Terms"]

SENSITIVITIES = ("public", "internal", "confidential", "restricted")
FORMS = ("metrics", "adapter", "weights")  # from what tells least to what tells most
_FOREVER = 2**53 - 1


@dataclass(frozen=True)
class Terms:
    """``forms``: in which forms what is derived may leave; ``keep_until``: unix seconds, then it is to be shredded."""

    licences: tuple[str, ...]
    sensitivity: str = "confidential"
    forms: tuple[str, ...] = FORMS
    keep_until: int = _FOREVER

    def document(self) -> dict[str, Any]:
        return {
            "forms": list(self.forms),
            "keep_until": self.keep_until,
            "licences": list(self.licences),
            "sensitivity": self.sensitivity,
        }

    @classmethod
    def read(cls, value: Any) -> Terms:
        f = Fields(value, "terms")
        terms = cls(
            licences=f.texts("licences", limit=64),
            sensitivity=f.text("sensitivity", choices=SENSITIVITIES),
            forms=f.texts("forms", limit=len(FORMS)),
            keep_until=f.integer("keep_until"),
        )
        f.done()
        if any(form not in FORMS for form in terms.forms):
            raise Malformed("terms.form", "Terms name a form other than " + ", ".join(FORMS) + ".")
        return terms

    @staticmethod
    def intersect(parents: Sequence[Terms]) -> Terms:
        """Every parent's obligations: all licences, the highest sensitivity, the common forms, the first end."""
        if not parents:
            raise Misuse("terms.parents", "Derived terms need at least one parent.")
        return Terms(
            licences=tuple(sorted({licence for p in parents for licence in p.licences})),
            sensitivity=max((p.sensitivity for p in parents), key=SENSITIVITIES.index),
            forms=tuple(form for form in FORMS if all(form in p.forms for p in parents)),
            keep_until=min(p.keep_until for p in parents),
        )
