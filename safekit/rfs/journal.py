"""The journal of changes on disk, as it is read: what a server recorded, and which files of a tree that means (R4).

`nfsbox.pair.tracking` writes it. A file `changes.<n>` is one epoch; one whose beginning cannot be read makes the whole
record unreliable: then zones cannot be told, and the resynchronisation falls back as the guide says (5.4).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from safekit.rfs.changes import RECORD, RECORD_1, Changes, Kind, moved, torn, unpack
from safekit.rfs.exclusions import is_hidden
from safekit.rfs.identity import Identity
from safekit.rfs.tree import Tree

MAGIC: Final = b"SafeKit changes 2\n"
#: Of the release before: its records are read, and know no generations of inodes.
MAGIC_1: Final = b"SafeKit changes 1\n"
PREFIX: Final = "changes."


@dataclass
class Loaded:
    """What a journal says at start. `reliable` False: zones cannot be told. `closed`: the product stopped in order.
    `present` False: there is no journal."""

    changes: Changes = field(default_factory=Changes)
    reliable: bool = True
    closed: bool = False
    present: bool = False
    why: str = ""
    zone_size: int = 0


def epoch_number(path: Path) -> int:
    """The number of an epoch's file, -1 for one that is none."""
    text = path.name[len(PREFIX) :]
    return int(text) if text.isdigit() else -1


def epoch_files(directory: Path) -> list[Path]:
    """The files of a journal, oldest epoch first."""
    found = [path for path in directory.glob(PREFIX + "*") if epoch_number(path) >= 0]
    return sorted(found, key=epoch_number)


def load(directory: Path) -> Loaded:
    """Read the journal of a server. Never raises for its content; OSError when it cannot be read."""
    loaded = Loaded()
    for path in epoch_files(directory):
        loaded.present = True
        data = path.read_bytes()
        begin = data.find(b"\n", len(MAGIC)) + 1
        head = data[len(MAGIC) : begin].split()
        layout = RECORD_1 if data.startswith(MAGIC_1) else RECORD
        if not data.startswith((MAGIC, MAGIC_1)) or len(head) != 1 or not head[0].isdigit():
            # Made by an epoch whose first record never was durable, or damaged: nobody can tell which.
            loaded.reliable = False
            loaded.why = f"{path} is damaged"
            continue
        if loaded.zone_size not in (0, int(head[0])):
            loaded.reliable = False
            loaded.why = "the zone size was changed"
        loaded.zone_size = int(head[0])
        epoch = Changes()
        end = begin
        for record, behind in unpack(data, begin, layout=layout):
            end = behind
            # A rename concerns what older epochs know as well.
            if record.kind is Kind.RENAME:
                loaded.changes.apply(record)
            epoch.apply(record)
        behind_torn = torn(data, end, layout=layout)
        if data.count(0, behind_torn) != len(data) - behind_torn:
            loaded.reliable = False
            loaded.why = f"{path} is damaged in the middle"
        loaded.changes.merge(epoch)
        loaded.changes.mode = epoch.mode
        loaded.closed = epoch.closed
    return loaded


# --- what a set means on a tree --------------------------------------------------------------------------------


#: One file to compare: directory, path, inode, zones (None: all), generation.
Item = tuple[int, bytes, int, list[int] | None, int]


def expand(changes: Changes, trees: Sequence[Tree]) -> Iterator[Item]:
    """The regular files to compare, as the trees are now.

    A file that is not found under its recorded path, or only under one of this server's own, is searched by its
    identity in its whole tree. Files that do not exist any more are left out: the comparison of names deals with them.
    """
    lost: dict[int, dict[int, list[tuple[Identity, list[int] | None]]]] = {}
    for (root, *identity), change in changes.files.items():
        if root >= len(trees):
            continue
        file = Identity(*identity)
        zones = None if moved(changes.moved, root, change.path) else sorted(change.zones)
        found = None if is_hidden(change.path) else _regular(trees[root], change.path, file)
        if found is not None:
            yield root, change.path, found.inode, zones, found.generation
        else:
            lost.setdefault(root, {}).setdefault(file.inode, []).append((file, zones))
    for root, wanted in lost.items():
        yield from _search(root, trees[root], wanted)
    for root, path in changes.moved:
        # A name that is gone as well is dealt with by the comparison of names.
        found = _regular(trees[root], path, None) if root < len(trees) else None
        if found is not None:
            yield root, path, found.inode, None, found.generation
    seen: set[tuple[int, bytes]] = set()
    # The oldest mark first: what it has visited needs no visit for a younger one.
    for (root, path), since in sorted(changes.directories.items(), key=lambda item: item[1]):
        if root < len(trees):
            yield from _new_below(root, trees[root], path, since, seen)


def _regular(tree: Tree, path: bytes, file: Identity | None) -> Identity | None:
    """Which regular file has that name; None when it is not `file`."""
    status = _status(tree, path)
    if status is None or not stat.S_ISREG(status.st_mode) or (file is not None and status.st_ino != file.inode):
        return None
    try:
        found = Identity(status.st_ino, tree.generation(path))
    except OSError:
        return None
    return found if file is None or found.same(file) else None


def moved_directories(changes: Changes, trees: Sequence[Tree]) -> Iterator[tuple[int, bytes]]:
    """Directories that stand for something else at the peer: what either server recorded below is compared whole."""
    for root, path in changes.moved:
        status = _status(trees[root], path) if root < len(trees) else None
        if status is not None and stat.S_ISDIR(status.st_mode):
            yield root, path


def _status(tree: Tree, path: bytes) -> os.stat_result | None:
    try:
        return tree.lstat(path)
    except OSError:
        return None


def _search(root: int, tree: Tree, wanted: dict[int, list[tuple[Identity, list[int] | None]]]) -> Iterator[Item]:
    pending = [b""]
    while pending and wanted:
        directory = pending.pop()
        found: list[Item] = []
        try:
            with tree.inside(directory) as inside:
                for entry in inside.entries():
                    path = directory + b"/" + entry.name if directory else entry.name
                    if entry.kind == stat.S_IFDIR:
                        pending.append(path)
                    elif entry.inode in wanted and not is_hidden(path) and entry.kind == stat.S_IFREG:
                        here = Identity(entry.inode, inside.generation(entry.name))
                        found += [
                            (root, path, here.inode, zones, here.generation)
                            for file, zones in wanted.pop(entry.inode)
                            if file.same(here)
                        ]
        except OSError:
            continue  # it is gone, and what was in it
        finally:
            yield from found


def _new_below(root: int, tree: Tree, directory: bytes, since: int, seen: set[tuple[int, bytes]]) -> Iterator[Item]:
    pending = [directory]
    while pending:
        here = pending.pop()
        if (root, here) in seen:
            continue
        seen.add((root, here))
        for name, status, generation in _made_since(tree, here, since):
            path = here + b"/" + name if here else name
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
            elif stat.S_ISREG(status.st_mode):
                yield root, path, status.st_ino, None, generation


def _made_since(tree: Tree, directory: bytes, since: int) -> list[tuple[bytes, os.stat_result, int]]:
    found = []
    try:
        with tree.inside(directory) as inside:
            for entry in inside.entries():
                try:
                    status = inside.lstat(entry.name)
                    # A new entry has a new ctime too, which costs nothing to ask; not every new ctime is of a new
                    # entry.
                    if status.st_ctime_ns < since or (inside.birth_ns(entry.name) or status.st_ctime_ns) < since:
                        continue
                    found.append((entry.name, status, inside.generation(entry.name)))
                except OSError:
                    continue
    except OSError:
        return []
    return found
