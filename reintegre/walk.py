"""Compares the names of two trees, directory by directory: parents before what they hold, deletions only of what
the primary confirms to be gone, further names of a file after the file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from reintegre.copier import MOVED, FileWork, Pairs, of_one
from reintegre.local import LocalTree, join
from reintegre.plan import Content, Entry, Trust, Zones, content, same_attributes, same_kind, weight
from reintegre.primary import Primary
from reintegre.progress import Meter
from reintegre.records import Records
from safekit.rfs.exclusions import parent
from safekit.rfs.identity import Identity


@dataclass
class Found:
    """What the walk leaves for later. Filled by several threads; `lock` guards the maps of links.

    names: of each file of the primary with several names, those that were seen, the one first under which its content
    is dealt with. owner: the file of the primary that a file with several names stands for here. Both know files by
    inode and generation, so that an inode that is freed and used again is another file. A name stays noted to the end:
    which names belong together is looked at until nothing is left to do.
    directories: those whose time is set when their entries are done, with the time that the primary told; None: it told
    none since something was made or removed there."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    names: dict[tuple[int, Identity], dict[bytes, None]] = field(default_factory=dict)
    owner: dict[tuple[int, Identity], Identity] = field(default_factory=dict)
    directories: list[tuple[int, bytes, int | None]] = field(default_factory=list)

    def entered(self, root: int, path: bytes) -> None:
        """A name is made or removed after its directory was dealt with."""
        self.directories.append((root, parent(path), None))


class Walker:
    """One per thread, with its own connection. `give_directory` and `give_file` queue more work."""

    def __init__(
        self,
        primary: Primary,
        trees: Sequence[LocalTree],
        trust: Trust,
        recorded: Records,
        zone_size: int,
        found: Found,
        meter: Meter,
        pairs: Pairs,
        give_directory: Callable[[int, bytes, bool], None],
        give_file: Callable[[FileWork], None],
        later: Callable[[int, bytes], None],
        fault: Callable[[OSError], None],
        detail: Callable[[str], None],
    ) -> None:
        self._primary = primary
        self._trees = trees
        self._zone = zone_size
        self._trust = trust
        self._recorded = recorded
        self._found = found
        self._meter = meter
        self._pairs = pairs
        self._give_directory = give_directory
        self._give_file = give_file
        self._later = later
        self._fault = fault
        self._detail = detail

    def directory(self, root: int, path: bytes, again: bool) -> None:
        """Compare the entries of one directory. again: trust only what was noted as equal."""
        try:
            self._directory(root, path, again)
        except OSError as error:
            # Removed or renamed meanwhile: the stream brings that, and `revisit` its new name.
            if error.errno not in MOVED:
                self._fault(of_one(path, error))

    def _directory(self, root: int, path: bytes, again: bool) -> None:
        tree = self._trees[root]
        local: dict[bytes, Entry] | None = None
        for own, entries in self._primary.pages(root, path):
            if own is not None:
                if not path:
                    self._top(root, own)
                if not own.is_dir:
                    return
                self._found.directories.append((root, path, own.mtime))
            if local is None:
                local = tree.names(path)
            for remote in entries:
                self.try_entry(root, join(path, remote.name), remote, local.pop(remote.name, None), again)
        for name in local or ():
            self.delete(root, join(path, name))

    def _top(self, root: int, remote: Entry) -> None:
        local = self._trees[root].entry(b"")
        if local is None or not _same(remote, local):
            self._primary.push_entry(root, b"")

    def delete(self, root: int, path: bytes) -> None:
        """Remove what the primary does not have."""
        try:
            if self._primary.push_delete(root, path):
                self._detail(f"removed {path!r}")
        except OSError as error:
            self._fault(of_one(path, error))

    def try_entry(self, root: int, path: bytes, remote: Entry, local: Entry | None, again: bool) -> None:
        """`entry`; what cannot be made because a name above moved meanwhile is looked at again later."""
        try:
            self.entry(root, path, remote, local, again)
        except OSError as error:
            if error.errno in MOVED:
                self._later(root, path)
            else:
                self._fault(of_one(path, error))

    def entry(self, root: int, path: bytes, remote: Entry, local: Entry | None, again: bool) -> None:
        """Make one entry equal, or queue what takes longer."""
        if remote.is_dir:
            if local is None or not _same(remote, local):
                self._primary.push_entry(root, path)
                self._detail(f"directory {path!r}")
            self._give_directory(root, path, again)
        elif remote.is_file:
            self._file(root, path, remote, local, again)
        else:
            self._without_content(root, path, remote, local)

    def _without_content(self, root: int, path: bytes, remote: Entry, local: Entry | None) -> None:
        """A symbolic link, a pipe, a device or a socket: it may have several names, as a file."""
        if remote.nlink > 1 and self._linked(root, path, remote) is not None:
            return
        parted = local is not None and local.nlink > 1 and (remote.nlink == 1 or not self._owned(root, local, remote))
        if local is None or parted or not same_kind(remote, local) or not same_attributes(remote, local):
            self._primary.push_entry(root, path, fresh=parted)
            self._detail(f"entry {path!r}")

    def _file(self, root: int, path: bytes, remote: Entry, local: Entry | None, again: bool) -> None:
        if remote.nlink > 1 and (first := self._linked(root, path, remote)) is not None:
            here = self._trees[root].identity(first) if again else None
            if again and (here is None or not self._pairs.equal(root, remote.identity, here)):
                self._later(root, first)
            return
        if local is not None and local.nlink > 1 and not self._owned(root, local, remote):
            self._primary.push_entry(root, path, fresh=True)
            local = None
        known, zones = self._known(root, path, remote, local)
        if again:
            equal = local is not None and self._pairs.equal(root, remote.identity, local.identity)
            decision = (
                Content.SKIP if equal else Content.COMPARE if local is not None and local.is_file else Content.COPY
            )
        else:
            decision = content(self._trust, remote, local, zones, known)
        # What has several names here and one there becomes a file of its own, whatever it holds.
        shared = local is not None and local.nlink > 1 and remote.nlink == 1
        attributes = local is None or shared or not same_attributes(remote, local)
        if decision is Content.SKIP and not attributes:
            return
        zones = zones if decision is Content.ZONES else None
        data = weight(decision, remote, local, zones, self._zone)
        self._meter.found(data)
        self._give_file(FileWork(root, path, remote.identity, remote.size, decision, zones, attributes, data))

    def _known(self, root: int, path: bytes, remote: Entry, local: Entry | None) -> tuple[bool, Zones | None]:
        """What is recorded of a file; a new one of either server, where the other one may have lost that, is whole."""
        known, zones = self._recorded.find(root, path, remote, local)
        if local is None or (known and zones is None):
            return known, zones
        there, here = self._recorded.born_after(root, path)
        new = (here is not None and local.ctime >= here and self._trees[root].birth(path) >= here) or (
            there is not None and remote.ctime >= there and self._primary.birth(root, path) >= there
        )
        return (True, None) if new else (known, zones)

    def _linked(self, root: int, path: bytes, remote: Entry) -> bytes | None:
        """The name under which a file is dealt with, when `path` is a further one."""
        with self._found.lock:
            names = self._found.names.setdefault((root, remote.identity), {})
            names[path] = None
            first = next(iter(names))
        return None if first == path else first

    def _owned(self, root: int, local: Entry, remote: Entry) -> bool:
        """False when the local file already stands for another file of the primary."""
        with self._found.lock:
            return self._found.owner.setdefault((root, local.identity), remote.identity) == remote.identity


def _same(remote: Entry, local: Entry) -> bool:
    """A directory's own attributes; its time is set when its entries are done."""
    return (
        local.is_dir
        and (remote.mode, remote.uid, remote.gid) == (local.mode, local.uid, local.gid)
        and dict(remote.xattrs) == dict(local.xattrs)
    )
