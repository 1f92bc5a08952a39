"""How one operation of the stream changes this server's data."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any

from nfsbox.pair.commit import Due
from nfsbox.pair.engine import Root
from nfsbox.pair.hidden import Move, PlaceHolders
from safekit import syscalls
from safekit.disk import steps
from safekit.rfs.exclusions import Exclusions, parent
from safekit.rfs.system import PIECE
from safekit.rfs.tree import ACL_PREFIX, Tree
from safekit.rfs.wire import ATTR, HEADER, HEADER_SIZE, Op, Set, decode_map, unpack_attr, valid_path

log = logging.getLogger("nfsbox")


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


class Trees:
    """The replicated directories as the applier sees them. Paths of the peer are checked before they are used."""

    def __init__(self, roots: Sequence[Root], place_holders: PlaceHolders | None = None) -> None:
        self._roots = roots
        self._place_holders = place_holders

    def moving(self, root: int, *moves: Move) -> contextlib.AbstractContextManager[None]:
        """See `PlaceHolders`: who had a file open when this server was primary may have it open still."""
        return self._place_holders.moving(root, *moves) if self._place_holders is not None else contextlib.nullcontext()

    def exclusions(self, root: int) -> Exclusions:
        """What of a replicated directory stays local."""
        return self._roots[root].exclusions

    def find(self, root: int, *paths: bytes) -> Tree:
        """The tree in which these paths are. Raises EINVAL for one that would leave the directory, and for one that
        stays local."""
        if root >= len(self._roots):
            raise OSError(errno.EINVAL, "path outside the replicated directories")
        place = self._roots[root]
        for path in paths:
            if not valid_path(path):
                raise OSError(errno.EINVAL, "path outside the replicated directories")
            if place.exclusions.match(path):
                raise OSError(errno.EINVAL, "path that is not replicated here: the configurations differ")
        return place.tree


def describe(frame: bytes) -> str:
    """The path of an operation, for a message."""
    _, _, _, extra, fid, a, _ = HEADER.unpack_from(frame)
    if frame[0] < Op.CREATE:
        return f"fid {fid} offset {a}"
    body = frame[HEADER_SIZE:]
    if frame[0] in (Op.CREATE, Op.MKDIR, Op.MKNOD, Op.SYMLINK, Op.PSETATTR, Op.ENTRY, Op.FILE):
        body = body[ATTR.size :]
    return (body[:extra] if extra else body)[:300].decode("utf-8", "replace")


def operation(trees: Trees, files: OpenFiles, frame: bytes, *, strict: bool, due: Due | None) -> bool:
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
            files.put(fid, trees.find(root, path).open_file(path, os.O_RDWR)[0])
        except OSError as error:
            files.drop(fid)
            files[fid] = -(error.errno or errno.EIO)
            if strict:
                raise
        return False
    if op == Op.CLOSE:
        if a:
            syscalls.set_times(files.descriptor(fid), None, a)
        files.drop(fid)
        return False
    named = _BY_NAME.get(op)
    if named is None:
        raise OSError(errno.EOPNOTSUPP, f"operation {op}")
    return named(_Named(trees, files, root, extra, fid, a, b, bytes(body), strict, due))


# --- by handle -------------------------------------------------------------------------------------------------


def _write(descriptor: int, _extra: int, a: int, _b: int, body: memoryview, due: Due | None) -> None:
    if due is not None:
        due.data(descriptor)
    _write_all(descriptor, body, a)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        done = steps.apply_write(descriptor, data[:PIECE], offset)
        data = data[done:]
        offset += done


def _truncate(descriptor: int, _extra: int, a: int, _b: int, _body: memoryview, due: Due | None) -> None:
    steps.apply_truncate(descriptor, a)
    if due is not None:
        due.data(descriptor)


def _fallocate(descriptor: int, extra: int, a: int, b: int, _body: memoryview, due: Due | None) -> None:
    syscalls.fallocate(descriptor, extra, a, b)
    if due is not None:
        due.data(descriptor)


def _setattr(descriptor: int, _extra: int, _a: int, _b: int, body: memoryview, due: Due | None) -> None:
    mask, mode, uid, gid, atime, mtime, _, _ = unpack_attr(body)
    if mask & (Set.UID | Set.GID):
        steps.apply_owner(descriptor, uid if mask & Set.UID else -1, gid if mask & Set.GID else -1)
    if mask & Set.MODE:
        steps.apply_mode(descriptor, stat.S_IMODE(mode))
    if mask & (Set.ATIME | Set.MTIME):
        syscalls.set_times(descriptor, atime if mask & Set.ATIME else None, mtime if mask & Set.MTIME else None)
    if due is not None:
        due.inode(descriptor)


def _setxattr(descriptor: int, extra: int, _a: int, _b: int, body: memoryview, due: Due | None) -> None:
    steps.apply_setxattr(descriptor, bytes(body[:extra]), bytes(body[extra:]))
    if due is not None:
        due.inode(descriptor)


def _removexattr(descriptor: int, _extra: int, _a: int, _b: int, body: memoryview, due: Due | None) -> None:
    steps.apply_dropxattr(descriptor, bytes(body))
    if due is not None:
        due.inode(descriptor)


def _fsync(descriptor: int, _extra: int, a: int, _b: int, _body: memoryview, _due: Due | None) -> None:
    if a:
        steps.apply_commit(descriptor)
    else:
        steps.apply_settle(descriptor)


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

    __slots__ = ("a", "b", "body", "due", "extra", "fid", "files", "root", "strict", "tree", "trees")

    def __init__(
        self,
        trees: Trees,
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
        self.trees, self.files, self.root, self.extra, self.fid = trees, files, root, extra, fid
        self.a, self.b, self.body, self.strict, self.due = a, b, body, strict, due
        self.tree: Tree

    def on(self, *paths: bytes) -> None:
        """These paths are meant. Raises EINVAL for those that must not be."""
        self.tree = self.trees.find(self.root, *paths)

    def without_local(self, path: bytes, change: Callable[[], None]) -> None:
        """A change for which the directory at `path` must be empty, as it is at the primary: what stays local here goes
        with it."""
        try:
            change()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            local = self.trees.exclusions(self.root).match
            inside = [path + b"/" + name for name in self.tree.listdir(path)]
            if not inside or not all(local(name) for name in inside):
                raise
            for name in inside:
                log.warning("%s is removed with its directory, although it is not replicated", self.tree.shown(name))
                self.tree.remove(name)
            change()

    def clear(self, path: bytes) -> None:
        """While the trees may differ, what stands where a new entry is to be made goes."""
        if not self.strict:
            self.tree.remove(path)

    def done(self, path: bytes) -> None:
        """The directory of `path` has changed: its durability."""
        if self.due is not None:
            self.due.path(self.tree, parent(path))

    def changed(self, path: bytes) -> None:
        """The inode of `path` has changed: its durability."""
        if self.due is not None:
            self.due.path(self.tree, path)


def _attributes(tree: Tree, path: bytes, attr: tuple[int, ...]) -> None:
    mask, mode, uid, gid, atime, mtime, _, _ = attr
    status = tree.lstat(path)
    link = stat.S_ISLNK(status.st_mode)
    if mask & (Set.UID | Set.GID):
        uid = uid if mask & Set.UID else -1
        gid = gid if mask & Set.GID else -1
        if (uid, gid) != (status.st_uid, status.st_gid):
            tree.chown(path, uid, gid)
            status = tree.lstat(path)
    if mask & Set.MODE and not link and stat.S_IMODE(mode) != stat.S_IMODE(status.st_mode):
        tree.chmod(path, stat.S_IMODE(mode))
    if mask & (Set.ATIME | Set.MTIME):
        tree.set_times(path, atime if mask & Set.ATIME else None, mtime if mask & Set.MTIME else None)


def _create(o: _Named) -> bool:
    path = o.body[ATTR.size :]
    o.on(path)
    o.clear(path)
    descriptor = o.tree.create(path, os.O_RDWR, stat.S_IMODE(o.b))
    try:
        _, mode, uid, gid, *_ = unpack_attr(o.body)
        made = os.fstat(descriptor)
        if (made.st_uid, made.st_gid) != (uid, gid):
            steps.apply_owner(descriptor, uid, gid)
            made = os.fstat(descriptor)
        if made.st_mode != mode:
            steps.apply_mode(descriptor, stat.S_IMODE(mode))
        if o.due is not None:
            o.due.inode(descriptor)
            if not o.fid:
                o.due.commit()
        o.done(path)
    except BaseException:
        os.close(descriptor)
        raise
    if o.fid:
        o.files.put(o.fid, descriptor)
    else:
        os.close(descriptor)
    return True


def _mkdir(o: _Named) -> bool:
    path = o.body[ATTR.size :]
    o.on(path)
    o.clear(path)
    o.tree.mkdir(path, stat.S_IMODE(o.b))
    _attributes(o.tree, path, unpack_attr(o.body))
    o.done(path)
    return True


def _mknod(o: _Named) -> bool:
    attr = unpack_attr(o.body)
    path = o.body[ATTR.size :]
    o.on(path)
    o.clear(path)
    o.tree.mknod(path, o.b, attr[6])
    _attributes(o.tree, path, attr)
    o.done(path)
    return True


def _symlink(o: _Named) -> bool:
    split = ATTR.size + o.extra
    path = o.body[ATTR.size : split]
    o.on(path)
    o.clear(path)
    o.tree.symlink(o.body[split:], path)
    _attributes(o.tree, path, unpack_attr(o.body))
    o.done(path)
    return True


def _link(o: _Named) -> bool:
    existing, path = o.body[: o.extra], o.body[o.extra :]
    o.on(existing, path)
    if not o.strict:
        with contextlib.suppress(OSError):
            if os.path.samestat(o.tree.lstat(existing), o.tree.lstat(path)):
                return False
        o.tree.lstat(existing)  # missing: nothing may be removed for it
    o.clear(path)
    o.tree.link(existing, path)
    o.done(path)
    return True


def _unlink(o: _Named) -> bool:
    o.on(o.body)
    if o.strict:
        o.tree.unlink(o.body)
    else:
        o.tree.remove(o.body)
    o.done(o.body)
    return False


def _rmdir(o: _Named) -> bool:
    o.on(o.body)
    if o.strict:
        o.without_local(o.body, lambda: o.tree.rmdir(o.body))
    else:
        o.tree.remove(o.body)
    o.done(o.body)
    return False


def _remove(o: _Named) -> bool:
    o.on(o.body)
    if not o.body:
        raise OSError(errno.EINVAL, "a replicated directory itself cannot be removed")
    o.tree.remove(o.body)
    o.done(o.body)
    return False


def _rename(o: _Named) -> bool:
    old, new = o.body[: o.extra], o.body[o.extra :]
    o.on(old, new)
    if not o.strict:
        source = o.tree.lstat(old)
        with contextlib.suppress(FileNotFoundError):
            target = o.tree.lstat(new)
            if not os.path.samestat(source, target) and (stat.S_ISDIR(target.st_mode) or stat.S_ISDIR(source.st_mode)):
                o.tree.remove(new)
    _keep_apart(o, old, new)
    with o.trees.moving(o.root, (old, new)):
        o.without_local(new, lambda: o.tree.rename(old, new))
    if parent(old) != parent(new):
        o.done(old)
    o.done(new)
    return False


def _keep_apart(o: _Named, old: bytes, new: bytes) -> None:
    """What stays local here inside a directory, and would not under its new name, the peer does not have: it goes."""
    exclusions = o.trees.exclusions(o.root)
    if not exclusions.depends_on_directory(old, new) or not stat.S_ISDIR(o.tree.lstat(old).st_mode):
        return
    pending = [b""]
    while pending:
        here = pending.pop()
        for name in o.tree.listdir(old + here):
            below = here + b"/" + name
            if exclusions.match(old + below):
                if not exclusions.match(new + below):
                    log.warning("%s is removed: it is not replicated, and would be there", o.tree.shown(old + below))
                    o.tree.remove(old + below)
            elif stat.S_ISDIR(o.tree.lstat(old + below).st_mode):
                pending.append(below)


def _exchange(o: _Named) -> bool:
    one, other = o.body[: o.extra], o.body[o.extra :]
    o.on(one, other)
    _keep_apart(o, one, other)
    _keep_apart(o, other, one)
    with o.trees.moving(o.root, (one, other), (other, one)):
        o.tree.exchange(one, other)
    if parent(one) != parent(other):
        o.done(one)
    o.done(other)
    return False


def _psetattr(o: _Named) -> bool:
    path = o.body[ATTR.size :]
    o.on(path)
    _attributes(o.tree, path, unpack_attr(o.body))
    o.changed(path)
    return False


def _psetxattr(o: _Named) -> bool:
    path = o.body[: o.extra]
    o.on(path)
    name = o.body[o.extra : o.extra + o.b]
    o.tree.setxattr(path, name, o.body[o.extra + o.b :])
    o.changed(path)
    return False


def _premovexattr(o: _Named) -> bool:
    path = o.body[: o.extra]
    o.on(path)
    try:
        o.tree.removexattr(path, o.body[o.extra :])
    except OSError as error:
        if o.strict or error.errno != errno.ENODATA:
            raise
    o.changed(path)
    return False


def _ptruncate(o: _Named) -> bool:
    o.on(o.body)
    o.tree.truncate(o.body, o.a)
    o.changed(o.body)
    return False


def _fsyncdir(o: _Named) -> bool:
    o.on(o.body)
    o.tree.sync(o.body)
    return False


def _entry(o: _Named) -> bool:
    """Make an entry as it is at the primary; content of a file apart. Times are set last of all (`finish`)."""
    return _as_there(o, o.body[ATTR.size + o.extra :], None)


def _file(o: _Named) -> bool:
    """A regular file with its content."""
    end = len(o.body) - o.b
    if end < ATTR.size + o.extra or not stat.S_ISREG(unpack_attr(o.body)[1]):
        raise OSError(errno.EPROTO, "malformed file")
    return _as_there(o, o.body[ATTR.size + o.extra : end], o.body[end:])


def _as_there(o: _Named, details: bytes, content: bytes | None) -> bool:
    attr = unpack_attr(o.body)
    mode, rdev, size = attr[1], attr[6], attr[7]
    path = o.body[ATTR.size : ATTR.size + o.extra]
    o.on(path)
    tree = o.tree
    more = decode_map(details)
    fresh = False
    try:
        status: os.stat_result | None = tree.lstat(path)
    except FileNotFoundError:
        status = None
    if status is not None and not _same_kind(tree, path, status, mode, rdev, more):
        tree.remove(path)
        status = None
    if status is None:
        fresh = True
        _make(tree, path, mode, rdev, more)
    elif not stat.S_ISDIR(mode) and (more.get("fresh") or (status.st_nlink > 1 and more.get("n") == 1)):
        # Here it has names which it has not there: it becomes a file, or a link, of its own.
        tree.unlink(path)
        fresh = True
        _make(tree, path, mode, rdev, more)
    if content is not None:
        _fill(tree, path, content)  # before attributes: it takes capabilities away, and moves the time
    elif stat.S_ISREG(mode) and tree.lstat(path).st_size != size:
        tree.truncate(path, size)
    _xattrs(tree, path, more.get("x") or {}, acl=bool(more.get("acl")))
    _attributes(tree, path, attr)
    if stat.S_ISREG(mode):
        o.changed(path)
    return fresh


def _fill(tree: Tree, path: bytes, content: bytes) -> None:
    descriptor, status = tree.open_file(path, os.O_WRONLY)
    try:
        _write_all(descriptor, memoryview(content), 0)
        if status.st_size > len(content):
            steps.apply_truncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def _same_kind(tree: Tree, path: bytes, status: os.stat_result, mode: int, rdev: int, more: dict[str, Any]) -> bool:
    if stat.S_IFMT(status.st_mode) != stat.S_IFMT(mode):
        return False
    if stat.S_ISLNK(mode):
        return tree.readlink(path) == more.get("t")
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        return status.st_rdev == rdev
    return True


def _make(tree: Tree, path: bytes, mode: int, rdev: int, more: dict[str, Any]) -> None:
    if stat.S_ISDIR(mode):
        tree.mkdir(path, 0o700)
    elif stat.S_ISLNK(mode):
        target = more.get("t")
        if not isinstance(target, bytes):
            raise OSError(errno.EPROTO, "symbolic link without a target")
        tree.symlink(target, path)
    else:
        tree.mknod(path, stat.S_IFMT(mode) | 0o600, rdev)


def _xattrs(tree: Tree, path: bytes, wanted: dict[Any, Any], *, acl: bool) -> None:
    try:
        present = set(tree.listxattr(path))
    except OSError as error:
        if error.errno == errno.ENOTSUP and not wanted:
            return
        raise
    for name in present:
        if name not in wanted and (acl or not name.startswith(ACL_PREFIX)):
            tree.removexattr(path, name)
    for name, value in wanted.items():
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise OSError(errno.EPROTO, "malformed extended attribute")
        if name not in present or tree.getxattr(path, name) != value:
            tree.setxattr(path, name, value)


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
