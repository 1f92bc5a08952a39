"""What `safekit help userconfig` shows of an element: meaning, attributes and defaults from the schema that checks the
file, an example from the complete files in SAFE/private/conf/examples, which a test checks."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from lxml import etree

from cli.base import Failure
from safekit.disk.paths import private_conf
from safekit.model.schema import Shape, load

WIDTH = 96
LONG = 40
"""Lines of an example that nobody wants to see in a terminal."""
EXAMPLES = ("mirror", "farm", "light")
SCHEMAS = {"userconfig": "userconfig.xml of a module (guide 13)"}


def _walk(shape: Shape, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Shape]]:
    yield path, shape
    for name, child in shape.children.items():
        yield from _walk(child, (*path, name))


def find(words: Sequence[str]) -> list[tuple[tuple[str, ...], Shape]]:
    """The elements whose path ends with these words. Raises Failure."""
    root = load("userconfig")
    everything = list(_walk(root.shape, (root.root,)))
    wanted = tuple(word.strip("<>/") for word in words) or (root.root,)
    found = [(path, shape) for path, shape in everything if path[-len(wanted) :] == wanted]
    if not found:
        import difflib

        near = difflib.get_close_matches(wanted[-1], names(), n=1)
        hint = f"did you mean: safekit help userconfig {near[0]}" if near else "safekit help userconfig lists them"
        raise Failure(f"userconfig.xml has no element <{' '.join(wanted)}>", hint)
    return found


def names() -> list[str]:
    """The names of all elements."""
    root = load("userconfig")
    return sorted({path[-1] for path, _ in _walk(root.shape, (root.root,))})


def tree() -> list[str]:
    """All elements, indented, each with its first sentence."""
    root = load("userconfig")
    lines = []
    for path, shape in _walk(root.shape, (root.root,)):
        if path[-1] in ("server", "node"):
            continue  # the syntax of former releases
        first = re.split(r"(?<=[.:?]) ", shape.about, maxsplit=1)[0].rstrip(":")
        lines.append(f"{'  ' * (len(path) - 1) + '<' + path[-1] + '>':<34} {first}"[: WIDTH + 20])
    return lines


def page(path: tuple[str, ...], shape: Shape) -> list[str]:
    """One element."""
    lines = [f"<{path[-1]}>   in {' > '.join(path[:-1]) or 'the file'}", ""]
    lines += textwrap.wrap(shape.about, WIDTH, initial_indent="  ", subsequent_indent="  ")
    if shape.attributes:
        lines += ["", "Attributes"]
        for name, kind in shape.attributes.items():
            lines += _attribute(shape, name, kind)
    if shape.children:
        lines += ["", "Elements in it: " + ", ".join(f"<{name}>" for name in shape.children)]
    if text := example(path):
        lines += ["", "Example", *(f"  {line}" for line in text)]
    return lines


def _attribute(shape: Shape, name: str, kind: str) -> list[str]:
    default = shape.defaults.get(name)
    note = "must be given" if name in shape.required else f"default {default}" if default is not None else "optional"
    text = f"{shape.meanings.get(name, '')} Expected: {kind}; {note}."
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {name:<17} ", subsequent_indent=" " * 20)


def example(path: tuple[str, ...]) -> list[str]:
    """The element as it stands in the first of the examples that has it there, with the comment before it."""
    parser = etree.XMLParser(no_network=True, resolve_entities=False, strip_cdata=False)
    for kind in EXAMPLES:
        root = etree.parse(str(private_conf() / "examples" / f"{kind}.xml"), parser).getroot()
        element = root if len(path) == 1 else root.find("/".join(path[1:]))
        if element is None or len(path) == 1:
            continue
        before = element.getprevious()
        comment = _source(before) if before is not None and not isinstance(before.tag, str) else []
        lines = [*comment, *_source(element)]
        return lines if len(lines) <= LONG else [f"in SAFE/private/conf/examples/{kind}.xml"]
    return []


def _source(node: etree._Element) -> list[str]:
    lines = _dedented(str(etree.tostring(node, encoding="unicode", with_tail=False)))
    return [part for line in lines for part in _wrapped(line)]


def _wrapped(line: str) -> list[str]:
    """A line with many attributes, on several."""
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.wrap(
        line.strip(), WIDTH, initial_indent=indent, subsequent_indent=f"{indent}     ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _dedented(text: str) -> list[str]:
    """The first line has lost its indentation; the last one tells what it was."""
    lines = text.splitlines()
    indent = len(lines[-1]) - len(lines[-1].lstrip()) if len(lines) > 1 else 0
    return [lines[0], *(line[indent:] if not line[:indent].strip() else line.lstrip() for line in lines[1:])]
