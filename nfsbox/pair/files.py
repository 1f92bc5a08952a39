"""Files that are open here, one object per inode, whatever names lead to it (R3: a rename never loses a write)."""

from __future__ import annotations

import threading
from collections.abc import Iterator


class File:
    """An open regular file. `path` is its present path; `local` while it is not replicated; `orphan` once its last name
    is gone: nobody but the present openers will ever see what is written then. `version` is odd while a change is under
    way, and rises with every change. `zones`/`era`: what the tracker has recorded (zones None: covered whole).
    `generation`: of its inode, 0 until it was asked for. `temporary`: made without a name (O_TMPFILE), under a place
    holder, which is its `path` to the end; `named`: another name by which others see it. As long as it is open, no
    other file has its inode number."""

    __slots__ = (
        "era",
        "fid",
        "generation",
        "inode",
        "local",
        "named",
        "openers",
        "orphan",
        "path",
        "root",
        "session",
        "temporary",
        "times_due",
        "version",
        "zones",
    )

    def __init__(self, root: int, inode: int, path: bytes, *, local: bool) -> None:
        self.root = root
        self.inode = inode
        self.generation = 0
        self.path = path
        self.local = local
        self.orphan = False
        self.temporary = False
        self.named: bytes | None = None
        self.openers = 0
        self.fid = 0
        self.session = 0
        self.version = 0
        self.era = -1
        self.zones: set[int] | None = None
        self.times_due = False


class Files:
    """All open files of all roots. Safe from any thread: an open must not wait for a change that is under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_inode: dict[tuple[int, int], File] = {}
        self.border = threading.Lock()
        """Held while a file that stays local is changed, and while that becomes another: whoever takes it looks again
        whether the file is local."""

    def get(self, root: int, inode: int) -> File | None:
        return self._by_inode.get((root, inode))

    def opened(self, root: int, inode: int, path: bytes, *, local: bool) -> File:
        """The file object, made when it is the first opener; count one more opener."""
        with self._lock:
            file = self._by_inode.get((root, inode))
            if file is None:
                file = self._by_inode[root, inode] = File(root, inode, path, local=local)
            file.openers += 1
        if file.local and not local:
            self.cross(file, path, local=False)  # it has a name on each side, and the peer has it
        return file

    def cross(self, file: File, path: bytes, *, local: bool) -> None:
        """The file is found on the other side of the border of what stays local, at `path`."""
        with self.border:
            file.local = local
            file.era, file.zones = -1, None
            if file.temporary:
                file.named = None if local else path
            else:
                file.path = path
            if not local:
                file.orphan = False

    def closed(self, file: File) -> bool:
        """One opener less; True when it was the last."""
        with self._lock:
            file.openers -= 1
            if file.openers:
                return False
            self._by_inode.pop((file.root, file.inode), None)
            return True

    def renamed(self, root: int, old: bytes, new: bytes) -> None:
        """Follow a rename of a file or of a directory above."""
        below = old + b"/"
        with self._lock:
            for file in self._by_inode.values():
                if file.root == root:
                    if file.path == old:
                        file.path = new
                    elif file.path.startswith(below):
                        file.path = new + file.path[len(old) :]
                    if file.named is not None:
                        if file.named == old:
                            file.named = new
                        elif file.named.startswith(below):
                            file.named = new + file.named[len(old) :]

    def __iter__(self) -> Iterator[File]:
        return iter(list(self._by_inode.values()))

    def __len__(self) -> int:
        return len(self._by_inode)
