"""A primary in one process: answers what the service of nfsbox answers, and applies what it is asked to send at
once to the directories of the secondary. For tests of reintegre alone."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Hook = Callable[[str, dict[str, Any]], None]


def xattrs(path: bytes) -> dict[bytes, bytes]:
    return {
        os.fsencode(n): os.getxattr(path, n, follow_symlinks=False)
        for n in os.listxattr(path, follow_symlinks=False)
        if n.startswith("user.")
    }


class FakePrimary:
    """sources[i] is sent to targets[i]. `dirty` lists what was recorded."""

    def __init__(self, sources: Sequence[Path], targets: Sequence[Path], *, page: int = 50) -> None:
        self.sources = [os.fsencode(s) for s in sources]
        self.targets = [os.fsencode(t) for t in targets]
        self.page = page
        self.dirty: list[tuple[int, bytes, int, list[int] | None]] = []
        self.reliable = True
        self.waiting: list[tuple[int, bytes, bool]] = []
        self.calls: dict[str, int] = {}
        self.sent = 0
        self.hook: Hook = lambda op, fields: None
        self.lock = threading.RLock()
        self.lost = False
        self.old = False  # a release that does not know push_files
        self.open_files: set[bytes] = set()

    def connect(self) -> Connection:
        return Connection(self)

    # -- operations
    def path(self, base: list[bytes], root: int, path: bytes) -> bytes:
        return base[root] + b"/" + path if path else base[root]

    def fields(self, name: bytes, path: bytes) -> list[Any]:
        s = os.lstat(path)
        extra: dict[str, Any] = {}
        if stat.S_ISLNK(s.st_mode):
            extra["t"] = os.readlink(path)
        if values := xattrs(path):
            extra["x"] = values
        return [
            name,
            s.st_mode,
            s.st_uid,
            s.st_gid,
            s.st_size,
            s.st_atime_ns,
            s.st_mtime_ns,
            s.st_ino,
            s.st_nlink,
            s.st_rdev,
            s.st_blocks,
            extra or None,
            s.st_ctime_ns,
        ]

    def op_dirty(self) -> dict[str, Any]:
        return {"reliable": self.reliable, "cursor": 0}

    def op_dirty_next(self, cursor: int) -> dict[str, Any]:
        return {"files": [list(x) for x in self.dirty], "dirs": [], "cursor": None}

    def op_list(self, root: int, path: bytes, cursor: int) -> dict[str, Any]:
        here = self.path(self.sources, root, path)
        try:
            names = sorted(os.listdir(here))
        except (FileNotFoundError, NotADirectoryError):
            return {"self": None, "entries": [], "cursor": None}
        page = names[cursor : cursor + self.page]
        more = cursor + self.page < len(names)
        return {
            "self": self.fields(b"", here) if not cursor else None,
            "entries": [self.fields(n, here + b"/" + n) for n in page],
            "cursor": cursor + self.page if more else None,
        }

    def op_stat(self, root: int, path: bytes) -> dict[str, Any]:
        above = path
        while above := above.rpartition(b"/")[0]:
            if os.path.islink(self.path(self.sources, root, above)):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        try:
            return {"entry": self.fields(path.rpartition(b"/")[2], self.path(self.sources, root, path))}
        except (FileNotFoundError, NotADirectoryError):
            return {"entry": None}

    def op_hash(self, root: int, path: bytes, zones: list[list[int]]) -> dict[str, Any]:
        try:
            data = Path(os.fsdecode(self.path(self.sources, root, path))).read_bytes()
            ino = os.lstat(self.path(self.sources, root, path)).st_ino
        except FileNotFoundError:
            return {"ino": 0, "size": 0, "digests": [b""] * len(zones)}
        pieces = [data[o : o + n] for o, n in zones]
        return {
            "ino": ino,
            "size": len(data),
            "digests": [hashlib.blake2b(p, digest_size=16).digest() if p else b"" for p in pieces],
        }

    def op_push_entry(self, root: int, path: bytes, fresh: bool = False) -> dict[str, Any]:
        there, here = self.path(self.sources, root, path), self.path(self.targets, root, path)
        try:
            s = os.lstat(there)
        except FileNotFoundError:
            return {"kind": "gone", "size": 0, "ino": 0}
        if os.path.lexists(here):
            t = os.lstat(here)
            same = stat.S_IFMT(s.st_mode) == stat.S_IFMT(t.st_mode) and not fresh
            if same and not stat.S_ISREG(s.st_mode) and not stat.S_ISDIR(s.st_mode):
                same = False
            if not same:
                remove(here)
        if not os.path.lexists(here):
            if stat.S_ISDIR(s.st_mode):
                os.mkdir(here)
            elif stat.S_ISREG(s.st_mode):
                os.close(os.open(here, os.O_CREAT | os.O_WRONLY))
            elif stat.S_ISLNK(s.st_mode):
                os.symlink(os.readlink(there), here)
            else:
                os.mknod(here, s.st_mode, s.st_rdev)
        if stat.S_ISREG(s.st_mode) and os.lstat(here).st_size != s.st_size:
            os.truncate(here, s.st_size)
        self.attributes(there, here, s)
        kind = "dir" if stat.S_ISDIR(s.st_mode) else "file" if stat.S_ISREG(s.st_mode) else "other"
        return {"kind": kind, "size": s.st_size, "ino": s.st_ino}

    @staticmethod
    def attributes(there: bytes, here: bytes, s: os.stat_result) -> None:
        os.lchown(here, s.st_uid, s.st_gid)
        if not stat.S_ISLNK(s.st_mode):
            os.chmod(here, stat.S_IMODE(s.st_mode))
            wanted, present = xattrs(there), xattrs(here)
            for name in present.keys() - wanted.keys():
                os.removexattr(here, name)
            for name, value in wanted.items():
                os.setxattr(here, name, value)
        os.utime(here, ns=(s.st_atime_ns, s.st_mtime_ns), follow_symlinks=False)

    def op_push_files(self, root: int, paths: list[bytes]) -> dict[str, Any]:
        if self.old:
            raise OSError(errno.EOPNOTSUPP, "unknown request 'push_files'")
        files = []
        for path in paths:
            there = self.path(self.sources, root, path)
            if os.path.lexists(there) and os.lstat(there).st_nlink > 1:
                files.append(["single", os.lstat(there).st_ino, 0, 0])
                continue
            try:
                entry = self.op_push_entry(root, path)
                if entry["kind"] == "file":
                    self.op_push_zone(root, path, 0, entry["size"])
                    self.op_finish(root, path)
                files.append([entry["kind"], entry["ino"], entry["size"], 0])
            except OSError as error:
                files.append(["gone", 0, 0, error.errno])
        return {"files": files}

    def op_push_zone(self, root: int, path: bytes, off: int, len: int) -> dict[str, Any]:
        there, here = self.path(self.sources, root, path), self.path(self.targets, root, path)
        try:
            fd = os.open(there, os.O_RDONLY)
        except FileNotFoundError:
            return {"sent": 0, "ino": 0}
        try:
            data = os.pread(fd, len, off)
            ino = os.fstat(fd).st_ino
        finally:
            os.close(fd)
        out = os.open(here, os.O_RDWR)
        try:
            if data.strip(b"\0") or os.pread(out, data.__len__(), off).strip(b"\0"):
                os.pwrite(out, data, off)
        finally:
            os.close(out)
        self.sent += data.__len__()
        return {"sent": data.__len__(), "ino": ino}

    def op_push_link(self, root: int, existing: bytes, path: bytes) -> dict[str, Any]:
        here = self.path(self.targets, root, path)
        if os.path.lexists(here):
            remove(here)
        os.link(self.path(self.targets, root, existing), here)
        return {}

    def op_push_delete(self, root: int, path: bytes) -> dict[str, Any]:
        if os.path.lexists(self.path(self.sources, root, path)):
            return {"gone": False}
        here = self.path(self.targets, root, path)
        if os.path.lexists(here):
            remove(here)
        return {"gone": True}

    def op_finish(self, root: int, path: bytes) -> dict[str, Any]:
        there, here = self.path(self.sources, root, path), self.path(self.targets, root, path)
        if os.path.lexists(there) and os.path.lexists(here):
            s = os.lstat(there)
            os.utime(here, ns=(s.st_atime_ns, s.st_mtime_ns), follow_symlinks=False)
        return {}

    def op_flush(self) -> dict[str, Any]:
        return {}

    def op_revisit(self) -> dict[str, Any]:
        taken, self.waiting = self.waiting, []
        return {"paths": [list(x) for x in taken]}

    def op_end(self, server: int) -> dict[str, Any]:
        return {"done": not self.waiting, "revisit": self.waiting.__len__(), "state": {"server": 1}}

    def op_progress(self, **fields: Any) -> dict[str, Any]:
        return {}


class Connection:
    def __init__(self, primary: FakePrimary) -> None:
        self.primary = primary
        self.closed = False

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        primary = self.primary
        with primary.lock:
            primary.calls[op] = primary.calls.get(op, 0) + 1
        primary.hook(op, fields)
        if self.closed or primary.lost:
            raise ConnectionResetError("connection lost")
        with primary.lock:
            answer: dict[str, Any] = getattr(primary, "op_" + op)(**fields)
        return answer

    def close(self) -> None:
        self.closed = True


def remove(path: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def tree(base: Path) -> dict[str, tuple[Any, ...]]:
    """Everything that must be equal: names, kinds, attributes, contents, which names are one file."""
    found: dict[str, tuple[Any, ...]] = {}
    names: dict[int, str] = {}
    for directory, subdirectories, files in os.walk(base):
        for name in sorted(subdirectories + files):
            path = Path(directory) / name
            relative, s = str(path.relative_to(base)), path.lstat()
            value: Any = None
            if stat.S_ISLNK(s.st_mode):
                value = os.readlink(path)
            elif stat.S_ISREG(s.st_mode):
                value = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
            is_directory = stat.S_ISDIR(s.st_mode)
            found[relative] = (
                s.st_mode,
                s.st_uid,
                s.st_gid,
                0 if is_directory else s.st_size,
                s.st_mtime_ns,
                s.st_rdev,
                0 if is_directory else s.st_nlink,
                value,
                xattrs(os.fsencode(path)),
                names.setdefault(s.st_ino, relative),
            )
    return found
