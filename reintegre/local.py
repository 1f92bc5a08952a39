"""The secondary's own side of a comparison: entries and digests of what lies under a replicated directory.

It only reads, in the directory behind the mount.  What changes there arrives through the ordered stream of the
local nfsbox while we look; an entry that vanishes meanwhile is no error.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from reintegre.plan import Entry

Excluded = Callable[[bytes], bool]
DIGEST = 16
_BLOCK = 1 << 20


def join(parent: bytes, name: bytes) -> bytes:
    """Relative path of a name in a directory; the replicated directory itself is b""."""
    return parent + b"/" + name if parent else name


@dataclass(frozen=True, slots=True)
class Hashed:
    """Digests of ranges of one open file, and which file it was."""

    ino: int
    size: int
    digests: tuple[bytes, ...]


class LocalTree:
    """One replicated directory. `xattrs(path)` gives the extended attributes that are replicated."""

    def __init__(self, backing: str, excluded: Excluded, xattrs: Callable[[bytes], dict[bytes, bytes]]) -> None:
        self.backing = os.fsencode(backing)
        self.excluded = excluded
        self._xattrs = xattrs

    def path(self, relative: bytes) -> bytes:
        """Absolute path."""
        return self.backing + b"/" + relative if relative else self.backing

    def entry(self, relative: bytes) -> Entry | None:
        """One entry, None when there is none."""
        path = self.path(relative)
        try:
            return self._entry(relative.rpartition(b"/")[2], path, os.lstat(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def inode(self, relative: bytes) -> int | None:
        """Number of one entry, None when there is none."""
        try:
            return os.lstat(self.path(relative)).st_ino
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, relative: bytes) -> dict[bytes, Entry]:
        """Entries of a directory, without what is not replicated; empty when it is not a directory (yet)."""
        found: dict[bytes, Entry] = {}
        try:
            with os.scandir(self.path(relative)) as entries:
                for item in entries:
                    if self.excluded(join(relative, item.name)):
                        continue
                    try:
                        found[item.name] = self._entry(item.name, item.path, item.stat(follow_symlinks=False))
                    except FileNotFoundError:
                        continue
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return found

    def _entry(self, name: bytes, path: bytes, status: os.stat_result) -> Entry:
        try:
            target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise FileNotFoundError(errno.ENOENT, "it was a link, and is something else by now") from None
        return Entry(
            name,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_size,
            status.st_atime_ns,
            status.st_mtime_ns,
            status.st_ino,
            status.st_nlink,
            status.st_rdev,
            status.st_blocks,
            status.st_ctime_ns,
            target,
            self._xattrs(path),
        )

    def hash(self, relative: bytes, ranges: Sequence[tuple[int, int]]) -> Hashed | None:
        """Digests of ranges; b"" for one beyond the end. None when there is no such regular file."""
        try:
            descriptor = os.open(self.path(relative), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                return None
            raise
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            return Hashed(status.st_ino, status.st_size, tuple(_digests(descriptor, ranges)))
        finally:
            os.close(descriptor)


def _digests(descriptor: int, ranges: Iterable[tuple[int, int]]) -> Iterable[bytes]:
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    for offset, length in ranges:
        digest = hashlib.blake2b(digest_size=DIGEST)
        done = 0
        while done < length:
            got = os.preadv(descriptor, [view[: min(_BLOCK, length - done)]], offset + done)
            if not got:
                break
            digest.update(view[:got])
            done += got
        yield digest.digest() if done else b""
