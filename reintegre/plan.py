"""What has to be done for one name so that the secondary's entry becomes the primary's.  Pure.

Names and attributes of the whole tree are always compared; the verdict of the two generations decides only
how far the contents are trusted when the attributes are equal.  Guide 5.4.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from safekit.rfs.generations import Kind, Verdict
from safekit.rfs.identity import Identity

NS: Final = 1_000_000_000
#: What `Entry.blocks` counts, in bytes (stat).
BLOCK: Final = 512
Zones = frozenset[int]


@dataclass(frozen=True, slots=True)
class Entry:
    """Attributes of a file, directory or other object.  Times in nanoseconds, sizes in bytes."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    atime: int
    mtime: int
    ino: int
    nlink: int = 1
    rdev: int = 0
    blocks: int = 0
    ctime: int = 0
    target: bytes | None = None
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    generation: int = 0

    @property
    def identity(self) -> Identity:
        """Which file it is, as long as it lives."""
        return Identity(self.ino, self.generation)

    @property
    def type(self) -> int:
        return stat.S_IFMT(self.mode)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


class Content(Enum):
    """SKIP trust it; ZONES compare the recorded zones; COMPARE all of it; COPY all of it without comparing."""

    SKIP = "skip"
    ZONES = "zones"
    COMPARE = "compare"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class Trust:
    """How far equal attributes prove equal contents.

    source_idle_ns, target_idle_ns: files changed after this time (ctime of that server) may have been changed
    while the product did not watch; 0 means it always watched.
    """

    verdict: Verdict
    source_idle_ns: int = 0
    target_idle_ns: int = 0

    @property
    def cut_ns(self) -> int:
        return int(self.verdict.newer_than * NS)


def same_kind(remote: Entry, local: Entry) -> bool:
    """Whether the local object can become the remote one without being removed first."""
    if remote.type != local.type:
        return False
    if stat.S_ISLNK(remote.mode):
        return remote.target == local.target
    if stat.S_ISCHR(remote.mode) or stat.S_ISBLK(remote.mode):
        return remote.rdev == local.rdev
    return True


def same_attributes(remote: Entry, local: Entry) -> bool:
    """Whether mode, owner, size, modification time and extended attributes are equal.

    The modification time of a directory follows from its entries and is set when they are done; access times
    are not compared: reading changes them.
    """
    if (remote.mode, remote.uid, remote.gid) != (local.mode, local.uid, local.gid):
        return False
    if remote.mtime != local.mtime or dict(remote.xattrs) != dict(local.xattrs):
        return False
    return not remote.is_file or remote.size == local.size


def content(trust: Trust, remote: Entry, local: Entry | None, recorded: Zones | None, known: bool) -> Content:
    """What to do for the content of a regular file.

    known: a record of either server names the file; recorded: its zones, None for all of them.
    """
    kind = trust.verdict.kind
    if kind is Kind.FULL or local is None or not local.is_file:
        return Content.COPY
    if kind is Kind.RESUME:
        return Content.COMPARE
    if trust.source_idle_ns and remote.ctime >= trust.source_idle_ns:
        return Content.COMPARE
    if trust.target_idle_ns and local.ctime >= trust.target_idle_ns:
        return Content.COMPARE
    if kind is Kind.TIMESTAMP and max(remote.mtime, remote.ctime, local.mtime, local.ctime) >= trust.cut_ns:
        return Content.COMPARE
    if known:
        return Content.COMPARE if recorded is None else Content.ZONES
    if remote.size != local.size or remote.mtime != local.mtime:
        return Content.COMPARE
    return Content.SKIP


def weight(decision: Content, remote: Entry, local: Entry | None, zones: Zones | None, zone_size: int) -> int:
    """Bytes of data that have to be looked at for a file: what takes time. Holes are none; of a file of which only
    zones are compared, those."""
    if decision is Content.SKIP:
        return 0
    data = min(remote.size, remote.blocks * BLOCK)
    if decision is not Content.COPY and local is not None:
        data = max(data, min(remote.size, local.blocks * BLOCK))
    if decision is not Content.ZONES or zones is None or not remote.size:
        return data
    looked_at = sum(length for _, length in ranges(zones, zone_size, remote.size, zone_size))
    return data * looked_at // remote.size


def ranges(zones: Iterable[int], zone_size: int, size: int, packet: int) -> list[tuple[int, int]]:
    """(offset, length) of the packets that cover some zones of a file of `size` bytes, ascending.

    Neighbouring zones are not merged: a zone is what is locked while it is copied.
    """
    found = []
    for zone in sorted(zones):
        begin, end = zone * zone_size, min((zone + 1) * zone_size, size)
        for offset in range(begin, end, packet):
            found.append((offset, min(packet, end - offset)))
    return found


def every_zone(zone_size: int, size: int) -> range:
    """All zones of a file."""
    return range(-(-size // zone_size))
