"""What libfuse calls: fusepy's methods, those that it lacks, and those that must not lose anything of what they carry.

A callback belongs to a request of the kernel, which it knows nothing of: `Asked` does.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import fuse

from nfsbox.fs import kernel
from safekit.rfs.system import ENCODING

if TYPE_CHECKING:
    from nfsbox.fs.operations import Operations

log = logging.getLogger("nfsbox")

_UTIME_NOW = (1 << 30) - 1
_UTIME_OMIT = (1 << 30) - 2


class Asked(threading.local):
    """The request that libfuse works on, in each thread."""

    opcode = kernel.OWN
    node = 0
    names: int | None = None
    """How many names its file has; None: the reply says it."""
    shared = False
    """The kernel knows its file by two nodes, and must not keep what each of them shows."""
    told: tuple[bytes, bytes] | None = None
    """The two paths of a rename of our own, as libfuse takes them."""
    result = 0
    """What a rename of our own is answered."""

    def begin(self, opcode: int, node: int) -> None:
        """The next request."""
        self.opcode, self.node = opcode, node
        self.names, self.shared, self.told = None, False, None


class Callbacks(fuse.FUSE):  # type: ignore[misc]
    """Of one mount."""

    def __init__(self, operations: Operations, asked: Asked) -> None:
        # fusepy's own __init__ mounts and serves until the end; its methods are what we inherit.
        self.operations = operations
        self.raw_fi = True
        self.encoding = ENCODING
        self.use_ns = True
        self._asked = asked
        self._stat_type = fuse.c_stat

    def structure(self) -> Any:
        """What libfuse calls: of each operation that there is, the method of this object. It must live as long as the
        session does."""
        ops = fuse.fuse_operations()
        for entry in fuse.fuse_operations._fields_:
            name, prototype = entry[:2]
            wanted = {"ftruncate": "truncate", "fgetattr": "getattr"}.get(name, name)
            value = getattr(self.operations, wanted, None)
            if value is None:
                continue
            if hasattr(prototype, "argtypes"):
                value = prototype(partial(self._wrapper, getattr(self, name)))
            setattr(ops, name, value)
        return ops

    @staticmethod
    def _wrapper(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs) or 0
        except OSError as error:
            return -(error.errno or errno.EIO)
        except Exception:
            log.error("error inside %s: %s", getattr(func, "__name__", func), traceback.format_exc())
            return -errno.EIO

    def init(self, conn: Any) -> Any:
        return None

    def destroy(self, private_data: Any) -> None:
        return None

    def rename(self, old: bytes, new: bytes) -> int:
        """One of our own only asks, or tells, what libfuse takes names for (`nfsbox/fs/exchange.py`)."""
        if self._asked.opcode == kernel.OWN:
            self._asked.told = (old, new)
            return self._asked.result
        super().rename(old, new)
        return 0

    def getattr(self, path: bytes, buf: Any) -> int:
        return self._fill(buf.contents, self.operations.lstat(path))

    def fgetattr(self, path: bytes, buf: Any, fip: Any) -> int:
        status = os.fstat(fip.contents.fh) if fip else self.operations.lstat(path)
        return self._fill(buf.contents, status)

    def _fill(self, target: Any, status: os.stat_result) -> int:
        hidden = self.operations.hidden
        target.st_ino = status.st_ino
        target.st_mode = status.st_mode
        # A name that stands for an unlinked open file is none that users may count.
        self._asked.names = target.st_nlink = status.st_nlink
        if status.st_ino in hidden:
            target.st_nlink -= hidden[status.st_ino]
            self._asked.names = target.st_nlink  # libfuse takes one more off where it has hidden the name
            self._asked.shared = True
        target.st_uid = status.st_uid
        target.st_gid = status.st_gid
        target.st_rdev = status.st_rdev
        target.st_size = status.st_size
        target.st_blocks = status.st_blocks
        target.st_blksize = status.st_blksize
        time = target.st_atimespec
        time.tv_sec, time.tv_nsec = divmod(status.st_atime_ns, 1_000_000_000)
        time = target.st_mtimespec
        time.tv_sec, time.tv_nsec = divmod(status.st_mtime_ns, 1_000_000_000)
        time = target.st_ctimespec
        time.tv_sec, time.tv_nsec = divmod(status.st_ctime_ns, 1_000_000_000)
        return 0

    def utimens(self, path: bytes, buf: Any) -> int:
        def value(spec: Any) -> int | None:
            if spec.tv_nsec == _UTIME_OMIT:
                return None
            return -1 if spec.tv_nsec == _UTIME_NOW else spec.tv_sec * 1_000_000_000 + spec.tv_nsec

        times = (value(buf.contents.actime), value(buf.contents.modtime)) if buf else (-1, -1)
        self.operations.utimens(path.decode(ENCODING), times)
        return 0

    def readdir(self, path: Any, buf: Any, filler: Any, offset: int, fip: Any) -> int:
        entry = self._stat_type()
        for name, inode, mode in self.operations.listing(fip.contents.fh):
            entry.st_ino = inode
            entry.st_mode = mode
            if filler(buf, name, entry, 0):
                break
        return 0

    def listxattr(self, path: bytes, namebuf: Any, size: int) -> int:
        names = b"".join(name + b"\0" for name in self.operations.xattr_names(path))
        if not namebuf:
            return len(names)
        if len(names) > size:
            return -errno.ERANGE
        ctypes.memmove(namebuf, names, len(names))
        return len(names)

    def setxattr(self, path: bytes, name: bytes, value: Any, size: int, options: int, *_: Any) -> int:
        data = ctypes.string_at(value, size)
        self.operations.setxattr(path.decode(ENCODING), name.decode(ENCODING), data, options)
        return 0

    def getxattr(self, path: bytes, name: bytes, value: Any, size: int, *_: Any) -> int:
        data: bytes = self.operations.getxattr(path.decode(ENCODING), name.decode(ENCODING))
        if not size:
            return len(data)
        if len(data) > size:
            return -errno.ERANGE
        ctypes.memmove(value, data, len(data))
        return len(data)
