"""Rendering of chat templates. A template is a program of the base's supplier, so it gets no more than it needs.

Jinja's immutable sandbox keeps it from attributes and from changing what it is given. Against programs that loop or
grow, each loop, call, filter and joining of text is charged to one budget (``_Meter``), which is counted and not timed,
so that a template renders on every machine or on none. The environment is otherwise what transformers renders chat
templates in (trimmed blocks, loop controls, ``raise_exception``, ``tojson`` without HTML escapes, ``generation``
blocks), except that nothing tells the date: a training must be repeatable. Templates of the Llama 3 family then take a
fixed one.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from typing_extensions import override

from ...errors import Malformed

__all__ = ["Renderer"]

_MOST_SOURCE = 256 << 10  # characters; published templates have at most some 20,000
_MOST_NESTING = 100  # brackets and blocks; the parser recurses over them
_STEP = 256  # what one step costs, in characters
_BUDGET = 32 << 20  # a render of a million characters needs some ten of them
_MOST_TEXT = 8 << 20  # characters of one text
_SIZED = (str, bytes, list, tuple, dict, set, range)
_WIDTH = re.compile(r"\d{5}|\*")  # in a format: a number of five digits, or one from the arguments
_FORMAT = re.compile(r"\d{5}|:[^{}]*\{")  # the same for str.format
_WIDENING = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs", "to_bytes"})
_FILTERS = (
    "abs", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "groupby",
    "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace",
    "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "title", "trim", "unique", "upper",
)  # fmt: skip
_LONG = frozenset({"batch", "slice", "round"})  # make as many parts, or places, as they are told


class _TooMuch(Exception):
    """The budget is used up."""


class _Raised(Exception):
    """The template's own complaint about a conversation; its text stays inside, since it may quote one."""


class _Meter:
    """``longest``: of the texts seen so far. A step may have to read it, so each one pays for a share of it."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.left, self.longest = _BUDGET, 0

    def step(self, *values: Any) -> None:
        """Charge one step that works on ``values``."""
        for value in values:
            if isinstance(value, _SIZED) and len(value) > self.longest:
                self.longest = len(value)
        self.left -= _STEP + self.longest // _STEP
        if self.left < 0 or self.longest > _MOST_TEXT:
            raise _TooMuch

    def made(self, value: Any) -> Any:
        """Charge a new value with all that is inside it: lists that hold a list twice would double at each step."""
        todo = [value]
        while todo:
            item = todo.pop()
            if not isinstance(item, _SIZED):
                continue
            self.left -= len(item)
            self.step(item)
            if isinstance(item, dict):
                todo += [*item, *item.values()]
            elif not isinstance(item, str | bytes | range):
                todo += item
        return value


class _Charged(NodeTransformer):
    """Puts the meter into a parsed template: at the head of loops and macros, and around ``~``."""

    def _headed(self, node: Any) -> Any:
        node = self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_method("meter_step", []), lineno=node.lineno))
        return node

    visit_For = visit_Macro = visit_CallBlock = _headed

    def _made(self, node: Any) -> Any:
        node = self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _method("meter_made", [node], node.lineno)

    visit_List = visit_Tuple = visit_Dict = _made

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _method("meter_join", list(node.nodes), node.lineno)


def _method(name: str, arguments: list[nodes.Expr], lineno: int = 1) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None, lineno=lineno)


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's text for other trainers; here it is passed through."""

    tags = {"generation"}  # noqa: RUF012 - the library's own form

    @override
    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Without names that Python gives a meaning, nor a text of its contents, which could double at each step."""

    def __init__(*given: Any, **attributes: Any) -> None:  # the library's form, so that any name can be a keyword
        self, *given_dicts = given
        for name in dict(*given_dicts, **attributes):
            _plain_name(name)
        jinja2.utils.Namespace.__init__(self, *given_dicts, **attributes)

    @override
    def __setitem__(self, name: str, value: Any) -> None:
        _plain_name(name)
        super().__setitem__(name, value)

    @override
    def __repr__(self) -> str:
        return "namespace"


def _plain_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise ValueError("not a plain name")


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        # Unoptimized: else constant expressions would be worked out while compiling.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, loopcontrols], cache_size=0
        )
        self.meter = _Meter()
        self.filters = {name: self._charged(name, self.filters[name]) for name in _FILTERS}
        self.filters["tojson"] = self._charged("tojson", _to_json)
        self.globals = {
            "range": self._range,
            "dict": lambda *given, **more: dict(*given, **more),
            "namespace": _Namespace,
            "raise_exception": _raise,
        }
        self.concat = self.meter_concat  # type: ignore[method-assign]

    @override
    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Charged().visit(source), *args, **kwargs)

    def meter_step(self) -> None:
        self.meter.step()

    def meter_made(self, value: Any) -> Any:
        return self.meter.made(value)

    def meter_join(self, *values: Any) -> str:
        return self.meter_concat(str(value) for value in values)

    def meter_concat(self, parts: Iterable[str]) -> str:
        parts = list(parts)
        if sum(map(len, parts)) > _MOST_TEXT:
            raise _TooMuch
        made: str = self.meter.made("".join(parts))
        return made

    @override
    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise _TooMuch
        if operator == "*":
            count = right if isinstance(right, int) else left
            text = left if isinstance(right, int) else right
            if hasattr(text, "__len__") and isinstance(count, int) and len(text) * count > _MOST_TEXT:
                raise _TooMuch
            if isinstance(text, int) and isinstance(count, int) and (text * count).bit_length() > 4096:
                raise _TooMuch
        if operator == "%" and isinstance(left, str) and _WIDTH.search(left):
            raise _TooMuch
        self.meter.step(left, right)
        return self.meter.made(super().call_binop(context, operator, left, right))

    @override
    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter, name, owner = __self.meter, getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        meter.step(owner, *args)
        if isinstance(owner, str | int):
            if name in _WIDENING and any(isinstance(a, int) and a > 9999 for a in (*args, *kwargs.values())):
                raise _TooMuch
            if name == "replace" and len(args) > 1 and isinstance(owner, str):
                _growth(owner, args[0], args[1])
            if name == "translate":
                raise _TooMuch
            if name == "join" and args:
                args = (__self._joinable(owner, args[0]), *args[1:])
        # The sandbox wraps a text's format, so that it has no owner.
        if name in ("format", "format_map") and owner is None and _FORMAT.search(str(__obj.__wrapped__.__self__)):
            raise _TooMuch
        return meter.made(super().call(__context, __obj, *args, **kwargs))

    def _joinable(self, glue: Any, parts: Any) -> list[Any]:
        found = []
        for part in parts:
            self.meter.step(part, glue)
            found.append(part)
        if sum(len(part) for part in found if isinstance(part, str)) + len(found) * len(str(glue)) > _MOST_TEXT:
            raise _TooMuch
        return found

    def _range(self, *bounds: int) -> range:
        found = range(*bounds)
        if len(found) > 10_000:
            raise _TooMuch
        return found

    def _charged(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # it also keeps what the library wants to hand to the filter
        def charged(*args: Any, **kwargs: Any) -> Any:
            # Environment and context come first where a filter wants them.
            given = args[1:] if hasattr(function, "jinja_pass_arg") else args
            self.meter.step(*given)
            if name == "replace" and len(given) > 2:
                _growth(*given[:3])
            if name == "join" and given:
                glue = given[1] if len(given) > 1 else kwargs.get("d", "")
                args = (*args[: len(args) - len(given)], self._joinable(glue, given[0]), *given[1:])
            if name in _LONG and any(isinstance(a, int) and a > 9999 for a in (*given, *kwargs.values())):
                raise _TooMuch
            return self.meter.made(function(*args, **kwargs))

        return charged


def _growth(text: Any, old: Any, new: Any) -> None:
    if str(text).count(str(old)) * len(str(new)) > _MOST_TEXT:
        raise _TooMuch


def _raise(_message: Any = "") -> None:
    raise _Raised


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:  # fmt: skip # noqa: E501
    if isinstance(indent, int) and indent > 16:
        raise _TooMuch
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Renderer:
    """One compiled template. Raises Malformed (``template.syntax``) where it can't be compiled."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        self._environment, self._tokens = _Environment(), dict(tokens)
        if len(source) > _MOST_SOURCE or _nesting(source) > _MOST_NESTING:
            raise Malformed(
                "template.syntax", "The chat template is too large or nested too deeply; use template chatml."
            )
        try:
            self._template = self._environment.from_string(source)
        except Exception:  # noqa: BLE001 - the library's compiler and Python's own raise many kinds
            raise Malformed(
                "template.syntax", "The base's chat template can't be compiled; mend it, or use template chatml."
            ) from None

    def render(self, messages: list[dict[str, str]], *, prompt: bool) -> str:
        """The conversation as text; ``prompt``: up to where the assistant's next answer begins.

        Raises Malformed: ``template.refused`` (the template's own complaint), ``template.limit`` (it works too long or
        writes too much), ``template.failed``.
        """
        self._environment.meter.start()
        pieces, size = [], 0
        try:
            for piece in self._template.generate(messages=messages, add_generation_prompt=prompt, **self._tokens):
                pieces.append(piece)
                size += len(piece)
                self._environment.meter.step()
                if size > _MOST_TEXT:
                    raise _TooMuch
        except _TooMuch:
            raise Malformed(
                "template.limit",
                "The chat template works too long or writes too much; mend it, or use template chatml.",
            ) from None
        except _Raised:
            raise Malformed(
                "template.refused",
                "The chat template refuses a conversation (such as for the order of its roles); mend the rows, or use"
                " template chatml.",
            ) from None
        except Exception:  # noqa: BLE001 - a program's own errors can be of any kind, and may quote a row
            raise Malformed(
                "template.failed", "The chat template fails on a conversation; mend it, or use template chatml."
            ) from None
        return "".join(pieces)


def _nesting(source: str) -> int:
    deepest = depth = 0
    for found in re.finditer(r"[(\[{]|[)\]}]|\{%-?\+?\s*(end)?(?=if|for|macro|call|filter|set|block|with)", source):
        opens = found[0] in "([{" if len(found[0]) == 1 else found[1] is None
        depth = depth + 1 if opens else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest
