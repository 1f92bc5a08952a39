"""Reading an XML file that a person wrote: hardened parsing, positions of every attribute, macros.

The result is a tree of Nodes that still knows the line of everything. Two parsers look at the file:
expat first, because it tells the line of a start tag and refuses entity declarations before anything
is expanded; then lxml, whose tree the schema is checked against.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from lxml import etree

from safekit.model.findings import ConfigError, Finding

MAX_FILE = 1 << 20
MAX_ELEMENTS = 20_000
MAX_DEPTH = 64
MAX_ATTRIBUTES = 100
"""Of one element: several times what any element of ours has."""
MAX_VALUE = 65_536

_TAG_NAME = re.compile(rb"<[^\s/>]+")
_ATTRIBUTE = re.compile(rb"""\s+([^\s=/>"']+)\s*=\s*("[^"]*"|'[^']*')""")
_MACRO = re.compile(r"%([A-Za-z_][A-Za-z0-9_.\-]*)%")
_CURLY = re.compile("[“”„‟″‘’]")


@dataclass(slots=True)
class Node:
    """An element: attributes after macro expansion, the line of its start tag and of each attribute.

    `usable` turns False when the schema has refused the element or one of its required attributes;
    what is compiled from the file leaves such elements out, so that one mistake is told once.
    """

    tag: str
    line: int
    attributes: dict[str, str]
    attribute_lines: dict[str, int]
    xml: etree._Element
    text: str = ""
    text_line: int = 0
    children: list[Node] = field(default_factory=list)
    parent: Node | None = field(default=None, repr=False)
    usable: bool = True

    def named(self, tag: str) -> list[Node]:
        """The usable children of that name."""
        return [child for child in self.children if child.tag == tag and child.usable]

    def line_of(self, attribute: str) -> int:
        return self.attribute_lines.get(attribute, self.line)

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class _Position:
    line: int
    attribute_lines: dict[str, int]


class _Scan:
    """One expat pass: well-formedness, bounds, no entities, and the position of every start tag."""

    def __init__(self, file: str, data: bytes) -> None:
        self.file = file
        self.data = data
        self.positions: list[_Position] = []
        self.depth = 0
        # Offsets of a UTF-16 file do not fall on ASCII bytes; attributes then share the tag's line.
        self.bytewise = not data.startswith((b"\xff\xfe", b"\xfe\xff"))
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.EntityDeclHandler = self._entity
        self.parser.ElementDeclHandler = self._declaration
        self.parser.AttlistDeclHandler = self._declaration

    def run(self) -> list[_Position]:
        self.parser.Parse(self.data, True)
        return self.positions

    def _refuse(self, message: str, line: int = 0) -> ConfigError:
        return ConfigError([Finding(self.file, line or self.parser.CurrentLineNumber, "", message)])

    def _doctype(self, name: str, system: str | None, public: str | None, _subset: bool) -> None:
        if system or public:
            raise self._refuse(
                f"the document type refers to an external file; expected <!DOCTYPE {name}> alone or none"
            )

    def _entity(self, name: str, *_rest: object) -> None:
        raise self._refuse(f"the document declares the entity {name!r}; entities are not allowed, use <macro>")

    def _declaration(self, *_rest: object) -> None:
        raise self._refuse("the document type holds declarations; expected <!DOCTYPE ...> alone or none")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        line = self.parser.CurrentLineNumber
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._refuse(f"elements are nested deeper than {MAX_DEPTH}")
        if len(self.positions) >= MAX_ELEMENTS:
            raise self._refuse(f"more than {MAX_ELEMENTS} elements")
        if len(attributes) > MAX_ATTRIBUTES:
            raise self._refuse(f"<{name[:40]}> has more than {MAX_ATTRIBUTES} attributes")
        self.positions.append(_Position(line, self._attribute_lines(line)))

    def _end(self, _name: str) -> None:
        self.depth -= 1

    def _attribute_lines(self, line: int) -> dict[str, int]:
        lines: dict[str, int] = {}
        if not self.bytewise:
            return lines
        at = self.parser.CurrentByteIndex
        tag = _TAG_NAME.match(self.data, at)
        end = tag.end() if tag else at
        while (found := _ATTRIBUTE.match(self.data, end)) is not None:
            name = found.group(1).decode("utf-8", "replace")
            lines[name] = line + self.data.count(b"\n", at, found.start(1))
            end = found.end()
        return lines


def read_bytes(path: Path) -> bytes:
    """The bytes of a configuration file. Raises ConfigError when it cannot be read or is too large."""
    try:
        with open(path, "rb") as handle:
            data = handle.read(MAX_FILE + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            [Finding(str(path), 0, "", f"the file cannot be read: {reason}; create it or give it read access")]
        ) from error
    if len(data) > MAX_FILE:
        raise ConfigError([Finding(str(path), 0, "", f"the file is larger than {MAX_FILE} bytes")])
    return data


def parse(data: bytes, file: str) -> Node:
    """The tree of a well-formed document. Raises ConfigError with the line of the first mistake."""
    try:
        positions = _Scan(file, data).run()
    except expat.ExpatError as error:
        raise ConfigError([_malformed(data, file, error)]) from error
    except (ValueError, LookupError) as error:  # what expat's Python part says of encodings that it cannot use
        message = f"the encoding that the first line names cannot be used ({error}); save the file in UTF-8"
        raise ConfigError([Finding(file, 1, "", message)]) from error
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        attribute_defaults=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        line = error.lineno or 0
        raise ConfigError([Finding(file, line, "", f"not well-formed XML: {error.msg}")]) from error
    elements = [element for element in root.iter() if isinstance(element.tag, str)]
    if len(elements) != len(positions):
        raise ConfigError([Finding(file, 0, "", "not well-formed XML: the document is ambiguous")])
    nodes: dict[etree._Element, Node] = {}
    for element, position in zip(elements, positions, strict=True):
        text = (element.text or "") if len(element) == 0 else ""
        node = Node(
            tag=str(element.tag),
            line=position.line,
            attributes={str(k): str(v) for k, v in element.attrib.items()},
            attribute_lines=position.attribute_lines,
            xml=element,
            text=text,
            text_line=_text_line(position, text),
        )
        nodes[element] = node
        parent = element.getparent()
        if parent is not None:
            node.parent = nodes[parent]
            node.parent.children.append(node)
    return nodes[root]


def _text_line(position: _Position, text: str) -> int:
    leading = len(text) - len(text.lstrip())
    last = max((position.line, *position.attribute_lines.values()))
    return last + text.count("\n", 0, leading)


def _malformed(data: bytes, file: str, error: expat.ExpatError) -> Finding:
    """lxml explains a syntax error better than expat; expat's line is the one that both agree on."""
    message = expat.ErrorString(error.code) or "syntax error"
    line = error.lineno
    try:
        etree.fromstring(data, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    except etree.XMLSyntaxError as better:
        if better.msg:
            message = re.sub(r", line \d+, column \d+$", "", better.msg)
            line = better.lineno or line
    lines = data.decode("utf-8", "replace").splitlines()
    written = lines[line - 1] if 0 < line <= len(lines) else ""
    hint = "; expected a well-formed XML document"
    if _CURLY.search(written):
        hint = '; the line has typographic quotation marks, write plain " instead'
    return Finding(file, line, "", f"not well-formed XML: {message}{hint}")


def expand_macros(root: Node, environment: Mapping[str, str], file: str) -> list[Finding]:
    """Replace every %NAME% by the macro of that name defined above it, else by the environment variable.

    Values are changed in place, in the order of the file (13.1). What was put in is not looked at again.
    Text between percent signs that is not an identifier stays as it is; an identifier that nobody
    defines is an error.
    """
    macros: dict[str, str] = {}
    later = {
        node.attributes["name"]: node.line for node in root.walk() if node.tag == "macro" and "name" in node.attributes
    }
    found: list[Finding] = []

    def expand(value: str, line: int, label: str) -> str:
        def one(match: re.Match[str]) -> str:
            name = match.group(1)
            if name in macros:
                return macros[name]
            if name in environment:
                return environment[name]
            if name in later:
                message = f"%{name}% is used before its <macro> on line {later[name]}; move the macro above"
            else:
                message = (
                    f"%{name}% is neither a macro nor an environment variable; define "
                    f'<macro name="{name}" value="..."/> at the top of the file'
                )
            found.append(Finding(file, line, label, message))
            return match.group(0)

        result = _MACRO.sub(one, value)
        if len(result) > MAX_VALUE:
            found.append(Finding(file, line, label, f"longer than {MAX_VALUE} characters after macro expansion"))
            return value
        return result

    for node in root.walk():
        for name, value in node.attributes.items():
            if "%" in value and not (node.tag == "macro" and name == "name"):
                node.attributes[name] = expand(value, node.line_of(name), f"{node.tag} {name}")
                node.xml.set(name, node.attributes[name])
        if "%" in node.text:
            node.text = expand(node.text, node.text_line, node.tag)
        if node.tag == "macro" and "name" in node.attributes and "value" in node.attributes:
            name = node.attributes["name"]
            if name in macros:
                found.append(
                    Finding(file, node.line_of("name"), "macro name", f"the macro {name!r} is defined twice; keep one")
                )
            macros[name] = node.attributes["value"]
    return found
