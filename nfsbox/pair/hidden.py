"""Notes of the place holders: names, for this server only, of files that are gone but still open (libfuse), or that
were made without a name. A crash must not leave them for ever: they take room, and their directory, which looks empty,
could not be removed. `switch.clean_hidden` reads the notes at the next start."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from safekit.disk import steps
from safekit.disk.files import write_atomic

#: Bytes of notes after which those of removed ones are left out.
MAX_NOTES: Final = 1 << 20

#: A name of before, and the one after.
Move = tuple[bytes, bytes]


def _note(root: int, path: bytes) -> bytes:
    return b"%d %s\0" % (root, path)


def _append(path: Path, data: bytes) -> int:
    """Add to a file, whole or not at all: what is torn would be read as part of what follows. The size afterwards.
    Raises OSError."""
    descriptor = steps.note_open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o660)
    try:
        before = os.fstat(descriptor).st_size
        try:
            left = memoryview(data)
            while left:
                left = left[steps.note_write(descriptor, left) :]
        except OSError:
            with contextlib.suppress(OSError):
                steps.note_undo(descriptor, before)
            raise
        return before + len(data)
    finally:
        os.close(descriptor)


class PlaceHolders:
    """Of all replicated directories of a module. Safe from any thread."""

    def __init__(self, directory: Path) -> None:
        self._notes = directory / "hidden"
        self._there: set[tuple[int, bytes]] = set()
        self._lock = threading.Lock()

    def note(self, root: int, *paths: bytes) -> None:
        """Before these names are made. Raises OSError."""
        with self._lock:
            size = _append(self._notes, b"".join(_note(root, path) for path in paths))
            self._there |= {(root, path) for path in paths}
            if size > MAX_NOTES + 512 * len(self._there):
                write_atomic(self._notes, b"".join(_note(*found) for found in self._there), durable=False)

    def forget(self, root: int, *paths: bytes) -> None:
        """These names are gone."""
        with self._lock:
            self._there -= {(root, path) for path in paths}

    @contextlib.contextmanager
    def moving(self, root: int, *moves: Move) -> Iterator[None]:
        """Directories get other names, all at once; place holders in them are found there afterwards. Raises OSError
        when that cannot be noted; nothing may be moved then."""
        if not self._there:
            yield
            return
        with self._lock:
            below = [path for where, path in self._there if where == root]
        found = {
            path: new + path[len(old) :] for old, new in moves for path in below if path.startswith(old + b"/")
        }  # fmt: skip
        if found:
            self.note(root, *found.values())
        try:
            yield
        except BaseException:
            self.forget(root, *(set(found.values()) - set(found)))
            raise
        self.forget(root, *(set(found) - set(found.values())))
