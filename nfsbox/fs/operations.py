"""The replicated file system: what an operation means, what is recorded of it and what is sent.

A fusepy `Operations` object over one replicated directory. Paths arrive as latin-1 text, which keeps every byte;
handles are descriptors of the data. Reads never wait for the peer. What opens and closes stands here, what changes the
content of an open file in content.py, what goes by path in names.py; all of it is sent in the order in which it is
applied (engine.py).

On a secondary everything that is replicated is read-only, also without mode="read_only": a local change would make
the two servers differ without anybody noticing. What is not replicated may be changed on both.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Iterator
from typing import Any, Final

import fuse

from nfsbox.fs import kernel
from nfsbox.fs.base import SPECIAL_BITS
from nfsbox.fs.content import Content
from nfsbox.fs.former import Former
from nfsbox.fs.names import Names
from nfsbox.fs.pages import Pages
from nfsbox.pair.engine import Engine, Role, Root
from nfsbox.pair.files import File
from nfsbox.pair.stream import Stream
from safekit.disk import steps
from safekit.rfs.exclusions import is_hidden, parent
from safekit.rfs.identity import Identity
from safekit.rfs.system import ENCODING, generation
from safekit.rfs.tree import entries
from safekit.rfs.wire import Flag, Op, Set, pack_attr

_ACCESS: Final = os.O_ACCMODE
_STRIP: Final = os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_SYNC | os.O_DSYNC | os.O_DIRECT | os.O_TRUNC | os.O_NOCTTY
#: Descriptors that are none of the users'.
RESERVED: Final = 2048


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
        self._pages = Pages()
        self._writeback = engine.settings.writeback
        self.former = Former(self.handles, root.tree, writeback=self._writeback)
        self.content = Content(engine, root.index, self.handles, self._changes, self.former)
        # What users open must leave descriptors for the record of changes, for the state and for the peer.
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most_open = max(limit // 2, limit - RESERVED) // len(engine.roots)

    @property
    def caching(self) -> bool:
        """Whether the kernel may keep names and attributes."""
        return self.engine.writable

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

    def _opened(self, descriptor: int, status: os.stat_result, relative: bytes, fi: Any, *, local: bool) -> File:
        engine = self.engine
        file = engine.files.opened(self.index, status.st_ino, relative, local=local)
        self.handles[descriptor] = file
        fi.fh = descriptor
        if status.st_nlink > 1:
            self._pages.void(status.st_ino)
        if status.st_nlink > 1 or (engine.role is not Role.PRIMARY and not local):
            # Changed through another name, or by replication, the data changes underneath: no page may be kept.
            fi.direct_io = 1
        else:
            fi.keep_cache = 1 if self._pages.good(status.st_ino, self.engine.generation) else 0
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
                self.content.truncate(descriptor, 0, kill=self.kill_privileges)
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
        self._changes.record_names(relative)
        descriptor = -1
        number = 0
        with engine.order:
            if not engine.writable:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            if era != engine.tracker.era:
                self._changes.record_names(relative)  # a checkpoint came in between, and forgets what was recorded
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
            fi.keep_cache = 1 if self._pages.good(status.st_ino, self.engine.generation) else 0
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
            self._changes.undo(self.tree.unlink, relative)
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
        with self._changes.unseen(relative):
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
            self._changes.unseen(file.path),
        ):  # somebody has removed it behind the mount
            self.tree.unlink(file.path)

    def _send_create(self, stream: Stream, file: File, status: os.stat_result, mode: int) -> int:
        file.fid, file.session = stream.new_fid(), stream.identity
        self.engine.times.changed(file)
        attr = pack_attr(Set.MODE | Set.UID | Set.GID, status.st_mode, status.st_uid, status.st_gid)
        return self._changes.send_name(stream, Op.CREATE, file.path, attr + file.path, fid=file.fid, b=mode)

    def read(self, path: Any, size: int, offset: int, fh: int) -> bytes:
        """Data of a handle; the mount reads by itself."""
        return steps.data_read(fh, size, offset)

    def write(self, path: Any, data: bytes, offset: int, fh: int) -> int:
        """As fusepy calls it; the mount asks `content` with the kernel's buffer."""
        request = bytearray(kernel.WRITE_DATA + len(data))
        request[kernel.WRITE_DATA :] = data
        return self.content.write(fh, offset, memoryview(request), 0)

    def truncate(self, path: str, length: int, fh: Any = None) -> None:
        """Set the size, by handle or by path."""
        if fh is not None:
            handle = fh if isinstance(fh, int) else fh.fh
            self.content.truncate(handle, length, kill=self.kill_privileges)
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
            self.content.truncate(descriptor, length, kill=self.kill_privileges)
        finally:
            opened = self.handles.get(descriptor)
            if opened is not None:
                self._forget(descriptor, opened)
            else:
                os.close(descriptor)

    def fsync(self, path: Any, datasync: int, fh: int) -> None:
        """Data on the local disk. The peer has acknowledged every write already, where async puts it: in its memory
        ("second") or on its disk ("none"); only the times remain to be sent, within a second."""
        file = self.handles[fh]
        if file.times_due:
            self.engine.times.files.add(file)
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
        self.former.closed(fh)
        engine = self.engine
        last = engine.files.closed(file)
        if last:
            engine.times.files.discard(file)
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
                        engine.times.files.add(file)
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
