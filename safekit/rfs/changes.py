"""What may differ from the peer: zones of files and directories whose entries were made since a moment. Pure.

A file is known by (root, inode, generation) and carries the path under which it was last seen, so that neither its own
rename nor one of a directory above loses it, and no file that has the number of its inode later is taken for it. What
is recorded of a file that is gone stays: a power failure may bring the file back.
A directory mark means: entries in it that were made at `since` (time of that
file system, ns) or later may be new; their content is compared whole, new directories recursively.
A name that was given to something else (`moved`) stands for other content than at the peer: zones say nothing of what
is there, or below it, so it is compared whole.
Names and attributes of the whole tree are compared by every resynchronisation, so they need no record.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from safekit.rfs.identity import Identity

FRAME: Final = struct.Struct("<II")  # length of payload, CRC-32 of payload
RECORD: Final = struct.Struct("<BxHIQQQQ")  # kind, root, length of first path, inode, a, b, generation
#: As the release before wrote it, which knew no generations.
RECORD_1: Final = struct.Struct("<BxHIQQQ")
MAX_PAYLOAD: Final = RECORD.size + 2 * 65536

#: Zones recorded at once grow with the number of records of a file: a random writer costs few records.
_GROWTH: Final = ((8, 1), (24, 4), (64, 16))
_MOST: Final = 64


class Kind(IntEnum):
    """Kinds of records."""

    ZONES = 1  # inode, generation, a first zone, b count; path
    DIRECTORY = 2  # a since; path
    RENAME = 3  # old path, new path; a 1: of a file, inode, generation; paths alike: new to what it stands for
    GONE = 4  # of a release before; it says nothing any more
    MODE = 5  # a: see Mode
    CLOSED = 6  # the product stopped in order; nothing follows


class Mode(IntEnum):
    """What a record is kept for."""

    PAIRED = 0  # zones in flight since the last checkpoint of both servers
    ALONE = 1  # everything that the peer lacks


@dataclass(slots=True)
class FileChange:
    """Zones of one file. `records` is how many records told of them."""

    path: bytes
    zones: set[int] = field(default_factory=set)
    records: int = 0

    def group(self) -> int:
        """How many zones (a power of two, aligned) the next record of this file covers."""
        for limit, size in _GROWTH:
            if self.records < limit:
                return size
        return _MOST


@dataclass(slots=True)
class Record:
    """One record of the journal."""

    kind: Kind
    root: int = 0
    inode: int = 0
    a: int = 0
    b: int = 0
    path: bytes = b""
    path2: bytes = b""
    generation: int = 0

    def pack(self) -> bytes:
        """Bytes of the record, with length and checksum."""
        head = RECORD.pack(self.kind, self.root, len(self.path), self.inode, self.a, self.b, self.generation)
        payload = head + self.path + self.path2
        return FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def unpack(
    data: bytes | memoryview, offset: int = 0, *, layout: struct.Struct = RECORD
) -> Iterator[tuple[Record, int]]:
    """Records and the offset behind each, up to the first that is damaged or not written."""
    end = len(data)
    while offset + FRAME.size + layout.size <= end:
        size, crc = FRAME.unpack_from(data, offset)
        start = offset + FRAME.size
        if not layout.size <= size <= MAX_PAYLOAD or start + size > end:
            return
        payload = bytes(data[start : start + size])
        if zlib.crc32(payload) != crc:
            return
        kind, root, length, inode, a, b, *generation = layout.unpack_from(payload)
        if kind not in set(Kind) or layout.size + length > size:
            return
        rest = payload[layout.size :]
        offset = start + size
        yield Record(Kind(kind), root, inode, a, b, rest[:length], rest[length:], *generation), offset


def torn(data: bytes, offset: int, *, layout: struct.Struct = RECORD) -> int:
    """Where what was being written at `offset`, the end of the good records, ends: a power failure may leave a part of
    it. Behind that nothing has been written yet."""
    (size,) = struct.unpack_from("<I", data.ljust(offset + 4, b"\0"), offset)
    return int(min(offset + FRAME.size + (size if layout.size <= size <= MAX_PAYLOAD else layout.size), len(data)))


def renaming(root: int, file: Identity | None, old: bytes, new: bytes) -> Record:
    """The record of a rename of a file, None: of a directory; of `new` being a new name with `old` the same."""
    inode, generation = file or (0, 0)
    return Record(Kind.RENAME, root, inode, a=int(file is not None), path=old, path2=new, generation=generation)


def moved(names: Container[tuple[int, bytes]], root: int, path: bytes) -> bool:
    """Whether a path, or one above it, is among the names that stand for something else."""
    if (root, path) in names:
        return True
    at = path.rfind(b"/")
    while at > 0:
        if (root, path[:at]) in names:
            return True
        at = path.rfind(b"/", 0, at)
    return False


class Changes:
    """The set, built from records in order."""

    def __init__(self) -> None:
        self.files: dict[tuple[int, int, int], FileChange] = {}  # by root, inode, generation
        self.directories: dict[tuple[int, bytes], int] = {}
        self.moved: set[tuple[int, bytes]] = set()
        self.mode = Mode.PAIRED
        self.closed = False

    def __bool__(self) -> bool:
        return bool(self.files or self.directories or self.moved)

    def __len__(self) -> int:
        return len(self.files) + len(self.directories) + len(self.moved)

    def apply(self, record: Record) -> None:
        """Add what a record tells."""
        self.closed = False
        match record.kind:
            case Kind.ZONES:
                key = record.root, record.inode, record.generation
                change = self.files.get(key)
                if change is None:
                    change = self.files[key] = FileChange(record.path)
                change.path = record.path
                change.zones.update(range(record.a, record.a + record.b))
                change.records += 1
            case Kind.DIRECTORY:
                place = record.root, record.path
                self.directories[place] = min(record.a, self.directories.get(place, record.a))
            case Kind.RENAME:
                self.moved.add((record.root, record.path2))
                if record.a:
                    change = self.files.get((record.root, record.inode, record.generation))
                    if change is not None and change.path == record.path:
                        change.path = record.path2
                else:
                    self._rename(record.root, record.path, record.path2)
            case Kind.GONE:
                pass
            case Kind.MODE:
                self.mode = Mode(record.a)
            case Kind.CLOSED:
                self.closed = True

    def _rename(self, root: int, old: bytes, new: bytes) -> None:
        below = old + b"/"
        for (file_root, _, _), change in self.files.items():
            if file_root == root:
                if change.path == old:
                    change.path = new
                elif change.path.startswith(below):
                    change.path = new + change.path[len(old) :]
        moved = [
            (path, since)
            for (dir_root, path), since in self.directories.items()
            if dir_root == root and (path == old or path.startswith(below))
        ]
        for path, since in moved:
            # The old mark stays: a directory made at the old name afterwards is covered too.
            key = (root, new + path[len(old) :])
            self.directories[key] = min(since, self.directories.get(key, since))

    def zones_to_record(self, root: int, file: Identity, first: int, last: int) -> tuple[int, int] | None:
        """(first, count) of the record that covers zones first..last, None when they are covered already."""
        change = self.files.get((root, *file))
        if change is None:
            return first, last - first + 1
        zones = change.zones
        if all(zone in zones for zone in range(first, last + 1)):
            return None
        group = change.group()
        low = first // group * group
        return low, (last // group + 1) * group - low

    def merge(self, other: Changes) -> None:
        """Add another set."""
        for key, change in other.files.items():
            mine = self.files.get(key)
            if mine is None:
                self.files[key] = FileChange(change.path, set(change.zones), change.records)
            else:
                mine.zones |= change.zones
        for place, since in other.directories.items():
            self.directories[place] = min(since, self.directories.get(place, since))
        self.moved |= other.moved

    def snapshot(self) -> Iterator[Record]:
        """The shortest records that say the same."""
        yield Record(Kind.MODE, a=self.mode)
        for root, path in self.moved:
            yield renaming(root, Identity(0), path, path)
        for (root, path), since in self.directories.items():
            yield Record(Kind.DIRECTORY, root, a=since, path=path)
        for (root, inode, generation), change in self.files.items():
            for first, count in _runs(sorted(change.zones)):
                yield Record(Kind.ZONES, root, inode, first, count, change.path, generation=generation)


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for index, number in enumerate(numbers):
        if index + 1 == len(numbers) or numbers[index + 1] != number + 1:
            yield numbers[start], index - start + 1
            start = index + 1
