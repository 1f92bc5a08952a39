"""System calls that Python does not offer, and other small change of a file system."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
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
_AT_EMPTY_PATH = 0x1000
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


def set_times(target: bytes | int, atime_ns: int | None, mtime_ns: int | None, above: int = _AT_FDCWD) -> None:
    """Set times of a name in the directory `above` (a symbolic link's own) or of a descriptor; None leaves one as it
    is. Raises OSError."""
    times = _TIMES.pack(*_timespec(atime_ns), *_timespec(mtime_ns))
    if isinstance(target, int):
        _check(_libc.futimens(target, times))
    else:
        _check(_libc.utimensat(above, target, times, _AT_SYMLINK_NOFOLLOW))


_STATX_BTIME = 0x800
_BTIME = struct.Struct("@qI")


def birth_ns(above: int, name: bytes) -> int | None:
    """When the inode of a name in the directory `above`, or of the open file itself, was made, in ns; None when the
    file system does not tell.
    Raises OSError."""
    buffer = ctypes.create_string_buffer(256)
    flags = _AT_SYMLINK_NOFOLLOW if name else _AT_EMPTY_PATH
    _check(_libc.statx(above, name, flags, _STATX_BTIME, buffer))
    if not int.from_bytes(buffer.raw[:4], "little") & _STATX_BTIME:
        return None
    seconds, nanoseconds = _BTIME.unpack_from(buffer, 80)
    return int(seconds * 1_000_000_000 + nanoseconds)


_EMPTY_PATH: Final = 0x1000
_HANDLE_FID: Final = 0x200  # since Linux 6.5: of file systems, too, whose handles cannot be opened
_ROOM: Final = 128
_HANDLE: Final = struct.Struct("@Ii")  # bytes, type
_libc.name_to_handle_at.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]


def generation(above: int, name: bytes = b"") -> int:
    """The generation of a name in an open directory (a link's own), or of the open file itself. Where the file system
    has no handles, the time at which the file was made stands for it; 0 when it does not tell that either.
    Raises OSError."""
    buffer = ctypes.create_string_buffer(_HANDLE.size + _ROOM)
    mount = ctypes.c_int()
    for flags in (0, _HANDLE_FID):
        _HANDLE.pack_into(buffer, 0, _ROOM, 0)
        found = _libc.name_to_handle_at(
            above, name, buffer, ctypes.byref(mount), flags if name else flags | _EMPTY_PATH
        )
        if found == 0:
            size, kind = _HANDLE.unpack_from(buffer)
            held = b"%d " % kind + buffer.raw[_HANDLE.size : _HANDLE.size + size]
            return int.from_bytes(hashlib.blake2b(held, digest_size=8).digest(), "little") or 1
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOVERFLOW):
            raise OSError(code, os.strerror(code))
    return birth_ns(above, name) or 0
