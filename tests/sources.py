"""The modules of the product as syntax trees, for tests of what is written: read once in a process."""

from __future__ import annotations

import ast
import gc
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from installation.source import this_checkout

CHECKOUT = Path(__file__).resolve().parents[1]
FOLDERS = this_checkout().packages


@dataclass(frozen=True)
class Source:
    """One file of ours."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """What relative imports start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


@cache
def sources() -> dict[str, Source]:
    """Every module of the product by its dotted name."""
    found = {}
    gc.disable()
    for folder in FOLDERS:
        for path in sorted((CHECKOUT / folder).rglob("*.py")):
            parts = path.relative_to(CHECKOUT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Source(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
    assert len(found) > 200
    # A million nodes that stay: the collector would look at all of them again and again.
    gc.freeze()
    gc.enable()
    return found


@cache
def nodes(tree: ast.Module) -> tuple[ast.AST, ...]:
    """`ast.walk`, for a tree that is kept."""
    return tuple(ast.walk(tree))
