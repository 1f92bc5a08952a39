"""What must be on disk before the secondary acknowledges with async="none" (R1), put there for all operations that
have arrived by then at once: one commit serves them all, as a database commits a group of transactions."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

from safekit import syscalls
from safekit.disk import steps
from safekit.disk.files import sync_directory, write_atomic
from safekit.rfs.exclusions import parent
from safekit.rfs.tree import Tree, open_top

log = logging.getLogger("nfsbox")


class Disks:
    """Puts the data of all replicated directories on disk. The system tells an error of its writing back once, to
    descriptors that were open when it happened: so they are kept. Safe from any thread.

    What was not written stays in memory, and counts as written there, until the system needs the room. So a refusal is
    remembered in the file `note`, over all lives of this process and of the system, until every file has been compared
    with what is on the disk (`proved`)."""

    def __init__(self, backing: Sequence[bytes], note: Path | None = None) -> None:
        self._backing = tuple(backing)
        self._descriptors: list[int] = []
        self._lock = threading.Lock()
        self._note = note
        self._noting = threading.Lock()
        self.refusals = 0
        """In this life; it only rises."""
        self._proved = 0

    @property
    def refused(self) -> bool:
        """Whether this disk may lack what memory shows."""
        return self.refused_now or (self._note is not None and self._note.exists())

    @property
    def refused_now(self) -> bool:
        """The same, as far as it happened in this life."""
        return self.refusals > self._proved

    def refuse(self, error: OSError) -> None:
        """Something was not written. Never raises: without the note it is known until this process ends."""
        with self._noting:
            self.refusals += 1
            if self._note is None:
                return
            try:
                write_atomic(self._note, f"{error.strerror or error}\n".encode())
            except OSError as failed:
                log.error("%s cannot be written: %s; make room there, then swap the roles", self._note, failed)

    def proved(self, refusals: int) -> None:
        """Everything was compared with what is on this disk, and put there, after it had refused so many times. Raises
        OSError."""
        with self._noting:
            if refusals != self.refusals:
                return
            self._proved = refusals
            if self._note is not None and self._note.exists():
                steps.record_remove(self._note)
                sync_directory(self._note.parent)

    def open(self) -> None:
        """From now on no error is missed. Raises OSError."""
        with self._lock:
            for path in self._backing[len(self._descriptors) :]:
                self._descriptors.append(open_top(path))

    def sync(self) -> None:
        """Returns when everything is on disk. Raises OSError."""
        self.open()
        with self._lock:
            try:
                for descriptor in self._descriptors:
                    syscalls.sync_filesystem(descriptor)
            except OSError as error:
                self.refuse(error)
                raise

    def try_sync(self) -> bool:
        """The same for who leaves a role, which a disk that refuses keeps nobody in: every file is compared the next
        time. False when it refused."""
        try:
            self.sync()
        except OSError as error:
            log.error(
                "this disk does not take what was written (%s): check it; every file is compared with the other server "
                "before this one is up to date again",
                error.strerror or error,
            )
            return False
        return True

    def close(self) -> None:
        """Nothing is changed any more: the file systems can be unmounted."""
        with self._lock:
            descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)


class Due:
    """Inodes that have changed since the last commit. Descriptors given by `data` and `inode` must stay open until
    then; what is given by path is opened at once, because its name may change."""

    def __init__(self, disks: Disks) -> None:
        self._disks = disks
        self._data: set[int] = set()
        self._inodes: set[int] = set()
        self._opened: dict[tuple[int, int], int] = {}

    def __bool__(self) -> bool:
        return bool(self._data or self._inodes or self._opened)

    def data(self, descriptor: int) -> None:
        """Content was written."""
        self._data.add(descriptor)

    def inode(self, descriptor: int) -> None:
        """Attributes have changed, or content."""
        self._inodes.add(descriptor)

    def path(self, tree: Tree, path: bytes) -> None:
        """The entries of a directory, or attributes, have changed. Raises OSError."""
        mode = tree.lstat(path).st_mode
        whole = not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
        # A link cannot be opened, and a device must not be: their whole file system is put on disk.
        descriptor = tree.open_inode(parent(path) if whole else path)
        status = os.fstat(descriptor)
        key = (status.st_dev, 0 if whole else status.st_ino)
        if key in self._opened:
            os.close(descriptor)
        else:
            self._opened[key] = descriptor

    def commit(self) -> None:
        """Put everything on disk; only then is it due no more. Raises OSError, which the disk remembers."""
        try:
            self._commit()
        except OSError as error:
            self._disks.refuse(error)
            raise
        self.forget()

    def _commit(self) -> None:
        for descriptor in self._data - self._inodes:
            steps.commit_data(descriptor)
        for descriptor in self._inodes:
            steps.commit_inode(descriptor)
        for (_, inode), descriptor in self._opened.items():
            if inode:
                steps.commit_name(descriptor)
            else:
                syscalls.sync_filesystem(descriptor)

    def forget(self) -> None:
        """Free what was opened here."""
        for descriptor in self._opened.values():
            os.close(descriptor)
        self._data, self._inodes, self._opened = set(), set(), {}
