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
from functools import partial

from reintegre.plan import Entry
from safekit.rfs.identity import Identity
from safekit.rfs.system import generation
from safekit.rfs.tree import NOTHING, Tree

Excluded = Callable[[bytes], bool]
DIGEST = 16
_BLOCK = 1 << 20


def join(parent: bytes, name: bytes) -> bytes:
    """Relative path of a name in a directory; the replicated directory itself is b""."""
    return parent + b"/" + name if parent else name


@dataclass(frozen=True, slots=True)
class Hashed:
    """Digests of ranges of one open file, and which file it was."""

    file: Identity
    size: int
    digests: tuple[bytes, ...]


class LocalTree:
    """One replicated directory. `acl`: access control lists are replicated. `uncached`: content is read from the disk,
    which may lack what memory shows."""

    def __init__(self, backing: str, excluded: Excluded, *, acl: bool) -> None:
        self.data = Tree(os.fsencode(backing))
        self.excluded = excluded
        self._acl = acl
        self.uncached = False

    def entry(self, relative: bytes) -> Entry | None:
        """One entry, None when there is none."""
        data = self.data
        try:
            status = data.lstat(relative)
            target = _target(status, partial(data.readlink, relative))
            xattrs = _attributes(partial(data.xattrs, relative, acl=self._acl))
            number = data.generation(relative)
        except OSError as error:
            if error.errno in NOTHING:
                return None
            raise
        return _entry(relative.rpartition(b"/")[2], status, target, xattrs, number)

    def identity(self, relative: bytes) -> Identity | None:
        """Which file that is, None when there is none."""
        try:
            return self.data.identity(relative)
        except OSError as error:
            if error.errno in NOTHING:
                return None
            raise

    def birth(self, relative: bytes) -> int:
        """When a file was made, ns; the end of time when this file system does not tell, 0 when there is none."""
        try:
            return self.data.birth_ns(relative) or 1 << 63
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def is_directory(self, relative: bytes) -> bool:
        """Whether there is a directory of that name."""
        status = self.data.status(relative)
        return status is not None and stat.S_ISDIR(status.st_mode)

    def names(self, relative: bytes) -> dict[bytes, Entry]:
        """Entries of a directory, without what is not replicated; empty when it is not a directory (yet)."""
        found: dict[bytes, Entry] = {}
        try:
            with self.data.inside(relative) as inside:
                for item in inside.entries():
                    name = item.name
                    if self.excluded(join(relative, name)):
                        continue
                    try:
                        status = inside.lstat(name)
                        target = _target(status, partial(inside.readlink, name))
                        xattrs = _attributes(partial(inside.xattrs, name, acl=self._acl))
                        number = inside.generation(name)
                    except FileNotFoundError:
                        continue
                    found[name] = _entry(name, status, target, xattrs, number)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return found

    def hash(self, relative: bytes, ranges: Sequence[tuple[int, int]]) -> Hashed | None:
        """Digests of ranges; b"" for one beyond the end. None when there is no such regular file."""
        try:
            descriptor, status = self.data.open_file(relative, os.O_RDONLY)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE):
                return None
            raise
        try:
            if self.uncached:  # of what was not written yet, the sync at the end tells
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            return Hashed(
                Identity(status.st_ino, generation(descriptor)), status.st_size, tuple(_digests(descriptor, ranges))
            )
        finally:
            os.close(descriptor)


def _target(status: os.stat_result, read: Callable[[], bytes]) -> bytes | None:
    try:
        return read() if stat.S_ISLNK(status.st_mode) else None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise FileNotFoundError(errno.ENOENT, "it was a link, and is something else by now") from None


def _attributes(read: Callable[[], dict[bytes, bytes]]) -> dict[bytes, bytes]:
    try:
        return read()
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _entry(name: bytes, status: os.stat_result, target: bytes | None, xattrs: dict[bytes, bytes], number: int) -> Entry:
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
        xattrs,
        number,
    )


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
