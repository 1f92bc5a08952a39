"""Handles that were opened in a role before: what the kernel, and their application, know of their files may be old."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from nfsbox.pair.files import File
from safekit.rfs.tree import Tree


class Former:
    """Of one mount. `handles`: what is open there, kept by whoever opens."""

    def __init__(self, handles: Mapping[int, File], tree: Tree, *, writeback: bool) -> None:
        self._handles = handles
        self._tree = tree
        self._writeback = writeback
        self.usable: dict[int, bool] = {}
        """Of those handles, whether they are of any use."""

    def replicated(self) -> dict[int, File]:
        """Handles of files that are replicated."""
        return {handle: file for handle, file in dict(self._handles).items() if not file.local}

    def forget(self) -> dict[int, bytes | None]:
        """Replicated files that are open may have changed underneath. Of each handle the path, None when its name leads
        to another file by now, or to none: it is written to no more, nor with write-back is any of them."""
        found: dict[int, bytes | None] = {}
        for handle, file in self.replicated().items():
            status = self._tree.status(file.path)
            found[handle] = file.path if status is not None and status.st_ino == file.inode else None
        self.usable = {handle: path is not None and not self._writeback for handle, path in found.items()}
        return found

    def closed(self, handle: int) -> None:
        """Its number may be that of another handle."""
        self.usable.pop(handle, None)

    def check(self, handle: int, offset: int, *, appends: bool) -> None:
        """Before a write to one of them. Raises EIO where it, or the end that the kernel knows, is none any more."""
        status = os.fstat(handle)
        if not self.usable[handle] or (appends and status.st_nlink == 1 and offset != status.st_size):
            raise OSError(errno.EIO, "opened before the other server was primary")
