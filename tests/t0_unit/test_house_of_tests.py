"""What test files share stands in a module of its own or in conftest: no test file imports another."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def _own_test(module: str) -> bool:
    """Not aiohttp.test_utils."""
    folder, _, name = module.rpartition(".")
    return name.startswith("test_") and folder.partition(".")[0] in ("", "tests")


def test_no_test_file_imports_another() -> None:
    found = [
        f"{path.relative_to(TESTS)}: {node.module}"
        for path in sorted(TESTS.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and _own_test(node.module or "")
    ]
    assert found == []
