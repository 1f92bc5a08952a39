"""What vipd remembers of its part in a farm, for the life after this one and for who looks without it.

SAFEVAR/modules/AM/farm.json. Not durable: after a power failure nothing of it is true.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safekit.files import boot_identity, write_atomic
from safekit.membership import Row

FILE = "farm.json"


@dataclass(frozen=True)
class Memory:
    """set: the addresses were set. joined: heart wanted this server to take part. rows: the others' last words.
    view: what `status` answers, for tools."""

    set: bool = False
    joined: bool = False
    rows: tuple[Row, ...] = ()
    view: Mapping[str, Any] = field(default_factory=dict)


def load(path: Path) -> Memory:
    """What is remembered of this boot; nothing for a missing or damaged file."""
    try:
        data = json.loads(path.read_text())
        if data["boot"] != boot_identity():
            return Memory()
        rows = tuple(Row(*map(int, row)) for row in data["rows"])
        return Memory(bool(data["set"]), bool(data["joined"]), rows, dict(data["view"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return Memory()


def save(path: Path, memory: Memory) -> None:
    """Replace what is remembered. Raises OSError."""
    data = {
        "boot": boot_identity(),
        "set": memory.set,
        "joined": memory.joined,
        "rows": [list(row) for row in memory.rows],
        "view": dict(memory.view),
    }
    write_atomic(path, json.dumps(data).encode(), durable=False)
