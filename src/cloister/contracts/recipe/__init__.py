"""The recipe of one run. ``recipe`` reads it; ``keys``, ``methods`` and ``tasks`` are the tables of what it may say,
``combinations`` what can't work, ``schema`` the same for other programs; ``yaml`` and ``fields`` read text and values.
"""

from .keys import KEYS, default_words
from .methods import (
    METHODS,
    SECTIONS,
    Adapter,
    DpoSettings,
    EwcSettings,
    Ia3Settings,
    LoraSettings,
    PrivacySettings,
    PTuningSettings,
    ReplaySettings,
    ScriptSettings,
    SearchSettings,
    TokenSettings,
)
from .recipe import Recipe, parse_recipe
from .schema import recipe_schema
from .tasks import TASKS, Columns
from .yaml import read_yaml

__all__ = [
    "KEYS",
    "METHODS",
    "SECTIONS",
    "TASKS",
    "Adapter",
    "Columns",
    "DpoSettings",
    "EwcSettings",
    "Ia3Settings",
    "LoraSettings",
    "PTuningSettings",
    "PrivacySettings",
    "Recipe",
    "ReplaySettings",
    "ScriptSettings",
    "SearchSettings",
    "TokenSettings",
    "default_words",
    "parse_recipe",
    "read_yaml",
    "recipe_schema",
]
