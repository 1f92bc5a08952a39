"""Small change of a file system: writing in pieces, and what tells an inode from others that had its number."""

from __future__ import annotations

import errno
import hashlib
from typing import Final

from safekit import syscalls
from safekit.disk import steps

PUNCH_HOLE: Final = 0x3  # with KEEP_SIZE
#: Modes of fallocate that change one file in place: allocate, punch, zero; those that move data are refused.
FALLOCATE_MODES: Final = frozenset({0x0, 0x1, PUNCH_HOLE, 0x10, 0x11})

#: Paths travel through fusepy as text; this encoding keeps every byte.
ENCODING: Final = "latin-1"

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
            done += steps.data_write(descriptor, data[done : done + PIECE], offset + done)
        except OSError:
            if done:
                return done
            raise
    return done


_HANDLE_FID: Final = 0x200  # since Linux 6.5: of file systems, too, whose handles cannot be opened
_NO_HANDLES: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOVERFLOW})


def generation(above: int, name: bytes = b"") -> int:
    """The generation of a name in an open directory (a link's own), or of the open file itself. Where the file system
    has no handles, the time at which the file was made stands for it; 0 when it does not tell that either.
    Raises OSError."""
    for flags in (0, _HANDLE_FID):
        try:
            held = syscalls.handle(above, name, flags)
        except OSError as error:
            if error.errno not in _NO_HANDLES:
                raise
        else:
            return int.from_bytes(hashlib.blake2b(held, digest_size=8).digest(), "little") or 1
    return syscalls.birth_ns(above, name) or 0
