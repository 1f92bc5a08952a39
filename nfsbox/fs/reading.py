"""How reads are answered: what is large goes from the page cache of the data to the kernel without a copy here.

Nothing waits for the peer, and nobody else writes underneath, so the kernel may read far ahead.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Final

from nfsbox.fs import kernel

log = logging.getLogger("nfsbox")

#: Smaller answers are cheaper copied than passed on.
_SPLICE_FROM: Final = 64 << 10
_PIPE: Final = 1 << 20  # what anybody may have: fs.pipe-max-size
_PAGE: Final = 4096
#: What the kernel asks for at once when it reads ahead: an answer that fits into a pipe with its header.
READ_AHEAD: Final = _PIPE - 64 * 1024


class Answers:
    """Answers READ requests of one /dev/fuse descriptor, for one thread. A context manager."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._copied = memoryview(bytearray(kernel.MAX_WRITE + _PAGE))
        self._source = self._sink = -1
        self._most = 0
        self._renew()

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for descriptor in (self._source, self._sink):
            if descriptor >= 0:
                os.close(descriptor)
        self._source = self._sink = -1

    def _renew(self) -> None:
        """An empty pipe; what a failure left in the old one is in nobody's way."""
        self._close()
        self._source, self._sink = os.pipe2(os.O_CLOEXEC)
        try:
            size = fcntl.fcntl(self._sink, fcntl.F_SETPIPE_SZ, _PIPE)
        except OSError:
            size = fcntl.fcntl(self._sink, fcntl.F_GETPIPE_SZ)  # the limits of this machine are smaller
        # The header takes a page of its own, and data that begins inside a page one more.
        self._most = size - 2 * _PAGE

    def read(self, unique: int, handle: int, offset: int, count: int) -> None:
        """Answer one request. Raises OSError when the kernel does not take the answer."""
        if _SPLICE_FROM <= count <= self._most and self._passed_on(unique, handle, offset, count):
            return
        try:
            got = os.preadv(handle, [self._copied[:count]], offset)
        except OSError as error:
            os.write(self._fd, kernel.OUT.pack(kernel.OUT.size, -(error.errno or errno.EIO), unique))
            return
        os.writev(self._fd, (kernel.OUT.pack(kernel.OUT.size + got, 0, unique), self._copied[:got]))

    def _passed_on(self, unique: int, handle: int, offset: int, count: int) -> bool:
        """False when it could not be, or is shorter than its header says: it is copied then."""
        size = kernel.OUT.size
        got = 0
        try:
            os.write(self._sink, kernel.OUT.pack(size + count, 0, unique))
            while got < count:
                more = os.splice(handle, self._sink, count - got, offset_src=offset + got)
                if not more:
                    break
                got += more
        except OSError as error:
            self._renew()
            if error.errno == errno.EINVAL:
                self._most = 0  # the file system that holds the data cannot
            return False
        if got < count:
            os.read(self._source, size + got)
            return False
        try:
            os.splice(self._source, self._fd, size + count)
        except OSError:
            self._renew()
            raise
        return True


def read_ahead(device: int) -> None:
    """Let the kernel read far ahead on a mount; it grants 128 KiB, which are eight requests for each MiB."""
    path = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        path.write_text(str(READ_AHEAD >> 10))
    except OSError as error:
        log.info("reads stay at what the kernel reads ahead by itself: %s: %s", path, error.strerror)
