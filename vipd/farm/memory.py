"""What vipd remembers of its part in a farm, for the life after this one and for who looks without it.

SAFEVAR/modules/AM/farm.json. Not durable: after a power failure nothing of it is true.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safekit.disk.files import boot_identity, write_atomic
from safekit.wire.membership import Row, bits

FILE = "farm.json"


@dataclass(frozen=True)
class Memory:
    """set: the addresses were set. joined: heart wanted this server to take part. rows: the others' last words.
    view: what `status` answers, for tools. names: of the servers, by the numbers in rows."""

    set: bool = False
    joined: bool = False
    rows: tuple[Row, ...] = ()
    view: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def rows_of(self, names: Sequence[str]) -> tuple[Row, ...]:
        """The rows with the numbers that the servers have in `names`; servers that are not there are left out."""
        place = {old: names.index(name) for old, name in enumerate(self.names) if name in names}
        return tuple(
            row._replace(node=place[row.node], hears=sum(1 << place[n] for n in bits(row.hears) if n in place))
            for row in self.rows
            if row.node in place
        )


def load(path: Path) -> Memory:
    """What is remembered of this boot; nothing for a missing or damaged file."""
    try:
        data = json.loads(path.read_text())
        if data["boot"] != boot_identity():
            return Memory()
        rows = tuple(Row(*map(int, row)) for row in data["rows"])
        names = tuple(map(str, data["names"]))
        return Memory(bool(data["set"]), bool(data["joined"]), rows, dict(data["view"]), names)
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
        "names": list(memory.names),
    }
    write_atomic(path, json.dumps(data).encode(), durable=False)
