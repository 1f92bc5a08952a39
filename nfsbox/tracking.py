"""The journal of changes on disk (R4): one small synchronous record per newly touched zone or directory, written
before the change is acknowledged, never one per write.

Files `changes.<n>` in the module's rfs directory. Zeroes are written ahead, so that a record changes no size and
one fdatasync puts it on disk. A new file begins an epoch; in PAIRED mode an older epoch is deleted once both
servers have everything of it on disk (checkpoint), in ALONE mode nothing is forgotten until the end of a
resynchronisation. A file whose beginning cannot be read makes the whole record unreliable: then zones cannot be
told, and the resynchronisation falls back as the guide says (5.4).
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nfsbox.changes import Changes, Kind, Mode, Record, moved, renaming, torn, unpack
from nfsbox.exclusions import is_hidden, parent
from nfsbox.system import birth_ns
from safekit.files import sync_directory

log = logging.getLogger("nfsbox")

MAGIC: Final = b"SafeKit changes 1\n"
PREFIX: Final = "changes."
CHUNK: Final = 256 << 10
#: A journal longer than this that says little is written anew, bytes.
COMPACT_AT: Final = 16 << 20
#: New files of an epoch that are remembered, so that writing them again needs no record.
MAX_FRESH: Final = 200_000


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


def _number(path: Path) -> int:
    text = path.name[len(PREFIX) :]
    return int(text) if text.isdigit() else -1


def _files(directory: Path) -> list[Path]:
    found = [path for path in directory.glob(PREFIX + "*") if _number(path) >= 0]
    return sorted(found, key=_number)


def load(directory: Path) -> Loaded:
    """Read the journal of a server. Never raises for its content; OSError when it cannot be read."""
    loaded = Loaded()
    for path in _files(directory):
        loaded.present = True
        data = path.read_bytes()
        begin = data.find(b"\n", len(MAGIC)) + 1
        head = data[len(MAGIC) : begin].split()
        if not data.startswith(MAGIC) or len(head) != 1 or not head[0].isdigit():
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
        for record, behind in unpack(data, begin):
            end = behind
            # A rename concerns what older epochs know as well.
            if record.kind is Kind.RENAME:
                loaded.changes.apply(record)
            epoch.apply(record)
        if data.count(0, torn(data, end)) != len(data) - torn(data, end):
            loaded.reliable = False
            loaded.why = f"{path} is damaged in the middle"
        loaded.changes.merge(epoch)
        loaded.changes.mode = epoch.mode
        loaded.closed = epoch.closed
    return loaded


class Journal:
    """One epoch's file. Raises OSError when the disk refuses; the change it tells of must then not be made."""

    def __init__(self, path: Path, zone_size: int) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o660)
        self.length = 0
        self._allocated = 0
        self._grow()
        header = MAGIC + b"%d\n" % zone_size
        os.pwrite(self._fd, header, 0)
        self.length = len(header)
        os.fsync(self._fd)
        sync_directory(path.parent)

    def _grow(self) -> None:
        os.pwrite(self._fd, bytes(CHUNK), self._allocated)
        self._allocated += CHUNK
        os.fsync(self._fd)

    def append(self, record: Record, *, durable: bool) -> None:
        """Add a record; with `durable` it and all before it are on disk when the call returns."""
        data = record.pack()
        while self.length + len(data) > self._allocated:
            self._grow()
        os.pwrite(self._fd, data, self.length)
        self.length += len(data)
        if durable:
            os.fdatasync(self._fd)

    def sync(self) -> None:
        """Put everything on disk."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Free the descriptor; the file stays."""
        os.close(self._fd)


class Tracker:
    """Keeps the record of one server while it is primary. Thread-safe."""

    def __init__(self, directory: Path, zone_size: int) -> None:
        self.directory = directory
        self.zone_size = zone_size
        self.era = 0  # rises whenever what files remember of being recorded is void
        self.mode = Mode.ALONE
        self.reliable = True
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._epochs: list[tuple[Journal | None, Path, Changes]] = []  # oldest first, the last is current
        self._fresh: OrderedDict[tuple[int, int], None] = OrderedDict()  # in the order in which they were made
        self._complained = False
        self._clock = time.time_ns() - time.monotonic_ns()

    # --- life ---------------------------------------------------------------------------------------------

    def start(self, mode: Mode, inherited: Loaded | None) -> None:
        """Begin to record; what an earlier life recorded is kept (None: nothing to keep). Raises OSError."""
        with self._lock:
            self._close_epochs()
            old = _files(self.directory)
            kept = inherited.changes if inherited is not None else Changes()
            self.reliable = inherited.reliable if inherited is not None else True
            self.mode = mode
            self._begin(kept)
            for path in old:
                path.unlink()
            sync_directory(self.directory)

    def stop(self, *, clean: bool) -> None:
        """End; with `clean` the journal says that the product stopped in order."""
        with self._lock:
            if self._journal is not None and clean:
                self._journal.append(Record(Kind.CLOSED), durable=True)
            self._close_epochs()

    @property
    def active(self) -> bool:
        return self._journal is not None

    def _close_epochs(self) -> None:
        for journal, _, _ in self._epochs:
            if journal is not None:
                journal.close()
        self._epochs = []
        self._journal = None
        self._void()

    def _void(self) -> None:
        self.era += 1
        self._fresh = OrderedDict()

    def _begin(self, kept: Changes) -> None:
        existing = _files(self.directory)
        path = self.directory / f"{PREFIX}{_number(existing[-1]) + 1 if existing else 1}"
        journal = Journal(path, self.zone_size)
        kept.mode = self.mode
        for record in kept.snapshot():
            journal.append(record, durable=False)
        journal.sync()
        self._epochs.append((journal, path, kept))
        self._journal = journal
        self._void()

    # --- records ------------------------------------------------------------------------------------------

    @property
    def _current(self) -> Changes:
        return self._epochs[-1][2]

    def _add(self, record: Record, *, durable: bool) -> None:
        journal = self._journal
        if journal is None:
            return
        try:
            journal.append(record, durable=durable)
        except OSError as error:
            if not self._complained:
                log.error("changes cannot be recorded in %s: %s; the application gets that error, although its own "
                          "directory may be in order: check that disk, make room there", self.directory, error.strerror)
            self._complained = True
            raise
        self._complained = False
        for _, _, changes in self._epochs if record.kind is Kind.RENAME else self._epochs[-1:]:
            changes.apply(record)
        if journal.length > COMPACT_AT and self.mode is Mode.ALONE:
            self._compact()

    def _compact(self) -> None:
        merged = self._merged()
        old = self._epochs
        self._epochs = []
        era, fresh = self.era, self._fresh
        self._begin(merged)
        self.era, self._fresh = era, fresh  # what was recorded still is
        for journal, path, _ in old:
            if journal is not None:
                journal.close()
            path.unlink()
        sync_directory(self.directory)

    def touch(self, root: int, inode: int, path: bytes, first: int, last: int) -> set[int] | None:
        """Record zones first..last of a file before they change. Returns the zones recorded so far in this era,
        None when the file is new and recorded whole with its directory. Raises OSError."""
        with self._lock:
            if self._journal is None:
                return None
            if (root, inode) in self._fresh:
                return None
            needed = self._current.zones_to_record(root, inode, first, last)
            if needed is not None:
                self._add(Record(Kind.ZONES, root, inode, needed[0], needed[1], path), durable=True)
            return self._current.files[root, inode].zones

    def touch_directory(self, root: int, path: bytes, now_ns: int | None = None) -> None:
        """Record that entries of a directory are about to be made or moved in. Raises OSError."""
        key = (root, path)
        if self._journal is None or key in self._current.directories:
            return
        with self._lock:
            since = time.time_ns() - 2_000_000_000 if now_ns is None else now_ns
            self._add(Record(Kind.DIRECTORY, root, a=since, path=path), durable=True)

    def created(self, root: int, inode: int, path: bytes, ctime_ns: int) -> bool:
        """A file was made; its directory is recorded. True when it is covered whole by that."""
        with self._lock:
            if self._journal is None:
                return False
            place = (root, parent(path))
            since = self._current.directories.get(place)
            if since is None:
                return False
            if ctime_ns < since:
                # The clock was set back: the mark of the directory must cover this file.
                self._add(Record(Kind.DIRECTORY, root, a=ctime_ns, path=place[1]), durable=True)
            if len(self._fresh) >= MAX_FRESH:
                self._fresh.popitem(last=False)  # the oldest: files are written soon after they are made
            self._fresh[root, inode] = None
            return True

    def renamed(self, root: int, inode: int, old: bytes, new: bytes, *, directory: bool) -> None:
        """Before a rename: what is recorded below `old` will be found at `new`. Raises OSError."""
        with self._lock:
            if self._journal is None:
                return
            if not directory and self._new_name(root, inode, old, new):
                return
            known = any((root, inode) in changes.files for _, _, changes in self._epochs)
            if known or directory or (root, new) not in self._current.moved:
                self._add(renaming(root, inode, old, new, file=not directory), durable=True)

    def linked(self, root: int, inode: int, old: bytes, new: bytes) -> None:
        """Before a file gets another name: the peer may have another one of that name. Raises OSError."""
        with self._lock:
            if self._journal is None or self._new_name(root, inode, old, new):
                return
            if (root, new) not in self._current.moved:
                self._add(renaming(root, inode, new, new, file=True), durable=True)

    def _new_name(self, root: int, inode: int, old: bytes, new: bytes) -> bool:
        """True for a file that is covered by the mark of its directory, and at its new name is as well."""
        if (root, inode) not in self._fresh:
            return False
        above = (root, parent(new))
        directories = self._current.directories
        since = directories.get((root, parent(old)))
        if since is None:
            return False
        if directories.get(above, since + 1) > since:
            self._add(Record(Kind.DIRECTORY, root, a=since, path=above[1]), durable=True)
        return True

    def whole(self, root: int, path: bytes) -> None:
        """So much of a file is about to change that it is compared whole. Raises OSError."""
        with self._lock:
            if self._journal is not None and (root, path) not in self._current.moved:
                self._add(renaming(root, 0, path, path, file=True), durable=True)

    def gone(self, root: int, inode: int) -> None:
        """The last name of a file is removed and nobody has it open."""
        with self._lock:
            self._fresh.pop((root, inode), None)
            # Not on disk: a power failure may bring the file back, but not take the record of its removal away.
            for _, _, changes in self._epochs:
                changes.files.pop((root, inode), None)

    # --- epochs -------------------------------------------------------------------------------------------

    def epoch(self) -> int:
        """Begin a new epoch; returns how many older ones wait for a checkpoint. Raises OSError."""
        with self._lock:
            if self._journal is not None and (self._current or len(self._epochs) > 1):
                self._begin(Changes())
            return len(self._epochs) - 1

    def checkpointed(self, count: int) -> None:
        """Both servers have everything of the `count` oldest epochs on disk: forget them, unless the peer was lost
        meanwhile."""
        with self._lock:
            if self.mode is not Mode.PAIRED:
                return
            dropped, self._epochs = self._epochs[:count], self._epochs[count:]
            for journal, path, _ in dropped:
                if journal is not None:
                    journal.close()
                path.unlink()

    def alone(self) -> None:
        """From now on nothing is forgotten. Durable. Raises OSError."""
        with self._lock:
            self.mode = Mode.ALONE
            if self._journal is not None:
                self._add(Record(Kind.MODE, a=Mode.ALONE), durable=True)

    def paired(self) -> None:
        """The peer has everything up to the epoch that began with its strictness: keep that one only. Durable."""
        with self._lock:
            self.mode = Mode.PAIRED
            self.reliable = True
            if self._journal is None:
                return
            self._add(Record(Kind.MODE, a=Mode.PAIRED), durable=True)
            dropped, self._epochs = self._epochs[:-1], self._epochs[-1:]
            for journal, path, _ in dropped:
                if journal is not None:
                    journal.close()
                path.unlink()
            sync_directory(self.directory)

    def watch_clock(self) -> None:
        """Call every second: a clock set back by more than a second voids what is known of new files."""
        with self._lock:
            now = time.time_ns() - time.monotonic_ns()
            if now < self._clock - 1_000_000_000 and self._journal is not None:
                moved = self._clock - now
                for (root, path), since in list(self._current.directories.items()):
                    self._add(Record(Kind.DIRECTORY, root, a=since - moved, path=path), durable=False)
                self._journal.sync()
            self._clock = now

    def _merged(self) -> Changes:
        merged = Changes()
        for _, _, changes in self._epochs:
            merged.merge(changes)
        merged.mode = self.mode
        return merged

    def snapshot(self) -> Changes:
        """A copy of everything recorded."""
        with self._lock:
            return self._merged()

    def counts(self) -> tuple[int, int]:
        """Files and directories recorded."""
        with self._lock:
            return (
                sum(len(changes.files) for _, _, changes in self._epochs),
                sum(len(changes.directories) for _, _, changes in self._epochs),
            )


# --- what a set means on a tree --------------------------------------------------------------------------------


def expand(changes: Changes, backing: Sequence[bytes]) -> Iterator[tuple[int, bytes, int, list[int] | None]]:
    """(root, path, inode, zones; None means all) of the regular files to compare, as the trees are now.

    A file that is not found under its recorded path, or only under one of this server's own, is searched by its inode
    in its whole tree. Files that do not exist any more are left out: the comparison of names deals with them.
    """
    lost: dict[int, dict[int, list[int] | None]] = {}
    for (root, inode), change in changes.files.items():
        if root >= len(backing):
            continue
        try:
            status = os.lstat(backing[root] + b"/" + change.path)
        except OSError:
            status = None
        zones = None if moved(changes.moved, root, change.path) else sorted(change.zones)
        if status is not None and status.st_ino == inode and stat.S_ISREG(status.st_mode) \
                and not is_hidden(change.path):
            yield root, change.path, inode, zones
        else:
            lost.setdefault(root, {})[inode] = zones
    for root, wanted in lost.items():
        yield from _search(root, backing[root], wanted)
    for root, path in changes.moved:
        if root >= len(backing):
            continue
        try:
            status = os.lstat(backing[root] + b"/" + path)
        except OSError:
            continue  # that name is gone as well: the comparison of names deals with it
        if stat.S_ISREG(status.st_mode):
            yield root, path, status.st_ino, None
    seen: set[tuple[int, bytes]] = set()
    # The oldest mark first: what it has visited needs no visit for a younger one.
    for (root, path), since in sorted(changes.directories.items(), key=lambda item: item[1]):
        if root < len(backing):
            yield from _new_below(root, backing[root], path, since, seen)


def moved_directories(changes: Changes, backing: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """Directories that stand for something else at the peer: what either server recorded below is compared whole."""
    for root, path in changes.moved:
        if root < len(backing) and os.path.isdir(backing[root] + b"/" + path):
            yield root, path


def _search(
    root: int, base: bytes, wanted: dict[int, list[int] | None]
) -> Iterator[tuple[int, bytes, int, list[int] | None]]:
    pending = [b""]
    while pending and wanted:
        directory = pending.pop()
        try:
            entries = list(os.scandir(base + b"/" + directory if directory else base))
        except OSError:
            continue
        for entry in entries:
            path = directory + b"/" + entry.name if directory else entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif entry.inode() in wanted and not is_hidden(path) and entry.is_file(follow_symlinks=False):
                yield root, path, entry.inode(), wanted.pop(entry.inode())


def _new_below(
    root: int, base: bytes, directory: bytes, since: int, seen: set[tuple[int, bytes]]
) -> Iterator[tuple[int, bytes, int, list[int] | None]]:
    pending = [directory]
    while pending:
        here = pending.pop()
        if (root, here) in seen:
            continue
        seen.add((root, here))
        try:
            entries = list(os.scandir(base + b"/" + here if here else base))
        except OSError:
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
                # A new entry has a new ctime too, which costs nothing to ask; not every new ctime is of a new entry.
                if status.st_ctime_ns < since or (birth_ns(entry.path) or status.st_ctime_ns) < since:
                    continue
            except OSError:
                continue
            path = here + b"/" + entry.name if here else entry.name
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
            elif stat.S_ISREG(status.st_mode):
                yield root, path, status.st_ino, None
