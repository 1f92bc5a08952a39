"""System calls that Python does not offer, and other small change of a file system."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

PUNCH_HOLE: Final = 0x3  # with KEEP_SIZE
#: Modes of fallocate that change one file in place: allocate, punch, zero; those that move data are refused.
FALLOCATE_MODES: Final = frozenset({0x0, 0x1, PUNCH_HOLE, 0x10, 0x11})

#: Paths travel through fusepy as text; this encoding keeps every byte.
ENCODING: Final = "latin-1"

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_RENAME_EXCHANGE = 2
_OMIT = (1 << 30) - 2
_TIMES = struct.Struct("@llll")


#: Data is written in pieces of this size: the kernel makes page cache units as large as the write, and every later
#: small write to a large unit costs what the unit's size costs (ext4: 3 us in 4 KiB units, 14 us in 1 MiB units).
PIECE: Final = 128 << 10


def write_pieces(descriptor: int, data: memoryview, offset: int) -> int:
    """Write at an offset; returns the bytes written, fewer than asked when the disk is full after some.
    Raises OSError when nothing could be written."""
    size = len(data)
    done = 0
    while done < size:
        try:
            done += os.pwrite(descriptor, data[done : done + PIECE], offset + done)
        except OSError:
            if done:
                return done
            raise
    return done


def _timespec(value: int | None) -> tuple[int, int]:
    return (0, _OMIT) if value is None else divmod(value, 1_000_000_000)


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). Raises OSError."""
    _check(_libc.fallocate(descriptor, mode, offset, length))


def rename_exchange(one: bytes, other: bytes) -> None:
    """Two names change what they stand for, at once. Raises OSError."""
    _check(_libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE))


def set_mtime(path: bytes, mtime_ns: int) -> None:
    """Set the modification time only; a symbolic link's own. Raises OSError."""
    set_times(path, None, mtime_ns)


def set_times(target: bytes | int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set times of a path (a symbolic link's own) or descriptor; None leaves one as it is. Raises OSError."""
    times = _TIMES.pack(*_timespec(atime_ns), *_timespec(mtime_ns))
    if isinstance(target, int):
        _check(_libc.futimens(target, times))
    else:
        _check(_libc.utimensat(_AT_FDCWD, target, times, _AT_SYMLINK_NOFOLLOW))


_STATX_BTIME = 0x800
_BTIME = struct.Struct("@qI")


def birth_ns(path: bytes) -> int | None:
    """When the inode was made, in ns; None when the file system does not tell. Raises OSError."""
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statx(_AT_FDCWD, path, _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer))
    if not int.from_bytes(buffer.raw[:4], "little") & _STATX_BTIME:
        return None
    seconds, nanoseconds = _BTIME.unpack_from(buffer, 80)
    return int(seconds * 1_000_000_000 + nanoseconds)


def entry_mode(entry: os.DirEntry[bytes]) -> int:
    """Type of a directory entry as bits of a mode, without a stat where the file system tells it."""
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
