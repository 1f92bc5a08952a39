"""The border between what is replicated and what stays on each server (<notreplicated>): who gets over it, and how.

No file is on both sides: what is written through the one name, the peer would not get under the other. So a link over
the border is refused as one between two file systems is (EXDEV), and so is a rename that would leave a file on both
sides, or carry a part of a directory over. What is renamed whole gets over with everything that is open of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator

from nfsbox.pair.engine import Engine, Root
from nfsbox.pair.files import File
from safekit.rfs.exclusions import is_hidden
from safekit.rfs.tree import Tree

#: What gets over the border: inode -> its path there.
Crossing = dict[int, bytes]


def refusal() -> OSError:
    """What is on the other side of the border is another place."""
    return OSError(errno.EXDEV, os.strerror(errno.EXDEV))


def crossing(root: Root, file: File | None, source: bytes, target: bytes, status: os.stat_result) -> Crossing:
    """What a rename of `source`, which has that status, carries over the border, by its path afterwards. `file`: as
    which it is open. Raises EXDEV."""
    local = root.exclusions.match
    directory = stat.S_ISDIR(status.st_mode)
    if local(source) != local(target):
        if directory:
            return _whole(root, source, target)
        if status.st_nlink > (2 if file is not None and file.temporary else 1):
            raise refusal()
        return {status.st_ino: target}
    if directory and not local(source) and root.exclusions.depends_on_directory(source, target):
        for below, _ in _below(root.tree, source):
            if local(source + below) != local(target + below):
                raise refusal()
    return {}


def _whole(root: Root, source: bytes, target: bytes) -> Crossing:
    """A directory gets over the border: nothing in it has a name outside, or one on each side."""
    local = root.exclusions.match
    found: Crossing = {}
    staying: set[int] = set()
    names: Counter[int] = Counter()
    links: dict[int, int] = {}
    for below, status in _below(root.tree, source):
        if stat.S_ISDIR(status.st_mode):
            continue
        names[status.st_ino] += 1
        links[status.st_ino] = status.st_nlink
        if is_hidden(below):
            continue  # a place holder is on no side
        if local(source + below) != local(target + below):
            found[status.st_ino] = target + below
        else:
            staying.add(status.st_ino)
    if any(names[inode] != count for inode, count in links.items()) or staying & found.keys():
        raise refusal()
    return found


def _below(tree: Tree, directory: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Everything below a directory: the rest of its path, with a slash in front, and its status."""
    pending = [b""]
    while pending:
        here = pending.pop()
        with tree.inside(directory + here) as inside:
            for entry in inside.entries():
                status = inside.lstat(entry.name)
                below = here + b"/" + entry.name
                yield below, status
                if stat.S_ISDIR(status.st_mode):
                    pending.append(below)


def cross(engine: Engine, root: Root, found: Crossing) -> None:
    """Those files are on the other side now; under the order lock. Who writes to one that stays local waits for nobody,
    and is kept out while it changes."""
    for inode, path in found.items():
        file = engine.files.get(root.index, inode)
        if file is None:
            continue
        local = root.exclusions.match(path)
        stream = engine.stream
        if local and stream is not None:
            stream.forget(file)
        if local:
            file.times_due = False
            engine.times.files.discard(file)
        engine.files.cross(file, path, local=local)


class BothSides:
    """Files that have names on both sides of the border all the same: links made by an earlier release, behind the
    mount, or before the configuration said that one of the names stays local. They are replicated."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._names: dict[int, list[int]] = {}  # of files with a local name: how many are replicated, how many local

    def has(self, status: os.stat_result) -> bool:
        """Whether a file with several names, one of which is local, has one that is not. Looks at all names, unless
        those that were found then are all that the file has."""
        known = self._names.get(status.st_ino)
        if known is None or sum(known) != status.st_nlink:
            self._names = {}
            for local in (True, False):
                for inode in self._inodes(local=local):
                    if local:
                        self._names.setdefault(inode, [0, 0])
                    if inode in self._names:
                        self._names[inode][local] += 1
            known = self._names.get(status.st_ino, [0, 0])
        return known[False] > 0

    def _inodes(self, *, local: bool) -> Iterator[int]:
        """Of all names on one side."""
        pending = [b""]
        while pending:
            directory = pending.pop()
            try:
                with self._root.tree.inside(directory) as inside:
                    found = list(inside.entries())
            except OSError:
                continue  # removed meanwhile
            for entry in found:
                path = directory + b"/" + entry.name if directory else entry.name
                if entry.kind == stat.S_IFDIR:
                    pending.append(path)
                elif self._root.exclusions.match(path) == local:
                    yield entry.inode
