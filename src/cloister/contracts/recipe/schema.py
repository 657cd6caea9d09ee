"""The recipe's JSON schema (2020-12), for editors and for other programs. It says what a key takes; which settings
can't work together is only known to ``parse_recipe``."""

from __future__ import annotations

from typing import Any

from .keys import KEYS, REQUIRED
from .methods import SECTIONS, Section
from .tasks import TASKS

__all__ = ["recipe_schema"]


def recipe_schema() -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name, key in KEYS.items():
        properties[name] = {**key.reader.schema, "description": key.says}
        if isinstance(key.default, str | int):
            properties[name]["default"] = key.default
    roles = sorted({role for task in TASKS.values() for role in task.roles})
    column = {"type": "string", "minLength": 1, "maxLength": 256}
    properties["columns"] = {
        "type": "object",
        "description": "which column stands for what",
        "properties": dict.fromkeys(roles, column),
        "additionalProperties": False,
    }
    for name, section in SECTIONS.items():
        properties[name] = {
            "type": "object",
            "description": _said(name, section),
            "properties": {
                key: {**reader.schema, "default": usual, "description": says}
                for key, (reader, usual, says) in section.keys.items()
            },
            "additionalProperties": False,
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Cloister recipe, version 1",
        "type": "object",
        "properties": properties,
        "required": [name for name, key in KEYS.items() if key.default is REQUIRED],
        "allOf": [_columns_of(task) for task in TASKS],
        "additionalProperties": False,
    }


def _said(name: str, section: Section) -> str:
    if section.optional:
        return section.says
    return f"settings of task {section.task}" if section.task else f"settings of method {name}"


def _columns_of(task: str) -> dict[str, Any]:
    roles = TASKS[task]
    columns = {"required": list(roles.required), "properties": dict.fromkeys(roles.roles, True)}
    then: dict[str, Any] = {"properties": {"columns": {**columns, "additionalProperties": False}}}
    if roles.required:
        then["required"] = ["columns"]
    return {"if": {"properties": {"task": {"const": task}}}, "then": then}
