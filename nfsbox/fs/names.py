"""Names and attributes: the operations that go by path. See operations.py."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from nfsbox.fs import border, kernel
from nfsbox.fs.base import Base
from nfsbox.pair.engine import Engine, Root
from nfsbox.pair.files import File
from nfsbox.pair.push import export
from nfsbox.pair.stream import Stream
from safekit.rfs.exclusions import is_hidden, parent
from safekit.rfs.identity import Identity
from safekit.rfs.system import ENCODING
from safekit.rfs.tree import ACL_PREFIX
from safekit.rfs.wire import Op, Set, pack_attr

_ASIDE: Final = b".safekit-exchange"


class Names(Base):
    """Operations by path."""

    def __init__(self, engine: Engine, root: Root) -> None:
        super().__init__(engine, root)
        self._hidden: tuple[bytes, File | None] | None = None  # name and file hidden for the rename that follows

    # --- attributes -----------------------------------------------------------------------------------------

    def lstat(self, path: bytes) -> os.stat_result:
        """Status of a path as the kernel names it (with a slash in front)."""
        return self.tree.lstat(path[1:])

    def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
        """Status as fusepy wants it; the mount asks `lstat` directly."""
        status = os.fstat(fh) if fh is not None else self.lstat(path.encode(ENCODING))
        names = ("st_mode", "st_ino", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_rdev")
        result = {name: getattr(status, name) for name in names}
        result |= {name: getattr(status, name + "_ns") for name in ("st_atime", "st_mtime", "st_ctime")}
        return result

    def statfs(self, path: str) -> dict[str, int]:
        """Numbers of the file system that holds the data."""
        numbers = self.tree.statvfs()
        names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_flag", "f_frsize")
        return {name: getattr(numbers, name) for name in (*names, "f_namemax")}

    def readlink(self, path: str) -> str:
        """Target of a symbolic link."""
        return self.tree.readlink(self._relative(path)).decode(ENCODING)

    def chmod(self, path: str, mode: int) -> None:
        """Permission bits."""
        relative = self._named(path)

        def local() -> None:
            self.tree.chmod(relative, stat.S_IMODE(mode))  # kernels before 6.6 ask for it for a link as well

        if self._excluded(relative):
            local()
            return
        self._changes.make(
            (relative,),
            local,
            lambda stream: stream.send(
                Op.PSETATTR, self.index, body=pack_attr(Set.MODE, stat.S_IMODE(mode)) + relative
            ),
        )

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Owner; the system clears the set-id bits, so the mode that results is sent as well."""
        relative = self._named(path)

        def send(stream: Stream) -> int:
            now = self.tree.lstat(relative)
            mask = Set.UID | Set.GID | (0 if stat.S_ISLNK(now.st_mode) else Set.MODE)
            attr = pack_attr(mask, stat.S_IMODE(now.st_mode), now.st_uid, now.st_gid)
            return stream.send(Op.PSETATTR, self.index, body=attr + relative)

        if self._excluded(relative):
            self.tree.chown(relative, uid, gid)
            return
        self._changes.make((relative,), lambda: self.tree.chown(relative, uid, gid), send)

    def utimens(self, path: str, times: tuple[int | None, int | None] | None = None) -> None:
        """Times in ns; None leaves one as it is, -1 means now."""
        relative = self._named(path)
        atime, mtime = times if times is not None else (-1, -1)
        now = time.time_ns()
        atime, mtime = (now if value == -1 else value for value in (atime, mtime))

        def local() -> None:
            self.tree.set_times(relative, atime, mtime)

        if self._excluded(relative):
            local()
            return
        mask = (Set.ATIME if atime is not None else 0) | (Set.MTIME if mtime is not None else 0)
        attr = pack_attr(mask, atime=atime or 0, mtime=mtime or 0)
        self._changes.make(
            (relative,), local, lambda stream: stream.send(Op.PSETATTR, self.index, body=attr + relative)
        )

    # --- extended attributes --------------------------------------------------------------------------------

    def xattr_names(self, path: bytes) -> list[bytes]:
        """Names of the extended attributes of a path as the kernel names it."""
        return self.tree.listxattr(path[1:])

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        """Value of an extended attribute."""
        return self.tree.getxattr(self._relative(path), name.encode(ENCODING))

    def _replicated_xattr(self, name: str) -> bool:
        return self._acl or not name.encode(ENCODING).startswith(ACL_PREFIX)

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> None:
        """Set an extended attribute; ACLs travel when acl="on", the mode that they imply always does."""
        relative = self._named(path)
        raw = name.encode(ENCODING)

        def send(stream: Stream) -> int:
            if self._replicated_xattr(name):
                return stream.send(
                    Op.PSETXATTR, self.index, a=0, b=len(raw), body=relative + raw + value, extra=len(relative)
                )
            attr = pack_attr(Set.MODE, stat.S_IMODE(self.tree.lstat(relative).st_mode))
            return stream.send(Op.PSETATTR, self.index, body=attr + relative)

        if self._excluded(relative):
            self.tree.setxattr(relative, raw, value, options)
            return
        self._changes.make((relative,), lambda: self.tree.setxattr(relative, raw, value, options), send)

    def removexattr(self, path: str, name: str) -> None:
        """Remove an extended attribute."""
        relative = self._named(path)
        raw = name.encode(ENCODING)
        if self._excluded(relative):
            self.tree.removexattr(relative, raw)
            return

        def send(stream: Stream) -> int:
            if self._replicated_xattr(name):
                return stream.send(Op.PREMOVEXATTR, self.index, body=relative + raw, extra=len(relative))
            attr = pack_attr(Set.MODE, stat.S_IMODE(self.tree.lstat(relative).st_mode))
            return stream.send(Op.PSETATTR, self.index, body=attr + relative)

        self._changes.make((relative,), lambda: self.tree.removexattr(relative, raw), send)

    # --- names ----------------------------------------------------------------------------------------------

    def _make(self, path: str, op: Op, mode: int, local: Callable[[bytes], Any], *, rdev: int = 0) -> None:
        relative = self._relative(path)
        self._refuse_hidden(relative)
        if self._excluded(relative):
            local(relative)
            self._give(relative, mode)
            return

        def apply() -> None:
            local(relative)
            try:
                self._give(relative, mode)
            except OSError:
                self._changes.undo(self.tree.rmdir if stat.S_ISDIR(mode) else self.tree.unlink, relative)
                raise

        def send(stream: Stream) -> int:
            now = self.tree.lstat(relative)
            attr = pack_attr(
                Set.MODE | Set.UID | Set.GID | Set.MTIME, now.st_mode, now.st_uid, now.st_gid, 0, now.st_mtime_ns, rdev
            )
            return self._changes.send_name(stream, op, relative, attr + relative, b=mode)

        self._changes.make((relative,), apply, send, record=lambda: self._changes.record_names(relative))

    def mkdir(self, path: str, mode: int) -> None:
        """Make a directory."""
        self._make(path, Op.MKDIR, stat.S_IFDIR | mode, lambda relative: self.tree.mkdir(relative, mode))

    def mknod(self, path: str, mode: int, dev: int) -> None:
        """Make a FIFO, a socket, a device or a regular file."""
        self._make(path, Op.MKNOD, mode, lambda relative: self.tree.mknod(relative, mode, dev), rdev=dev)

    def symlink(self, target: str, source: str) -> None:
        """Make a symbolic link `target` to `source` (the order of fusepy)."""
        relative = self._relative(target)
        text = source.encode(ENCODING)
        self._refuse_hidden(relative)
        if self._excluded(relative):
            self.tree.symlink(text, relative)
            self._give(relative, stat.S_IFLNK)
            return

        def apply() -> None:
            self.tree.symlink(text, relative)
            try:
                self._give(relative, stat.S_IFLNK)
            except OSError:
                self._changes.undo(self.tree.unlink, relative)
                raise

        def send(stream: Stream) -> int:
            now = self.tree.lstat(relative)
            attr = pack_attr(Set.UID | Set.GID | Set.MTIME, 0, now.st_uid, now.st_gid, 0, now.st_mtime_ns)
            return self._changes.send_name(stream, Op.SYMLINK, relative, attr + relative + text, extra=len(relative))

        self._changes.make((relative,), apply, send, record=lambda: self._changes.record_names(relative))

    def link(self, target: str, source: str) -> None:
        """Make `target` another name of `source` (the order of fusepy)."""
        new = self._relative(target)
        old = self._named(source)
        self._refuse_hidden(new)
        local = self._excluded(old)
        nameless = is_hidden(old) and self.tree.lstat(old).st_nlink == 1
        if self._excluded(new) != local and not nameless:
            raise border.refusal()
        if self._excluded(new):
            self.tree.link(old, new)
            return
        file = Identity(0) if local else self._changes.identity(old, self.tree.lstat(old)) or Identity(0)

        def record() -> None:
            self._changes.record_names(new)
            self.engine.tracker.linked(self.index, file, old, new)

        if local:
            temporary = self._temporary(old) if is_hidden(old) else None

            def apply() -> None:
                self.tree.link(old, new)
                if temporary is not None:  # what is written from now on, the peer needs
                    self.engine.files.cross(temporary, new, local=False)

            def send(stream: Stream) -> int:
                number = self._export(stream, new)
                if temporary is not None:
                    if not stream.bind(temporary):
                        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
                    stream.rebind(temporary, new)  # the file that the peer knew by that number may have lost its names
                return number

            self._changes.make(
                (new,),
                apply,
                send,
                record=record,
                recursive=True,
                always_revisit=True,
            )
            return
        self._changes.make(
            (old, new),
            lambda: self.tree.link(old, new),
            lambda stream: self._changes.send_name(stream, Op.LINK, new, old + new, extra=len(old)),
            record=record,
            always_revisit=True,
        )

    def _temporary(self, path: bytes) -> File | None:
        """The open file without a name whose place holder that is."""
        file = self.engine.files.get(self.index, self.tree.lstat(path).st_ino)
        return file if file is not None and file.temporary else None

    def _lost_name(self, status: os.stat_result) -> None:
        """A file of that status has one name less: a temporary one may have none again that others can see."""
        file = self.engine.files.get(self.index, status.st_ino)
        if file is not None and file.temporary and status.st_nlink == 2:
            file.orphan = True

    def unlink(self, path: str) -> None:
        """Remove a name."""
        relative = self._relative(path)
        if is_hidden(relative):
            # The name was given up long ago: the directory must not look changed now, and only here.
            self._no_place_holder(self.tree.lstat(relative).st_ino)
            with self._changes.unseen(relative):
                self.tree.unlink(relative)
            self.engine.place_holders.forget(self.index, relative)
            return
        if self._excluded(relative):
            self.tree.unlink(relative)
            return
        self.engine.check_writable()
        status = self.tree.lstat(relative)
        self._bind_before_loss(status)

        def apply() -> None:
            self.tree.unlink(relative)
            self._lost_name(status)

        self._changes.make(
            (relative,),
            apply,
            lambda stream: self._changes.send_name(stream, Op.UNLINK, relative, relative),
            record=lambda: self._changes.record_names(relative),
        )

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        relative = self._relative(path)
        if self._excluded(relative):
            self.tree.rmdir(relative)
            return
        self._changes.make(
            (relative,),
            lambda: self.tree.rmdir(relative),
            lambda stream: self._changes.send_name(stream, Op.RMDIR, relative, relative),
            record=lambda: self._changes.record_names(relative),
        )

    def rename(self, old: str, new: str) -> None:
        """Rename, over an existing entry if there is one."""
        source = self._relative(old)
        target = self._relative(new)
        if is_hidden(target) and not is_hidden(source):
            self._hide(source, target)
            return
        hidden, self._hidden = self._hidden, None
        try:
            self._rename(source, target)
        except OSError:
            if hidden is not None and hidden[1] is not None and hidden[0] == target:
                self._not_replaced(target, hidden[1])
            raise

    def _not_replaced(self, path: bytes, file: File) -> None:
        """The rename over an open file failed, wherever. While the file has its name, the peer needs what is written,
        and the time of the directory in which it was put aside."""
        with self.engine.order:
            status = self.tree.status(path)
            if status is not None and status.st_ino == file.inode:
                file.orphan, file.path = False, path
                self.engine.times.directories.add((self.index, parent(path)))

    def _rename(self, source: bytes, target: bytes) -> None:
        out, into = self._excluded(source), self._excluded(target)
        if out and into:
            with self.engine.place_holders.moving(self.index, (source, target)):
                self.tree.rename(source, target)
            self.engine.files.renamed(self.index, source, target)
            return
        self.engine.check_writable()
        status = self.tree.lstat(source)
        opened = self.engine.files.get(self.index, status.st_ino)
        crossing = border.crossing(self.root, opened, source, target, status)
        directory = stat.S_ISDIR(status.st_mode)
        file = self._changes.identity(source, status)
        kept = tuple(path for path, local in ((source, out), (target, into)) if not local)
        if directory and self.engine.times.directories:
            self.engine.flush_times()  # times that are due are kept by path
        replaced = self.tree.status(target)
        if replaced is not None:
            self._bind_before_loss(replaced)

        def record() -> None:
            self._changes.record_names(*kept)
            self.engine.tracker.renamed(self.index, file, source, target)

        def apply() -> None:
            with self.engine.place_holders.moving(self.index, (source, target)):
                self.tree.rename(source, target)
            self.engine.files.renamed(self.index, source, target)
            border.cross(self.engine, self.root, crossing)
            if replaced is not None:
                self._lost_name(replaced)

        def send(stream: Stream) -> int:
            if into:
                return self._changes.send_name(stream, Op.REMOVE, source, source)
            if out:
                return self._export(stream, target)
            self.engine.times.directories.add((self.index, parent(source)))
            return self._changes.send_name(stream, Op.RENAME, target, source + target, extra=len(source))

        self._changes.make(kept, apply, send, record=record, recursive=directory or out, always_revisit=True)

    def exchange(
        self, first: bytes, second: bytes, swap: Callable[[Callable[[], None]], None], paths_lock: threading.Lock
    ) -> None:
        """What two paths of the kernel stand for changes places, at once here and at the peer. `swap` makes the local
        change, and tells libfuse, under `paths_lock`."""
        one, other = first[1:], second[1:]
        local = self._excluded(one)
        if local != self._excluded(other):
            raise border.refusal()
        engine = self.engine
        above = parent(one)
        aside = above + b"/" + _ASIDE if above else _ASIDE  # never made: what is known of names goes round by it

        def change() -> None:
            with engine.place_holders.moving(self.index, (one, other), (other, one)):
                self.tree.exchange(one, other)

        if local:
            with paths_lock:
                swap(change)
            for old, new in ((one, aside), (other, one), (aside, other)):
                engine.files.renamed(self.index, old, new)
            return
        engine.check_writable()
        found = self.tree.lstat(one), self.tree.lstat(other)
        for old, new, status in ((one, other, found[0]), (other, one, found[1])):
            border.crossing(self.root, None, old, new, status)
        directory = any(stat.S_ISDIR(status.st_mode) for status in found)
        if directory and engine.times.directories:
            engine.flush_times()  # times that are due are kept by path
        files = self._changes.identity(one, found[0]), self._changes.identity(other, found[1])
        moves = ((files[0], one, aside), (files[1], other, one), (files[0], aside, other))

        def record() -> None:
            self._changes.record_names(one, other)
            for file, old, new in moves:
                engine.tracker.renamed(self.index, file, old, new)

        def apply() -> None:
            stream = engine.stream
            if stream is not None and not stream.exchanges:
                raise OSError(errno.EINVAL, "the secondary has a release that cannot exchange names")
            swap(change)
            for _, old, new in moves:
                engine.files.renamed(self.index, old, new)

        def send(stream: Stream) -> int:
            engine.times.directories.add((self.index, above))
            return self._changes.send_name(stream, Op.EXCHANGE, other, one + other, extra=len(one))

        self._changes.make(
            (one, other), apply, send,
            record=record, recursive=directory, always_revisit=True, paths_lock=paths_lock,
        )  # fmt: skip

    def _hide(self, source: bytes, hidden: bytes) -> None:
        """libfuse keeps a file that is unlinked, or renamed over, while open: under a name for this server only.

        Before a rename over it, the file keeps its name as well, so that the rename which follows replaces it
        atomically, here and at the peer.
        """
        engine = self.engine
        engine.place_holders.note(self.index, hidden)
        if self._excluded(source):
            self.tree.rename(source, hidden)
            engine.files.renamed(self.index, source, hidden)
            self.hidden[self.tree.lstat(hidden).st_ino] += 1
            return
        engine.check_writable()
        status = self.tree.lstat(source)
        self._bind_before_loss(status)
        replaced = self.request[0] == kernel.RENAME
        file = engine.files.get(self.index, status.st_ino)

        def apply() -> None:
            if replaced:
                self.tree.link(source, hidden)
                self._hidden = (source, file)
            else:
                self.tree.rename(source, hidden)
                self._hidden = None
            self.hidden[status.st_ino] += 1
            if file is not None:
                file.path = hidden
                file.orphan = status.st_nlink == 1

        def send(stream: Stream) -> int:
            if replaced:
                return 0
            return self._changes.send_name(stream, Op.UNLINK, source, source)

        self._changes.make((source,), apply, send, record=lambda: self._changes.record_names(source))

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
