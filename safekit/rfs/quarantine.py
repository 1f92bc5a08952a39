"""What a server wrote on its own and has to give up after a split brain, kept before it is overwritten.

SAFEVAR/modules/AM/quarantine/ID holds `index.json` and one file in `files/` for each that was kept. Bounded in bytes,
in time and in number: the newest changes first, of a large file only the zones that were changed, never more than half
of what is free; what did not fit is listed all the same. It is whole on disk before the first byte is overwritten, or
it is not there.

Names and attributes that were changed, and what was removed, are not in it: contents are what cannot be had again.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from safekit.disk.files import sync_directory
from safekit.rfs.tree import Tree
from safekit.syscalls import sync_filesystem

#: Bytes that one quarantine holds, the share of the free bytes that it takes at most, how many are kept.
LIMIT: Final = 1 << 30
SHARE: Final = 2
KEPT: Final = 5
#: Seconds that the primary is made to wait for it.
SECONDS: Final = 120.0
_INDEX: Final = "index.json"
_PIECE: Final = 1 << 20

#: One file as a record names it: directory, path, inode, zones (None: all).
Item = tuple[int, bytes, int, Iterable[int] | None]


class Unknown(Exception):
    """There is no such quarantine, or it cannot be read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that is overwritten. `directory`: the replicated directory; `path`: relative, undecodable bytes as in
    os.fsdecode; `ranges`: (offset, length) that were kept, None: all of it; `stored`: its name in `files`, "" when it
    was not kept, `why` tells the reason then."""

    directory: str
    path: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ranges: tuple[tuple[int, int], ...] | None = None
    stored: str = ""
    why: str = ""

    @property
    def shown(self) -> str:
        """The path for people."""
        return f"{self.directory}/{self.path}"

    @property
    def bytes(self) -> int:
        """What was kept of it."""
        if not self.stored:
            return 0
        return self.size if self.ranges is None else sum(length for _, length in self.ranges)


@dataclass(frozen=True, slots=True)
class Quarantine:
    """`generation`: of the data that was given up; `rule` and `sentence`: the verdict."""

    id: str
    made: float
    generation: int
    rule: str
    sentence: str
    entries: tuple[Entry, ...] = field(default=())

    @property
    def kept(self) -> tuple[Entry, ...]:
        """Entries whose content is here."""
        return tuple(entry for entry in self.entries if entry.stored)

    @property
    def bytes(self) -> int:
        """All that was kept."""
        return sum(entry.bytes for entry in self.kept)


# --- making one ---------------------------------------------------------------------------------------------


def keep(
    base: Path,
    trees: Sequence[tuple[str, Tree]],
    items: Iterable[Item],
    zone_size: int,
    *,
    generation: int,
    rule: str,
    sentence: str,
    limit: int = LIMIT,
) -> Quarantine:
    """Keep the content of these files. One of the same generation is not made again: what is overwritten by half would
    take the place of what was whole. A file that cannot be read is listed with the reason. Raises OSError when nothing
    can be kept."""
    for known in every(base):
        if known.generation == generation:
            return known
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    free = os.statvfs(base)
    room = min(limit, free.f_bavail * free.f_frsize // SHARE)
    made = time.time()
    name = _free_name(base, made)
    building = base / f".{name}.tmp"
    for left in base.glob(".*.tmp"):
        shutil.rmtree(left)
    (building / "files").mkdir(mode=0o700, parents=True)
    end = time.monotonic() + SECONDS
    entries: list[Entry] = []
    for root, entry in sorted(_found(trees, items, zone_size), key=lambda found: -found[1].mtime_ns):
        stored = f"{len(entries):06}"
        kept = _keep_one(trees[root][1], entry, building / "files" / stored, stored, room, end)
        room -= kept.bytes
        entries.append(kept)
    made_of = Quarantine(name, made, generation, rule, sentence, tuple(entries))
    (building / _INDEX).write_text(json.dumps(asdict(made_of), indent=1))
    descriptor = os.open(building, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_filesystem(descriptor)
    finally:
        os.close(descriptor)
    building.rename(base / name)
    sync_directory(base)
    for old in every(base)[KEPT:]:
        remove(base, old.id)
    return made_of


def _free_name(base: Path, made: float) -> str:
    name = wanted = time.strftime("%Y%m%d-%H%M%S", time.localtime(made))
    number = 1
    while (base / name).exists():
        number += 1
        name = f"{wanted}.{number}"
    return name


def _found(trees: Sequence[tuple[str, Tree]], items: Iterable[Item], zone_size: int) -> Iterator[tuple[int, Entry]]:
    zones: dict[tuple[int, bytes], set[int] | None] = {}
    for root, path, _, numbers in items:
        known = zones.get((root, path), set())
        zones[root, path] = None if numbers is None or known is None else known | set(numbers)
    for (root, path), numbers in zones.items():
        directory, tree = trees[root]
        status = tree.status(path)
        if status is None or not stat.S_ISREG(status.st_mode):
            continue
        yield (
            root,
            Entry(
                directory,
                os.fsdecode(path),
                status.st_size,
                status.st_mode & 0o7777,
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                None if numbers is None else tuple(_ranges(numbers, zone_size, status.st_size)),
            ),
        )


def _ranges(zones: Iterable[int], zone_size: int, size: int) -> Iterator[tuple[int, int]]:
    """Neighbouring zones as one range, up to the end of the file."""
    begin = end = -1
    for zone in sorted(zones):
        offset = zone * zone_size
        if offset >= size:
            break
        if offset != end:
            if end > begin:
                yield begin, end - begin
            begin = offset
        end = min(offset + zone_size, size)
    if end > begin:
        yield begin, end - begin


def _keep_one(tree: Tree, entry: Entry, target: Path, stored: str, room: int, end: float) -> Entry:
    wanted = [(0, entry.size)] if entry.ranges is None else list(entry.ranges)
    if sum(length for _, length in wanted) > room:
        return replace(entry, why="there is no room for it")
    if time.monotonic() > end:
        return replace(entry, why="there was no time for it")
    try:
        source, _ = tree.open_file(os.fsencode(entry.path), os.O_RDONLY)
        try:
            with open(target, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as handle:
                handle.truncate(entry.size)
                for offset, length in wanted:
                    _copy(source, handle.fileno(), offset, offset + length, end)
        finally:
            os.close(source)
    except OSError as error:
        target.unlink(missing_ok=True)
        return replace(entry, why=error.strerror or str(error))
    return replace(entry, stored=stored)


def _copy(source: int, target: int, offset: int, end: int, until: float) -> None:
    """Data of a range; holes stay holes. Raises OSError."""
    while offset < end:
        if time.monotonic() > until:
            raise TimeoutError("there was no time for it")
        data = os.pread(source, min(_PIECE, end - offset), offset)
        if not data:
            return
        if data.count(0) != len(data):
            os.pwrite(target, data, offset)
        offset += len(data)


# --- looking and giving back --------------------------------------------------------------------------------


def every(base: Path) -> list[Quarantine]:
    """All of a module, the newest first; what cannot be read is left out."""
    found = []
    for path in base.glob("*/" + _INDEX):
        try:
            found.append(load(base, path.parent.name))
        except Unknown:
            continue
    return sorted(found, key=lambda quarantine: (quarantine.made, quarantine.id), reverse=True)


def load(base: Path, name: str) -> Quarantine:
    """One of them. Raises Unknown."""
    if "/" in name or name.startswith("."):
        raise Unknown(f"{name!r} is no quarantine")
    try:
        data = json.loads((base / name / _INDEX).read_text())
        entries = tuple(
            Entry(**{**entry, "ranges": None if entry["ranges"] is None else tuple(map(tuple, entry["ranges"]))})
            for entry in data.pop("entries")
        )
        return Quarantine(**data, entries=entries)
    except FileNotFoundError:
        raise Unknown(f"there is no quarantine {name}") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Unknown(f"quarantine {name} cannot be read: {error}") from None


def content(base: Path, quarantine: Quarantine, entry: Entry) -> Path:
    """The file that holds what was kept of an entry: zeroes where it was not."""
    return base / quarantine.id / "files" / entry.stored


def restore(base: Path, quarantine: Quarantine, entry: Entry, target: Path) -> None:
    """Write what was kept of an entry into a new file, with mode, owner and time. Raises OSError, FileExistsError for
    one that is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with content(base, quarantine, entry).open("rb") as handle:
            os.ftruncate(descriptor, entry.size)
            _copy(handle.fileno(), descriptor, 0, entry.size, float("inf"))
        os.fchown(descriptor, entry.uid, entry.gid)
        os.fchmod(descriptor, entry.mode)
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(base: Path, name: str) -> None:
    """Remove one. Raises Unknown, OSError."""
    if "/" in name or name.startswith(".") or not (base / name / _INDEX).exists():
        raise Unknown(f"there is no quarantine {name}")
    (base / name / _INDEX).unlink()  # from here on it is none
    shutil.rmtree(base / name)
