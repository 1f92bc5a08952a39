"""What test files share stands in a module of its own or in conftest: no test file imports another, and nothing is
written twice."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ENOUGH = 19
"""Nodes of a body from which on it is something to share; one that only calls what is shared has fewer."""


@cache
def files() -> dict[str, ast.Module]:
    """All of the tests and their helpers, by their place."""
    paths = sorted(TESTS.rglob("*.py"))
    return {path.relative_to(TESTS).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def _own_test(module: str) -> bool:
    """Not aiohttp.test_utils."""
    folder, _, name = module.rpartition(".")
    return name.startswith("test_") and folder.partition(".")[0] in ("", "tests")


def test_no_test_file_imports_another() -> None:
    found = [
        f"{place}: {node.module}"
        for place, tree in files().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and _own_test(node.module or "")
    ]
    assert found == []


Parts = tuple[ast.AST, ...]


def functions(tree: ast.Module) -> Iterator[tuple[str, Parts]]:
    """Name, and what it takes and does (whatever it says of itself), of each function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, (node.args, *body)


def written_again(trees: dict[str, ast.Module]) -> list[str]:
    """Functions that more than one file has."""
    shapes: dict[tuple[type, ...], list[tuple[str, Parts]]] = defaultdict(list)
    for place, tree in trees.items():
        for name, parts in functions(tree):
            shape = tuple(type(node) for part in parts[1:] for node in ast.walk(part))
            if len(shape) >= ENOUGH:
                shapes[shape].append((f"{place}::{name}", parts))
    places: dict[str, list[str]] = defaultdict(list)
    for alike in shapes.values():
        for place, parts in alike if len(alike) > 1 else ():
            places["\n".join(map(ast.unparse, parts))].append(place)
    return [" = ".join(found) for found in places.values() if len({one.partition("::")[0] for one in found}) > 1]


def test_nothing_is_written_again() -> None:
    """It belongs into conftest, when it is a fixture, or into a module beside the files that use it."""
    assert written_again(files()) == []


def test_the_search_finds_what_is_written_again() -> None:
    text = "@pytest.fixture\ndef {}(base):\n    {}lab = Lab.up(base / 'x', nodes=3)\n    yield lab\n    lab.down()"
    one, other = ast.parse(text.format("a", "")), ast.parse(text.format("b", "'''Two.'''\n    "))
    assert written_again({"one": one, "other": other}) == ["one::a = other::b"]
    assert written_again({"one": one, "other": ast.parse("def a(base):\n    return base")}) == []
