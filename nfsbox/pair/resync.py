"""The resynchronisation service of the primary: what reintegre of the secondary asks (list in control.py).

Each connection is served by a thread. Reading (list, stat, hash) touches nothing that the application waits for;
pushing goes through the ordered stream.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

import msgpack

from nfsbox.pair.engine import Engine, Refused, Root
from nfsbox.pair.push import Bucket, Pusher
from nfsbox.pair.stream import Stream
from safekit.rfs import journal
from safekit.rfs.system import generation
from safekit.rfs.wire import Channel, Op, WireError, decode_map, expect, pack_time, valid_path

log = logging.getLogger("nfsbox")

#: Entries of one answer of `list`, files of one of `dirty_next`, zones of one `hash`.
MAX_ENTRIES: Final = 4096
MAX_ZONES: Final = 4096
MAX_FILES: Final = 1024
MAX_ZONE: Final = 1 << 30
_READ: Final = 1 << 20
#: How long a request waits for the secondary to begin to take the stream, seconds.
ATTACH: Final = 30.0

Fields = dict[str, Any]


class BadRequest(Exception):
    """A malformed request."""


class Context:
    """What the connections of one resynchronisation share."""

    def __init__(
        self,
        engine: Engine,
        state: Callable[[], Fields | None],
        pair: Callable[[int], Fields | None],
    ) -> None:
        self.engine = engine
        self.state = state
        self.pair = pair
        self.bucket = Bucket(engine.settings.bandwidth)
        self.pusher = Pusher(engine, self.bucket)
        self.progress: Fields = {}
        self.ending = threading.Lock()
        self.attached = threading.Event()
        self.ended = False
        self.stream: Stream | None = None  # of this resynchronisation, once the secondary takes it


class Service:
    """One connection. `run` returns when it is closed."""

    def __init__(self, channel: Channel, context: Context) -> None:
        self._channel = channel
        self._context = context
        self._engine = context.engine
        self._listing: tuple[int, bytes, list[bytes]] = (-1, b"", [])
        self._dirty: Iterator[journal.Item] = iter(())
        self._marks: Iterator[list[Any]] = iter(())
        self._moved: Iterator[tuple[int, bytes]] = iter(())
        self._page = 0
        self._operations: dict[str, Callable[[Fields], Fields]] = {
            "dirty": self._op_dirty,
            "dirty_next": self._op_dirty_next,
            "list": self._op_list,
            "stat": self._op_stat,
            "hash": self._op_hash,
            "push_entry": self._op_push_entry,
            "push_files": self._op_push_files,
            "push_zone": self._op_push_zone,
            "push_link": self._op_push_link,
            "push_delete": self._op_push_delete,
            "finish": self._op_finish,
            "flush": self._op_flush,
            "revisit": self._op_revisit,
            "end": self._op_end,
            "progress": self._op_progress,
        }

    def run(self) -> None:
        """Serve until the connection ends."""
        try:
            while True:
                frame = self._channel.receive()
                if frame is not None:
                    self._channel.send(Op.REPLY, body=msgpack.packb(self._answer(frame)), timeout=60.0)
        except WireError:
            return  # reintegre has closed it, or the network is gone: it asks again
        finally:
            self._channel.close()
            self._operations.clear()  # else this, and the whole session with its sockets, waits for the collector

    def _answer(self, frame: bytes) -> Fields:
        request: Fields = {}
        try:
            request = decode_map(expect(frame, Op.REQUEST))
            op = request.get("op")
            if op == "info":
                return {"ok": True, **self._info()}
            handler = self._operations.get(op) if isinstance(op, str) else None
            if handler is None:
                return _refusal(errno.EOPNOTSUPP, f"unknown request {op!r}")
            if not self._context.attached.wait(ATTACH):
                return _refusal(errno.ENOTCONN, "the secondary has not begun to take the stream")
            return {"ok": True, **handler(request)}
        except BadRequest as error:
            return _refusal(errno.EINVAL, str(error))
        except Refused as error:
            return _refusal(errno.ENOTCONN, str(error))
        except OSError as error:
            return _refusal(error.errno or errno.EIO, error.strerror or str(error))
        except (ValueError, OverflowError, struct.error) as error:
            # Something of this entry has no form on the wire: that ends nothing but the request.
            log.exception("request %s", request.get("op"))
            return _refusal(errno.EINVAL, f"it cannot be sent: {error}")

    # --- arguments ------------------------------------------------------------------------------------------

    def _root(self, request: Fields) -> Root:
        number = request.get("root")
        if not isinstance(number, int) or not 0 <= number < len(self._engine.roots):
            raise BadRequest(f"no replicated directory {number!r}")
        return self._engine.roots[number]

    @staticmethod
    def _path(request: Fields, name: str = "path") -> bytes:
        path = request.get(name)
        if not isinstance(path, bytes) or not valid_path(path):
            raise BadRequest(f"invalid {name}")
        return path

    @staticmethod
    def _number(request: Fields, name: str, limit: int = 1 << 63) -> int:
        number = request.get(name)
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < limit:
            raise BadRequest(f"invalid {name}")
        return number

    # --- reading --------------------------------------------------------------------------------------------

    def _info(self) -> Fields:
        engine = self._engine
        stream = engine.stream
        return {
            "state": self._context.state(),
            "zone_size": engine.settings.zone_size,
            "packet": engine.settings.packet,
            "session": stream.identity if stream is not None else 0,
            "roots": [os.fsdecode(root.mount) for root in engine.roots],
            "journal": "good" if engine.tracker.reliable else "bad",
            "refused": engine.disks.refused,
        }

    def _op_dirty(self, _request: Fields) -> Fields:
        changes = self._engine.tracker.snapshot()
        trees = [root.tree for root in self._engine.roots]
        self._dirty = journal.expand(changes, trees)
        self._moved = journal.moved_directories(changes, trees)
        self._marks = ([root, path, since] for (root, path), since in changes.directories.items())
        self._page = 1
        return {"reliable": self._engine.tracker.reliable, "cursor": 1}

    def _op_dirty_next(self, request: Fields) -> Fields:
        if self._number(request, "cursor") != self._page:
            raise BadRequest("dirty_next out of order")
        files: list[list[Any]] = []
        generations: list[int] = []
        roots = self._engine.roots
        directories = [[root, path] for root, path in islice(self._moved, MAX_ENTRIES)]
        if len(directories) == MAX_ENTRIES:
            self._page += 1
            return {"files": [], "dirs": directories, "cursor": self._page}
        marks = list(islice(self._marks, MAX_ENTRIES))
        if marks:
            self._page += 1
            return {"files": [], "dirs": directories, "marks": marks, "cursor": self._page}
        zones = 0
        for root, path, inode, numbers, number in self._dirty:
            if not roots[root].exclusions.match(path):
                files.append([root, path, inode, numbers])
                generations.append(number)
                zones += len(numbers or ())
            if len(files) >= MAX_ENTRIES or zones > 100_000:
                self._page += 1
                return {"files": files, "gens": generations, "dirs": directories, "cursor": self._page}
        self._page = 0
        return {"files": files, "gens": generations, "dirs": directories, "cursor": None}

    def _entry(self, root: Root, path: bytes, name: bytes) -> list[Any] | None:
        tree = root.tree
        try:
            status = tree.lstat(path)
            extra: Fields = {}
            if status.st_mode & 0o170000 == 0o120000:
                extra["t"] = tree.readlink(path)
            xattrs = tree.xattrs(path, acl=self._engine.settings.acl)
            generation = tree.generation(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.EINVAL:  # a link when it was looked at, and something else by now
                return None
            raise
        if xattrs:
            extra["x"] = xattrs
        return [
            name,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_size,
            pack_time(status.st_atime_ns),
            pack_time(status.st_mtime_ns),
            status.st_ino,
            status.st_nlink,
            status.st_rdev,
            status.st_blocks,
            extra or None,
            status.st_ctime_ns,
            generation,
        ]

    def _op_list(self, request: Fields) -> Fields:
        root, path = self._root(request), self._path(request)
        cursor = self._number(request, "cursor")
        answer: Fields = {}
        if cursor == 0:
            names = root.tree.listdir(path)
            below = path + b"/" if path else b""
            self._listing = (root.index, path, [n for n in names if not root.exclusions.match(below + n)])
            answer["self"] = self._entry(root, path, path.rpartition(b"/")[2])
        elif self._listing[:2] != (root.index, path):
            raise BadRequest("list out of order")
        names = self._listing[2]
        below = path + b"/" if path else b""
        entries = [self._entry(root, below + name, name) for name in names[cursor : cursor + MAX_ENTRIES]]
        answer["entries"] = [entry for entry in entries if entry is not None]
        following = cursor + MAX_ENTRIES
        answer["cursor"] = following if following < len(names) else None
        return answer

    def _op_stat(self, request: Fields) -> Fields:
        root, path = self._root(request), self._path(request)
        if root.exclusions.match(path):
            return {"entry": None}
        entry = self._entry(root, path, path.rpartition(b"/")[2])
        try:
            return {"entry": entry, "birth": root.tree.birth_ns(path)}
        except OSError:
            return {"entry": entry, "birth": 0}  # it went away meanwhile, if it was there at all

    def _op_hash(self, request: Fields) -> Fields:
        root, path = self._root(request), self._path(request)
        zones = request.get("zones")
        if not isinstance(zones, list) or len(zones) > MAX_ZONES:
            raise BadRequest("invalid zones")
        descriptor, status = root.tree.open_file(path, os.O_RDONLY)
        try:
            number = generation(descriptor)
            digests = []
            for zone in zones:
                if not isinstance(zone, list) or len(zone) != 2:
                    raise BadRequest("invalid zone")
                offset, length = zone
                if not isinstance(offset, int) or not isinstance(length, int) or not 0 < length <= MAX_ZONE:
                    raise BadRequest("invalid zone")
                digests.append(digest(descriptor, offset, length))
        finally:
            os.close(descriptor)
        return {"ino": status.st_ino, "gen": number, "size": status.st_size, "digests": digests}

    # --- pushing --------------------------------------------------------------------------------------------

    def _op_push_entry(self, request: Fields) -> Fields:
        pushed = self._context.pusher.entry(self._root(request), self._path(request), fresh=bool(request.get("fresh")))
        file = pushed.file
        return {
            "kind": pushed.kind,
            "size": pushed.size,
            "ino": file.inode,
            "gen": file.generation,
            "fresh": pushed.fresh,
        }

    def _op_push_files(self, request: Fields) -> Fields:
        root, paths = self._root(request), request.get("paths")
        if not isinstance(paths, list) or len(paths) > MAX_FILES:
            raise BadRequest("invalid paths")
        names = [self._path({"path": path}) for path in paths]
        pushed = self._context.pusher.files(root, names)
        return {
            "files": [[small.kind, small.file.inode, small.size, small.code] for small in pushed],
            "gens": [small.file.generation for small in pushed],
        }

    def _op_push_zone(self, request: Fields) -> Fields:
        sent, file = self._context.pusher.zone(
            self._root(request), self._path(request), self._number(request, "off"), self._number(request, "len")
        )
        return {"sent": sent, "ino": file.inode, "gen": file.generation}

    def _op_push_link(self, request: Fields) -> Fields:
        pusher = self._context.pusher
        return {"open": pusher.link(self._root(request), self._path(request, "existing"), self._path(request))}

    def _op_push_delete(self, request: Fields) -> Fields:
        return {"gone": self._context.pusher.delete(self._root(request), self._path(request))}

    def _op_finish(self, request: Fields) -> Fields:
        self._context.pusher.finish(self._root(request), self._path(request))
        return {}

    def _op_flush(self, _request: Fields) -> Fields:
        self._context.pusher.flush()
        return {}

    # --- the end --------------------------------------------------------------------------------------------

    def _op_revisit(self, _request: Fields) -> Fields:
        revisit = self._engine.revisit
        taken = revisit.take(MAX_ENTRIES)
        return {
            "paths": [[root, path, recursive] for (root, path), recursive in taken.items()],
            "doubts": [[root, *file] for root, file in revisit.take_doubts()],
        }

    def _op_end(self, request: Fields) -> Fields:
        server = request.get("server", 0)
        if not isinstance(server, int):
            raise BadRequest("invalid server")
        context, engine = self._context, self._engine
        with context.ending:
            if context.ended:
                return {"done": True, "revisit": 0, "state": context.state()}
            stream = engine.make_strict(msgpack.packb({"node": stream_peer(engine)}), context.stream)
            if stream is None:
                return {"done": False, "revisit": len(engine.revisit.entries), "state": None}
            state = context.pair(server)
            engine.make_paired(stream)
            context.ended = True
        return {"done": True, "revisit": 0, "state": state}

    def _op_progress(self, request: Fields) -> Fields:
        self._context.progress = {
            key: value
            for key, value in request.items()
            if key != "op" and isinstance(value, int | float | str) and len(str(value)) < 200
        }
        return {}


def stream_peer(engine: Engine) -> str:
    """Name of the secondary that is connected, for its log."""
    stream = engine.stream
    return stream.peer if stream is not None else ""


def digest(descriptor: int, offset: int, length: int) -> bytes:
    """blake2b-128 of a range; b"" when it lies wholly beyond the end. A range cut by the end is hashed up to it."""
    found = hashlib.blake2b(digest_size=16)
    total = 0
    while length:
        data = os.pread(descriptor, min(length, _READ), offset)
        if not data:
            break
        found.update(data)
        total += len(data)
        offset += len(data)
        length -= len(data)
    return found.digest() if total else b""


def _refusal(code: int, text: str) -> Fields:
    return {"ok": False, "errno": code, "text": text}
