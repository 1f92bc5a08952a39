"""What the primary sends so that an entry at the secondary becomes equal (R6). Everything goes through the ordered
stream: a pushed zone stands before or after a write of the application, never in the middle."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgpack

from nfsbox.pair.engine import Engine, Root
from nfsbox.pair.files import File
from nfsbox.pair.stream import Stream
from safekit.rfs.exclusions import parent
from safekit.rfs.identity import NOBODY, Identity
from safekit.rfs.system import PUNCH_HOLE, generation
from safekit.rfs.tree import Tree
from safekit.rfs.wire import HEADER_SIZE, SMALL, Flag, Op, Set, WireError, pack_attr

#: Data of one pushed frame; the application's writes wait behind at most _WINDOW of them.
CHUNK: Final = 256 << 10
_WINDOW: Final = 4
_PUSHED: Final = Flag.ACK | Flag.RESYNC
_ALL: Final = Set.MODE | Set.UID | Set.GID | Set.ATIME | Set.MTIME


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
    file: Identity = NOBODY
    fresh: bool = False


@dataclass(frozen=True)
class Small:
    """What became of one of many files: file, gone, other, or single (it must be pushed by itself); code: the errno of
    the secondary, or of reading it here."""

    kind: str
    file: Identity = NOBODY
    size: int = 0
    code: int = 0


def entry_body(tree: Tree, path: bytes, status: os.stat_result, *, acl: bool, fresh: bool) -> tuple[bytes, bytes]:
    """(ATTR, msgpack) of an entry: link target, extended attributes, number of names."""
    more: dict[str, Any] = {"n": status.st_nlink, "acl": acl}
    if fresh:
        more["fresh"] = True
    if stat.S_ISLNK(status.st_mode):
        more["t"] = tree.readlink(path)
    xattrs = tree.xattrs(path, acl=acl)
    if xattrs:
        more["x"] = xattrs
    attr = pack_attr(
        _ALL,
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_atime_ns,
        status.st_mtime_ns,
        status.st_rdev,
        status.st_size,
    )
    return attr, msgpack.packb(more)


def send_entry(
    engine: Engine, root: Root, stream: Stream, path: bytes, *, fresh: bool = False
) -> tuple[int, os.stat_result]:
    """Send one entry without content; the caller holds the order lock. `fresh`: as a new object, whatever the
    secondary has there. Raises OSError when it does not exist."""
    status = root.tree.lstat(path)
    attr, more = entry_body(root.tree, path, status, acl=engine.settings.acl, fresh=fresh)
    number = stream.send(Op.ENTRY, root.index, body=attr + path + more, extra=len(path), flags=_PUSHED)
    if stat.S_ISREG(status.st_mode):
        file = engine.files.get(root.index, status.st_ino)
        if file is not None:
            stream.rebind(file, path)
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
                file = Identity(status.st_ino, root.tree.generation(path))
            except (FileNotFoundError, NotADirectoryError):
                return Pushed("gone")
        self._wait(stream, number)
        return Pushed(kind_of(status.st_mode), status.st_size, file, stream.was_fresh(number))

    def link(self, root: Root, existing: bytes, path: bytes) -> bool:
        """Make `path` another name of `existing`, if it is one here. True when the file was written
        meanwhile: that may have gone to another file at `path` there. Raises OSError."""
        engine = self.engine
        with engine.order:
            stream = self._stream()
            status = root.tree.lstat(path)
            if not os.path.samestat(root.tree.lstat(existing), status):
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
            if root.tree.exists(path) and not root.exclusions.match(path):
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

    # --- many small files -----------------------------------------------------------------------------------

    def files(self, root: Root, paths: Sequence[bytes]) -> list[Small]:
        """Make small regular files equal, whole, all on their way at once. Raises WireError."""
        stream = self._stream()
        found: list[Small] = []
        waiting: deque[tuple[int, int, int]] = deque()  # (index, number, bytes) that are not acknowledged
        under_way = 0

        def settle() -> int:
            index, number, size = waiting.popleft()
            code = stream.wait(number)
            if code == errno.ENOTCONN:
                raise WireError(code, stream.reason or "the stream to the secondary broke")
            stream.was_fresh(number)
            if code:
                found[index] = replace(found[index], code=code)
            return size

        for path in paths:
            try:
                small, number = self._small(stream, root, path)
            except OSError as error:
                if isinstance(error, WireError):
                    raise
                small, number = Small("gone", code=error.errno or errno.EIO), 0
            found.append(small)
            if number:
                waiting.append((len(found) - 1, number, small.size))
                under_way += small.size
            while under_way > _WINDOW * CHUNK:
                under_way -= settle()
        while waiting:
            settle()
        return found

    def _small(self, stream: Stream, root: Root, path: bytes) -> tuple[Small, int]:
        """Send one; the number to wait for, 0 when nothing was sent. Raises OSError, WireError."""
        engine = self.engine
        tree = root.tree
        try:
            if not stat.S_ISREG(tree.lstat(path).st_mode):
                return Small("other"), 0
            descriptor, status = tree.open_file(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return Small("gone"), 0
        try:
            size, inode = status.st_size, status.st_ino
            identity = Identity(inode, generation(descriptor))
            # Names that belong together, and holes, want more than that.
            if status.st_nlink > 1 or size > SMALL or (size and _extent(descriptor, 0, size) != (0, size)):
                return Small("single", identity, size), 0
            with engine.order:
                if tree.lstat(path).st_ino != inode:
                    return Small("single", identity, size), 0
                file = engine.files.opened(root.index, inode, path, local=False)
                file.generation = identity.generation
                version = file.version
            try:
                # Without the lock, so that nobody waits for the disk.
                data = os.pread(descriptor, SMALL + 1, 0)
                self.bucket.take(len(data))
                return self._send_small(stream, root, path, file, version, descriptor, data)
            finally:
                with engine.order:
                    if engine.files.closed(file) and file.session == stream.identity:
                        stream.send(Op.CLOSE, root.index, file.fid, flags=0)
        finally:
            os.close(descriptor)

    def _send_small(
        self, stream: Stream, root: Root, path: bytes, file: File, version: int, descriptor: int, data: bytes
    ) -> tuple[Small, int]:
        engine = self.engine
        with engine.order:
            if file.version != version:
                data = os.pread(descriptor, SMALL + 1, 0)  # it was written meanwhile; it is in memory now
            status = root.tree.lstat(path)
            size = status.st_size
            if status.st_ino != file.inode or status.st_nlink > 1 or size != len(data):
                return Small("single", Identity(file.inode, file.generation), size), 0
            if engine.stream is not stream:
                raise WireError(errno.ENOTCONN, stream.reason or "the stream to the secondary broke")
            attr, more = entry_body(root.tree, path, status, acl=engine.settings.acl, fresh=False)
            number = stream.send(
                Op.FILE, root.index, b=size, body=b"".join((attr, path, more, data)), extra=len(path), flags=_PUSHED
            )
            stream.rebind(file, path)
            stream.reintegrated += size
            return Small("file", Identity(file.inode, file.generation), size), number

    # --- content --------------------------------------------------------------------------------------------

    def zone(self, root: Root, path: bytes, offset: int, length: int) -> tuple[int, Identity]:
        """Send a range of a file; the bytes of data sent, and which file. A range beyond the end is nothing.
        Raises FileNotFoundError, OSError, WireError."""
        engine = self.engine
        descriptor, status = root.tree.open_file(path, os.O_RDONLY)
        inode = status.st_ino
        try:
            with engine.order:
                stream = self._stream()
                if root.tree.lstat(path).st_ino != inode:
                    raise FileNotFoundError(errno.ENOENT, "another file has this name now")
                file = engine.files.opened(root.index, inode, path, local=False)
                if file.path != path:
                    file.named = path
            try:
                sent = self._ranges(stream, root, file, descriptor, offset, length)
                return sent, Identity(inode, generation(descriptor))
            finally:
                with engine.order:
                    if engine.files.closed(file) and file.session == stream.identity:
                        stream.send(Op.CLOSE, root.index, file.fid, flags=0)  # `finish` sets the time
        finally:
            os.close(descriptor)

    def _ranges(self, stream: Stream, root: Root, file: File, descriptor: int, offset: int, length: int) -> int:
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

    def _chunk(self, stream: Stream, root: Root, file: File, descriptor: int, offset: int, view: memoryview) -> int:
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
                _bind(stream, file)
                return stream.send_write(root.index, file.fid, offset, view[: HEADER_SIZE + got], _PUSHED)
        raise AssertionError("unreachable: the seventh attempt does not look at the version")

    def _hole(self, stream: Stream, root: Root, file: File, descriptor: int, offset: int, length: int) -> int:
        engine = self.engine
        with engine.order:
            if self.engine.stream is not stream:
                raise WireError(errno.ENOTCONN, stream.reason or "the stream to the secondary broke")
            _bind(stream, file)
            data_at, _ = _extent(descriptor, offset, offset + length)
            hole = min(length, data_at - offset)
            # What was written into the hole meanwhile has been sent as a write, or will be, after this.
            return (
                stream.send(Op.FALLOCATE, root.index, file.fid, offset, max(hole, 1), extra=PUNCH_HOLE, flags=_PUSHED)
                if hole
                else stream.send(Op.PING, 0)
            )


def _bind(stream: Stream, file: File) -> None:
    if not stream.bind(file):
        raise FileNotFoundError(errno.ENOENT, "the file has lost its names")


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
    tree = root.tree
    pending = [path]
    made = [parent(path)]
    sent: dict[int, bytes] = {}  # files with several names: the first
    while pending:
        here = pending.pop()
        if root.exclusions.match(here):
            continue
        status = tree.lstat(here)
        first = (
            sent.setdefault(status.st_ino, here) if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode) else here
        )
        if first != here:
            number = stream.send(Op.LINK, root.index, body=first + here, extra=len(first))
            continue
        # What stands there at the peer is another file, if it is one.
        number, status = send_entry(engine, root, stream, here, fresh=True)
        if stat.S_ISDIR(status.st_mode):
            made.append(here)
            pending += [here + b"/" + name for name in tree.listdir(here)]
        elif stat.S_ISREG(status.st_mode) and status.st_size:
            number = _export_content(stream, root, here, status)
    for here in made:
        attr = pack_attr(Set.MTIME, mtime=tree.lstat(here).st_mtime_ns)
        number = stream.send(Op.PSETATTR, root.index, body=attr + here)
    return number


def _export_content(stream: Stream, root: Root, path: bytes, status: os.stat_result) -> int:
    fid = stream.new_fid()
    stream.send(Op.OPEN, root.index, fid, body=path, flags=0)
    descriptor, _ = root.tree.open_file(path, os.O_RDONLY)
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
