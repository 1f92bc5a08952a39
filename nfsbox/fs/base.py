"""What every operation of the replicated file system needs: paths, and what a new entry is given."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from typing import Any, Final

import fuse

from nfsbox.fs.border import BothSides
from nfsbox.fs.changes import Changes
from nfsbox.pair.engine import Engine, Root, find_name
from nfsbox.pair.files import File
from safekit.rfs.exclusions import is_hidden, parent
from safekit.rfs.system import ENCODING

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
        self._changes = Changes(engine, root)
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
