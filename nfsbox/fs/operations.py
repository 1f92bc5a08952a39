"""The replicated file system: what an operation means, what is recorded of it and what is sent.

A fusepy `Operations` object over one replicated directory. Paths arrive as latin-1 text, which keeps every byte;
handles are descriptors of the data. Reads never wait for the peer. Operations on open files use the handle and
stand here, those on names go by path and stand in names.py; both are sent in the order in which they are applied
(engine.py).

On a secondary everything that is replicated is read-only, also without mode="read_only": a local change would make
the two servers differ without anybody noticing. What is not replicated may be changed on both.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final

import fuse

from nfsbox.fs import kernel
from nfsbox.fs.base import SPECIAL_BITS
from nfsbox.fs.names import Names
from nfsbox.pair.engine import Engine, Role, Root
from nfsbox.pair.files import File
from nfsbox.pair.stream import Stream
from safekit import syscalls
from safekit.disk import steps
from safekit.rfs.exclusions import is_hidden, parent
from safekit.rfs.identity import Identity
from safekit.rfs.system import ENCODING, FALLOCATE_MODES, PIECE, generation, write_pieces
from safekit.rfs.tree import entries
from safekit.rfs.wire import HEADER_SIZE, Flag, Op, Set, pack_attr

_ACCESS: Final = os.O_ACCMODE
_STRIP: Final = os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_SYNC | os.O_DSYNC | os.O_DIRECT | os.O_TRUNC | os.O_NOCTTY
_DATA: Final = kernel.WRITE_DATA
#: The byte of a WRITE with O_APPEND (1024) of the flags with which its file was opened.
_APPENDS: Final = 73
_FRAME: Final = kernel.WRITE_DATA - HEADER_SIZE
_CAPABILITY: Final = "security.capability"
#: Descriptors that are none of the users'.
RESERVED: Final = 2048
#: Inodes whose pages the kernel may keep across opens; more are simply read again.
_MAX_KEPT: Final = 65536
#: A change of more zones than this has the file compared whole.
_MOST_ZONES: Final = 65536


class Operations(Names):
    """One replicated directory."""

    use_ns = True
    flag_nullpath_ok = 1
    flag_nopath = 1
    flag_utime_omit_ok = 1
    # Not ours: the kernel does locks, permissions and polling itself.
    access = bmap = lock = ioctl = poll = flush = None

    def __init__(self, engine: Engine, root: Root) -> None:
        super().__init__(engine, root)
        self._kept: set[int] = set()
        self._kept_generation = -1
        self._zone = engine.settings.zone_size
        self._writeback = engine.settings.writeback
        self._former: dict[int, bool] = {}  # replicated handles of a role before -> whether they are of any use
        # What users open must leave descriptors for the record of changes, for the state and for the peer.
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_open = max(limit // 2, limit - RESERVED) // len(engine.roots)

    @property
    def caching(self) -> bool:
        """Whether the kernel may keep names and attributes."""
        return self.engine.writable

    def replicated_handles(self) -> set[int]:
        """Handles of files that are replicated."""
        return {handle for handle, file in dict(self.handles).items() if not file.local}

    def forget_replicated(self) -> dict[int, bytes | None]:
        """Replicated files that are open may have changed underneath. Of each handle the path, None when its name leads
        to another file by now, or to none: it is written to no more, nor with write-back is any of them."""
        found: dict[int, bytes | None] = {}
        for handle, file in dict(self.handles).items():
            if not file.local:
                status = self.tree.status(file.path)
                found[handle] = file.path if status is not None and status.st_ino == file.inode else None
        self._former = {handle: path is not None and not self._writeback for handle, path in found.items()}
        return found

    def _check_former(self, fh: int, offset: int, *, appends: bool) -> None:
        """For a handle of a role before. Raises EIO where it, or the end that the kernel knows, is none any more."""
        status = os.fstat(fh)
        if not self._former[fh] or (appends and status.st_nlink == 1 and offset != status.st_size):
            raise OSError(errno.EIO, "opened before the other server was primary")

    def ended(self) -> None:
        """The mount is gone: free every handle."""
        for descriptor, file in list(self.handles.items()):
            self._forget(descriptor, file)

    # --- directories ----------------------------------------------------------------------------------------

    def opendir(self, path: str) -> int:
        """A descriptor of the directory."""
        return self.tree.directory(self._relative(path))

    def listing(self, fh: int) -> Iterator[tuple[bytes, int, int]]:
        """Name, inode and type of each entry. libfuse takes the whole listing at once, so that entries removed while
        it is read change nothing."""
        own = os.fstat(fh)
        yield b".", own.st_ino, stat.S_IFDIR
        yield b"..", own.st_ino, stat.S_IFDIR
        for entry in entries(fh):
            if not is_hidden(entry.name):
                yield entry.name, entry.inode, entry.kind

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        """Names as fusepy wants them; the mount asks `listing`."""
        return (name.decode(ENCODING) for name, _, _ in self.listing(fh))

    def releasedir(self, path: str, fh: int) -> None:
        os.close(fh)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        """Entries on disk. At the peer they are already where async puts them."""
        steps.data_settle(fh)

    def _check_open(self) -> None:
        if len(self.handles) >= self._most_open:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    # --- open files -----------------------------------------------------------------------------------------

    def _keep_pages(self, status: os.stat_result) -> bool:
        """Whether pages that the kernel has of this file are good: it was opened before in this role."""
        if self._kept_generation != self.engine.generation or len(self._kept) > _MAX_KEPT:
            self._kept = set()
            self._kept_generation = self.engine.generation
        known = status.st_ino in self._kept
        self._kept.add(status.st_ino)
        return known

    def _opened(self, descriptor: int, status: os.stat_result, relative: bytes, fi: Any, *, local: bool) -> File:
        engine = self.engine
        file = engine.files.opened(self.index, status.st_ino, relative, local=local)
        self.handles[descriptor] = file
        fi.fh = descriptor
        if status.st_nlink > 1:
            self._kept.discard(status.st_ino)  # what is written now, pages of another name do not show
        if status.st_nlink > 1 or (engine.role is not Role.PRIMARY and not local):
            # Changed through another name, or by replication, the data changes underneath: no page may be kept.
            fi.direct_io = 1
        else:
            fi.keep_cache = 1 if self._keep_pages(status) else 0
        return file

    def open(self, path: str, fi: Any) -> int:
        """Open; O_TRUNC truncates here."""
        self._check_open()
        relative = self._relative(path)
        flags = fi.flags
        writer = bool(flags & _ACCESS)
        local = self._excluded(relative)
        if writer and not local:
            self.engine.check_writable()
        plain = flags & ~_STRIP
        if self._writeback and writer:
            plain = plain & ~_ACCESS | os.O_RDWR
        descriptor, status = self.tree.open_file(relative, plain)
        try:
            if local and writer and status.st_nlink > 1 and self._both_sides.has(status):
                self.engine.check_writable()
                local = False
            self._opened(descriptor, status, relative, fi, local=local)
            if flags & os.O_TRUNC and writer:
                self._truncate_handle(descriptor, 0)
        except BaseException:
            file = self.handles.get(descriptor)
            if file is not None:
                self._forget(descriptor, file)
            else:
                os.close(descriptor)
            raise
        return 0

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        """Make and open a regular file; the kernel knows that the name does not exist, or that O_EXCL was not asked."""
        self._check_open()
        relative = self._relative(path)
        if self.request[0] == kernel.TMPFILE:
            return self._create_temporary(relative, mode, fi)
        self._refuse_hidden(relative)
        flags = fi.flags & ~_STRIP & ~_ACCESS | os.O_RDWR
        if self._excluded(relative):
            self._create_local(relative, flags, mode, fi)
            return 0
        engine = self.engine
        engine.check_writable()
        era = engine.tracker.era
        self._record_names(relative)
        descriptor = -1
        number = 0
        with engine.order:
            if not engine.writable:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            if era != engine.tracker.era:
                self._record_names(relative)  # a checkpoint came in between, and forgets what was recorded
            descriptor = self.tree.create(relative, flags, mode)
            status = self._give_or_undo(descriptor, relative, mode)
            file = engine.files.opened(self.index, status.st_ino, relative, local=False)
            stream = engine.stream
            lenient = False
            if stream is not None:
                number = self._send_create(stream, file, status, mode)
                lenient = engine.lenient(stream)
        self.handles[descriptor] = file
        try:
            file.generation = generation(descriptor)
            born, era = Identity(status.st_ino, file.generation), engine.tracker.era
            if engine.tracker.created(self.index, born, relative, status.st_ctime_ns):
                file.zones, file.era = None, era
            fi.fh = descriptor
            fi.keep_cache = 1 if self._keep_pages(status) else 0
            code = engine.settle(stream, number)
            if lenient and code:
                engine.revisit.add(self.index, relative)
        except BaseException:
            self._forget(descriptor, file)  # the kernel will not know this handle
            raise
        finally:
            engine.settled()
        return 0

    def _give_or_undo(self, descriptor: int, relative: bytes, mode: int) -> os.stat_result:
        """The status of a new file, which is the caller's now. When it cannot be given to him, nothing of it stays."""
        try:
            return self._give_new(descriptor, relative, mode)
        except BaseException:
            os.close(descriptor)
            self._undo(self.tree.unlink, relative)
            raise

    def _give_new(self, descriptor: int, relative: bytes, mode: int) -> os.stat_result:
        """As `_give`, by descriptor. The status that results. Raises OSError, as where quotas are exceeded."""
        uid, gid, _ = fuse.fuse_get_context()
        if uid or gid:
            above = self.tree.lstat(parent(relative))
            steps.data_owner(descriptor, uid, -1 if above.st_mode & stat.S_ISGID else gid)
            if mode & SPECIAL_BITS:
                steps.data_mode(descriptor, stat.S_IMODE(mode))
        return os.fstat(descriptor)

    def _create_local(self, relative: bytes, flags: int, mode: int, fi: Any) -> None:
        """What is not replicated changes on both servers, here behind the kernel's back: it may exist by now."""
        try:
            descriptor = self.tree.create(relative, flags, mode)
        except FileExistsError:
            if fi.flags & os.O_EXCL:
                raise
            descriptor, status = self.tree.open_file(relative, flags | fi.flags & os.O_TRUNC)
        else:
            status = self._give_or_undo(descriptor, relative, mode)
        self._opened(descriptor, status, relative, fi, local=True)

    def _create_temporary(self, relative: bytes, mode: int, fi: Any) -> int:
        """O_TMPFILE: nobody else has anything of it before it gets a name (`link`)."""
        if not self._excluded(parent(relative)):
            self.engine.check_writable()
        self.engine.place_holders.note(self.index, relative)
        with self._unseen(relative):
            descriptor = self.tree.create(relative, os.O_RDWR, mode)
            status = self._give_or_undo(descriptor, relative, mode)
        self.hidden[status.st_ino] += 1
        self._opened(descriptor, status, relative, fi, local=True).temporary = True
        return 0

    def _remove_temporary(self, file: File) -> None:
        """The place holder goes with the last handle; another name that it was given stays."""
        self._no_place_holder(file.inode)
        self.engine.place_holders.forget(self.index, file.path)
        with (
            contextlib.suppress(FileNotFoundError),
            self._unseen(file.path),
        ):  # somebody has removed it behind the mount
            self.tree.unlink(file.path)

    def _send_create(self, stream: Stream, file: File, status: os.stat_result, mode: int) -> int:
        file.fid, file.session = stream.new_fid(), stream.identity
        self._time_due(file)
        attr = pack_attr(Set.MODE | Set.UID | Set.GID, status.st_mode, status.st_uid, status.st_gid)
        return self._send_name(stream, Op.CREATE, file.path, attr + file.path, fid=file.fid, b=mode)

    def read(self, path: Any, size: int, offset: int, fh: int) -> bytes:
        """Data of a handle; the mount reads by itself."""
        return steps.data_read(fh, size, offset)

    def write(self, path: Any, data: bytes, offset: int, fh: int) -> int:
        """As fusepy calls it; the mount calls `write_request` with the kernel's buffer."""
        request = bytearray(_DATA + len(data))
        request[_DATA:] = data
        return self.write_request(fh, offset, memoryview(request), 0)

    def write_request(self, fh: int, offset: int, request: memoryview, flags: int) -> int:
        """Write what stands in a kernel request behind its headers; their place is used for the header of the wire."""
        file = self.handles[fh]
        data = request[_DATA:]
        engine = self.engine
        if file.local:
            with engine.files.border:
                if file.local:
                    return steps.data_write(fh, data, self._end(fh, offset) if request[_APPENDS] & 4 else offset)
        if engine.awaiting:
            engine.check_writable()
        if fh in self._former:
            self._check_former(fh, offset, appends=bool(request[_APPENDS] & 4))
        if request[_APPENDS] & 4:
            offset = self._end(fh, offset)
        size = len(data)
        zone = offset // self._zone
        last = (offset + size - 1) // self._zone
        zones = file.zones
        if file.era != engine.tracker.era or (
            zones is not None and (zone not in zones or (last != zone and (last not in zones or last - zone > 1)))
        ):
            self._record(file, fh, zone, last)
        if flags & kernel.WRITE_KILL_SUIDGID:
            self._clear_privileges(fh, file)
        number = 0
        lenient = False
        stream: Stream | None
        with engine.order:
            if not engine.writable:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            if file.era != engine.tracker.era:
                self._record(file, fh, zone, last)  # a checkpoint came in between, and forgets what was recorded
            file.version += 1
            stream = engine.stream
            if stream is None or file.orphan or (file.session != stream.identity and not stream.bind(file)):
                stream = None
                done = steps.data_write(fh, data, offset) if size <= PIECE else write_pieces(fh, data, offset)
            else:
                stream.replicated += size
                try:
                    number, done = self._send_and_write(stream, file, fh, offset, request)
                except OSError:
                    self._heal(stream, fh, file, offset, size)
                    file.version += 1
                    if not stream.strict:
                        self._revisit_file(file)
                    raise
                if done != size:
                    self._heal(stream, fh, file, offset, size)
                if not stream.strict:
                    lenient = engine.lenient(stream)
            file.version += 1
            self._time_due(file)
        if stream is not None:
            try:
                code = engine.settle(stream, number)
                if lenient and code:
                    self._revisit_file(file)
            finally:
                if lenient:
                    engine.settled()
        return done

    def _time_due(self, file: File) -> None:
        """The peer gets the time of a change within a second, also of a file that stays open. Under the order lock."""
        if not file.times_due:
            file.times_due = True
            self.engine.due_files.add(file)

    @staticmethod
    def _end(fh: int, offset: int) -> int:
        """Where an append goes. The kernel takes the names of a file for different files, and does not see what was
        appended through another one."""
        status = os.fstat(fh)
        return status.st_size if status.st_nlink > 1 else offset

    def _send_and_write(self, stream: Stream, file: File, fh: int, offset: int, request: memoryview) -> tuple[int, int]:
        """Send, then write here while the peer works. The header of a piece stands where the data before it was,
        which has been sent and written by then. The number to wait for, and the bytes written here."""
        size = len(request) - _DATA
        at = 0
        while size - at > PIECE:
            frame = request[_FRAME + at : _DATA + at + PIECE]
            stream.send_write(self.index, file.fid, offset + at, frame, 0)
            wrote = steps.data_write(fh, frame[HEADER_SIZE:], offset + at)
            if wrote != PIECE:
                return stream.send(Op.PING, 0), at + wrote
            at += PIECE
        frame = request[_FRAME + at :]
        number = stream.send_write(self.index, file.fid, offset + at, frame)
        return number, at + steps.data_write(fh, frame[HEADER_SIZE:], offset + at)

    def _record(self, file: File, fh: int, first: int, last: int) -> None:
        tracker = self.engine.tracker
        era = tracker.era
        if not file.orphan:
            if not file.generation:
                file.generation = generation(fh)
            if last - first > _MOST_ZONES:
                tracker.whole(self.index, self.engine.visible(file) or file.path)
                last = first
            file.zones = tracker.touch(self.index, Identity(file.inode, file.generation), file.path, first, last)
        else:
            file.zones = None
        file.era = era

    def _heal(self, stream: Stream, fh: int, file: File, offset: int, size: int) -> None:
        """The peer has a write that failed here (the disk is full): send it what is here instead. When that cannot be
        read either, the two differ from now on."""
        try:
            status = os.fstat(fh)
            data = steps.data_read(fh, size, offset)
        except OSError as error:
            stream.fail(f"the disk of the primary failed ({error.strerror}) after the secondary had the change")
            return
        stream.send(Op.WRITE, self.index, file.fid, offset, body=data, flags=0)
        stream.send(Op.TRUNCATE, self.index, file.fid, status.st_size, flags=0)

    def _clear_privileges(self, fh: int, file: File) -> None:
        """Writing takes set-id bits and capabilities away; the kernel leaves that to us."""
        mode = os.fstat(fh).st_mode
        bits = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
        try:
            steps.data_dropxattr(fh, _CAPABILITY)
            capability = True
        except OSError:
            capability = False  # there is none
        if not mode & bits and not capability:
            return

        def local() -> None:
            if mode & bits:
                steps.data_mode(fh, stat.S_IMODE(mode) & ~bits)

        def send(stream: Stream) -> int:
            if not stream.bind(file):
                return stream.send(Op.PING, 0)
            if capability:
                stream.send(Op.REMOVEXATTR, self.index, file.fid, body=_CAPABILITY.encode(), flags=0)
            return stream.send(Op.SETATTR, self.index, file.fid, body=pack_attr(Set.MODE, stat.S_IMODE(mode) & ~bits))

        self._change((file.path,), local, send)

    def truncate(self, path: str, length: int, fh: Any = None) -> None:
        """Set the size, by handle or by path."""
        if fh is not None:
            self._truncate_handle(fh if isinstance(fh, int) else fh.fh, length)
            return
        relative = self._named(path)
        if self._excluded(relative):
            self.tree.truncate(relative, length)
            return
        descriptor, status = self.tree.open_file(relative, os.O_RDWR)
        try:
            self.engine.check_writable()
            with self.engine.order:
                file = self.engine.files.opened(self.index, status.st_ino, relative, local=False)
            self.handles[descriptor] = file
            self._truncate_handle(descriptor, length)
        finally:
            opened = self.handles.get(descriptor)
            if opened is not None:
                self._forget(descriptor, opened)
            else:
                os.close(descriptor)

    def _truncate_handle(self, fh: int, length: int) -> None:
        file = self.handles[fh]
        if file.local:
            with self.engine.files.border:
                if file.local:
                    steps.data_truncate(fh, length)
                    return
        self.engine.check_writable()
        size = os.fstat(fh).st_size
        low, high = min(size, length), max(size, length)
        if low != high:
            # What is cut off may come back as a hole: all of it. What is added was nowhere before.
            zones = (low // self._zone, low // self._zone if length > size else (high - 1) // self._zone)
            self._record(file, fh, *zones)
        else:
            zones = (0, 0)
        if self.kill_privileges:
            self._clear_privileges(fh, file)
        self._on_handle(file, fh, zones, lambda: steps.data_truncate(fh, length), Op.TRUNCATE, a=length)

    def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        """Allocate, or punch a hole: modes that move data are left to the application."""
        file = self.handles[fh]
        if file.local:
            with self.engine.files.border:
                if file.local:
                    syscalls.fallocate(fh, mode, offset, length)
                    return
        if mode not in FALLOCATE_MODES:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        self.engine.check_writable()
        # Behind the end there was nothing before, and the size is compared anyway.
        end = max(min(offset + length, os.fstat(fh).st_size), offset + 1)
        zones = (offset // self._zone, (end - 1) // self._zone)
        self._record(file, fh, *zones)
        self._on_handle(
            file,
            fh,
            zones,
            lambda: syscalls.fallocate(fh, mode, offset, length),
            Op.FALLOCATE,
            a=offset,
            b=length,
            extra=mode,
        )

    def _on_handle(
        self,
        file: File,
        fh: int,
        zones: tuple[int, int],
        local: Callable[[], Any],
        op: Op,
        a: int,
        b: int = 0,
        extra: int = 0,
    ) -> None:
        """A change of content other than a write, in zones that were recorded."""
        engine = self.engine
        number = 0
        lenient = False
        with engine.order:
            if not engine.writable:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            if file.era != engine.tracker.era:
                self._record(file, fh, *zones)  # a checkpoint came in between
            file.version += 1
            try:
                local()
            finally:
                file.version += 1
            self._time_due(file)
            stream = None if file.orphan else engine.stream
            if stream is not None and not stream.bind(file):
                stream = None
            if stream is not None:
                number = stream.send(op, self.index, file.fid, a, b, extra=extra)
                lenient = engine.lenient(stream)
        try:
            code = engine.settle(stream, number)
            if lenient and code:
                self._revisit_file(file)
        finally:
            engine.settled()

    def fsync(self, path: Any, datasync: int, fh: int) -> None:
        """Data on the local disk. The peer has acknowledged every write already, where async puts it: in its memory
        ("second") or on its disk ("none"); only the times remain to be sent, within a second."""
        file = self.handles[fh]
        if file.times_due:
            self.engine.due_files.add(file)
        if datasync:
            steps.data_commit(fh)
        else:
            steps.data_settle(fh)

    def release(self, path: Any, fi: Any) -> None:
        """The last close of a handle."""
        fh = fi if isinstance(fi, int) else fi.fh
        self._forget(fh, self.handles[fh])

    def _forget(self, fh: int, file: File) -> None:
        """Close a handle; the last one of a file tells the peer, with the time of the last change."""
        del self.handles[fh]
        self._former.pop(fh, None)
        engine = self.engine
        last = engine.files.closed(file)
        if last:
            engine.due_files.discard(file)
        if self._known_to_peer(file):  # else there is nothing to say, and nothing to wait for
            with engine.order:
                stream = engine.stream
                if stream is not None and file.session == stream.identity:
                    if last:
                        mtime = os.fstat(fh).st_mtime_ns if file.times_due and not file.orphan else 0
                        if not 0 <= mtime < 1 << 63:  # CLOSE has no room for it
                            body = pack_attr(Set.MTIME, mtime=mtime)
                            stream.send(Op.SETATTR, self.index, file.fid, body=body, flags=Flag.NONE)
                            mtime = 0
                        stream.send(Op.CLOSE, self.index, file.fid, mtime, flags=Flag.NONE)
                    elif file.times_due:
                        engine.due_files.add(file)
        os.close(fh)
        if last and file.temporary:
            self._remove_temporary(file)

    def _known_to_peer(self, file: File) -> bool:
        stream = self.engine.stream
        return stream is not None and file.session == stream.identity

    def waits(self, opcode: int, request: memoryview) -> bool:
        """Whether a request may have to wait for the peer, or for another one that does."""
        if opcode in kernel.QUIET:
            return False
        if opcode == kernel.OPEN:
            (flags,) = kernel.OPEN_IN.unpack_from(request, kernel.HEADER)
            return bool(flags & os.O_TRUNC or (flags & _ACCESS and self.engine.awaiting))
        if opcode in kernel.BY_HANDLE:
            (handle,) = kernel.HANDLE_IN.unpack_from(request, kernel.HEADER)
            file = self.handles.get(handle)
            if file is None or (file.local and not file.temporary and not self._known_to_peer(file)):
                return False
            return opcode != kernel.RELEASE or self._known_to_peer(file) or is_hidden(file.path)
        return True
