"""The empty directory under a mount: nobody may write in it.

What is written there (by a container or a service whose mount namespace does not have the mount, or after a crash by
whatever starts before the module) lies beside the data, unseen and replicated by nobody. The mode keeps users out; the
immutable attribute root as well, where the file system and our rights allow it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

_GET_FLAGS: Final = 0x80086601
_SET_FLAGS: Final = 0x40086602
_IMMUTABLE: Final = 0x10
_FLAGS: Final = struct.Struct("@l")
#: The file system has no such attribute, or we are in a container that may not set it.
_UNABLE: Final = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES})


def _immutable(path: bytes, wanted: bool) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        (flags,) = _FLAGS.unpack(fcntl.ioctl(descriptor, _GET_FLAGS, bytes(_FLAGS.size)))
        new = flags | _IMMUTABLE if wanted else flags & ~_IMMUTABLE
        if new != flags:
            fcntl.ioctl(descriptor, _SET_FLAGS, _FLAGS.pack(new))
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def seal(path: bytes) -> bool:
    """Let nobody write in an empty directory; False where root still can. Raises OSError."""
    unseal(path)
    os.chmod(path, 0)
    return _immutable(path, True)


def unseal(path: bytes) -> None:
    """It can be removed again. Raises OSError."""
    _immutable(path, False)
