"""A strict reader of small YAML files: every scalar stays text, and nothing can be built or expanded.

YAML's own typing is a trap for recipes (``5e-4`` is text, ``no`` is false, ``010`` is eight), and anchors let ten
lines expand to gigabytes. So the document is composed into nodes only, never constructed: no tags, no
anchors, no aliases, no merge keys, no duplicate keys, bounded size and depth. The caller gives types to the text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from ...errors import Malformed

__all__ = ["MAX_DEPTH", "MAX_NODES", "MAX_YAML", "read_yaml"]

MAX_YAML = 32 * 1024
MAX_DEPTH = 6
MAX_NODES = 2000
_MAX_OPEN = 32  # brackets that were opened and not closed, those within text included
_BRACKET = re.compile(r"[][{}]")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


def read_yaml(text: str | bytes) -> dict[str, Any]:
    """Parse one YAML mapping. Scalars come back as ``str``, a plain null or an empty value as None.

    Raises Malformed with a code under ``recipe.yaml``.
    """
    try:
        data = text.encode() if isinstance(text, str) else text
        if len(data) > MAX_YAML:
            raise Malformed("recipe.yaml.size", f"The recipe has {len(data)} bytes; write at most {MAX_YAML}.")
        source = data.decode("utf-8")
    except UnicodeError:
        raise Malformed("recipe.yaml.encoding", "The recipe is not valid UTF-8; save it as UTF-8.") from None
    try:
        _refuse_machinery(source)
        nodes = list(yaml.compose_all(source, Loader=yaml.BaseLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise Malformed("recipe.yaml.syntax", f"The recipe is not valid YAML{where}; mend its syntax.") from None
    if len(nodes) != 1 or not isinstance(nodes[0], yaml.MappingNode):
        raise Malformed("recipe.yaml.shape", "A recipe is one YAML mapping of keys to values; write it so.")
    value = _value(nodes[0])
    assert isinstance(value, dict)
    return value


def _refuse_machinery(source: str) -> None:
    # Events come from a stream: a bomb is refused before a single alias is followed, and deep nesting before
    # the composer recurses over it.
    # The library's scanner goes through all open brackets for each further one, before any event shows them.
    opened = 0
    for bracket in _BRACKET.finditer(source):
        opened = opened + 1 if bracket[0] in "[{" else max(opened - 1, 0)
        if opened > _MAX_OPEN:
            raise Malformed("recipe.yaml.size", "The recipe is nested too deeply or has too many entries; shorten it.")
    depth = 0
    for count, event in enumerate(yaml.parse(source, Loader=yaml.BaseLoader)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise Malformed("recipe.yaml.alias", "The recipe uses a YAML anchor or alias; write the value out.")
        if getattr(event, "tag", None) is not None:
            raise Malformed("recipe.yaml.tag", "The recipe uses a YAML tag; remove it.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or count > MAX_NODES:
            raise Malformed("recipe.yaml.size", "The recipe is nested too deeply or has too many entries; shorten it.")


def _value(node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return None if node.style is None and node.value in _NULLS else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    out: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
            raise Malformed("recipe.yaml.key", "A key of the recipe is not plain text; use plain names as keys.")
        if key_node.value in out:
            line = key_node.start_mark.line + 1
            raise Malformed("recipe.yaml.duplicate", f"Line {line} of the recipe repeats a key; remove one.")
        out[key_node.value] = _value(value_node)
    return out
