"""The one way to the data of a replicated directory: every access is relative to a descriptor of its top, resolved
beneath it, and follows no link on the way (R11).

Who may write in a directory below can exchange it for a link at any moment. A path that is put together and handed to
the system would then lead the process, which is root, anywhere. Here a path is split: the directory that holds the
entry is opened with openat2(2), which refuses links, "..", and other file systems; the operation itself names the last
part relative to that descriptor and does not follow it either. Extended attributes have no such call in most kernels;
"/proc/self/fd/N/name" says the same.

What nfsbox, reintegre and safekit.rfs do in a replicated tree stands here; a test looks that they open nothing
themselves.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from safekit import syscalls
from safekit.disk import steps
from safekit.rfs import top
from safekit.rfs.identity import Identity
from safekit.rfs.system import generation

_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 0x01, 0x02, 0x04, 0x08
_RESOLVE: Final = _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH
_O_PATH: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: A FIFO in the place of a file must not keep its opener waiting; to a regular file the flag means nothing.
_FILE: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
ACL_PREFIX: Final = b"system.posix_acl_"
#: Errors that say that there is nothing of a name.
NOTHING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
#: Directories that a Tree keeps open when it is told that nobody else changes their names.
KEPT: Final = 32

_close = os.close  # still there when the interpreter ends


class Directory:
    """An open directory. Its descriptor lives as long as somebody holds this object: one thread may forget it while
    another one still works in it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        _close(self.fd)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _open_parts(top: int, path: bytes, flags: int) -> int:
    """As openat2, part by part, for kernels before 5.6 and sandboxes that do not let it through."""
    here = steps.tree_again(top)
    try:
        device = os.fstat(top).st_dev
        parts = path.split(b"/")
        for index, part in enumerate(parts):
            if part in (b"", b"..") or (part == b"." and len(parts) > 1):
                raise _error(errno.EXDEV if part == b".." else errno.EINVAL)
            below = steps.tree_part(part, (flags if index == len(parts) - 1 else _O_PATH) | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
            if os.fstat(here).st_dev != device:
                raise _error(errno.EXDEV)
        opened, here = here, -1
        return opened
    except NotADirectoryError:
        # openat2 tells a link from what is neither that nor a directory.
        found = steps.tree_stat(part, dir_fd=here, follow_symlinks=False)
        raise _error(errno.ELOOP if stat.S_ISLNK(found.st_mode) else errno.ENOTDIR) from None
    finally:
        if here >= 0:
            os.close(here)


def _proc(above: int, name: bytes) -> bytes:
    """A path of a name in an open directory, for calls that know no descriptors and do not follow what they find."""
    return b"/proc/self/fd/%d/%b" % (above, name)


def _xattrs(names: Callable[[], list[bytes]], value: Callable[[bytes], bytes], *, acl: bool) -> dict[bytes, bytes]:
    try:
        present = names()
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return {}
        raise
    found = {}
    for name in present:
        if acl or not name.startswith(ACL_PREFIX):
            try:
                found[name] = value(name)
            except OSError as error:
                if error.errno != errno.ENODATA:  # it was removed meanwhile
                    raise
    return found


class _Resolver:
    """Opens beneath a directory, in the way that this kernel has."""

    def __init__(self) -> None:
        self.native = True

    def open(self, top: int, path: bytes, flags: int) -> int:
        """A descriptor of an existing directory. Raises OSError: ELOOP for a link on the way, EXDEV for what lies in
        another file system or above."""
        if b"\0" in path:
            raise _error(errno.EINVAL)
        while self.native:
            try:
                return syscalls.open_beneath(top, path, flags, _RESOLVE)
            except OSError as error:
                if error.errno == errno.EAGAIN:  # names were changed on the way meanwhile
                    continue
                if error.errno not in (errno.ENOSYS, errno.EPERM):
                    raise
            self.native = False
        return _open_parts(top, path, flags)


_resolver: Final = _Resolver()


def open_top(path: bytes) -> int:
    """A descriptor of a replicated directory itself. Raises OSError."""
    return steps.tree_top(path, _DIRECTORY | os.O_NOFOLLOW)


@dataclass(frozen=True, slots=True)
class Found:
    """An entry of a directory as the directory itself tells it: `kind` are the type bits of a mode."""

    name: bytes
    inode: int
    kind: int


class Tree:
    """The data of one replicated directory. Paths are relative, b"" is the directory itself.

    `keep`: how many directories stay open; only where every change of names goes through this object. It opens its top
    when it is first used, or by `open`; after `close` it is used no more until the next `open`. Methods raise OSError:
    ELOOP for a link on the way, EXDEV for a path that leaves the file system, EINVAL for ".." at its end. Safe from any
    thread.
    """

    def __init__(self, path: bytes, *, keep: int = 0) -> None:
        self.path = path
        self._keep = keep
        self._kept: dict[bytes, Directory] = {}  # looked up without the lock, changed under it
        self._given = 0  # rises whenever names are given away
        self._lock = threading.Lock()
        self._root: Directory | None = None
        self._closed = False

    # --- life ---------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the top, where it is now."""
        with self._lock:
            self._closed = False
            self._kept = {}
            self._root = Directory(open_top(self.path))

    def keep_open(self, keep: int) -> None:
        """From now on so many directories stay open."""
        self._keep = keep
        self._kept = {}

    def close(self) -> None:
        """Let go of it: its file system can be unmounted. Whoever comes later gets ESTALE."""
        with self._lock:
            self._closed = True
            self._kept, self._root = {}, None

    def _begin(self) -> Directory:
        with self._lock:
            if self._closed:
                raise _error(errno.ESTALE)
            if self._root is None:
                self._root = Directory(open_top(self.path))
            return self._root

    def close_to_others(self) -> None:
        """Nobody but root reaches the data beside us, from now on until `reopen` of safekit.rfs.top. EOPNOTSUPP where
        the file system cannot keep what users are to see of the top."""
        top.close((self._root or self._begin()).fd)

    def is_closed(self) -> bool:
        """Whether it is closed to others."""
        fd = (self._root or self._begin()).fd
        return top.shown(fd, os.fstat(fd)) is not None

    def shown(self, path: bytes) -> str:
        """A path for people."""
        return os.fsdecode(self.path + b"/" + path if path else self.path)

    # --- resolution ---------------------------------------------------------------------------------------

    def at(self, path: bytes) -> tuple[Directory, bytes]:
        """The directory that holds an entry, and its name in it ("." for the top)."""
        above, _, name = path.rpartition(b"/")
        if above:
            kept = self._kept.get(above)
            if kept is None:
                kept = self._resolve(above)
        else:
            kept = self._root or self._begin()
        if name == b"..":
            raise _error(errno.EINVAL)
        return kept, name or b"."

    def _resolve(self, path: bytes) -> Directory:
        given = self._given
        found = Directory(_resolver.open((self._root or self._begin()).fd, path, _O_PATH))
        if self._keep:
            former = self._kept  # its descriptors are closed after the lock
            with self._lock:
                # A name that was given away meanwhile may be this one: then what was found is right for the caller, who
                # asked before, and for nobody after it.
                if self._given == given:
                    if len(self._kept) >= self._keep:
                        self._kept = {}
                    self._kept[path] = found
            del former
        return found

    def _given_away(self, *paths: bytes) -> None:
        """These names stand for something else from now on."""
        below = tuple(path + b"/" for path in paths)
        kept = self._kept
        with self._lock:
            self._given += 1
            if any(known in paths or known.startswith(below) for known in self._kept):
                self._kept = {}
        del kept  # its descriptors are closed after the lock

    def directory(self, path: bytes) -> int:
        """A descriptor of a directory, for its owner to close."""
        return _resolver.open((self._root or self._begin()).fd, path or b".", _DIRECTORY)

    # --- looking ------------------------------------------------------------------------------------------

    def lstat(self, path: bytes) -> os.stat_result:
        """Status; a link's own. The top looks as users are to see it."""
        above, name = self.at(path)
        found = steps.tree_stat(name, dir_fd=above.fd, follow_symlinks=False)
        return found if path else top.status(above.fd, found)

    def status(self, path: bytes) -> os.stat_result | None:
        """Status; None when there is nothing of that name, as below a link."""
        try:
            return self.lstat(path)
        except OSError as error:
            if error.errno in NOTHING:
                return None
            raise  # nobody knows

    def exists(self, path: bytes) -> bool:
        """Whether there is something of that name, if only a link that leads nowhere."""
        return self.status(path) is not None

    def birth_ns(self, path: bytes) -> int | None:
        """When the inode was made, in ns; None when the file system does not tell."""
        above, name = self.at(path)
        return syscalls.birth_ns(above.fd, name)

    def identity(self, path: bytes) -> Identity:
        """Which file that is."""
        above, name = self.at(path)
        status = steps.tree_stat(name, dir_fd=above.fd, follow_symlinks=False)
        return Identity(status.st_ino, generation(above.fd, name))

    def generation(self, path: bytes) -> int:
        """What tells it from others that had the number of its inode."""
        above, name = self.at(path)
        return generation(above.fd, name)

    def statvfs(self) -> os.statvfs_result:
        """Numbers of the file system that holds the data."""
        return steps.tree_numbers((self._root or self._begin()).fd)

    def readlink(self, path: bytes) -> bytes:
        """Target of a symbolic link."""
        above, name = self.at(path)
        return steps.tree_readlink(name, dir_fd=above.fd)

    def listdir(self, path: bytes) -> list[bytes]:
        """Names in a directory."""
        descriptor = self.directory(path)
        try:
            return [os.fsencode(name) for name in steps.tree_list(descriptor)]
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def inside(self, path: bytes) -> Iterator[Inside]:
        """Look at the entries of a directory by descriptor, whatever becomes of its name meanwhile."""
        descriptor = self.directory(path)
        try:
            yield Inside(descriptor)
        finally:
            os.close(descriptor)

    # --- open files ---------------------------------------------------------------------------------------

    def open_file(self, path: bytes, flags: int, mode: int = 0o600) -> tuple[int, os.stat_result]:
        """A descriptor of a regular file, for its owner to close, and its status. ESTALE for anything else."""
        above, name = self.at(path)
        descriptor = steps.tree_open(name, flags | _FILE, mode, dir_fd=above.fd)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise _error(errno.ESTALE)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, status

    def create(self, path: bytes, flags: int, mode: int) -> int:
        """Make a regular file and open it; EEXIST when there is something of that name."""
        above, name = self.at(path)
        return steps.tree_create(name, flags | _FILE | os.O_CREAT | os.O_EXCL, mode, dir_fd=above.fd)

    def open_inode(self, path: bytes) -> int:
        """A descriptor of a regular file or a directory to sync by, for its owner to close."""
        above, name = self.at(path)
        return steps.tree_open(name, os.O_RDONLY | _FILE, dir_fd=above.fd)

    def sync(self, path: bytes) -> None:
        """Put an inode on disk."""
        descriptor = self.open_inode(path)
        try:
            steps.tree_settle(descriptor)
        finally:
            os.close(descriptor)

    def sync_all(self) -> None:
        """Put the whole file system on disk."""
        syscalls.sync_filesystem((self._root or self._begin()).fd)

    def truncate(self, path: bytes, size: int) -> None:
        """Set the size of a regular file."""
        descriptor, _ = self.open_file(path, os.O_WRONLY)
        try:
            steps.tree_truncate(descriptor, size)
        finally:
            os.close(descriptor)

    # --- attributes ---------------------------------------------------------------------------------------

    def chmod(self, path: bytes, mode: int) -> None:
        """Permission bits; EOPNOTSUPP for a link: its target is none of ours."""
        above, name = self.at(path)
        if not path:
            top.chmod(above.fd, mode)
            return
        try:
            syscalls.chmod_at(above.fd, name, mode)
            return
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
        descriptor = steps.tree_open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above.fd)
        try:
            if stat.S_ISLNK(os.fstat(descriptor).st_mode):
                raise _error(errno.EOPNOTSUPP)
            steps.tree_mode(b"/proc/self/fd/%d" % descriptor, mode)
        finally:
            os.close(descriptor)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        """Owner and group, -1 leaves one as it is; a link's own."""
        above, name = self.at(path)
        if not path:
            top.chown(above.fd, uid, gid)
            return
        steps.tree_owner(name, uid, gid, dir_fd=above.fd, follow_symlinks=False)

    def set_times(self, path: bytes, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Times; None leaves one as it is; a link's own."""
        above, name = self.at(path)
        syscalls.set_times(name, atime_ns, mtime_ns, above.fd)

    def _by_name(self, path: bytes) -> tuple[Directory, bytes]:
        above, name = self.at(path)
        return above, _proc(above.fd, name)

    def listxattr(self, path: bytes) -> list[bytes]:
        """Names of the extended attributes."""
        held, real = self._by_name(path)
        names = [os.fsencode(name) for name in steps.tree_xattrs(real, follow_symlinks=False)]
        return names if path else top.xattr_names(held.fd, names)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        """Value of an extended attribute."""
        held, real = self._by_name(path)
        return steps.tree_getxattr(real, name, follow_symlinks=False) if path else top.getxattr(held.fd, name)

    def xattrs(self, path: bytes, *, acl: bool) -> dict[bytes, bytes]:
        """Extended attributes that are replicated: all, access control lists only with `acl`."""
        return _xattrs(lambda: self.listxattr(path), lambda name: self.getxattr(path, name), acl=acl)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute."""
        held, real = self._by_name(path)
        if path:
            steps.tree_setxattr(real, name, value, flags, follow_symlinks=False)
        else:
            top.setxattr(held.fd, name, value, flags)

    def removexattr(self, path: bytes, name: bytes) -> None:
        """Remove an extended attribute."""
        held, real = self._by_name(path)
        if path:
            steps.tree_dropxattr(real, name, follow_symlinks=False)
        else:
            top.removexattr(held.fd, name)

    # --- names --------------------------------------------------------------------------------------------

    def mkdir(self, path: bytes, mode: int) -> None:
        """Make a directory."""
        above, name = self.at(path)
        steps.tree_mkdir(name, mode, dir_fd=above.fd)

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        """Make a FIFO, a socket, a device or a regular file."""
        above, name = self.at(path)
        steps.tree_mknod(name, mode, rdev, dir_fd=above.fd)

    def symlink(self, target: bytes, path: bytes) -> None:
        """Make a symbolic link."""
        above, name = self.at(path)
        steps.tree_symlink(target, name, dir_fd=above.fd)

    def link(self, existing: bytes, path: bytes) -> None:
        """Make another name of what exists; of a link itself."""
        source, old = self.at(existing)
        above, new = self.at(path)
        steps.tree_link(old, new, src_dir_fd=source.fd, dst_dir_fd=above.fd, follow_symlinks=False)

    def unlink(self, path: bytes) -> None:
        """Remove a name."""
        above, name = self.at(path)
        steps.tree_unlink(name, dir_fd=above.fd)

    def rmdir(self, path: bytes) -> None:
        """Remove an empty directory."""
        above, name = self.at(path)
        steps.tree_rmdir(name, dir_fd=above.fd)
        self._given_away(path)

    def rename(self, old: bytes, new: bytes) -> None:
        """Rename, over what exists."""
        source, name = self.at(old)
        target, into = self.at(new)
        steps.tree_rename(name, into, src_dir_fd=source.fd, dst_dir_fd=target.fd)
        self._given_away(old, new)

    def exchange(self, one: bytes, other: bytes) -> None:
        """Two names change what they stand for, at once."""
        source, name = self.at(one)
        target, into = self.at(other)
        syscalls.exchange_at(source.fd, name, target.fd, into)
        self._given_away(one, other)

    def remove(self, path: bytes) -> None:
        """Remove whatever stands there, with everything below; not the top. Nothing there is fine."""
        if not path:
            raise _error(errno.EINVAL)
        try:
            above, name = self.at(path)
            if stat.S_ISDIR(steps.tree_stat(name, dir_fd=above.fd, follow_symlinks=False).st_mode):
                try:
                    _remove_below(above.fd, name)
                finally:
                    self._given_away(path)
            else:
                steps.tree_unlink(name, dir_fd=above.fd)
        except (FileNotFoundError, NotADirectoryError):
            return


class Inside:
    """The entries of one open directory."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def entries(self) -> Iterator[Found]:
        """Each entry, without a look at it where the file system tells its type."""
        return entries(self.descriptor)

    def lstat(self, name: bytes) -> os.stat_result:
        """Status of one; a link's own."""
        return steps.tree_stat(name, dir_fd=self.descriptor, follow_symlinks=False)

    def readlink(self, name: bytes) -> bytes:
        """Target of a symbolic link."""
        return steps.tree_readlink(name, dir_fd=self.descriptor)

    def birth_ns(self, name: bytes) -> int | None:
        """When the inode was made, in ns; None when the file system does not tell."""
        return syscalls.birth_ns(self.descriptor, name)

    def generation(self, name: bytes) -> int:
        """What tells one from others that had the number of its inode."""
        return generation(self.descriptor, name)

    def xattrs(self, name: bytes, *, acl: bool) -> dict[bytes, bytes]:
        """Extended attributes of one that are replicated, access control lists only with `acl`."""
        real = _proc(self.descriptor, name)
        return _xattrs(
            lambda: [os.fsencode(found) for found in steps.tree_xattrs(real, follow_symlinks=False)],
            lambda found: steps.tree_getxattr(real, found, follow_symlinks=False),
            acl=acl,
        )


def entries(descriptor: int) -> Iterator[Found]:
    """Entries of an open directory."""
    with steps.tree_scan(descriptor) as listing:
        for entry in listing:
            if entry.is_dir(follow_symlinks=False):
                kind = stat.S_IFDIR
            elif entry.is_symlink():
                kind = stat.S_IFLNK
            elif entry.is_file(follow_symlinks=False):
                kind = stat.S_IFREG
            else:
                try:
                    kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
                except FileNotFoundError:
                    continue
            yield Found(os.fsencode(entry.name), entry.inode(), kind)


def _remove_below(above: int, name: bytes) -> None:
    """Remove a directory with everything below, by descriptors alone: a directory that is exchanged for a link
    meanwhile is not entered."""
    stack: list[tuple[int, bytes]] = []  # open directories, and the name of each in the one before
    try:
        stack.append((_resolver.open(above, name, _DIRECTORY), name))
        while stack:
            here, called = stack[-1]
            below = None
            for found in list(entries(here)):
                if found.kind == stat.S_IFDIR:
                    below = found.name
                    break
                with contextlib.suppress(FileNotFoundError):
                    steps.tree_unlink(found.name, dir_fd=here)
            if below is not None:
                with contextlib.suppress(FileNotFoundError):
                    stack.append((_resolver.open(here, below, _DIRECTORY), below))
                continue
            os.close(here)
            stack.pop()
            with contextlib.suppress(FileNotFoundError):
                steps.tree_rmdir(called, dir_fd=stack[-1][0] if stack else above)
    finally:
        for descriptor, _ in stack:
            os.close(descriptor)
