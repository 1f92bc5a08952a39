"""The tests that README.md and docs/failover.md name for their promises are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(test_\w+\.py)(?:::(test_\w+))?`")


def rows(document: str, heading: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """The promises of a document's table, with the tests (file, function) of each."""
    section = (ROOT / document).read_text(encoding="utf-8").partition(heading)[2].partition("\n## ")[0]
    table = [line.split("|") for line in section.splitlines() if line.startswith("|")][2:]
    return [(cells[1].strip(), NAMED.findall(cells[2])) for cells in table]


PROMISES = [
    pytest.param(promise, tests, id=f"{document}: {promise[:50]}")
    for document, heading in (
        ("README.md", "## What you can rely on\n"),
        ("docs/failover.md", "## Promises, and the tests that show them\n"),
    )
    for promise, tests in rows(document, heading)
]


@cache
def functions(file: str) -> frozenset[str]:
    """Test functions of the file of that name, wherever it is below tests/."""
    (path,) = (ROOT / "tests").glob(f"*/{file}")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_there_are_promises() -> None:
    assert len(PROMISES) >= 15


@pytest.mark.parametrize(("promise", "tests"), PROMISES)
def test_a_promise_names_tests_that_are_there(promise: str, tests: list[tuple[str, str]]) -> None:
    assert tests, "no test is named"
    for file, function in tests:
        known = functions(file)
        assert function in known if function else known, f"{file} has no {function or 'test'}"
