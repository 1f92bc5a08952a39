"""How a change of a replicated directory is made: recorded durably, applied and sent in one order, awaited.

See `nfsbox/pair/engine.py` for the order of these steps, and docs/threads.md for why it must hold.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any

from nfsbox.pair.engine import Engine, Root
from nfsbox.pair.files import File
from nfsbox.pair.stream import Stream
from safekit.rfs.exclusions import is_hidden, parent
from safekit.rfs.identity import Identity
from safekit.rfs.wire import Op


class Changes:
    """Of one replicated directory."""

    def __init__(self, engine: Engine, root: Root) -> None:
        self._engine = engine
        self._index = root.index
        self._tree = root.tree

    def make(
        self,
        paths: tuple[bytes, ...],
        local: Callable[[], Any],
        send: Callable[[Stream], int],
        *,
        record: Callable[[], None] | None = None,
        recursive: bool = False,
        always_revisit: bool = False,
        paths_lock: threading.Lock | None = None,
    ) -> None:
        """Apply a change of names or attributes here and at the peer, then wait for it. `record` notes it durably
        first. While the peer is being resynchronised, `paths` are compared again when it fails there, or in any case
        with `always_revisit`. `paths_lock` is held while `local` and `send` run."""
        engine = self._engine
        engine.check_writable()
        era = engine.tracker.era
        if record is not None:
            record()
        with engine.order if paths_lock is None else engine.order_with(paths_lock):
            if not engine.writable:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            if record is not None and era != engine.tracker.era:
                record()  # a checkpoint came in between, and forgets what was recorded
            local()
            stream = engine.stream
            if stream is None:
                return
            try:
                number = send(stream)
            except OSError as error:
                # It was made here, and cannot be told: the two differ from now on.
                stream.fail(f"a change could not be read back ({error.strerror})")
                raise
            lenient = engine.lenient(stream)
            if lenient and always_revisit:
                for path in paths:
                    engine.revisit.add(self._index, path, recursive=recursive)
        try:
            code = engine.settle(stream, number)
            if lenient and code:
                for path in paths:
                    engine.revisit.add(self._index, path, recursive=recursive)
        finally:
            engine.settled()

    def revisit_file(self, file: File) -> None:
        """A change of its content has failed at the peer."""
        self._engine.revisit.doubt(self._index, Identity(file.inode, file.generation))
        if is_hidden(file.path):
            # The file has another name, which nobody knows here: everything is compared again.
            self._engine.revisit.add(self._index, b"", recursive=True)
        else:
            self._engine.revisit.add(self._index, file.path)

    def identity(self, path: bytes, status: os.stat_result) -> Identity | None:
        """Which file has that name, for the record; None for a directory."""
        if stat.S_ISDIR(status.st_mode):
            return None
        return Identity(status.st_ino, self._tree.generation(path) if self._engine.tracker.active else 0)

    def undo(self, remove: Callable[[bytes], None], path: bytes) -> None:
        """What was made and could not be completed goes again: nobody was told of it. Under the order lock."""
        try:
            remove(path)
        except OSError as error:
            stream = self._engine.stream
            if stream is not None:
                stream.fail(f"what could not be completed cannot be removed ({error.strerror})")

    def _directory_mtime(self, path: bytes) -> int:
        return self._tree.lstat(parent(path)).st_mtime_ns

    @contextlib.contextmanager
    def unseen(self, path: bytes) -> Iterator[None]:
        """An entry is made or removed that exists on this server only: the time of its directory stays as it is. Nobody
        sends it meanwhile (order lock)."""
        with self._engine.order:
            mtime = self._directory_mtime(path)
            yield
            self._tree.set_times(parent(path), None, mtime)

    def send_name(self, stream: Stream, op: Op, path: bytes, body: bytes, **fields: int) -> int:
        """Send an operation on a name; the time of its directory follows within a second."""
        self._engine.times.directories.add((self._index, parent(path)))
        return stream.send(op, self._index, body=body, **fields)

    def record_names(self, *paths: bytes) -> None:
        """Entries of their directories are about to change. Raises OSError."""
        for path in paths:
            self._engine.tracker.touch_directory(self._index, parent(path))
