"""What every operation of the replicated file system needs: paths, recording, sending, waiting."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

import fuse

from nfsbox.fs.border import BothSides
from nfsbox.pair.engine import Engine, Root, find_name
from nfsbox.pair.files import File
from nfsbox.pair.stream import Stream
from safekit.rfs.exclusions import is_hidden, parent
from safekit.rfs.identity import Identity
from safekit.rfs.system import ENCODING
from safekit.rfs.wire import Op

SPECIAL_BITS: Final = stat.S_ISUID | stat.S_ISGID


class Base(fuse.Operations):  # type: ignore[misc]
    """One replicated directory."""

    def __init__(self, engine: Engine, root: Root) -> None:
        self.engine = engine
        self.root = root
        self.index = root.index
        self.tree = root.tree
        self.request = (0, 0)  # opcode and node of the request that a callback belongs to
        self.kill_privileges = False
        self.handles: dict[int, File] = {}
        self.hidden: Counter[int] = Counter()  # place holders of each inode: of files that were unlinked while open
        self._excluded = root.exclusions.match
        self._both_sides = BothSides(root)
        self._acl = engine.settings.acl

    def __call__(self, op: str, *args: Any) -> Any:
        return getattr(self, op)(*args)

    @staticmethod
    def _relative(path: str) -> bytes:
        """Relative path of a path of fusepy."""
        return path.encode(ENCODING)[1:]

    def _named(self, path: str) -> bytes:
        """As `_relative`, for a change of attributes: a file that was made without a name is changed through the name
        that it was given since, if it still has that one; one that has a replicated name as well, through that one."""
        relative = self._relative(path)
        if not self._excluded(relative):
            return relative
        status = self.tree.lstat(relative)
        if status.st_nlink == 1 or stat.S_ISDIR(status.st_mode):
            return relative
        if is_hidden(relative):
            file = self.engine.files.get(self.index, status.st_ino)
            return relative if file is None else self.engine.visible(file) or relative
        if not self._both_sides.has(status):
            return relative
        return find_name(self.tree, self.root.exclusions, status.st_ino) or relative

    def _no_place_holder(self, inode: int) -> None:
        """One less."""
        self.hidden[inode] -= 1
        if self.hidden[inode] <= 0:
            del self.hidden[inode]

    def _change(
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
        engine = self.engine
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
                    engine.revisit.add(self.index, path, recursive=recursive)
        try:
            code = engine.settle(stream, number)
            if lenient and code:
                for path in paths:
                    engine.revisit.add(self.index, path, recursive=recursive)
        finally:
            engine.settled()

    def _revisit_file(self, file: File) -> None:
        """A change of its content has failed at the peer."""
        self.engine.revisit.doubt(self.index, Identity(file.inode, file.generation))
        if is_hidden(file.path):
            # The file has another name, which nobody knows here: everything is compared again.
            self.engine.revisit.add(self.index, b"", recursive=True)
        else:
            self.engine.revisit.add(self.index, file.path)

    def _identity(self, path: bytes, status: os.stat_result) -> Identity | None:
        """Which file has that name, for the record; None for a directory."""
        if stat.S_ISDIR(status.st_mode):
            return None
        return Identity(status.st_ino, self.tree.generation(path) if self.engine.tracker.active else 0)

    def _undo(self, remove: Callable[[bytes], None], path: bytes) -> None:
        """What was made and could not be completed goes again: nobody was told of it. Under the order lock."""
        try:
            remove(path)
        except OSError as error:
            stream = self.engine.stream
            if stream is not None:
                stream.fail(f"what could not be completed cannot be removed ({error.strerror})")

    def _directory_mtime(self, path: bytes) -> int:
        return self.tree.lstat(parent(path)).st_mtime_ns

    @contextlib.contextmanager
    def _unseen(self, path: bytes) -> Iterator[None]:
        """An entry is made or removed that exists on this server only: the time of its directory stays as it is. Nobody
        sends it meanwhile (order lock)."""
        with self.engine.order:
            mtime = self._directory_mtime(path)
            yield
            self.tree.set_times(parent(path), None, mtime)

    def _send_name(self, stream: Stream, op: Op, path: bytes, body: bytes, **fields: int) -> int:
        """Send an operation on a name; the time of its directory follows within a second."""
        self.engine.due_directories.add((self.index, parent(path)))
        return stream.send(op, self.index, body=body, **fields)

    def _record_names(self, *paths: bytes) -> None:
        for path in paths:
            self.engine.tracker.touch_directory(self.index, parent(path))

    def _refuse_hidden(self, path: bytes) -> None:
        """A name of the form that libfuse gives to what is unlinked while open would never reach the peer, and be
        removed at the next start. Raises EPERM."""
        if is_hidden(path):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def _give(self, path: bytes, mode: int) -> None:
        """Give a new entry to the caller, with the group of a set-group-id directory, as a local file system does."""
        uid, gid, _ = fuse.fuse_get_context()
        above = self.tree.lstat(parent(path))
        if above.st_mode & stat.S_ISGID:
            gid = -1
        self.tree.chown(path, uid, gid)
        if mode & SPECIAL_BITS and not stat.S_ISLNK(mode):
            self.tree.chmod(path, stat.S_IMODE(mode))
