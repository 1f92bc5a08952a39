"""How one operation of the stream changes this server's data."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from typing import Any, Final

from nfsbox.pair.commit import Due, sync_path
from nfsbox.pair.engine import Root
from safekit.rfs.exclusions import parent
from safekit.rfs.system import PIECE, fallocate, rename_exchange, set_times
from safekit.rfs.wire import ATTR, HEADER, HEADER_SIZE, Op, Set, decode_map, valid_path

_ACL_PREFIX: Final = b"system.posix_acl_"


class OpenFiles(dict[int, int]):
    """fid -> descriptor, or a negative errno for a file that could not be opened."""

    def put(self, fid: int, descriptor: int) -> None:
        self.drop(fid)
        self[fid] = descriptor

    def drop(self, fid: int) -> None:
        old = self.pop(fid, -1)
        if old >= 0:
            os.close(old)

    def close_all(self) -> None:
        for fid in list(self):
            self.drop(fid)

    def descriptor(self, fid: int) -> int:
        """Raises OSError when the file is not open."""
        found = self.get(fid, -errno.EBADF)
        if found < 0:
            raise OSError(-found, os.strerror(-found))
        return found


class Tree:
    """The replicated directories as the applier sees them. Paths of the peer are checked before they are used."""

    def __init__(self, roots: Sequence[Root]) -> None:
        self._roots = roots

    def real(self, root: int, path: bytes, *, strict: bool) -> bytes:
        """Absolute path. Raises EINVAL for a path that would leave the directory, and for one that stays local;
        while the trees may differ, ELOOP when a part on the way is a symbolic link here."""
        if root >= len(self._roots) or not valid_path(path):
            raise OSError(errno.EINVAL, "path outside the replicated directories")
        place = self._roots[root]
        if place.exclusions.match(path):
            raise OSError(errno.EINVAL, "path that is not replicated here: the configurations differ")
        if not strict and b"/" in path:
            self._no_link_above(place.backing, parent(path))
        return place.real(path)

    @staticmethod
    def _no_link_above(base: bytes, path: bytes) -> None:
        here = base
        for part in path.split(b"/"):
            here += b"/" + part
            if stat.S_ISLNK(os.lstat(here).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def describe(frame: bytes) -> str:
    """The path of an operation, for a message."""
    _, _, _, extra, fid, a, _ = HEADER.unpack_from(frame)
    if frame[0] < Op.CREATE:
        return f"fid {fid} offset {a}"
    body = frame[HEADER_SIZE:]
    if frame[0] in (Op.CREATE, Op.MKDIR, Op.MKNOD, Op.SYMLINK, Op.PSETATTR, Op.ENTRY, Op.FILE):
        body = body[ATTR.size :]
    return (body[:extra] if extra else body)[:300].decode("utf-8", "replace")


def operation(tree: Tree, files: OpenFiles, frame: bytes, *, strict: bool, due: Due | None) -> bool:
    """Apply, and note in `due` what must be on disk for it. True when an entry was made anew (ENTRY).
    Raises OSError."""
    op, _, root, extra, fid, a, b = HEADER.unpack_from(frame)
    handler = _BY_HANDLE.get(op)
    body = memoryview(frame)[HEADER_SIZE:]
    if handler is not None:
        descriptor = files.descriptor(fid)
        handler(descriptor, extra, a, b, body, due)
        return False
    if due is not None and op in (Op.OPEN, Op.CLOSE):
        due.commit()  # it may free a descriptor that is due
    if op == Op.OPEN:
        path = bytes(body)
        try:
            files.put(fid, os.open(tree.real(root, path, strict=strict), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
        except OSError as error:
            files.drop(fid)
            files[fid] = -(error.errno or errno.EIO)
            if strict:
                raise
        return False
    if op == Op.CLOSE:
        if a:
            set_times(files.descriptor(fid), None, a)
        files.drop(fid)
        return False
    named = _BY_NAME.get(op)
    if named is None:
        raise OSError(errno.EOPNOTSUPP, f"operation {op}")
    return named(_Named(tree, files, root, extra, fid, a, b, bytes(body), strict, due))


# --- by handle -------------------------------------------------------------------------------------------------


def _write(descriptor: int, _extra: int, a: int, _b: int, body: memoryview, due: Due | None) -> None:
    if due is not None:
        due.data(descriptor)
    _write_all(descriptor, body, a)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(descriptor, data[:PIECE], offset)
        data = data[done:]
        offset += done


def _truncate(descriptor: int, _extra: int, a: int, _b: int, _body: memoryview, due: Due | None) -> None:
    os.ftruncate(descriptor, a)
    if due is not None:
        due.data(descriptor)


def _fallocate(descriptor: int, extra: int, a: int, b: int, _body: memoryview, due: Due | None) -> None:
    fallocate(descriptor, extra, a, b)
    if due is not None:
        due.data(descriptor)


def _setattr(descriptor: int, _extra: int, _a: int, _b: int, body: memoryview, due: Due | None) -> None:
    mask, mode, uid, gid, atime, mtime, _, _ = ATTR.unpack_from(body)
    if mask & (Set.UID | Set.GID):
        os.fchown(descriptor, uid if mask & Set.UID else -1, gid if mask & Set.GID else -1)
    if mask & Set.MODE:
        os.fchmod(descriptor, stat.S_IMODE(mode))
    if mask & (Set.ATIME | Set.MTIME):
        set_times(descriptor, atime if mask & Set.ATIME else None, mtime if mask & Set.MTIME else None)
    if due is not None:
        due.inode(descriptor)


def _setxattr(descriptor: int, extra: int, _a: int, _b: int, body: memoryview, due: Due | None) -> None:
    os.setxattr(descriptor, bytes(body[:extra]), bytes(body[extra:]))
    if due is not None:
        due.inode(descriptor)


def _removexattr(descriptor: int, _extra: int, _a: int, _b: int, body: memoryview, due: Due | None) -> None:
    os.removexattr(descriptor, bytes(body))
    if due is not None:
        due.inode(descriptor)


def _fsync(descriptor: int, _extra: int, a: int, _b: int, _body: memoryview, _due: Due | None) -> None:
    if a:
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


_BY_HANDLE: dict[int, Callable[[int, int, int, int, memoryview, Due | None], None]] = {
    Op.WRITE: _write,
    Op.TRUNCATE: _truncate,
    Op.FALLOCATE: _fallocate,
    Op.SETATTR: _setattr,
    Op.SETXATTR: _setxattr,
    Op.REMOVEXATTR: _removexattr,
    Op.FSYNC: _fsync,
}


# --- by name ---------------------------------------------------------------------------------------------------


class _Named:
    """One operation on names."""

    __slots__ = ("a", "b", "body", "due", "extra", "fid", "files", "root", "strict", "tree")

    def __init__(
        self,
        tree: Tree,
        files: OpenFiles,
        root: int,
        extra: int,
        fid: int,
        a: int,
        b: int,
        body: bytes,
        strict: bool,
        due: Due | None,
    ) -> None:
        self.tree, self.files, self.root, self.extra, self.fid = tree, files, root, extra, fid
        self.a, self.b, self.body, self.strict, self.due = a, b, body, strict, due

    def real(self, path: bytes) -> bytes:
        return self.tree.real(self.root, path, strict=self.strict)

    def clear(self, real: bytes) -> None:
        """While the trees may differ, what stands where a new entry is to be made goes."""
        if not self.strict:
            remove(real)

    def done(self, real: bytes) -> None:
        """The directory of `real` has changed: its durability."""
        if self.due is not None:
            self.due.path(os.path.dirname(real))

    def changed(self, real: bytes) -> None:
        """The inode of `real` has changed: its durability."""
        if self.due is not None:
            self.due.path(real)


def remove(real: bytes) -> None:
    """Remove whatever stands there, with everything below. Nothing there is fine."""
    try:
        status = os.lstat(real)
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISDIR(status.st_mode):
        shutil.rmtree(real)
    else:
        os.unlink(real)


def _attributes(real: bytes, attr: tuple[int, ...]) -> None:
    mask, mode, uid, gid, atime, mtime, _, _ = attr
    status = os.lstat(real)
    link = stat.S_ISLNK(status.st_mode)
    if mask & (Set.UID | Set.GID):
        uid = uid if mask & Set.UID else -1
        gid = gid if mask & Set.GID else -1
        if (uid, gid) != (status.st_uid, status.st_gid):
            os.chown(real, uid, gid, follow_symlinks=False)
            status = os.lstat(real)
    if mask & Set.MODE and not link and stat.S_IMODE(mode) != stat.S_IMODE(status.st_mode):
        os.chmod(real, stat.S_IMODE(mode))
    if mask & (Set.ATIME | Set.MTIME):
        set_times(real, atime if mask & Set.ATIME else None, mtime if mask & Set.MTIME else None)


def _create(o: _Named) -> bool:
    path = o.body[ATTR.size :]
    real = o.real(path)
    o.clear(real)
    descriptor = os.open(real, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, stat.S_IMODE(o.b))
    try:
        _, mode, uid, gid, *_ = ATTR.unpack_from(o.body)
        made = os.fstat(descriptor)
        if (made.st_uid, made.st_gid) != (uid, gid):
            os.fchown(descriptor, uid, gid)
            made = os.fstat(descriptor)
        if made.st_mode != mode:
            os.fchmod(descriptor, stat.S_IMODE(mode))
        if o.due is not None:
            o.due.inode(descriptor)
            if not o.fid:
                o.due.commit()
        o.done(real)
    except BaseException:
        os.close(descriptor)
        raise
    if o.fid:
        o.files.put(o.fid, descriptor)
    else:
        os.close(descriptor)
    return True


def _mkdir(o: _Named) -> bool:
    real = o.real(o.body[ATTR.size :])
    o.clear(real)
    os.mkdir(real, stat.S_IMODE(o.b))
    _attributes(real, ATTR.unpack_from(o.body))
    o.done(real)
    return True


def _mknod(o: _Named) -> bool:
    attr = ATTR.unpack_from(o.body)
    real = o.real(o.body[ATTR.size :])
    o.clear(real)
    os.mknod(real, o.b, attr[6])
    _attributes(real, attr)
    o.done(real)
    return True


def _symlink(o: _Named) -> bool:
    split = ATTR.size + o.extra
    real = o.real(o.body[ATTR.size : split])
    o.clear(real)
    os.symlink(o.body[split:], real)
    _attributes(real, ATTR.unpack_from(o.body))
    o.done(real)
    return True


def _link(o: _Named) -> bool:
    existing, real = o.real(o.body[: o.extra]), o.real(o.body[o.extra :])
    if not o.strict:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(existing), os.lstat(real)):
                return False
        os.lstat(existing)  # missing: nothing may be removed for it
    o.clear(real)
    os.link(existing, real, follow_symlinks=False)
    o.done(real)
    return True


def _unlink(o: _Named) -> bool:
    real = o.real(o.body)
    if o.strict:
        os.unlink(real)
    else:
        remove(real)
    o.done(real)
    return False


def _rmdir(o: _Named) -> bool:
    real = o.real(o.body)
    if o.strict:
        os.rmdir(real)
    else:
        remove(real)
    o.done(real)
    return False


def _remove(o: _Named) -> bool:
    real = o.real(o.body)
    if not o.body:
        raise OSError(errno.EINVAL, "a replicated directory itself cannot be removed")
    remove(real)
    o.done(real)
    return False


def _rename(o: _Named) -> bool:
    old, new = o.real(o.body[: o.extra]), o.real(o.body[o.extra :])
    if not o.strict:
        source = os.lstat(old)
        with contextlib.suppress(FileNotFoundError):
            target = os.lstat(new)
            if not os.path.samestat(source, target) and (stat.S_ISDIR(target.st_mode) or stat.S_ISDIR(source.st_mode)):
                remove(new)
    os.rename(old, new)
    if os.path.dirname(old) != os.path.dirname(new):
        o.done(old)
    o.done(new)
    return False


def _exchange(o: _Named) -> bool:
    one, other = o.real(o.body[: o.extra]), o.real(o.body[o.extra :])
    rename_exchange(one, other)
    if os.path.dirname(one) != os.path.dirname(other):
        o.done(one)
    o.done(other)
    return False


def _psetattr(o: _Named) -> bool:
    real = o.real(o.body[ATTR.size :])
    _attributes(real, ATTR.unpack_from(o.body))
    o.changed(real)
    return False


def _psetxattr(o: _Named) -> bool:
    real = o.real(o.body[: o.extra])
    name = o.body[o.extra : o.extra + o.b]
    os.setxattr(real, name, o.body[o.extra + o.b :], follow_symlinks=False)
    o.changed(real)
    return False


def _premovexattr(o: _Named) -> bool:
    real = o.real(o.body[: o.extra])
    try:
        os.removexattr(real, o.body[o.extra :], follow_symlinks=False)
    except OSError as error:
        if o.strict or error.errno != errno.ENODATA:
            raise
    o.changed(real)
    return False


def _ptruncate(o: _Named) -> bool:
    real = o.real(o.body)
    os.truncate(real, o.a)
    o.changed(real)
    return False


def _fsyncdir(o: _Named) -> bool:
    sync_path(o.real(o.body))
    return False


def _entry(o: _Named) -> bool:
    """Make an entry as it is at the primary; content of a file apart. Times are set last of all (`finish`)."""
    return _as_there(o, o.body[ATTR.size + o.extra :], None)


def _file(o: _Named) -> bool:
    """A regular file with its content."""
    end = len(o.body) - o.b
    if end < ATTR.size + o.extra or not stat.S_ISREG(ATTR.unpack_from(o.body)[1]):
        raise OSError(errno.EPROTO, "malformed file")
    return _as_there(o, o.body[ATTR.size + o.extra : end], o.body[end:])


def _as_there(o: _Named, details: bytes, content: bytes | None) -> bool:
    attr = ATTR.unpack_from(o.body)
    mode, rdev, size = attr[1], attr[6], attr[7]
    real = o.real(o.body[ATTR.size : ATTR.size + o.extra])
    more = decode_map(details)
    fresh = False
    try:
        status: os.stat_result | None = os.lstat(real)
    except FileNotFoundError:
        status = None
    if status is not None and not _same_kind(real, status, mode, rdev, more):
        remove(real)
        status = None
    if status is None:
        fresh = True
        _make(real, mode, rdev, more)
    elif stat.S_ISREG(mode) and (more.get("fresh") or (status.st_nlink > 1 and more.get("n") == 1)):
        # Here it has names which it has not there: it becomes a file of its own.
        os.unlink(real)
        fresh = True
        _make(real, mode, rdev, more)
    if content is not None:
        _fill(real, content)  # before attributes: it takes capabilities away, and moves the time
    elif stat.S_ISREG(mode) and os.lstat(real).st_size != size:
        os.truncate(real, size)
    _xattrs(real, more.get("x") or {}, acl=bool(more.get("acl")))
    _attributes(real, attr)
    if stat.S_ISREG(mode):
        o.changed(real)
    return fresh


def _fill(real: bytes, content: bytes) -> None:
    descriptor = os.open(real, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _write_all(descriptor, memoryview(content), 0)
        if os.fstat(descriptor).st_size != len(content):
            os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def _same_kind(real: bytes, status: os.stat_result, mode: int, rdev: int, more: dict[str, Any]) -> bool:
    if stat.S_IFMT(status.st_mode) != stat.S_IFMT(mode):
        return False
    if stat.S_ISLNK(mode):
        return os.readlink(real) == more.get("t")
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        return status.st_rdev == rdev
    return True


def _make(real: bytes, mode: int, rdev: int, more: dict[str, Any]) -> None:
    if stat.S_ISDIR(mode):
        os.mkdir(real, 0o700)
    elif stat.S_ISLNK(mode):
        target = more.get("t")
        if not isinstance(target, bytes):
            raise OSError(errno.EPROTO, "symbolic link without a target")
        os.symlink(target, real)
    else:
        os.mknod(real, stat.S_IFMT(mode) | 0o600, rdev)


def _xattrs(real: bytes, wanted: dict[Any, Any], *, acl: bool) -> None:
    try:
        present = {os.fsencode(name) for name in os.listxattr(real, follow_symlinks=False)}
    except OSError as error:
        if error.errno == errno.ENOTSUP and not wanted:
            return
        raise
    for name in present:
        if name not in wanted and (acl or not name.startswith(_ACL_PREFIX)):
            os.removexattr(real, name, follow_symlinks=False)
    for name, value in wanted.items():
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise OSError(errno.EPROTO, "malformed extended attribute")
        if name not in present or os.getxattr(real, name, follow_symlinks=False) != value:
            os.setxattr(real, name, value, follow_symlinks=False)


_BY_NAME: dict[int, Callable[[_Named], bool]] = {
    Op.CREATE: _create,
    Op.MKDIR: _mkdir,
    Op.MKNOD: _mknod,
    Op.SYMLINK: _symlink,
    Op.LINK: _link,
    Op.UNLINK: _unlink,
    Op.RMDIR: _rmdir,
    Op.RENAME: _rename,
    Op.EXCHANGE: _exchange,
    Op.PSETATTR: _psetattr,
    Op.PTRUNCATE: _ptruncate,
    Op.PSETXATTR: _psetxattr,
    Op.PREMOVEXATTR: _premovexattr,
    Op.FSYNCDIR: _fsyncdir,
    Op.ENTRY: _entry,
    Op.FILE: _file,
    Op.REMOVE: _remove,
}
