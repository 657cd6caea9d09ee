"""Letting a result out: the bundle's files, its provenance, the sealed output, the owners' permits.

The tour: ``card`` (the model card), ``provenance`` (in-toto statement over every file), ``output`` (seal,
collect permits, wrap for the recipients, write the release record).
"""

from .card import CardFacts, model_card
from .output import OutputRelease
from .provenance import provenance_statement

__all__ = ["CardFacts", "OutputRelease", "model_card", "provenance_statement"]
