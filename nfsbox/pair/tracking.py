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
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from safekit.disk.files import sync_directory
from safekit.rfs.changes import Changes, Kind, Mode, Record, renaming
from safekit.rfs.exclusions import parent
from safekit.rfs.journal import MAGIC, PREFIX, Loaded, epoch_files, epoch_number

log = logging.getLogger("nfsbox")

CHUNK: Final = 256 << 10
#: A journal longer than this that says little is written anew, bytes.
COMPACT_AT: Final = 16 << 20
#: New files of an epoch that are remembered, so that writing them again needs no record.
MAX_FRESH: Final = 200_000


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


Epoch = tuple[Journal | None, Path, Changes]


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
        self._epochs: list[Epoch] = []  # oldest first, the last is current
        self._fresh: OrderedDict[tuple[int, int], None] = OrderedDict()  # in the order in which they were made
        self._complained = False
        self._clock = time.time_ns() - time.monotonic_ns()

    # --- life ---------------------------------------------------------------------------------------------

    def start(self, mode: Mode, inherited: Loaded | None) -> None:
        """Begin to record; what an earlier life recorded is kept (None: nothing to keep). Raises OSError."""
        with self._lock:
            self._close_epochs()
            old = epoch_files(self.directory)
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

    def _begin(self, kept: Changes, earlier: Sequence[Epoch] = ()) -> None:
        """A new epoch with what is `kept`, behind `earlier` ones: what files remember of being recorded is void."""
        self._write(kept, earlier)
        self._void()

    def _write(self, kept: Changes, earlier: Sequence[Epoch]) -> None:
        existing = epoch_files(self.directory)
        path = self.directory / f"{PREFIX}{epoch_number(existing[-1]) + 1 if existing else 1}"
        journal = Journal(path, self.zone_size)
        kept.mode = self.mode
        for record in kept.snapshot():
            journal.append(record, durable=False)
        journal.sync()
        # Replaced, never changed: `touch_directory` and `counts` read the list without the lock.
        self._epochs = [*earlier, (journal, path, kept)]
        self._journal = journal

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
                log.error(
                    "changes cannot be recorded in %s: %s; the application gets that error, although its own "
                    "directory may be in order: check that disk, make room there",
                    self.directory,
                    error.strerror,
                )
            self._complained = True
            raise
        self._complained = False
        for _, _, changes in self._epochs if record.kind is Kind.RENAME else self._epochs[-1:]:
            changes.apply(record)
        if journal.length > COMPACT_AT and self.mode is Mode.ALONE:
            self._compact()

    def _compact(self) -> None:
        old = self._epochs
        self._write(self._merged(), ())  # the era goes on: what was recorded still is
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
        # Without the lock, for every name that is made: an entry appears here once it is on disk, and that an epoch
        # which begins now does not have it is found by whoever makes the change, under the order lock.
        epochs = self._epochs
        if not epochs or (root, path) in epochs[-1][2].directories:
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
                self._begin(Changes(), self._epochs)
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
        """Files and directories recorded. Without the lock, which is held while the disk writes a record: `status` is
        answered by the thread of the bus, which must not wait for a disk that hangs."""
        epochs = self._epochs
        return (
            sum(len(changes.files) for _, _, changes in epochs),
            sum(len(changes.directories) for _, _, changes in epochs),
        )
