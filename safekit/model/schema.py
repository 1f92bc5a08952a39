"""Checking a document against our XML schema, with errors that say what was expected.

libxml2 stops inside an element at the first child that it does not know. To tell every mistake at
once, what has been refused is taken out and the rest is checked again.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

from lxml import etree

from safekit.disk.paths import private_conf
from safekit.model.findings import ConfigError, Finding
from safekit.model.xmlload import Node

_XS = "{http://www.w3.org/2001/XMLSchema}"
_MEANING = "{urn:safekit:meaning}is"
_ATTRIBUTE = re.compile(r"Element '[^']*', attribute '([^']+)': ")
_MISSING = re.compile(r"The attribute '([^']+)' is required but missing")
_NOT_ALLOWED = re.compile(r"The attribute '([^']+)' is not allowed")
_MAX_ROUNDS = 500


@dataclass(frozen=True, slots=True)
class Shape:
    """What the schema allows in one element: children, and attributes with the text of their type.

    `about` and `meanings` tell people what the element and its attributes are for; `defaults` has those of the
    attributes that have one.
    """

    children: dict[str, Shape] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    about: str = ""
    meanings: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Schema:
    """A loaded schema: the validator and the shape of its root element."""

    validator: etree.XMLSchema
    root: str
    shape: Shape


@functools.cache
def load(name: str) -> Schema:
    """The schema SAFE/private/conf/<name>.xsd. Raises ConfigError when the installation is broken."""
    path = private_conf() / f"{name}.xsd"
    parser = etree.XMLParser(no_network=True, resolve_entities=False, remove_comments=True)
    try:
        document = etree.parse(str(path), parser)
        validator = etree.XMLSchema(document)
    except (OSError, etree.XMLSyntaxError, etree.XMLSchemaParseError) as error:
        message = f"the product's schema cannot be used ({error}); install the product again"
        raise ConfigError([Finding(str(path), 0, "", message)]) from error
    xsd = document.getroot()
    docs = {
        str(kind.get("name")): " ".join((kind.findtext(f"{_XS}annotation/{_XS}documentation") or "").split())
        for kind in xsd.findall(f"{_XS}simpleType")
    }
    named = {str(kind.get("name")): kind for kind in xsd.findall(f"{_XS}complexType")}
    root = xsd.find(f"{_XS}element")
    if root is None:
        raise ValueError(f"{name}.xsd declares no element")
    return Schema(validator, str(root.get("name")), _shape(root, docs, named))


def _shape(element: etree._Element, docs: dict[str, str], named: dict[str, etree._Element]) -> Shape:
    kind = element.find(f"{_XS}complexType")
    if kind is None:
        kind = named.get(element.get("type", ""))
    about = str(element.get(_MEANING) or "")
    if kind is None:
        return Shape(about=about)
    children: dict[str, Shape] = {}
    attributes: dict[str, str] = {}
    required: list[str] = []
    meanings: dict[str, str] = {}
    defaults: dict[str, str] = {}
    stack = list(kind)
    while stack:
        item = stack.pop(0)
        if item.tag == f"{_XS}element":
            children[str(item.get("name"))] = _shape(item, docs, named)
        elif item.tag == f"{_XS}attribute":
            name = str(item.get("name"))
            attributes[name] = docs.get(str(item.get("type")), "a text")
            meanings[name] = str(item.get(_MEANING) or "")
            if item.get("default") is not None:
                defaults[name] = str(item.get("default"))
            if item.get("use") == "required":
                required.append(name)
        else:
            stack.extend(item)
    return Shape(children, attributes, tuple(required), about, meanings, defaults)


def check(root: Node, schema: Schema, file: str) -> list[Finding]:
    """Every difference between the document and the schema; marks unusable nodes and drops bad values."""
    if root.tag != schema.root:
        root.usable = False
        return [Finding(file, root.line, root.tag, f"the root element is wrong; expected <{schema.root}>")]
    found: list[Finding] = []
    nodes = {node.xml: node for node in root.walk()}
    shapes: dict[int, Shape] = {}
    _assign(root, schema.shape, shapes)
    tree = root.xml.getroottree()
    told: set[tuple[int, str]] = set()
    for _ in range(_MAX_ROUNDS):
        if schema.validator.validate(tree):
            return found
        entries = list(cast(Iterable[etree._LogEntry], schema.validator.error_log))
        news = []
        for entry in entries:
            node = _node_at(tree, entry.path, nodes)
            finding = _judge(node, entry.message or "", shapes, file) if node is not None else None
            if node is not None and finding is not None and (id(node), finding.element) not in told:
                told.add((id(node), finding.element))
                news.append(finding)
        if not news:
            if not found:
                found.append(Finding(file, entries[0].line, "", entries[0].message or "does not fit the schema"))
                root.usable = False
            return found
        found.extend(news)
    found.append(Finding(file, root.line, root.tag, "too many mistakes; repair those above first"))
    return found


def _assign(node: Node, shape: Shape, shapes: dict[int, Shape]) -> None:
    shapes[id(node)] = shape
    for child in node.children:
        _assign(child, shape.children.get(child.tag, Shape()), shapes)


def _node_at(tree: etree._ElementTree, path: str | None, nodes: dict[etree._Element, Node]) -> Node | None:
    if not path:
        return None
    matches = tree.xpath(path)
    if not isinstance(matches, list) or not matches or not isinstance(matches[0], etree._Element):
        return None
    return nodes.get(matches[0])


def _judge(node: Node, message: str, shapes: dict[int, Shape], file: str) -> Finding | None:
    """Translate one complaint of libxml2; None when there is nothing to add.

    Optional attributes and unknown elements are taken out of the tree. A required attribute stays as it
    is, so that the children of its element are still checked; the element is only marked.
    """
    shape = shapes[id(node)]
    missing = _MISSING.search(message)
    if missing:
        name = missing.group(1)
        node.usable = False
        return Finding(
            file, node.line, f"{node.tag} {name}", f"the attribute {name!r} is missing; expected {_doc(shape, name)}"
        )
    attribute = _ATTRIBUTE.match(message)
    if attribute:
        name = attribute.group(1)
        value = node.xml.attrib.get(name)
        if value is None:
            return None
        line, element = node.line_of(name), f"{node.tag} {name}"
        if name in shape.required:
            node.usable = False
        else:
            del node.xml.attrib[name]
            node.attributes.pop(name, None)
        if _NOT_ALLOWED.search(message):
            return Finding(file, line, element, f"unknown attribute; {_choice(name, shape.attributes)}")
        shown = str(value) if len(value) <= 60 else f"{value[:57]!s}..."
        return Finding(file, line, element, f'"{shown}" is not valid; expected {_doc(shape, name)}')
    if "not expected" in message and node.parent is not None:
        allowed = shapes[id(node.parent)].children
        expected = _choice(node.tag, allowed, mark="<{}>") if allowed else "expected no element here"
        _detach(node)
        return Finding(file, node.line, node.tag, f"unknown element in <{node.parent.tag}>; {expected}")
    return _stray_text(node, file)


def _stray_text(node: Node, file: str) -> Finding | None:
    """Text where only elements may stand, often a `>` or a quotation mark too many."""
    pieces = [(node.xml, "text"), *((child, "tail") for child in node.xml)]
    stray = [(element, part) for element, part in pieces if (getattr(element, part) or "").strip()]
    if not stray:
        return None
    shown = " ".join((getattr(*stray[0]) or "").split())[:40]
    for element, part in stray:
        setattr(element, part, None)
    return Finding(file, node.line, node.tag, f'the text "{shown}" is not expected; expected elements only')


def _detach(node: Node) -> None:
    """Take an element out of the checked tree and out of what is compiled."""
    node.usable = False
    parent = node.xml.getparent()
    if parent is not None:
        parent.remove(node.xml)


def _doc(shape: Shape, attribute: str) -> str:
    return shape.attributes.get(attribute, "a text")


def _choice(name: str, allowed: Iterable[str], mark: str = "{}") -> str:
    """What could have been meant: the nearest names, else all of them."""
    if not (allowed := list(allowed)):
        return "expected no attribute"
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.7)
    names = close or sorted(allowed)
    return ("did you mean " if close else "expected one of ") + ", ".join(mark.format(n) for n in names)
