"""The journal of changes on disk (R4): one small synchronous record per newly touched zone or directory, written
before the change is acknowledged, never one per write.

Files `changes.<n>` in the module's rfs directory, one for each epoch. Zeroes are written ahead, so that a record
changes no size and one fdatasync puts it on disk. In PAIRED mode an older epoch is deleted once both servers have
everything of it on disk (checkpoint); in ALONE mode nothing is forgotten until the end of a resynchronisation, only
written shorter. Nothing else forgets: what is recorded of a removed file stays, because a power failure may bring the
file back.

Only the last epoch is written to; what the others say does not change any more, so that they are read and merged
without the lock. A file whose beginning cannot be read makes the whole record unreliable: then zones cannot be told,
and the resynchronisation falls back as the guide says (5.4).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from safekit.disk import steps
from safekit.disk.files import sync_directory
from safekit.rfs.changes import Changes, Kind, Mode, Record, renaming
from safekit.rfs.exclusions import parent
from safekit.rfs.identity import Identity
from safekit.rfs.journal import MAGIC, PREFIX, Loaded, epoch_files, epoch_number

log = logging.getLogger("nfsbox")

CHUNK: Final = 256 << 10
#: Bytes of journals above which they are written shorter, unless they have not grown to twice what was needed then.
COMPACT_AT: Final = 16 << 20
#: New files of an epoch that are remembered, so that writing them again needs no record.
MAX_FRESH: Final = 200_000
#: Records of the current epoch that are copied under the lock; more are set aside by a new epoch first.
COPIED: Final = 10_000
_NEW: Final = ".changes.new"
_SHORTER: Final = ".changes.shorter"


class Journal:
    """One epoch's file. Raises OSError when the disk refuses; the change it tells of must then not be made."""

    def __init__(self, path: Path, zone_size: int, records: Iterable[Record] = (), *, temporary: str = _NEW) -> None:
        """Made with its first records: it has its name when all of them are on disk."""
        self.path = path
        under_way = path.with_name(temporary)
        self._fd = steps.record_create(under_way, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o660)
        self.length = 0
        self._allocated = 0
        self._due = False  # records that are not on disk yet
        try:
            self._put(MAGIC + b"%d\n" % zone_size)
            for record in records:
                self._put(record.pack())
            steps.record_settle(self._fd)
            steps.record_install(under_way, path)
            sync_directory(path.parent)
        except OSError:
            self.close()
            for made in (under_way, path):
                with contextlib.suppress(OSError):
                    steps.record_remove(made)
            raise

    def _grow(self) -> None:
        _whole(steps.record_allocate, self._fd, bytes(CHUNK), self._allocated)
        steps.record_settle(self._fd)
        self._allocated += CHUNK

    def _put(self, data: bytes) -> None:
        while self.length + len(data) > self._allocated:
            self._grow()
        _whole(steps.record_write, self._fd, data, self.length)
        self.length += len(data)

    def append(self, record: Record, *, durable: bool) -> None:
        """Add a record; with `durable` it and all before it are on disk when the call returns. After a failure it is
        not there, and the next one takes its place: the system forgets what it could not write."""
        data = record.pack()
        before = self.length
        try:
            self._put(data)
            self._due = True
            if durable:
                self.settle()
        except OSError:
            self.length = before
            with contextlib.suppress(OSError):
                steps.record_undo(self._fd, bytes(min(len(data), self._allocated - before)), before)
            raise

    def settle(self) -> None:
        """All records on disk. Raises OSError."""
        if self._due:
            steps.record_commit(self._fd)
            self._due = False

    def close(self) -> None:
        """Free the descriptor; the file stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _whole(write: Callable[[int, bytes, int], int], descriptor: int, data: bytes, offset: int) -> None:
    done = 0
    while done < len(data):
        done += write(descriptor, data[done:], offset + done)


@dataclass(slots=True)
class Epoch:
    """What one file of the journal tells. `renames`: what they concern in older epochs, in their order."""

    number: int
    journal: Journal
    changes: Changes = field(default_factory=Changes)
    renames: list[Record] = field(default_factory=list)

    def apply(self, record: Record) -> None:
        """Add what a record tells."""
        self.changes.apply(record)
        if record.kind is Kind.RENAME and record.path != record.path2:
            self.renames.append(record)


def _merged(epochs: Iterable[Epoch], mode: Mode) -> Changes:
    """What epochs tell together, oldest first."""
    merged = Changes()
    for epoch in epochs:
        for record in epoch.renames:
            merged.apply(record)
        merged.merge(epoch.changes)
    merged.mode = mode
    return merged


class Tracker:
    """Keeps the record of one server while it is primary. Thread-safe."""

    def __init__(self, directory: Path, zone_size: int) -> None:
        self.directory = directory
        self.zone_size = zone_size
        self.era = 0  # rises whenever what files remember of being recorded is void
        self.mode = Mode.ALONE
        self.reliable = True
        self._lock = threading.Lock()
        # Oldest first, the last is written to; empty while nothing is recorded. Readers without the lock take the
        # tuple once: it is replaced, never changed.
        self._epochs: tuple[Epoch, ...] = ()
        self._since = 0  # number of the first epoch whose records count: older ones may be forgotten at any time
        # Which file had the number of an inode when it was made in this era; in the order in which they were made.
        self._fresh: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._complained = False
        self._needed = 0  # bytes of the journals when they were written shorter last
        self._shortening: threading.Thread | None = None
        self._clock = time.time_ns() - time.monotonic_ns()

    # --- life ---------------------------------------------------------------------------------------------

    def start(self, mode: Mode, inherited: Loaded | None) -> None:
        """Begin to record; what an earlier life recorded is kept (None: nothing to keep). Raises OSError; what it
        recorded is then on disk as it was."""
        with self._lock:
            self._close_epochs()
            old = epoch_files(self.directory)
            kept = inherited.changes if inherited is not None else Changes()
            self.reliable = inherited.reliable if inherited is not None else True
            self.mode = mode
            self._begin(kept)
            self._void()
            for path in old:
                steps.record_remove(path)
            sync_directory(self.directory)

    def stop(self, *, clean: bool) -> None:
        """End; with `clean` the journal says that the product stopped in order."""
        with self._lock:
            try:
                if self._epochs and clean:
                    self._epochs[-1].journal.append(Record(Kind.CLOSED), durable=True)
            finally:
                self._close_epochs()
        shortening = self._shortening
        if shortening is not None:
            shortening.join()

    @property
    def active(self) -> bool:
        return bool(self._epochs)

    def _close_epochs(self) -> None:
        for epoch in self._epochs:
            epoch.journal.close()
        self._epochs = ()
        self._needed = 0
        self._void()

    def _void(self) -> None:
        """Only what the current epoch records from now on counts as recorded."""
        self._since = self._epochs[-1].number if self._epochs else 0
        self._fresh = OrderedDict()
        self.era += 1  # last: whoever reads the new era must not find what counted in the old one

    def _begin(self, kept: Changes) -> None:
        existing = epoch_files(self.directory)
        number = epoch_number(existing[-1]) + 1 if existing else 1
        kept.mode = self.mode
        if self._epochs:
            self._epochs[-1].journal.settle()  # a later record that is durable says that those before it are
        journal = Journal(self.directory / f"{PREFIX}{number}", self.zone_size, kept.snapshot())
        if self._epochs:
            self._epochs[-1].journal.close()
        self._epochs = (*self._epochs, Epoch(number, journal, kept))

    # --- records ------------------------------------------------------------------------------------------

    def _counting(self) -> tuple[Epoch, ...]:
        """The epochs whose records are not forgotten before this era ends, the current one last."""
        epochs = self._epochs
        return (
            epochs
            if epochs and epochs[0].number >= self._since
            else tuple(e for e in epochs if e.number >= self._since)
        )

    def _marked(self, root: int, path: bytes) -> int | None:
        """Since when entries of a directory may be new, as far as this era has recorded it."""
        marks = [e.changes.directories.get((root, path)) for e in self._counting()]
        return min((mark for mark in marks if mark is not None), default=None)

    def _moved(self, root: int, path: bytes) -> bool:
        return any((root, path) in epoch.changes.moved for epoch in self._counting())

    def _add(self, record: Record, *, durable: bool) -> None:
        epochs = self._epochs
        if not epochs:
            return
        try:
            epochs[-1].journal.append(record, durable=durable)
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
        epochs[-1].apply(record)
        if epochs[-1].journal.length > COMPACT_AT and self.mode is Mode.ALONE:
            self._shorten()

    def touch(self, root: int, file: Identity, path: bytes, first: int, last: int) -> set[int] | None:
        """Record zones first..last of a file before they change. Returns the zones recorded so far in this era,
        None when the file is new and recorded whole with its directory. Raises OSError."""
        with self._lock:
            if not self._epochs or self._fresh.get((root, file.inode)) == file.generation:
                return None
            key = (root, *file)
            counting = self._counting()
            needed = counting[-1].changes.zones_to_record(root, file, first, last)
            if needed is not None and len(counting) > 1:
                known = _zones(counting, key)
                if all(zone in known for zone in range(first, last + 1)):
                    return known
            if needed is not None:
                self._add(Record(Kind.ZONES, root, file.inode, *needed, path, generation=file.generation), durable=True)
            return counting[-1].changes.files[key].zones if len(counting) == 1 else _zones(counting, key)

    def touch_directory(self, root: int, path: bytes, now_ns: int | None = None) -> None:
        """Record that entries of a directory are about to be made or moved in. Raises OSError."""
        if self._marked(root, path) is not None:  # without the lock: nothing that counts is forgotten in this era
            return
        with self._lock:
            since = time.time_ns() - 2_000_000_000 if now_ns is None else now_ns
            self._add(Record(Kind.DIRECTORY, root, a=since, path=path), durable=True)

    def created(self, root: int, file: Identity, path: bytes, ctime_ns: int) -> bool:
        """A file was made; its directory is recorded. True when it is covered whole by that."""
        with self._lock:
            above = parent(path)
            since = self._marked(root, above)
            if since is None or not file.generation:
                return False
            if ctime_ns < since:
                # The clock was set back: the mark of the directory must cover this file.
                self._add(Record(Kind.DIRECTORY, root, a=ctime_ns, path=above), durable=True)
            if len(self._fresh) >= MAX_FRESH:
                self._fresh.popitem(last=False)  # the oldest: files are written soon after they are made
            self._fresh[root, file.inode] = file.generation
            return True

    def renamed(self, root: int, file: Identity | None, old: bytes, new: bytes) -> None:
        """Before a rename, of a directory when there is no `file`: what is recorded below `old` will be found at
        `new`. Raises OSError."""
        with self._lock:
            if not self._epochs:
                return
            if file is not None and self._new_name(root, file, old, new):
                return
            known = file is None or any((root, *file) in epoch.changes.files for epoch in self._epochs)
            if known or not self._moved(root, new):
                self._add(renaming(root, file, old, new), durable=True)

    def linked(self, root: int, file: Identity, old: bytes, new: bytes) -> None:
        """Before a file gets another name: the peer may have another one of that name. Raises OSError."""
        with self._lock:
            if self._epochs and not self._new_name(root, file, old, new) and not self._moved(root, new):
                self._add(renaming(root, file, new, new), durable=True)

    def _new_name(self, root: int, file: Identity, old: bytes, new: bytes) -> bool:
        """True for a file that is covered by the mark of its directory, and at its new name is as well."""
        if self._fresh.get((root, file.inode)) != file.generation:
            return False
        since = self._marked(root, parent(old))
        if since is None:
            return False
        above = self._marked(root, parent(new))
        if above is None or above > since:
            self._add(Record(Kind.DIRECTORY, root, a=since, path=parent(new)), durable=True)
        return True

    def whole(self, root: int, path: bytes) -> None:
        """So much of a file is about to change that it is compared whole. Raises OSError."""
        with self._lock:
            if self._epochs and not self._moved(root, path):
                self._add(renaming(root, Identity(0), path, path), durable=True)

    # --- epochs -------------------------------------------------------------------------------------------

    def epoch(self) -> int:
        """Begin a new epoch; returns its number: what older ones tell may be forgotten when both servers have it on
        disk. Raises OSError."""
        with self._lock:
            if self._epochs and (self._epochs[-1].changes or len(self._epochs) > 1):
                self._begin(Changes())
                self._void()
            return self._epochs[-1].number if self._epochs else 0

    @property
    def waiting(self) -> bool:
        """Whether there are older epochs."""
        return len(self._epochs) > 1

    def checkpointed(self, number: int) -> None:
        """Both servers have everything of the epochs before `number` on disk: forget them, unless the peer was lost
        meanwhile."""
        with self._lock:
            if self.mode is Mode.PAIRED:
                self._forget(number)

    def alone(self) -> None:
        """From now on nothing is forgotten. Durable. Raises OSError."""
        with self._lock:
            before, self.mode = self.mode, Mode.ALONE
            try:
                self._add(Record(Kind.MODE, a=Mode.ALONE), durable=True)
            except OSError:
                self.mode = before
                raise

    def paired(self, number: int) -> None:
        """The peer has everything up to epoch `number`, which began with its strictness: keep what was recorded since.
        Durable. Raises OSError."""
        with self._lock:
            self.reliable = True
            before, self.mode = self.mode, Mode.PAIRED
            if not self._epochs:
                return
            try:
                self._add(Record(Kind.MODE, a=Mode.PAIRED), durable=True)
            except OSError:
                self.mode = before
                raise
            self._forget(number)
            sync_directory(self.directory)

    def _forget(self, number: int) -> None:
        """The epochs before `number`. Their files go first: what cannot be removed is not forgotten."""
        for epoch in [e for e in self._epochs if e.number < number]:
            steps.record_remove(epoch.journal.path)
            epoch.journal.close()
            self._epochs = tuple(e for e in self._epochs if e is not epoch)
        self._needed = 0

    # --- writing it shorter -------------------------------------------------------------------------------

    def _shorten(self) -> None:
        """Under the lock: have a thread write the journals shorter, if that is due. What they tell is set aside by a
        new epoch, and goes on counting as recorded; who changes something meanwhile does not wait."""
        size = sum(epoch.journal.length for epoch in self._epochs)
        if size < 2 * self._needed or (self._shortening is not None and self._shortening.is_alive()):
            return
        self._needed = size  # a disk that is full is not asked again with every record
        try:
            self._begin(Changes())
        except OSError as error:
            log.warning("the record of changes could not be written shorter: %s", error.strerror)
            return
        closed = self._epochs[:-1]
        groups = [[e for e in closed if e.number < self._since], [e for e in closed if e.number >= self._since]]
        self._shortening = threading.Thread(
            target=self._write_shorter, args=([g for g in groups if g],), name="shorten", daemon=True
        )
        self._shortening.start()

    def _write_shorter(self, groups: list[list[Epoch]]) -> None:
        needed = 0
        for group in groups:
            merged = _merged(group, Mode.ALONE)
            last = group[-1]
            try:
                shorter = Journal(
                    last.journal.path.with_name(_SHORTER + ".whole"),
                    self.zone_size,
                    merged.snapshot(),
                    temporary=_SHORTER,
                )
                shorter.close()
            except OSError as error:
                log.warning("the record of changes could not be written shorter: %s; it stays as it is", error.strerror)
                return
            needed += shorter.length
            with self._lock:
                if not self._replace(group, Epoch(last.number, shorter, merged, _renames(group))):
                    return
        with self._lock:
            if self._epochs:
                self._needed = needed

    def _replace(self, group: list[Epoch], shorter: Epoch) -> bool:
        """Under the lock: one epoch in the place of several. Until the older files are removed they say the same once
        more. False when the record was begun anew meanwhile."""
        under_way = shorter.journal.path
        shorter.journal.path = group[-1].journal.path
        try:
            if not all(any(epoch is known for known in self._epochs) for epoch in group):
                steps.record_remove(under_way)
                return False
            steps.record_install(under_way, shorter.journal.path)
            sync_directory(self.directory)
            rest = [epoch for epoch in self._epochs if not any(epoch is old for old in group)]
            self._epochs = tuple(sorted([shorter, *rest], key=lambda epoch: epoch.number))
            for epoch in group[:-1]:
                steps.record_remove(epoch.journal.path)
            return True
        except OSError as error:
            log.warning("the record of changes could not be written shorter: %s; it stays as it is", error.strerror)
            return False

    # --- the clock ----------------------------------------------------------------------------------------

    def watch_clock(self) -> None:
        """Call every second: a clock set back by more than a second voids what is known of new files. Raises OSError;
        the next call tries again."""
        with self._lock:
            now = time.time_ns() - time.monotonic_ns()
            if now < self._clock - 1_000_000_000 and self._epochs:
                moved = self._clock - now
                marks = {place: since for e in self._counting() for place, since in e.changes.directories.items()}
                for left, ((root, path), since) in enumerate(marks.items(), 1 - len(marks)):
                    # The last one puts all of them on disk.
                    self._add(Record(Kind.DIRECTORY, root, a=since - moved, path=path), durable=not left)
            self._clock = now

    # --- what is recorded ---------------------------------------------------------------------------------

    def snapshot(self) -> Changes:
        """A copy of everything recorded."""
        with self._lock:
            if self._epochs and len(self._epochs[-1].changes) > COPIED:
                with contextlib.suppress(OSError):  # copied under the lock then
                    self._begin(Changes())
            epochs = self._epochs
            current = [Epoch(e.number, e.journal, _merged([e], self.mode), list(e.renames)) for e in epochs[-1:]]
        return _merged([*epochs[:-1], *current], self.mode)

    def counts(self) -> tuple[int, int]:
        """Files and directories recorded. Without the lock, which is held while the disk writes a record: `status` is
        answered by the thread of the bus, which must not wait for a disk that hangs."""
        epochs = self._epochs
        return (
            sum(len(epoch.changes.files) for epoch in epochs),
            sum(len(epoch.changes.directories) for epoch in epochs),
        )


def _zones(epochs: Iterable[Epoch], key: tuple[int, int, int]) -> set[int]:
    changes = (epoch.changes.files.get(key) for epoch in epochs)
    return set().union(*(change.zones for change in changes if change is not None))


def _renames(epochs: Iterable[Epoch]) -> list[Record]:
    return [record for epoch in epochs for record in epoch.renames]
