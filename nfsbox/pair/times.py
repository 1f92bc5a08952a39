"""Times of changes that the peer lacks, sent each second. They are no part of what is acknowledged: a peer that takes
over has its own times of the last second's changes."""

from __future__ import annotations

from collections.abc import Callable

from nfsbox.pair.files import File
from nfsbox.pair.stream import Stream
from safekit.rfs.tree import Tree
from safekit.rfs.wire import Op, Set, pack_attr


class Times:
    """Of all replicated directories. `tree_of` gives the data of one. Entries are added without a lock, and taken under
    the order lock."""

    def __init__(self, tree_of: Callable[[int], Tree]) -> None:
        self._tree_of = tree_of
        self.files: set[File] = set()
        """Files that are open."""
        self.directories: set[tuple[int, bytes]] = set()

    def __bool__(self) -> bool:
        return bool(self.files or self.directories)

    def changed(self, file: File) -> None:
        """The content of a file has changed. Under the order lock."""
        if not file.times_due:
            file.times_due = True
            self.files.add(file)

    def send(self, stream: Stream | None, most: int) -> None:
        """Take so many off, and tell them to the peer if there is one. Under the order lock."""
        for _ in range(most):
            if self.directories:
                self._send_directory(stream, *self.directories.pop())
            elif self.files:
                self._send_file(stream, self.files.pop())
            else:
                return

    def _send_directory(self, stream: Stream | None, root: int, path: bytes) -> None:
        if stream is None:
            return
        try:
            mtime = self._tree_of(root).lstat(path).st_mtime_ns
        except OSError:
            return  # it is gone: nobody asks for its time
        stream.send(Op.PSETATTR, root, body=pack_attr(Set.MTIME, mtime=mtime) + path, flags=0)

    def _send_file(self, stream: Stream | None, file: File) -> None:
        if stream is None or file.session != stream.identity or file.orphan:
            file.times_due = False  # whoever does not know the file yet gets its time with its content
            return
        mtime = self._mtime(file)
        if mtime is not None:  # else its CLOSE tells it
            file.times_due = False
            stream.send(Op.SETATTR, file.root, file.fid, body=pack_attr(Set.MTIME, mtime=mtime), flags=0)

    def _mtime(self, file: File) -> int | None:
        """None when the names by which it is known are gone: the others are not searched for a time."""
        tree = self._tree_of(file.root)
        found = (tree.status(path) for path in (file.path, file.named) if path is not None)
        return next((status.st_mtime_ns for status in found if status and status.st_ino == file.inode), None)
