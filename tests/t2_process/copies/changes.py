"""Random changes of a replicated directory: what applications do to files, on few names, with few sizes and times, so
that equal sizes and times prove nothing and numbers of inodes are used again.

A change is plain data, so that a case can be kept, shrunk and done again. What cannot be done where it is done (the
name is not there, the disk is full) is no failure: the application would see that error too.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

#: One change: its kind, and numbers that its kind makes something of.
Change = tuple[str, int, int, int]

DIRECTORIES: Final = 4
NAMES: Final = 7
#: The end of a name that stays local, where a case has such.
LOCAL: Final = b".tmp"
#: Times that files are given: equal ones on different contents.
TIMES: Final = (10**18, 10**18 + 5, 1_234_567_891_234_567_891)
SIZES: Final = (100, 100, 100, 5000, 70_000, 200_000)
_FALLOCATE: Final = (0, 1, 3, 3, 16, 17)
#: Errors after which nothing more can be done: the mount is gone, or takes no writes.
ENDED: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.EROFS, errno.ESTALE})


#: How often each kind of change was made, or could not be.
MADE: Final[Counter[tuple[str, bool]]] = Counter()


def _content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Application:
    """Makes changes below a directory. Keeps files open, as applications do."""

    def __init__(self, base: Path) -> None:
        self.base = os.fsencode(base)
        self.handles: list[int] = []
        self.maps: list[mmap.mmap] = []
        self.done = 0
        self.now: Change | None = None
        """What is being made."""
        self._ink = os.memfd_create("ink")
        self.kinds: dict[str, Callable[[int, int, int], Any]] = {
            name[4:]: getattr(self, name) for name in dir(self) if name.startswith("_do_")
        }

    def run(self, change: Change) -> int:
        """0, or the errno of what failed."""
        kind, *numbers = change
        code, self.now = 0, change
        try:
            self.kinds[kind](*numbers)
        except OSError as error:
            code = error.errno or errno.EIO
        except ValueError:  # nothing there to map
            code = errno.EINVAL
        MADE[kind, not code] += 1
        self.done, self.now = self.done + 1, None
        return code

    def close(self) -> None:
        """Close what is open."""
        while self.handles:
            with contextlib.suppress(OSError):
                os.close(self.handles.pop())
        while self.maps:
            self.maps.pop().close()
        if self._ink >= 0:
            os.close(self._ink)
            self._ink = -1

    def _mark(self, view: mmap.mmap, at: int, data: bytes) -> None:
        """Write into mapped memory. The system copies it there: where a page is lost, that is an error and no signal.
        Raises OSError."""
        os.pwrite(self._ink, data, 0)
        with memoryview(view) as whole, whole[at : at + len(data)] as part:
            os.preadv(self._ink, [part], 0)

    # --- names from numbers ---------------------------------------------------------------------------------

    def _dir(self, number: int) -> bytes:
        return self.base + b"/t%d" % (number % DIRECTORIES)

    def _file(self, number: int) -> bytes:
        path = self._dir(number) + b"/%d" % (number // DIRECTORIES % NAMES)
        return path + LOCAL if number // (DIRECTORIES * NAMES) % 6 == 5 else path

    def _sub(self, number: int) -> bytes:
        return self._dir(number) + b"/d%d" % (number // DIRECTORIES % 3)

    def _any(self, number: int) -> bytes:
        """A file, in one of the directories or below."""
        return self._sub(number) + b"/in" if number % 11 == 0 else self._file(number)

    @contextlib.contextmanager
    def _opened(self, path: bytes, flags: int) -> Any:
        descriptor = os.open(path, flags, 0o644)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    # --- content --------------------------------------------------------------------------------------------

    def _do_write(self, a: int, b: int, c: int) -> None:
        with self._opened(self._any(a), os.O_WRONLY) as file:
            os.pwrite(file, _content(c, 1 + c % 9000), b % 200_000 if c % 3 else 0)

    def _do_silent(self, a: int, b: int, c: int) -> None:
        """Other content, the same size and time."""
        path = self._any(a)
        with self._opened(path, os.O_WRONLY) as file:
            before = os.fstat(file)
            if before.st_size:
                os.pwrite(file, _content(c, min(before.st_size, 50)), 0)
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def _do_make(self, a: int, b: int, c: int) -> None:
        path = self._any(a)
        with self._opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            os.write(file, _content(c, SIZES[b % len(SIZES)]))
        os.utime(path, ns=(TIMES[0], TIMES[b % len(TIMES)]))

    def _do_append(self, a: int, b: int, c: int) -> None:
        with self._opened(self._any(a), os.O_WRONLY | os.O_APPEND) as file:
            os.write(file, _content(c, 1 + c % 300))

    def _do_truncate(self, a: int, b: int, c: int) -> None:
        os.truncate(self._any(a), (0, 100, 5000, 70_000, 200_000, b % 300_000)[c % 6])

    def _do_fallocate(self, a: int, b: int, c: int) -> None:
        with self._opened(self._any(a), os.O_RDWR) as file:
            mode = _FALLOCATE[c % len(_FALLOCATE)]
            if _LIBC.fallocate(file, mode, b % 150_000, 1 + c % 60_000) != 0:
                raise OSError(ctypes.get_errno(), "fallocate")

    def _do_map(self, a: int, b: int, c: int) -> None:
        with self._opened(self._any(a), os.O_RDWR) as file:
            size = os.fstat(file).st_size
            with contextlib.closing(mmap.mmap(file, size)) as view:
                self._mark(view, b % max(1, size - 60), _content(c, min(size, 20)))

    def _do_copy(self, a: int, b: int, c: int) -> None:
        with self._opened(self._file(a), os.O_RDONLY) as source, self._opened(self._file(b), os.O_RDWR) as target:
            os.copy_file_range(source, target, 1 + c % 100_000, 0, c % 50_000)

    # --- attributes -----------------------------------------------------------------------------------------

    def _do_times(self, a: int, b: int, c: int) -> None:
        os.utime(self._any(a), ns=(TIMES[c % len(TIMES)], TIMES[b % len(TIMES)]))

    def _do_mode(self, a: int, b: int, c: int) -> None:
        path = self._any(a)
        os.chown(path, b % 3, c % 3)
        os.chmod(path, (0o600, 0o644, 0o755, 0o4755)[c % 4])

    def _do_xattr(self, a: int, b: int, c: int) -> None:
        path, name = self._any(a), b"user.k%d" % (b % 3)
        if c % 4:
            os.setxattr(path, name, _content(c, 8))
        else:
            os.removexattr(path, name)

    def _do_acl(self, a: int, b: int, c: int) -> None:
        entries = ((1, 6, -1), (2, b % 8, c % 5), (4, 4, -1), (16, 7, -1), (32, 4, -1))
        packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", tag, perm, who) for tag, perm, who in entries)
        os.setxattr(self._file(a), b"system.posix_acl_access", packed)

    # --- names ----------------------------------------------------------------------------------------------

    def _do_unlink(self, a: int, b: int, c: int) -> None:
        os.unlink(self._any(a))

    def _do_rename(self, a: int, b: int, c: int) -> None:
        os.rename(self._any(a), self._any(b))

    def _do_replace(self, a: int, b: int, c: int) -> None:
        """As an editor saves: another inode, the name and the time of before."""
        path = self._file(a)
        new = path + b".new"
        size = os.lstat(path).st_size if b % 2 else 100
        with self._opened(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            os.write(file, _content(c, min(size, 100_000)))
        os.utime(new, ns=(TIMES[0], TIMES[b % len(TIMES)]))
        os.rename(new, path)

    def _do_link(self, a: int, b: int, c: int) -> None:
        os.link(self._any(a), self._any(b))

    def _do_relink(self, a: int, b: int, c: int) -> None:
        """One name less, one more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._file(b))
        os.link(self._file(a), self._file(b))

    def _do_exchange(self, a: int, b: int, c: int) -> None:
        one, other = (self._dir(a), self._dir(b)) if c % 6 == 0 else (self._any(a), self._any(b))
        if c % 6 == 1:
            other = self._sub(b)
        if _LIBC.renameat2(-100, one, -100, other, 2) != 0:
            raise OSError(ctypes.get_errno(), "exchange")

    def _do_aside(self, a: int, b: int, c: int) -> None:
        """A directory is renamed, and back or to another's place."""
        one, aside = self._dir(a), self.base + b"/aside"
        os.rename(one, aside)
        os.rename(aside, one)

    def _do_mkdir(self, a: int, b: int, c: int) -> None:
        path = self._sub(a)
        os.mkdir(path, 0o755)
        with self._opened(path + b"/in", os.O_WRONLY | os.O_CREAT) as file:
            os.write(file, _content(c, 100))

    def _do_rmdir(self, a: int, b: int, c: int) -> None:
        path = self._sub(a)
        for name in os.listdir(path):
            os.unlink(path + b"/" + name)
        os.rmdir(path)

    def _do_movedir(self, a: int, b: int, c: int) -> None:
        os.rename(self._sub(a), self._sub(b))

    def _do_symlink(self, a: int, b: int, c: int) -> None:
        path = self._file(a) + b"s"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.symlink(b"target%d" % (c % 5), path)

    def _do_fifo(self, a: int, b: int, c: int) -> None:
        path = self._file(a) + b"p"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.mknod(path, 0o010644)

    def _do_temporary(self, a: int, b: int, c: int) -> None:
        """A file without a name, which gets one; or two, and loses one."""
        with self._opened(self._dir(a), os.O_TMPFILE | os.O_RDWR) as file:
            os.write(file, _content(c, 300))
            source = b"/proc/self/fd/%d" % file
            os.link(source, self._file(b), follow_symlinks=True)
            if c % 3 == 0:
                os.unlink(self._file(b))
                os.link(source, self._file(a), follow_symlinks=True)
            os.write(file, _content(c + 1, 200))

    # --- files that stay open -------------------------------------------------------------------------------

    def _handle(self, number: int) -> int:
        if not self.handles:
            raise OSError(errno.EBADF, "nothing is open")
        return self.handles[number % len(self.handles)]

    def _do_open(self, a: int, b: int, c: int) -> None:
        flags = os.O_RDWR | (os.O_CREAT if c % 2 else 0) | (os.O_TRUNC if c % 5 == 0 else 0)
        if len(self.handles) > 5:
            os.close(self.handles.pop(b % len(self.handles)))
        self.handles.append(os.open(self._any(a), flags, 0o644))

    def _do_open_write(self, a: int, b: int, c: int) -> None:
        os.pwrite(self._handle(a), _content(c, 1 + c % 5000), b % 100_000 if c % 2 else 0)

    def _do_open_truncate(self, a: int, b: int, c: int) -> None:
        os.ftruncate(self._handle(a), (0, 100, 5000, 70_000)[b % 4])

    def _do_open_unlink(self, a: int, b: int, c: int) -> None:
        """Removed while it is open, and written on."""
        path = self._file(a)
        file = os.open(path, os.O_RDWR)
        self.handles.append(file)
        os.unlink(path)
        os.pwrite(file, _content(c, 500), 0)

    def _do_border(self, a: int, b: int, c: int) -> None:
        """Renamed over the border of what is not replicated, while it is open, and written on."""
        name = self._dir(a) + b"/%d" % (a // DIRECTORIES % NAMES)
        one, other = (name, name + LOCAL) if c % 2 else (name + LOCAL, name)
        file = os.open(one, os.O_RDWR | (os.O_CREAT if b % 3 == 0 else 0), 0o644)
        self.handles.append(file)
        os.pwrite(file, _content(b, 1 + b % 3000), 0)
        os.rename(one, other)
        os.pwrite(file, _content(c, 1 + c % 5000), b % 80_000 if c % 3 else 0)

    def _do_border_dir(self, a: int, b: int, c: int) -> None:
        """A directory over the border, with a file of it that is open."""
        name = self._sub(a)
        one, other = (name, name + LOCAL) if c % 2 else (name + LOCAL, name)
        if b % 2:
            with contextlib.suppress(FileNotFoundError):
                os.link(one + b"/in", one + b"/second")
        file = os.open(one + b"/in", os.O_RDWR)
        self.handles.append(file)
        os.rename(one, other)
        os.pwrite(file, _content(c, 1 + c % 500), 0)

    def _do_map_keep(self, a: int, b: int, c: int) -> None:
        """Memory that stays mapped."""
        with self._opened(self._any(a), os.O_RDWR) as file:
            if len(self.maps) > 3:
                self.maps.pop(b % len(self.maps)).close()
            self.maps.append(mmap.mmap(file, os.fstat(file).st_size))

    def _do_map_write(self, a: int, b: int, c: int) -> None:
        if not self.maps:
            raise OSError(errno.EBADF, "nothing is mapped")
        view = self.maps[a % len(self.maps)]
        self._mark(view, b % max(1, len(view) - 60), _content(c, min(len(view), 20)))
        if c % 2:
            view.flush()

    def _do_open_sync(self, a: int, b: int, c: int) -> None:
        os.fsync(self._handle(a))

    def _do_open_close(self, a: int, b: int, c: int) -> None:
        os.close(self.handles.pop(self.handles.index(self._handle(a))))

    def _do_sync(self, a: int, b: int, c: int) -> None:
        with self._opened(self._any(a), os.O_RDONLY) as file:
            os.fsync(file)


KINDS: Final = tuple(sorted(name[4:] for name in dir(Application) if name.startswith("_do_")))
_WEIGHTS: Final = {
    "make": 5,
    "silent": 5,
    "link": 3,
    "relink": 3,
    "rename": 3,
    "replace": 3,
    "border": 2,
    "unlink": 2,
    "write": 3,
}


def changes(rnd: random.Random, count: int) -> list[Change]:
    """Random ones."""
    kinds = rnd.choices(KINDS, [_WEIGHTS.get(kind, 1) for kind in KINDS], k=count)
    most = DIRECTORIES * NAMES * 11
    return [(kind, rnd.randrange(most), rnd.randrange(most * 1000), rnd.randrange(1 << 20)) for kind in kinds]


def foundation() -> list[Change]:
    """What a case begins with: some of everything."""
    return [
        *(("make", number, number, number) for number in range(DIRECTORIES * NAMES) if number % 3),
        *(("link", number, number + 12, 0) for number in range(1, 20, 5)),
        *(("mkdir", number, 0, number) for number in range(0, 8, 3)),
    ]
