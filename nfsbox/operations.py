"""The replicated file system: what an operation means, what is recorded of it and what is sent (DESIGN 5).

A fusepy `Operations` object over one replicated directory. Paths arrive as latin-1 text, which keeps every byte;
handles are descriptors of the data. Reads never wait for the peer. Operations on open files use the handle, those
on names go by path; both are sent in the order in which they are applied here (engine.py).
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import fuse

from nfsbox import kernel
from nfsbox.engine import Engine, Role, Root
from nfsbox.exclusions import is_hidden, parent
from nfsbox.files import File
from nfsbox.mount import ENCODING, entry_mode
from nfsbox.push import export
from nfsbox.stream import Stream
from nfsbox.system import FALLOCATE_MODES, PIECE, fallocate, set_mtime, write_pieces
from nfsbox.wire import HEADER_SIZE, Flag, Op, Set, pack_attr

_ACCESS: Final = os.O_ACCMODE
_STRIP: Final = os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_SYNC | os.O_DSYNC | os.O_DIRECT | os.O_TRUNC | os.O_NOCTTY
_DATA: Final = kernel.WRITE_DATA
_FRAME: Final = kernel.WRITE_DATA - HEADER_SIZE
_SPECIAL_BITS: Final = stat.S_ISUID | stat.S_ISGID
_CAPABILITY: Final = "security.capability"
_ACL_PREFIX: Final = "system.posix_acl_"
#: Inodes whose pages the kernel may keep across opens; more are simply read again.
_MAX_KEPT: Final = 65536


class Operations(fuse.Operations):  # type: ignore[misc]
    """One replicated directory."""

    use_ns = True
    flag_nullpath_ok = 1
    flag_nopath = 1
    flag_utime_omit_ok = 1
    # Not ours: the kernel does locks, permissions and polling itself.
    access = bmap = lock = ioctl = poll = flush = None

    def __init__(self, engine: Engine, root: Root) -> None:
        self.engine = engine
        self.root = root
        self.index = root.index
        self.request = (0, 0)  # opcode and node of the request that a callback belongs to
        self.kill_privileges = False
        self.handles: dict[int, File] = {}
        self.hidden: set[int] = set()  # inodes of files that were unlinked while open
        self._writers: set[int] = set()
        self._kept: set[int] = set()
        self._kept_generation = -1
        self._excluded = root.exclusions.match
        self._shift = engine.settings.zone_size
        self._acl = engine.settings.acl
        self._writeback = engine.settings.writeback
        self._hidden: tuple[bytes, File | None] | None = None  # name and file hidden for the rename that follows
        self._ended = threading.Event()

    @property
    def caching(self) -> bool:
        """Whether the kernel may keep names and attributes."""
        return self.engine.writable

    def ended(self) -> None:
        """The mount is gone: free every handle."""
        for descriptor, file in list(self.handles.items()):
            self._forget(descriptor, file)
        self._ended.set()

    # --- helpers --------------------------------------------------------------------------------------------

    def __call__(self, op: str, *args: Any) -> Any:
        return getattr(self, op)(*args)

    def _split(self, path: str) -> tuple[bytes, bytes]:
        """Relative and real path of a path of fusepy."""
        relative = path.encode(ENCODING)[1:]
        return relative, self.root.real(relative)

    def _change(
        self,
        paths: tuple[bytes, ...],
        local: Callable[[], Any],
        send: Callable[[Stream], int],
        *,
        recursive: bool = False,
        always_revisit: bool = False,
    ) -> None:
        """Apply a change of names or attributes here and at the peer, then wait for it."""
        engine = self.engine
        engine.check_writable()
        with engine.order:
            if not engine.writable:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            local()
            stream = engine.stream
            if stream is None:
                return
            number = send(stream)
        code = engine.settle(stream, number)
        if (code or always_revisit) and not stream.strict:
            for path in paths:
                engine.revisit.add(self.index, path, recursive=recursive)

    def _directory_mtime(self, path: bytes) -> int:
        return os.lstat(self.root.real(parent(path))).st_mtime_ns

    def _send_name(self, stream: Stream, op: Op, path: bytes, body: bytes, **fields: int) -> int:
        return stream.send(op, self.index, a=self._directory_mtime(path), body=body, **fields)

    def _record_names(self, *paths: bytes) -> None:
        for path in paths:
            self.engine.tracker.touch_directory(self.index, parent(path))

    def _record_content(self, inode: int, path: bytes, first: int, last: int) -> None:
        self.engine.tracker.touch(self.index, inode, path, first, last)

    def _give(self, real: bytes, mode: int) -> None:
        """Give a new entry to the caller, with the group of a set-group-id directory, as a local file system does."""
        uid, gid, _ = fuse.fuse_get_context()
        above = os.lstat(os.path.dirname(real))
        if above.st_mode & stat.S_ISGID:
            gid = -1
        os.chown(real, uid, gid, follow_symlinks=False)
        if mode & _SPECIAL_BITS and not stat.S_ISLNK(mode):
            os.chmod(real, stat.S_IMODE(mode))

    # --- attributes -----------------------------------------------------------------------------------------

    def lstat(self, path: bytes) -> os.stat_result:
        """Status of a path as the kernel names it (with a slash in front)."""
        return os.lstat(self.root.backing + path)

    def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
        """Status as fusepy wants it; the mount asks `lstat` directly."""
        status = os.fstat(fh) if fh is not None else self.lstat(path.encode(ENCODING))
        names = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_rdev")
        result = {name: getattr(status, name) for name in names}
        result |= {name: getattr(status, name + "_ns") for name in ("st_atime", "st_mtime", "st_ctime")}
        return result

    def statfs(self, path: str) -> dict[str, int]:
        """Numbers of the file system that holds the data."""
        numbers = os.statvfs(self.root.backing)
        names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_flag", "f_frsize")
        return {name: getattr(numbers, name) for name in (*names, "f_namemax")}

    def readlink(self, path: str) -> str:
        """Target of a symbolic link."""
        return os.readlink(self._split(path)[1]).decode(ENCODING)

    def chmod(self, path: str, mode: int) -> None:
        """Permission bits."""
        relative, real = self._split(path)
        if self._excluded(relative):
            os.chmod(real, stat.S_IMODE(mode))
            return
        self._change(
            (relative,),
            lambda: os.chmod(real, stat.S_IMODE(mode)),
            lambda stream: stream.send(
                Op.PSETATTR, self.index, body=pack_attr(Set.MODE, stat.S_IMODE(mode)) + relative
            ),
        )

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Owner; the system clears the set-id bits, so the mode that results is sent as well."""
        relative, real = self._split(path)

        def send(stream: Stream) -> int:
            now = os.lstat(real)
            mask = Set.UID | Set.GID | (0 if stat.S_ISLNK(now.st_mode) else Set.MODE)
            attr = pack_attr(mask, stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid)
            return stream.send(Op.PSETATTR, self.index, body=attr + relative)

        if self._excluded(relative):
            os.chown(real, uid, gid, follow_symlinks=False)
            return
        self._change((relative,), lambda: os.chown(real, uid, gid, follow_symlinks=False), send)

    def utimens(self, path: str, times: tuple[int | None, int | None] | None = None) -> None:
        """Times in ns; None leaves one as it is, -1 means now."""
        relative, real = self._split(path)
        atime, mtime = times if times is not None else (-1, -1)
        now = time.time_ns()
        atime, mtime = (now if value == -1 else value for value in (atime, mtime))

        def local() -> None:
            status = os.lstat(real)
            both = (status.st_atime_ns if atime is None else atime, status.st_mtime_ns if mtime is None else mtime)
            os.utime(real, ns=both, follow_symlinks=False)

        if self._excluded(relative):
            local()
            return
        mask = (Set.ATIME if atime is not None else 0) | (Set.MTIME if mtime is not None else 0)
        attr = pack_attr(mask, atime=atime or 0, mtime=mtime or 0)
        self._change((relative,), local, lambda stream: stream.send(Op.PSETATTR, self.index, body=attr + relative))

    # --- extended attributes --------------------------------------------------------------------------------

    def xattr_names(self, path: bytes) -> list[bytes]:
        """Names of the extended attributes of a path as the kernel names it."""
        return [os.fsencode(name) for name in os.listxattr(self.root.backing + path, follow_symlinks=False)]

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """Value of an extended attribute."""
        return os.getxattr(self._split(path)[1], name.encode(ENCODING), follow_symlinks=False)

    def _replicated_xattr(self, name: str) -> bool:
        return self._acl or not name.startswith(_ACL_PREFIX)

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> None:
        """Set an extended attribute; ACLs travel when acl="on", the mode that they imply always does."""
        relative, real = self._split(path)
        raw = name.encode(ENCODING)

        def send(stream: Stream) -> int:
            if self._replicated_xattr(name):
                return stream.send(
                    Op.PSETXATTR, self.index, a=0, b=len(raw), body=relative + raw + value, extra=len(relative)
                )
            attr = pack_attr(Set.MODE, stat.S_IMODE(os.lstat(real).st_mode))
            return stream.send(Op.PSETATTR, self.index, body=attr + relative)

        if self._excluded(relative):
            os.setxattr(real, raw, value, options, follow_symlinks=False)
            return
        self._change((relative,), lambda: os.setxattr(real, raw, value, options, follow_symlinks=False), send)

    def removexattr(self, path: str, name: str) -> None:
        """Remove an extended attribute."""
        relative, real = self._split(path)
        raw = name.encode(ENCODING)
        if self._excluded(relative):
            os.removexattr(real, raw, follow_symlinks=False)
            return

        def send(stream: Stream) -> int:
            if self._replicated_xattr(name):
                return stream.send(Op.PREMOVEXATTR, self.index, body=relative + raw, extra=len(relative))
            attr = pack_attr(Set.MODE, stat.S_IMODE(os.lstat(real).st_mode))
            return stream.send(Op.PSETATTR, self.index, body=attr + relative)

        self._change((relative,), lambda: os.removexattr(real, raw, follow_symlinks=False), send)

    # --- names ----------------------------------------------------------------------------------------------

    def _make(self, path: str, op: Op, mode: int, local: Callable[[bytes], Any], *, rdev: int = 0) -> None:
        relative, real = self._split(path)
        if self._excluded(relative):
            local(real)
            self._give(real, mode)
            return
        self.engine.check_writable()
        self._record_names(relative)

        def apply() -> None:
            local(real)
            self._give(real, mode)

        def send(stream: Stream) -> int:
            now = os.lstat(real)
            attr = pack_attr(
                Set.MODE | Set.UID | Set.GID | Set.MTIME, now.st_mode, now.st_uid, now.st_gid, 0, now.st_mtime_ns, rdev
            )
            return self._send_name(stream, op, relative, attr + relative, b=mode)

        self._change((relative,), apply, send)

    def mkdir(self, path: str, mode: int) -> None:
        """Make a directory."""
        self._make(path, Op.MKDIR, stat.S_IFDIR | mode, lambda real: os.mkdir(real, mode))

    def mknod(self, path: str, mode: int, dev: int) -> None:
        """Make a FIFO, a socket, a device or a regular file."""
        self._make(path, Op.MKNOD, mode, lambda real: os.mknod(real, mode, dev), rdev=dev)

    def symlink(self, target: str, source: str) -> None:
        """Make a symbolic link `target` to `source` (the order of fusepy)."""
        relative, real = self._split(target)
        text = source.encode(ENCODING)
        if self._excluded(relative):
            os.symlink(text, real)
            self._give(real, stat.S_IFLNK)
            return
        self.engine.check_writable()
        self._record_names(relative)

        def apply() -> None:
            os.symlink(text, real)
            self._give(real, stat.S_IFLNK)

        def send(stream: Stream) -> int:
            now = os.lstat(real)
            attr = pack_attr(Set.UID | Set.GID | Set.MTIME, 0, now.st_uid, now.st_gid, 0, now.st_mtime_ns)
            return self._send_name(stream, Op.SYMLINK, relative, attr + relative + text, extra=len(relative))

        self._change((relative,), apply, send)

    def link(self, target: str, source: str) -> None:
        """Make `target` another name of `source` (the order of fusepy)."""
        new, real_new = self._split(target)
        old, real_old = self._split(source)
        if self._excluded(new):
            os.link(real_old, real_new, follow_symlinks=False)
            return
        self.engine.check_writable()
        self._record_names(new)
        if self._excluded(old):
            self._change(
                (new,),
                lambda: os.link(real_old, real_new, follow_symlinks=False),
                lambda stream: self._export(stream, new),
                recursive=True,
                always_revisit=True,
            )
            return
        self._change(
            (old, new),
            lambda: os.link(real_old, real_new, follow_symlinks=False),
            lambda stream: self._send_name(stream, Op.LINK, new, old + new, extra=len(old)),
        )

    def unlink(self, path: str) -> None:
        """Remove a name."""
        relative, real = self._split(path)
        if is_hidden(relative):
            # The name was given up long ago: the directory must not look changed now, and only here.
            mtime = self._directory_mtime(relative)
            self.hidden.discard(os.lstat(real).st_ino)
            os.unlink(real)
            set_mtime(os.path.dirname(real), mtime)
            return
        if self._excluded(relative):
            os.unlink(real)
            return
        self.engine.check_writable()
        status = os.lstat(real)
        self._record_names(relative)
        self._bind_before_loss(status)
        self._change(
            (relative,),
            lambda: os.unlink(real),
            lambda stream: self._send_name(stream, Op.UNLINK, relative, relative),
        )
        if status.st_nlink == 1:
            self.engine.tracker.gone(self.index, status.st_ino)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        relative, real = self._split(path)
        if self._excluded(relative):
            os.rmdir(real)
            return
        self.engine.check_writable()
        self._record_names(relative)
        self._change(
            (relative,),
            lambda: os.rmdir(real),
            lambda stream: self._send_name(stream, Op.RMDIR, relative, relative),
        )

    def rename(self, old: str, new: str) -> None:
        """Rename, over an existing entry if there is one."""
        source, real_source = self._split(old)
        target, real_target = self._split(new)
        if is_hidden(target) and not is_hidden(source):
            self._hide(source, target, real_source, real_target)
            return
        out, into = self._excluded(source), self._excluded(target)
        if out and into:
            os.rename(real_source, real_target)
            return
        self.engine.check_writable()
        status = os.lstat(real_source)
        directory = stat.S_ISDIR(status.st_mode)
        self._record_names(*(path for path, local in ((source, out), (target, into)) if not local))
        self.engine.tracker.renamed(self.index, status.st_ino, source, target, directory=directory)
        replaced = self._status(real_target)
        if replaced is not None:
            self._bind_before_loss(replaced)

        hidden, self._hidden = self._hidden, None

        def apply() -> None:
            try:
                os.rename(real_source, real_target)
            except OSError:
                if hidden is not None and hidden[0] == target and hidden[1] is not None:
                    hidden[1].orphan, hidden[1].path = False, target  # it kept its name after all
                raise
            self.engine.files.renamed(self.index, source, target)

        def send(stream: Stream) -> int:
            if into:
                return self._send_name(stream, Op.REMOVE, source, source)
            if out:
                return self._export(stream, target)
            return stream.send(
                Op.RENAME,
                self.index,
                a=self._directory_mtime(target),
                b=self._directory_mtime(source),
                body=source + target,
                extra=len(source),
            )

        kept = tuple(path for path, local in ((source, out), (target, into)) if not local)
        self._change(kept, apply, send, recursive=directory or out, always_revisit=True)
        if replaced is not None and replaced.st_nlink == 1 and not stat.S_ISDIR(replaced.st_mode):
            self.engine.tracker.gone(self.index, replaced.st_ino)

    def _hide(self, source: bytes, hidden: bytes, real_source: bytes, real_hidden: bytes) -> None:
        """libfuse keeps a file that is unlinked, or renamed over, while open: under a name for this server only.

        Before a rename over it, the file keeps its name as well, so that the rename which follows replaces it
        atomically, here and at the peer.
        """
        engine = self.engine
        if self._excluded(source):
            os.rename(real_source, real_hidden)
            self.hidden.add(os.lstat(real_hidden).st_ino)
            return
        engine.check_writable()
        status = os.lstat(real_source)
        self._record_names(source)
        self._bind_before_loss(status)
        replaced = self.request[0] == kernel.RENAME
        file = engine.files.get(self.index, status.st_ino)

        def apply() -> None:
            if replaced:
                os.link(real_source, real_hidden, follow_symlinks=False)
                self._hidden = (source, file)
            else:
                os.rename(real_source, real_hidden)
                self._hidden = None
            self.hidden.add(status.st_ino)
            if file is not None:
                file.path = hidden
                file.orphan = status.st_nlink == 1

        def send(stream: Stream) -> int:
            if replaced:
                return 0
            return self._send_name(stream, Op.UNLINK, source, source)

        engine.note_hidden(self.index, hidden)
        self._change((source,), apply, send)
        if status.st_nlink == 1:
            engine.tracker.gone(self.index, status.st_ino)

    @staticmethod
    def _status(real: bytes) -> os.stat_result | None:
        try:
            return os.lstat(real)
        except FileNotFoundError:
            return None

    def _bind_before_loss(self, status: os.stat_result) -> None:
        """A name is about to go: an open file that has others must be known to the peer by its fid first."""
        if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
            engine = self.engine
            with engine.order:
                file = engine.files.get(self.index, status.st_ino)
                if file is not None and engine.stream is not None and not file.orphan:
                    engine.stream.bind(file)

    def _export(self, stream: Stream, path: bytes) -> int:
        """An entry came out of what is not replicated: send all of it. Under the order lock."""
        return export(self.engine, self.root, stream, path)

    def _revisit_file(self, file: File) -> None:
        if is_hidden(file.path):
            # It has another name, which nobody knows here: everything is compared again.
            self.engine.revisit.add(self.index, b"", recursive=True)
        else:
            self.engine.revisit.add(self.index, file.path)

    # --- directories ----------------------------------------------------------------------------------------

    def opendir(self, path: str) -> int:
        """A descriptor of the directory."""
        return os.open(self._split(path)[1], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def entries(self, fh: int) -> Iterator[tuple[bytes, int, int]]:
        """Name, inode and type of each entry. libfuse takes the whole listing at once, so that entries removed while
        it is read change nothing."""
        own = os.fstat(fh)
        yield b".", own.st_ino, stat.S_IFDIR
        yield b"..", own.st_ino, stat.S_IFDIR
        with os.scandir(b"/proc/self/fd/%d" % fh) as listing:
            for entry in listing:
                if not is_hidden(entry.name):
                    yield entry.name, entry.inode(), entry_mode(entry)

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        """Names as fusepy wants them; the mount asks `entries`."""
        return (name.decode(ENCODING) for name, _, _ in self.entries(fh))

    def releasedir(self, path: str, fh: int) -> None:
        os.close(fh)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        """Entries on disk. At the peer they are already where async puts them."""
        os.fsync(fh)

    # --- open files -----------------------------------------------------------------------------------------

    def _keep_pages(self, status: os.stat_result) -> bool:
        """Whether pages that the kernel has of this file are good: it was opened before in this role."""
        if self._kept_generation != self.engine.generation or len(self._kept) > _MAX_KEPT:
            self._kept = set()
            self._kept_generation = self.engine.generation
        known = status.st_ino in self._kept
        self._kept.add(status.st_ino)
        return known

    def _opened(self, descriptor: int, relative: bytes, fi: Any, *, writer: bool) -> File:
        status = os.fstat(descriptor)
        engine = self.engine
        local = self._excluded(relative)
        with engine.order:
            file = engine.files.opened(self.index, status.st_ino, relative, local=local)
        self.handles[descriptor] = file
        if writer:
            self._writers.add(descriptor)
        fi.fh = descriptor
        if status.st_nlink > 1 or (engine.role is not Role.PRIMARY and not local):
            # Changed through another name, or by replication, the data changes underneath: no page may be kept.
            fi.direct_io = 1
        else:
            fi.keep_cache = 1 if self._keep_pages(status) else 0
        return file

    def open(self, path: str, fi: Any) -> int:
        """Open; O_TRUNC truncates here."""
        relative, real = self._split(path)
        flags = fi.flags
        writer = bool(flags & _ACCESS)
        local = self._excluded(relative)
        if writer and not local:
            self.engine.check_writable()
        plain = flags & ~_STRIP
        if self._writeback and writer:
            plain = plain & ~_ACCESS | os.O_RDWR
        descriptor = os.open(real, plain | os.O_CLOEXEC)
        try:
            self._opened(descriptor, relative, fi, writer=writer)
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
        relative, real = self._split(path)
        flags = fi.flags & ~_STRIP & ~_ACCESS | os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (fi.flags & os.O_EXCL)
        if self._excluded(relative):
            new = not os.path.lexists(real)
            descriptor = os.open(real, flags | (fi.flags & os.O_TRUNC), mode)
            if new:
                self._give(real, mode)
            self._opened(descriptor, relative, fi, writer=True)
            return 0
        engine = self.engine
        engine.check_writable()
        self._record_names(relative)
        descriptor = -1
        number = 0
        with engine.order:
            if not engine.writable:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            descriptor = os.open(real, flags | os.O_EXCL, mode)
            uid, gid, _ = fuse.fuse_get_context()
            if uid or gid:
                above = os.lstat(os.path.dirname(real))
                os.fchown(descriptor, uid, -1 if above.st_mode & stat.S_ISGID else gid)
                if mode & _SPECIAL_BITS:
                    os.fchmod(descriptor, stat.S_IMODE(mode))
            status = os.fstat(descriptor)
            file = engine.files.opened(self.index, status.st_ino, relative, local=False)
            stream = engine.stream
            if stream is not None:
                number = self._send_create(stream, file, status, mode)
        if engine.tracker.created(self.index, status.st_ino, relative, status.st_ctime_ns):
            file.zones, file.era = None, engine.tracker.era
        self.handles[descriptor] = file
        self._writers.add(descriptor)
        fi.fh = descriptor
        fi.keep_cache = 1 if self._keep_pages(status) else 0
        code = engine.settle(stream, number)
        if code and stream is not None and not stream.strict:
            engine.revisit.add(self.index, relative)
        return 0

    def _send_create(self, stream: Stream, file: File, status: os.stat_result, mode: int) -> int:
        file.fid, file.session = stream.new_fid(), stream.identity
        attr = pack_attr(
            Set.MODE | Set.UID | Set.GID | Set.MTIME,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            0,
            status.st_mtime_ns,
        )
        return self._send_name(stream, Op.CREATE, file.path, attr + file.path, fid=file.fid, b=mode)

    def read(self, path: Any, size: int, offset: int, fh: int) -> bytes:
        """Data of a handle; the mount reads by itself."""
        return os.pread(fh, size, offset)

    def write(self, path: Any, data: bytes, offset: int, fh: int) -> int:
        """As fusepy calls it; the mount calls `write_request` with the kernel's buffer."""
        request = bytearray(_DATA + len(data))
        request[_DATA:] = data
        return self.write_request(fh, offset, memoryview(request), 0)

    def write_request(self, fh: int, offset: int, request: memoryview, flags: int) -> int:
        """Write what stands in a kernel request behind its headers; their place is used for the header of the wire."""
        file = self.handles[fh]
        data = request[_DATA:]
        if file.local:
            return os.pwrite(fh, data, offset)
        engine = self.engine
        if engine.awaiting:
            engine.check_writable()
        size = len(data)
        zone = offset // self._shift
        last = (offset + size - 1) // self._shift
        zones = file.zones
        if file.era != engine.tracker.era or (
            zones is not None and (zone not in zones or (last != zone and last not in zones))
        ):
            self._record(file, zone, last)
        if flags & kernel.WRITE_KILL_SUIDGID:
            self._clear_privileges(fh, file)
        number = 0
        stream: Stream | None
        with engine.order:
            if not engine.writable:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            file.version += 1
            stream = engine.stream
            if stream is None or file.orphan:
                stream = None
                done = os.pwrite(fh, data, offset) if size <= PIECE else write_pieces(fh, data, offset)
            else:
                if file.session != stream.identity:
                    stream.bind(file)
                stream.replicated += size
                try:
                    number, done = self._send_and_write(stream, file, fh, offset, request)
                except OSError:
                    self._heal(stream, fh, file, offset, size)
                    file.version += 1
                    raise
                if done != size:
                    self._heal(stream, fh, file, offset, size)
            file.version += 1
            file.times_due = True
        if stream is not None:
            code = engine.settle(stream, number)
            if code and not stream.strict:
                self._revisit_file(file)
        return done

    def _send_and_write(
        self, stream: Stream, file: File, fh: int, offset: int, request: memoryview
    ) -> tuple[int, int]:
        """Send, then write here while the peer works. The header of a piece stands where the data before it was,
        which has been sent and written by then. The number to wait for, and the bytes written here."""
        size = len(request) - _DATA
        at = 0
        while size - at > PIECE:
            frame = request[_FRAME + at : _DATA + at + PIECE]
            stream.send_write(self.index, file.fid, offset + at, frame, 0)
            wrote = os.pwrite(fh, frame[HEADER_SIZE:], offset + at)
            if wrote != PIECE:
                return stream.send(Op.PING, 0), at + wrote
            at += PIECE
        frame = request[_FRAME + at :]
        number = stream.send_write(self.index, file.fid, offset + at, frame)
        return number, at + os.pwrite(fh, frame[HEADER_SIZE:], offset + at)

    def _record(self, file: File, first: int, last: int) -> None:
        tracker = self.engine.tracker
        era = tracker.era
        if not file.orphan:
            file.zones = tracker.touch(self.index, file.inode, file.path, first, last)
        else:
            file.zones = None
        file.era = era

    def _heal(self, stream: Stream, fh: int, file: File, offset: int, size: int) -> None:
        """The peer has a write that failed here (the disk is full): send it what is here instead."""
        status = os.fstat(fh)
        data = os.pread(fh, size, offset)
        stream.send(Op.WRITE, self.index, file.fid, offset, body=data, flags=0)
        stream.send(Op.TRUNCATE, self.index, file.fid, status.st_size, flags=0)

    def _clear_privileges(self, fh: int, file: File) -> None:
        """Writing takes set-id bits and capabilities away; the kernel leaves that to us."""
        mode = os.fstat(fh).st_mode
        bits = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
        path = b"/proc/self/fd/%d" % fh
        try:
            os.removexattr(path, _CAPABILITY)
            capability = True
        except OSError:
            capability = False  # there is none
        if not mode & bits and not capability:
            return

        def local() -> None:
            if mode & bits:
                os.fchmod(fh, stat.S_IMODE(mode) & ~bits)

        def send(stream: Stream) -> int:
            stream.bind(file)
            if capability:
                stream.send(Op.REMOVEXATTR, self.index, file.fid, body=_CAPABILITY.encode(), flags=0)
            return stream.send(
                Op.SETATTR, self.index, file.fid, body=pack_attr(Set.MODE, stat.S_IMODE(mode) & ~bits)
            )

        self._change((file.path,), local, send)

    def truncate(self, path: str, length: int, fh: Any = None) -> None:
        """Set the size, by handle or by path."""
        if fh is not None:
            self._truncate_handle(fh if isinstance(fh, int) else fh.fh, length)
            return
        relative, real = self._split(path)
        if self._excluded(relative):
            os.truncate(real, length)
            return
        descriptor = os.open(real, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.engine.check_writable()
            with self.engine.order:
                file = self.engine.files.opened(self.index, os.fstat(descriptor).st_ino, relative, local=False)
            self.handles[descriptor] = file
            self._writers.add(descriptor)
            self._truncate_handle(descriptor, length)
            if file.times_due:
                self._send_times(descriptor, file)
        finally:
            opened = self.handles.get(descriptor)
            if opened is not None:
                self._forget(descriptor, opened)
            else:
                os.close(descriptor)

    def _truncate_handle(self, fh: int, length: int) -> None:
        file = self.handles[fh]
        if file.local:
            os.ftruncate(fh, length)
            return
        self.engine.check_writable()
        size = os.fstat(fh).st_size
        low, high = min(size, length), max(size, length)
        if low != high:
            self._record(file, low // self._shift, (high - 1) // self._shift if length > size else low // self._shift)
        if self.kill_privileges:
            self._clear_privileges(fh, file)
        self._on_handle(fh, file, lambda: os.ftruncate(fh, length), Op.TRUNCATE, a=length)

    def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        """Allocate, or punch a hole: modes that move data are left to the application."""
        file = self.handles[fh]
        if file.local:
            fallocate(fh, mode, offset, length)
            return
        if mode not in FALLOCATE_MODES:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        self.engine.check_writable()
        self._record(file, offset // self._shift, (offset + length - 1) // self._shift)
        self._on_handle(
            fh, file, lambda: fallocate(fh, mode, offset, length), Op.FALLOCATE, a=offset, b=length, extra=mode
        )

    def _on_handle(
        self, fh: int, file: File, local: Callable[[], Any], op: Op, a: int, b: int = 0, extra: int = 0
    ) -> None:
        """A change of content other than a write."""
        engine = self.engine
        number = 0
        with engine.order:
            if not engine.writable:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            file.version += 1
            try:
                local()
            finally:
                file.version += 1
            file.times_due = True
            stream = None if file.orphan else engine.stream
            if stream is not None:
                stream.bind(file)
                number = stream.send(op, self.index, file.fid, a, b, extra=extra)
        code = engine.settle(stream, number)
        if code and stream is not None and not stream.strict:
            engine.revisit.add(self.index, file.path)

    def fsync(self, path: Any, datasync: int, fh: int) -> None:
        """Data on the local disk. The peer has acknowledged every write already, where async puts it: in its memory
        ("second") or on its disk ("none"); only the times remain to be sent."""
        file = self.handles[fh]
        if file.times_due and not file.local:
            self._send_times(fh, file)
        if datasync:
            os.fdatasync(fh)
        else:
            os.fsync(fh)

    def _send_times(self, fh: int, file: File) -> None:
        file.times_due = False
        engine = self.engine
        with engine.order:
            stream = engine.stream
            if stream is None or file.orphan or not engine.writable or file.session != stream.identity:
                return
            attr = pack_attr(Set.MTIME, mtime=os.fstat(fh).st_mtime_ns)
            stream.send(Op.SETATTR, self.index, file.fid, body=attr, flags=Flag.NONE)

    def release(self, path: Any, fi: Any) -> None:
        """The last close of a handle."""
        fh = fi if isinstance(fi, int) else fi.fh
        file = self.handles[fh]
        if file.times_due and fh in self._writers and not file.local:
            self._send_times(fh, file)
        self._forget(fh, file)

    def _forget(self, fh: int, file: File) -> None:
        del self.handles[fh]
        self._writers.discard(fh)
        engine = self.engine
        with engine.order:
            if engine.files.closed(file):
                stream = engine.stream
                if stream is not None and file.session == stream.identity:
                    stream.send(Op.CLOSE, self.index, file.fid, flags=Flag.NONE)
        os.close(fh)
