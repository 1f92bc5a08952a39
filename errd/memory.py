"""What a killed errd leaves to its successor: the classes that are enabled, and what was seen in order.

Without it, a death between the two would go unseen. An orderly end leaves nothing, and nothing survives a boot.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safekit.disk.files import boot_identity, write_atomic

FILE = "errd.enabled"


@dataclass(frozen=True, slots=True)
class Memory:
    """Names of the enabled classes, and of the <proc> that were in order."""

    classes: frozenset[str] = frozenset()
    seen: frozenset[str] = frozenset()


class MemoryFile:
    """SAFEVAR/modules/AM/errd.enabled."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._written: Memory | None = None

    def load(self) -> Memory:
        """What a predecessor of this boot left; nothing when there was none or its file is damaged."""
        try:
            data = json.loads(self._path.read_bytes())
            if data["boot"] != boot_identity():
                return Memory()
            return Memory(frozenset(map(str, data["classes"])), frozenset(map(str, data["seen"])))
        except (OSError, ValueError, KeyError, TypeError):
            return Memory()

    def save(self, classes: Iterable[str], seen: Iterable[str]) -> None:
        """Keep this, when it differs from what is kept. Raises OSError."""
        memory = Memory(frozenset(classes), frozenset(seen))
        if memory == self._written:
            return
        data = {"boot": boot_identity(), "classes": sorted(memory.classes), "seen": sorted(memory.seen)}
        write_atomic(self._path, json.dumps(data).encode(), durable=False)
        self._written = memory

    def forget(self) -> None:
        """An orderly end."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
