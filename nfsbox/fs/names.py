"""Names and attributes: the operations that go by path. See operations.py."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import Any, Final

from nfsbox.fs import kernel
from nfsbox.fs.base import Base
from nfsbox.pair.engine import Engine, Root
from nfsbox.pair.files import File
from nfsbox.pair.push import export
from nfsbox.pair.stream import Stream
from safekit.rfs.exclusions import is_hidden, parent
from safekit.rfs.system import ENCODING, rename_exchange, set_mtime
from safekit.rfs.wire import Op, Set, pack_attr

_ASIDE: Final = b".safekit-exchange"
_ACL_PREFIX: Final = "system.posix_acl_"


class Names(Base):
    """Operations by path."""

    def __init__(self, engine: Engine, root: Root) -> None:
        super().__init__(engine, root)
        self._hidden: tuple[bytes, File | None] | None = None  # name and file hidden for the rename that follows

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
        relative, real = self._named(path)

        def local() -> None:
            if stat.S_ISLNK(os.lstat(real).st_mode):  # kernels before 6.6 ask for it: its target is none of ours
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            os.chmod(real, stat.S_IMODE(mode))

        if self._excluded(relative):
            local()
            return
        self._change(
            (relative,),
            local,
            lambda stream: stream.send(
                Op.PSETATTR, self.index, body=pack_attr(Set.MODE, stat.S_IMODE(mode)) + relative
            ),
        )

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Owner; the system clears the set-id bits, so the mode that results is sent as well."""
        relative, real = self._named(path)

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
        relative, real = self._named(path)
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
        relative, real = self._named(path)
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
        relative, real = self._named(path)
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
        self._refuse_hidden(relative)
        if self._excluded(relative):
            local(real)
            self._give(real, mode)
            return

        def apply() -> None:
            local(real)
            self._give(real, mode)

        def send(stream: Stream) -> int:
            now = os.lstat(real)
            attr = pack_attr(
                Set.MODE | Set.UID | Set.GID | Set.MTIME, now.st_mode, now.st_uid, now.st_gid, 0, now.st_mtime_ns, rdev
            )
            return self._send_name(stream, op, relative, attr + relative, b=mode)

        self._change((relative,), apply, send, record=lambda: self._record_names(relative))

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
        self._refuse_hidden(relative)
        if self._excluded(relative):
            os.symlink(text, real)
            self._give(real, stat.S_IFLNK)
            return

        def apply() -> None:
            os.symlink(text, real)
            self._give(real, stat.S_IFLNK)

        def send(stream: Stream) -> int:
            now = os.lstat(real)
            attr = pack_attr(Set.UID | Set.GID | Set.MTIME, 0, now.st_uid, now.st_gid, 0, now.st_mtime_ns)
            return self._send_name(stream, Op.SYMLINK, relative, attr + relative + text, extra=len(relative))

        self._change((relative,), apply, send, record=lambda: self._record_names(relative))

    def link(self, target: str, source: str) -> None:
        """Make `target` another name of `source` (the order of fusepy)."""
        new, real_new = self._split(target)
        old, real_old = self._named(source)
        self._refuse_hidden(new)
        if self._excluded(new):
            os.link(real_old, real_new, follow_symlinks=False)
            return
        local = self._excluded(old)
        inode = 0 if local else os.lstat(real_old).st_ino

        def record() -> None:
            self._record_names(new)
            self.engine.tracker.linked(self.index, inode, old, new)

        if local:
            temporary = self._temporary(real_old) if is_hidden(old) else None

            def apply() -> None:
                os.link(real_old, real_new, follow_symlinks=False)
                if temporary is not None:  # what is written from now on, the peer needs
                    temporary.local, temporary.named, temporary.era = False, new, -1

            def send(stream: Stream) -> int:
                number = self._export(stream, new)
                if temporary is not None:
                    stream.bind(temporary)
                return number

            self._change(
                (new,),
                apply,
                send,
                record=record,
                recursive=True,
                always_revisit=True,
            )
            return
        self._change(
            (old, new),
            lambda: os.link(real_old, real_new, follow_symlinks=False),
            lambda stream: self._send_name(stream, Op.LINK, new, old + new, extra=len(old)),
            record=record,
        )

    def _temporary(self, real: bytes) -> File | None:
        """The open file without a name whose place holder that is."""
        file = self.engine.files.get(self.index, os.lstat(real).st_ino)
        return file if file is not None and file.temporary else None

    def _lost_name(self, status: os.stat_result) -> None:
        """A file of that status has one name less: a temporary one may have none again that others can see."""
        file = self.engine.files.get(self.index, status.st_ino)
        if file is not None and file.temporary and status.st_nlink == 2:
            file.orphan = True

    def unlink(self, path: str) -> None:
        """Remove a name."""
        relative, real = self._split(path)
        if is_hidden(relative):
            # The name was given up long ago: the directory must not look changed now, and only here.
            mtime = self._directory_mtime(relative)
            self.hidden.discard(os.lstat(real).st_ino)
            os.unlink(real)
            self.engine.forget_hidden(self.index, relative)
            set_mtime(os.path.dirname(real), mtime)
            return
        if self._excluded(relative):
            os.unlink(real)
            return
        self.engine.check_writable()
        status = os.lstat(real)
        self._bind_before_loss(status)

        def apply() -> None:
            os.unlink(real)
            self._lost_name(status)

        self._change(
            (relative,),
            apply,
            lambda stream: self._send_name(stream, Op.UNLINK, relative, relative),
            record=lambda: self._record_names(relative),
        )
        if status.st_nlink == 1:
            self.engine.tracker.gone(self.index, status.st_ino)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        relative, real = self._split(path)
        if self._excluded(relative):
            os.rmdir(real)
            return
        self._change(
            (relative,),
            lambda: os.rmdir(real),
            lambda stream: self._send_name(stream, Op.RMDIR, relative, relative),
            record=lambda: self._record_names(relative),
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
        kept = tuple(path for path, local in ((source, out), (target, into)) if not local)
        if directory and self.engine.due_directories:
            self.engine.flush_times()  # they are kept by path
        replaced = self._status(real_target)
        if replaced is not None:
            self._bind_before_loss(replaced)

        hidden, self._hidden = self._hidden, None

        def record() -> None:
            self._record_names(*kept)
            self.engine.tracker.renamed(self.index, status.st_ino, source, target, directory=directory)

        def apply() -> None:
            try:
                os.rename(real_source, real_target)
            except OSError:
                if hidden is not None and hidden[0] == target and hidden[1] is not None:
                    hidden[1].orphan, hidden[1].path = False, target  # it kept its name after all
                raise
            self.engine.files.renamed(self.index, source, target)
            if replaced is not None:
                self._lost_name(replaced)

        def send(stream: Stream) -> int:
            if into:
                return self._send_name(stream, Op.REMOVE, source, source)
            if out:
                return self._export(stream, target)
            self.engine.due_directories.add((self.index, parent(source)))
            return self._send_name(stream, Op.RENAME, target, source + target, extra=len(source))

        self._change(kept, apply, send, record=record, recursive=directory or out, always_revisit=True)
        if replaced is not None and replaced.st_nlink == 1 and not stat.S_ISDIR(replaced.st_mode):
            self.engine.tracker.gone(self.index, replaced.st_ino)

    def exchange(self, first: bytes, second: bytes, swap: Callable[[Callable[[], None]], None]) -> None:
        """What two paths of the kernel stand for changes places, at once here and at the peer. `swap` makes the local
        change, and tells libfuse."""
        one, other = first[1:], second[1:]
        real_one, real_other = self.root.real(one), self.root.real(other)
        local = self._excluded(one)
        if local != self._excluded(other):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))  # what is not replicated is another place
        if local:
            swap(lambda: rename_exchange(real_one, real_other))
            return
        engine = self.engine
        engine.check_writable()
        found = os.lstat(real_one), os.lstat(real_other)
        directory = any(stat.S_ISDIR(status.st_mode) for status in found)
        if directory and engine.due_directories:
            engine.flush_times()  # they are kept by path
        above = parent(one)
        aside = above + b"/" + _ASIDE if above else _ASIDE  # never made: what is known of names goes round by it
        moves = ((found[0], one, aside), (found[1], other, one), (found[0], aside, other))

        def record() -> None:
            self._record_names(one, other)
            for status, old, new in moves:
                folder = stat.S_ISDIR(status.st_mode)
                engine.tracker.renamed(self.index, status.st_ino, old, new, directory=folder)

        def apply() -> None:
            stream = engine.stream
            if stream is not None and not stream.exchanges:
                raise OSError(errno.EINVAL, "the secondary has a release that cannot exchange names")
            swap(lambda: rename_exchange(real_one, real_other))
            for _, old, new in moves:
                engine.files.renamed(self.index, old, new)

        def send(stream: Stream) -> int:
            engine.due_directories.add((self.index, above))
            return self._send_name(stream, Op.EXCHANGE, other, one + other, extra=len(one))

        self._change((one, other), apply, send, record=record, recursive=directory, always_revisit=True)

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
        self._change((source,), apply, send, record=lambda: self._record_names(source))
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
