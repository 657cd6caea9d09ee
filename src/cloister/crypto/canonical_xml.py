"""XML as far as signed manifests need it: a strict reader, and canonical forms that can be hashed.

The reader takes no document type, so there are no entities to expand and nothing outside to fetch; no processing
instructions; no ``xml:`` attributes, so that Canonical XML 1.0 and 1.1 are the same thing here; and bounded numbers of
everything. Comments are dropped, as the canonical forms without comments do, and the text around them is one text.

Canonical XML 1.0 and 1.1 (W3C REC 2001-03-15, 2008-05-02) and Exclusive XML Canonicalization (W3C REC 2002-07-18), all
without comments. No library that is installed here writes the inclusive ones, which are what NVIDIA signs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NoReturn
from xml.parsers import expat

from ..errors import Malformed

__all__ = ["MAX_XML", "Element", "canonicalize", "parse_xml"]

MAX_XML: Final = 256 * 1024
"""Bytes of one document; NVIDIA's manifests have about 20,000."""
_MAX_ELEMENTS: Final = 1024
_MAX_ATTRIBUTES: Final = 4096
_MAX_NAMESPACES: Final = 64
_MAX_DEPTH: Final = 32
_XML: Final = "http://www.w3.org/XML/1998/namespace"
_XMLNS: Final = "http://www.w3.org/2000/xmlns/"


class Element:
    """One element. ``attributes``: by (namespace, local name), "" for none. ``children``: elements and texts, in order.

    Read-only by convention: what was verified must not change afterwards.
    """

    __slots__ = ("_scope", "_written", "attributes", "children", "local", "name", "namespace")

    def __init__(self, name: str, scope: Mapping[str, str], attributes: list[tuple[str, str]]) -> None:
        self.name = name
        self._scope = scope
        self.namespace, self.local = _resolve(name, scope, attribute=False)
        self.attributes: dict[tuple[str, str], str] = {}
        for written, value in attributes:
            key = _resolve(written, scope, attribute=True)
            if key in self.attributes or key[0] == _XML:
                raise _bad("has an attribute twice, or one that changes how others are read")
            self.attributes[key] = value
        # Canonical order: namespace first, then local name, both by code point (Canonical XML 1.0 §2.2).
        keys = sorted(zip(self.attributes, attributes, strict=True), key=lambda pair: pair[0])
        self._written = [attribute for _, attribute in keys]
        self.children: list[Element | str] = []

    def elements(self) -> list[Element]:
        """The child elements."""
        return [child for child in self.children if isinstance(child, Element)]

    def text(self) -> str:
        """The text directly inside, joined."""
        return "".join(child for child in self.children if isinstance(child, str))

    def walk(self) -> Iterator[Element]:
        """This element and all below it, in document order."""
        yield self
        for child in self.elements():
            yield from child.walk()

    def without(self, child: Element) -> Element:
        """The same element, but for one of its children."""
        copy = Element.__new__(Element)
        for slot in Element.__slots__:
            setattr(copy, slot, getattr(self, slot))
        copy.children = [kept for kept in self.children if kept is not child]
        return copy


def _bad(why: str) -> Malformed:
    return Malformed("xml.form", f"An XML document {why}; it was changed or is of an unsupported kind.")


def _resolve(name: str, scope: Mapping[str, str], *, attribute: bool) -> tuple[str, str]:
    """Namespaces in XML 1.0 §5-6: an attribute without a prefix is in none, an element in the default one."""
    prefix, colon, local = name.partition(":")
    if not colon:
        return ("" if attribute else scope.get("", ""), name)
    namespace = _XML if prefix == "xml" else scope.get(prefix)
    if not prefix or not local or ":" in local or namespace is None:
        raise _bad("uses a namespace prefix that nobody declared")
    return namespace, local


def parse_xml(data: bytes) -> Element:
    """The root element of a UTF-8 document. Raises Malformed (``xml.size``, ``xml.form``) for anything unusual."""
    if len(data) > MAX_XML:
        raise Malformed("xml.size", f"An XML document is longer than {MAX_XML} bytes.")
    builder = _Builder()
    # The encoding is fixed by us: a declaration that names another one can't make us read other characters than the
    # signature covers. Names keep their prefixes (no separator is given): the canonical form needs them.
    parser = expat.ParserCreate("UTF-8")
    parser.ordered_attributes = True
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.text
    parser.StartDoctypeDeclHandler = builder.refuse_doctype
    parser.ProcessingInstructionHandler = builder.refuse_instruction
    try:
        parser.Parse(data, True)
    except expat.ExpatError:
        raise _bad("is not well-formed") from None
    if builder.root is None:
        raise _bad("is empty")
    return builder.root


class _Builder:
    """What the parser calls; limits are checked as the document is read, before it has grown."""

    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._elements = self._attributes = self._namespaces = 0

    def start(self, name: str, flat: list[str]) -> None:
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        declared = [(n, v) for n, v in pairs if n == "xmlns" or n.startswith("xmlns:")]
        self._elements += 1
        self._attributes += len(pairs)
        self._namespaces += len(declared)
        if (
            self._elements > _MAX_ELEMENTS
            or self._attributes > _MAX_ATTRIBUTES
            or self._namespaces > _MAX_NAMESPACES
            or len(self._open) >= _MAX_DEPTH
        ):
            raise Malformed("xml.size", "An XML document has more elements, attributes or levels than are read.")
        scope = self._open[-1]._scope if self._open else {}
        if declared:
            scope = dict(scope) | dict(_declaration(n, v) for n, v in declared)
        element = Element(name, scope, [pair for pair in pairs if pair not in declared] if declared else pairs)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, _: str) -> None:
        self._open.pop()

    def text(self, text: str) -> None:
        self._open[-1].children.append(text)

    def refuse_doctype(self, *_: object) -> NoReturn:
        raise _bad("has a document type, which could define entities")

    def refuse_instruction(self, *_: object) -> NoReturn:
        raise _bad("has a processing instruction")


def _declaration(name: str, value: str) -> tuple[str, str]:
    prefix = name[6:] if name.startswith("xmlns:") else ""
    unusable = value in (_XML, _XMLNS) or prefix in ("xml", "xmlns") or ":" in prefix
    # Namespaces in XML 1.0 §2.2: only the default namespace may be undeclared.
    if unusable or (name != "xmlns" and (not prefix or not value)):
        raise _bad("declares a namespace that can't be declared")
    return prefix, value


def canonicalize(element: Element, *, exclusive: bool, without: Element | None = None) -> bytes:
    """The canonical form of ``element`` and what is in it, but for ``without``: UTF-8 bytes.

    Inclusive, or exclusive without a list of inclusive prefixes. An element below the root is written with the
    namespaces that it inherits, as a subset of its document (Canonical XML 1.0 §2.3).
    """
    out: list[str] = []
    _write(element, {}, out, exclusive, without)
    return "".join(out).encode()


def _write(
    element: Element, rendered: dict[str, str], out: list[str], exclusive: bool, without: Element | None
) -> None:
    scope = element._scope
    if exclusive:
        written = [name.partition(":")[0] for name, _ in element._written if ":" in name]
        prefixes = {element.name.partition(":")[0] if ":" in element.name else "", *written}
    else:
        prefixes = {*scope, *rendered}
    changed = sorted(p for p in prefixes if scope.get(p, "") != rendered.get(p, ""))
    out.append(f"<{element.name}")
    for prefix in changed:
        out.append(f' xmlns{":" if prefix else ""}{prefix}="{_attribute(scope.get(prefix, ""))}"')
    for name, value in element._written:
        out.append(f' {name}="{_attribute(value)}"')
    out.append(">")
    below = rendered | {p: scope.get(p, "") for p in changed} if changed else rendered
    for child in element.children:
        if isinstance(child, str):
            out.append(_text(child))
        elif child is not without:
            _write(child, below, out, exclusive, without)
    out.append(f"</{element.name}>")


def _text(text: str) -> str:
    """Canonical XML 1.0 §2.3, text nodes."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\r", "&#xD;")


def _attribute(value: str) -> str:
    """Canonical XML 1.0 §2.3, attribute nodes."""
    value = value.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return value.replace("\t", "&#x9;").replace("\n", "&#xA;").replace("\r", "&#xD;")
