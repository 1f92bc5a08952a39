"""The last configurations that were applied, as SAFE/modules/lastconfig keeps them (guide 3.8)."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safekit.disk.archive import ArchiveError, unpack
from safekit.disk.paths import safe
from safekit.model.store import TreeError, signature

_NAME = re.compile(r"(.+)_(\d{4}-\d\d-\d\d)_(\d\d:\d\d:\d\d)\.safe")


class DamagedCopy(Exception):
    """A kept configuration that cannot be read; the text names it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.next_step = f"remove it: rm {path}"


@dataclass(frozen=True)
class Copy:
    """An applied configuration: its archive, when it was applied (local time), its signature."""

    path: Path
    applied: str
    signature: str


def copies_of(module: str) -> tuple[Copy, ...]:
    """The kept configurations of a module, the latest first. Raises DamagedCopy."""
    directory = safe() / "modules" / "lastconfig"
    found = []
    for path in sorted(directory.iterdir(), reverse=True) if directory.is_dir() else ():
        name = _NAME.fullmatch(path.name)
        if name is None or name[1] != module:
            continue
        with tempfile.TemporaryDirectory() as work:
            try:
                unpack(path, Path(work) / module)
                found.append(Copy(path, f"{name[2]} {name[3]}", signature(Path(work) / module)))
            except (ArchiveError, TreeError) as error:
                raise DamagedCopy(path, str(error)) from None
    return tuple(found)
