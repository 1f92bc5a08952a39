"""Which files may differ although size and time are equal: what both servers recorded, by name and by file.

A file with several names is recorded under one of them, so the file itself counts as well, known by its inode and
generation.  Of a name that came to stand for something else neither zones nor times prove anything, nor below it.  A
directory in which a server made or removed entries when its disk may not have kept that: a name there may lead to an
older file than on the other server, where it is a new one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from reintegre.plan import Entry, Zones
from safekit.rfs.changes import moved
from safekit.rfs.exclusions import parent
from safekit.rfs.identity import Identity

K = TypeVar("K")
Key = tuple[int, bytes]
File = tuple[int, Identity]
#: One file as a record names it: directory, path, inode, zones (None: all), generation.
Item = tuple[int, bytes, int, Iterable[int] | None, int]
#: The clocks of two servers differ by less, ns.
CLOCKS: Final = 3600 * 1_000_000_000


@dataclass
class Records:
    """Zones per name and per file, None for the whole file; `moved`: names that stand for something else than they did
    at the other server; `entered_there`, `entered_here`: since when entries of a directory were made or removed on the
    primary, and on this server, ns of its clock."""

    names: dict[Key, Zones | None] = field(default_factory=dict)
    there: dict[File, Zones | None] = field(default_factory=dict)
    here: dict[File, Zones | None] = field(default_factory=dict)
    moved: set[Key] = field(default_factory=set)
    entered_there: Mapping[Key, int] = field(default_factory=dict)
    entered_here: Mapping[Key, int] = field(default_factory=dict)

    def add(self, item: Item, *, ours: bool) -> None:
        """What one server recorded; `ours`: this one."""
        root, path, inode, zones, generation = item
        zones = None if zones is None else frozenset(zones)
        _add(self.names, (root, path), zones)
        _add(self.here if ours else self.there, (root, Identity(inode, generation)), zones)

    def find(self, root: int, path: bytes, remote: Entry, local: Entry | None) -> tuple[bool, Zones | None]:
        """Whether a file is recorded, and its zones, None for all of them."""
        if self.moved and moved(self.moved, root, path):
            return True, None
        found: list[Zones | None] = []
        if (root, path) in self.names:
            found.append(self.names[root, path])
        found += _of(self.there, root, remote)
        if local is not None:
            found += _of(self.here, root, local)
        if None in found:
            return True, None
        return bool(found), frozenset().union(*(zones for zones in found if zones is not None))

    def born_after(self, root: int, path: bytes) -> tuple[int | None, int | None]:
        """A file of the primary that was made after the first moment may be an older one here: this server may have
        lost that it had got another one. A file of this server that was made after the second may be an older one on
        the primary. None: no file of that directory can be. Moments of the other one's clock, ns."""
        place = root, parent(path)
        return _before(self.entered_here.get(place)), _before(self.entered_there.get(place))


def _before(since: int | None) -> int | None:
    return None if since is None else since - CLOCKS


def _of(records: Mapping[File, Zones | None], root: int, entry: Entry) -> list[Zones | None]:
    """What is recorded of a file, by a release that knew no generations as well."""
    keys = (root, entry.identity), (root, Identity(entry.ino))
    return [records[key] for key in dict.fromkeys(keys) if key in records]


def _add(records: dict[K, Zones | None], key: K, zones: Zones | None) -> None:
    known = records.get(key, frozenset())
    records[key] = None if zones is None or known is None else known | zones
