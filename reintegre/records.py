"""Which files may differ although size and time are equal: what both servers recorded, by name and by inode.

A file with several names is recorded under one of them, so its inode counts as well.  Of a name that came to stand for
something else neither zones nor times prove anything, nor below it.  A directory in which this server
made or removed entries when its disk may not have kept that: a name there may lead to an older file here than on the
primary, and only the primary knows that the file is a new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from reintegre.plan import Entry, Zones
from safekit.rfs.changes import moved
from safekit.rfs.exclusions import parent

K = TypeVar("K")
Key = tuple[int, bytes]
Inode = tuple[int, int]
#: One file as a record names it: directory, path, inode, zones (None: all).
Item = tuple[int, bytes, int, Iterable[int] | None]
#: The clocks of two servers differ by less, ns.
CLOCKS: Final = 3600 * 1_000_000_000


@dataclass
class Records:
    """Zones per name and per inode, None for the whole file; `moved`: names that stand for something else than they did
    at the other server; `entered`: since when entries of a directory were made or
    removed here, ns."""

    names: dict[Key, Zones | None] = field(default_factory=dict)
    there: dict[Inode, Zones | None] = field(default_factory=dict)
    here: dict[Inode, Zones | None] = field(default_factory=dict)
    moved: set[Key] = field(default_factory=set)
    entered: Mapping[Key, int] = field(default_factory=dict)

    def add(self, item: Item, *, ours: bool) -> None:
        """What one server recorded; `ours`: this one."""
        root, path, inode, zones = item
        zones = None if zones is None else frozenset(zones)
        _add(self.names, (root, path), zones)
        _add(self.here if ours else self.there, (root, inode), zones)

    def find(self, root: int, path: bytes, remote: Entry, local: Entry | None) -> tuple[bool, Zones | None]:
        """Whether a file is recorded, and its zones, None for all of them."""
        if self.moved and moved(self.moved, root, path):
            return True, None
        found: list[Zones | None] = []
        if (root, path) in self.names:
            found.append(self.names[root, path])
        if (root, remote.ino) in self.there:
            found.append(self.there[root, remote.ino])
        if local is not None and (root, local.ino) in self.here:
            found.append(self.here[root, local.ino])
        if None in found:
            return True, None
        return bool(found), frozenset().union(*(zones for zones in found if zones is not None))

    def born_after(self, root: int, path: bytes) -> int | None:
        """A file of the primary that was made after this moment (its clock, ns) may be an older one here; None: no
        file of that directory can be."""
        since = self.entered.get((root, parent(path)))
        return None if since is None else since - CLOCKS


def _add(records: dict[K, Zones | None], key: K, zones: Zones | None) -> None:
    known = records.get(key, frozenset())
    records[key] = None if zones is None or known is None else known | zones
