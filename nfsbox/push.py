"""What the primary sends so that an entry at the secondary becomes equal (R6). Everything goes through the ordered
stream: a pushed zone stands before or after a write of the application, never in the middle."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from nfsbox.engine import Engine, Root
from nfsbox.exclusions import parent
from nfsbox.files import File
from nfsbox.stream import Stream
from nfsbox.system import PUNCH_HOLE
from nfsbox.wire import HEADER_SIZE, Flag, Op, Set, WireError, pack_attr

#: Data of one pushed frame; the application's writes wait behind at most _WINDOW of them.
CHUNK: Final = 256 << 10
_WINDOW: Final = 4
_PUSHED: Final = Flag.ACK | Flag.RESYNC
_ALL: Final = Set.MODE | Set.UID | Set.GID | Set.ATIME | Set.MTIME
_ACL_PREFIX: Final = "system.posix_acl_"


class Bucket:
    """Bytes per second of a resynchronisation, over all its connections (reiallowedbw); None means no limit."""

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, size: int) -> None:
        """Wait until `size` bytes may be sent."""
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            # At most 50 ms may be saved up: the cap holds over any short interval too.
            start = max(self._free_at, now - 0.05)
            self._free_at = start + size / self.rate
        if start > now:
            time.sleep(start - now)


@dataclass(frozen=True)
class Pushed:
    """What the primary has at a path: kind file, dir, other or gone; `fresh`: the secondary has no content of it."""

    kind: str
    size: int = 0
    inode: int = 0
    fresh: bool = False


def entry_body(real: bytes, status: os.stat_result, *, acl: bool, fresh: bool) -> tuple[bytes, bytes]:
    """(ATTR, msgpack) of an entry: link target, extended attributes, number of names."""
    more: dict[str, Any] = {"n": status.st_nlink, "acl": acl}
    if fresh:
        more["fresh"] = True
    if stat.S_ISLNK(status.st_mode):
        more["t"] = os.readlink(real)
    xattrs = read_xattrs(real, acl=acl)
    if xattrs:
        more["x"] = xattrs
    attr = pack_attr(
        _ALL, status.st_mode, status.st_uid, status.st_gid, status.st_atime_ns, status.st_mtime_ns, status.st_rdev,
        status.st_size,
    )
    return attr, msgpack.packb(more)


def read_xattrs(real: bytes, *, acl: bool) -> dict[bytes, bytes]:
    """Extended attributes that are replicated."""
    try:
        names = os.listxattr(real, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    found = {}
    for name in names:
        if acl or not name.startswith(_ACL_PREFIX):
            try:
                found[os.fsencode(name)] = os.getxattr(real, name, follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.ENODATA:  # it was removed meanwhile
                    raise
    return found


def send_entry(
    engine: Engine, root: Root, stream: Stream, path: bytes, *, fresh: bool = False
) -> tuple[int, os.stat_result]:
    """Send one entry without content; the caller holds the order lock. `fresh`: as a new object, whatever the
    secondary has there. Raises OSError when it does not exist."""
    real = root.real(path)
    status = os.lstat(real)
    attr, more = entry_body(real, status, acl=engine.settings.acl, fresh=fresh)
    number = stream.send(
        Op.ENTRY, root.index, body=attr + path + more, extra=len(path), flags=_PUSHED
    )
    if stat.S_ISREG(status.st_mode):
        file = engine.files.get(root.index, status.st_ino)
        if file is not None:
            stream.rebind(file)
    return number, status


def kind_of(mode: int) -> str:
    """file, dir or other."""
    return "file" if stat.S_ISREG(mode) else "dir" if stat.S_ISDIR(mode) else "other"


class Pusher:
    """The pushes of one resynchronisation."""

    def __init__(self, engine: Engine, bucket: Bucket) -> None:
        self.engine = engine
        self.bucket = bucket

    def _stream(self) -> Stream:
        stream = self.engine.stream
        if stream is None:
            raise WireError(errno.ENOTCONN, "the secondary is not connected")
        return stream

    def _wait(self, stream: Stream, number: int) -> None:
        code = stream.wait(number)
        if code == errno.ENOTCONN:
            raise WireError(code, stream.reason or "the stream to the secondary broke")
        if code:
            raise OSError(code, f"{os.strerror(code)} on the secondary")

    def entry(self, root: Root, path: bytes, *, fresh: bool = False) -> Pushed:
        """Make the entry at the secondary as it is here. Raises OSError, WireError."""
        engine = self.engine
        with engine.order:
            stream = self._stream()
            try:
                number, status = send_entry(engine, root, stream, path, fresh=fresh)
            except (FileNotFoundError, NotADirectoryError):
                return Pushed("gone")
        self._wait(stream, number)
        return Pushed(kind_of(status.st_mode), status.st_size, status.st_ino, stream.was_fresh(number))

    def link(self, root: Root, existing: bytes, path: bytes) -> bool:
        """Make `path` another name of `existing`, if it is one here. True when the file was written
        meanwhile: that may have gone to another file at `path` there. Raises OSError."""
        engine = self.engine
        with engine.order:
            stream = self._stream()
            status = os.lstat(root.real(path))
            if not os.path.samestat(os.lstat(root.real(existing)), status):
                raise OSError(errno.ESTALE, "the two names do not belong together any more")
            number = stream.send(Op.LINK, root.index, body=existing + path, extra=len(existing), flags=_PUSHED)
            file = engine.files.get(root.index, status.st_ino)
            if file is not None:
                stream.rebind(file, existing)
        self._wait(stream, number)
        return (root.index, status.st_ino) in stream.bound

    def delete(self, root: Root, path: bytes) -> bool:
        """Remove at the secondary what does not exist here; False when it exists. Raises OSError."""
        engine = self.engine
        with engine.order:
            stream = self._stream()
            if os.path.lexists(root.real(path)) and not root.exclusions.match(path):
                return False
            number = stream.send(Op.REMOVE, root.index, body=path, flags=_PUSHED)
        self._wait(stream, number)
        return True

    def finish(self, root: Root, path: bytes) -> None:
        """Times and size once more, after the content. Raises OSError."""
        self.entry(root, path)

    def flush(self, timeout: float = 600.0) -> None:
        """Everything sent so far on the secondary's disk. Raises OSError."""
        with self.engine.order:
            stream = self._stream()
            number = stream.send(Op.CHECKPOINT, 0, flags=0)
        code = stream.wait_late(number, timeout)
        if code:
            raise OSError(code, os.strerror(code))

    # --- content --------------------------------------------------------------------------------------------

    def zone(self, root: Root, path: bytes, offset: int, length: int) -> tuple[int, int]:
        """Send a range of a file; the bytes of data sent, and the inode. A range beyond the end is nothing.
        Raises FileNotFoundError, OSError, WireError."""
        engine = self.engine
        descriptor = os.open(root.real(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            inode = os.fstat(descriptor).st_ino
            with engine.order:
                stream = self._stream()
                if os.lstat(root.real(path)).st_ino != inode:
                    raise FileNotFoundError(errno.ENOENT, "another file has this name now")
                file = engine.files.opened(root.index, inode, path, local=False)
            try:
                return self._ranges(stream, root, file, descriptor, offset, length), inode
            finally:
                with engine.order:
                    if engine.files.closed(file) and file.session == stream.identity:
                        stream.send(Op.CLOSE, root.index, file.fid, flags=0)  # `finish` sets the time
        finally:
            os.close(descriptor)

    def _ranges(
        self, stream: Stream, root: Root, file: File, descriptor: int, offset: int, length: int
    ) -> int:
        sent = 0
        waiting: list[int] = []
        end = min(offset + length, os.fstat(descriptor).st_size)
        frame = bytearray(HEADER_SIZE + CHUNK)
        view = memoryview(frame)
        while offset < end:
            data_at, data_end = _extent(descriptor, offset, end)
            if data_at > offset:
                waiting.append(self._hole(stream, root, file, descriptor, offset, data_at - offset))
                offset = data_at
            while offset < data_end:
                size = min(CHUNK, data_end - offset)
                self.bucket.take(size)
                number = self._chunk(stream, root, file, descriptor, offset, view[: HEADER_SIZE + size])
                stream.reintegrated += size
                sent += size
                offset += size
                waiting.append(number)
                if len(waiting) > _WINDOW:
                    self._wait(stream, waiting.pop(0))
        for number in waiting:
            self._wait(stream, number)
        return sent

    def _chunk(
        self, stream: Stream, root: Root, file: File, descriptor: int, offset: int, view: memoryview
    ) -> int:
        """Read without the lock, so that nobody waits for the disk; send if no change came in between."""
        engine = self.engine
        for attempt in range(8):
            with engine.order:
                version = file.version
            got = os.preadv(descriptor, [view[HEADER_SIZE:]], offset)
            with engine.order:
                if file.version != version:
                    if attempt < 6:
                        continue
                    # The application writes this file without pause: read what is in memory now, under the lock.
                    got = os.preadv(descriptor, [view[HEADER_SIZE:]], offset)
                if self.engine.stream is not stream:
                    raise WireError(errno.ENOTCONN, stream.reason or "the stream to the secondary broke")
                stream.bind(file)
                return stream.send_write(root.index, file.fid, offset, view[: HEADER_SIZE + got], _PUSHED)
        raise AssertionError("unreachable: the seventh attempt does not look at the version")

    def _hole(
        self, stream: Stream, root: Root, file: File, descriptor: int, offset: int, length: int
    ) -> int:
        engine = self.engine
        with engine.order:
            if self.engine.stream is not stream:
                raise WireError(errno.ENOTCONN, stream.reason or "the stream to the secondary broke")
            stream.bind(file)
            data_at, _ = _extent(descriptor, offset, offset + length)
            hole = min(length, data_at - offset)
            # What was written into the hole meanwhile has been sent as a write, or will be, after this.
            return stream.send(
                Op.FALLOCATE, root.index, file.fid, offset, max(hole, 1), extra=PUNCH_HOLE, flags=_PUSHED
            ) if hole else stream.send(Op.PING, 0)


def _extent(descriptor: int, offset: int, end: int) -> tuple[int, int]:
    """(start, end) of the next data at or behind `offset`, both at most `end`."""
    try:
        start = os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return end, end
        return offset, end  # this file system does not tell holes
    if start >= end:
        return end, end
    return start, min(os.lseek(descriptor, start, os.SEEK_HOLE), end)


def export(engine: Engine, root: Root, stream: Stream, path: bytes) -> int:
    """Send an entry whole, with everything below, under the order lock: it has just become a replicated one (it was
    renamed or linked out of what stays local). Returns the number to wait for."""
    number = 0
    real = root.real(path)
    pending = [(path, real)]
    made = [(parent(path), os.path.dirname(real))]
    while pending:
        here, place = pending.pop()
        if root.exclusions.match(here):
            continue
        number, status = send_entry(engine, root, stream, here)
        if stat.S_ISDIR(status.st_mode):
            made.append((here, place))
            with os.scandir(place) as listing:
                pending += [(here + b"/" + entry.name, place + b"/" + entry.name) for entry in listing]
        elif stat.S_ISREG(status.st_mode) and status.st_size:
            number = _export_content(stream, root, place, here, status)
    for here, place in made:
        attr = pack_attr(Set.MTIME, mtime=os.lstat(place).st_mtime_ns)
        number = stream.send(Op.PSETATTR, root.index, body=attr + here)
    return number


def _export_content(stream: Stream, root: Root, real: bytes, path: bytes, status: os.stat_result) -> int:
    fid = stream.new_fid()
    stream.send(Op.OPEN, root.index, fid, body=path, flags=0)
    descriptor = os.open(real, os.O_RDONLY | os.O_CLOEXEC)
    try:
        offset = 0
        while offset < status.st_size:
            start, end = _extent(descriptor, offset, status.st_size)
            while start < end:
                data = os.pread(descriptor, min(CHUNK, end - start), start)
                if not data:
                    break
                stream.send(Op.WRITE, root.index, fid, start, body=data, flags=0)
                start += len(data)
            offset = max(end, start)
    finally:
        os.close(descriptor)
    attr = pack_attr(Set.MTIME, mtime=status.st_mtime_ns)
    number = stream.send(Op.SETATTR, root.index, fid, body=attr)
    stream.send(Op.CLOSE, root.index, fid, flags=0)
    return number
