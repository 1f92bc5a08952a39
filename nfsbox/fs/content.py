"""What is in the files: writes, sizes, allocations, by the handle of an open file.

Each is recorded by its zones, unless they were, then applied here and sent in one order (`nfsbox/pair/engine.py`). A
write is sent first and written here while the peer works.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping
from typing import Any, Final

from nfsbox.fs import kernel, zones
from nfsbox.fs.changes import Changes
from nfsbox.fs.former import Former
from nfsbox.pair.engine import Engine
from nfsbox.pair.files import File
from nfsbox.pair.stream import Stream
from safekit import syscalls
from safekit.disk import steps
from safekit.rfs.identity import Identity
from safekit.rfs.system import FALLOCATE_MODES, PIECE, generation, write_pieces
from safekit.rfs.wire import HEADER_SIZE, Op, Set, pack_attr

_DATA: Final = kernel.WRITE_DATA
#: The byte of a WRITE with O_APPEND (1024) of the flags with which its file was opened.
_APPENDS: Final = 73
_FRAME: Final = kernel.WRITE_DATA - HEADER_SIZE
_CAPABILITY: Final = "security.capability"
#: A change of more zones than this has the file compared whole.
_MOST_ZONES: Final = 65536


class Content:
    """Of one replicated directory. `handles`: what is open there, kept by whoever opens."""

    def __init__(
        self, engine: Engine, index: int, handles: Mapping[int, File], changes: Changes, former: Former
    ) -> None:
        self._engine = engine
        self._index = index
        self._handles = handles
        self._changes = changes
        self._former = former
        self._zone = engine.settings.zone_size

    def write(self, fh: int, offset: int, request: memoryview, flags: int) -> int:
        """Write what stands in a kernel request behind its headers; their place is used for the header of the wire."""
        file = self._handles[fh]
        data = request[_DATA:]
        engine = self._engine
        if file.local:
            with engine.files.border:
                if file.local:
                    return steps.data_write(fh, data, self._end(fh, offset) if request[_APPENDS] & 4 else offset)
        if engine.awaiting:
            engine.check_writable()
        if fh in self._former.usable:
            self._former.check(fh, offset, appends=bool(request[_APPENDS] & 4))
        if request[_APPENDS] & 4:
            offset = self._end(fh, offset)
        size = len(data)
        first, last = zones.written(offset, size, self._zone)
        known = file.zones
        if file.era != engine.tracker.era or (
            known is not None and (first not in known or (last != first and (last not in known or last - first > 1)))
        ):
            self._record(file, fh, first, last)
        if flags & kernel.WRITE_KILL_SUIDGID:
            self._clear_privileges(fh, file)
        number = 0
        lenient = False
        stream: Stream | None
        with engine.order:
            if not engine.writable:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            if file.era != engine.tracker.era:
                self._record(file, fh, first, last)  # a checkpoint came in between, and forgets what was recorded
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
                        self._changes.revisit_file(file)
                    raise
                if done != size:
                    self._heal(stream, fh, file, offset, size)
                if not stream.strict:
                    lenient = engine.lenient(stream)
            file.version += 1
            engine.times.changed(file)
        if stream is not None:
            try:
                code = engine.settle(stream, number)
                if lenient and code:
                    self._changes.revisit_file(file)
            finally:
                if lenient:
                    engine.settled()
        return done

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
            stream.send_write(self._index, file.fid, offset + at, frame, 0)
            wrote = steps.data_write(fh, frame[HEADER_SIZE:], offset + at)
            if wrote != PIECE:
                return stream.send(Op.PING, 0), at + wrote
            at += PIECE
        frame = request[_FRAME + at :]
        number = stream.send_write(self._index, file.fid, offset + at, frame)
        return number, at + steps.data_write(fh, frame[HEADER_SIZE:], offset + at)

    def _record(self, file: File, fh: int, first: int, last: int) -> None:
        """The zones of a span, durably."""
        tracker = self._engine.tracker
        era = tracker.era
        if not file.orphan:
            if not file.generation:
                file.generation = generation(fh)
            if last - first > _MOST_ZONES:
                tracker.whole(self._index, self._engine.visible(file) or file.path)
                last = first
            file.zones = tracker.touch(self._index, Identity(file.inode, file.generation), file.path, first, last)
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
        stream.send(Op.WRITE, self._index, file.fid, offset, body=data, flags=0)
        stream.send(Op.TRUNCATE, self._index, file.fid, status.st_size, flags=0)

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
                stream.send(Op.REMOVEXATTR, self._index, file.fid, body=_CAPABILITY.encode(), flags=0)
            return stream.send(Op.SETATTR, self._index, file.fid, body=pack_attr(Set.MODE, stat.S_IMODE(mode) & ~bits))

        self._changes.make((file.path,), local, send)

    def truncate(self, fh: int, length: int, *, kill: bool) -> None:
        """Set the size. `kill`: set-id bits and capabilities go."""
        file = self._handles[fh]
        if file.local:
            with self._engine.files.border:
                if file.local:
                    steps.data_truncate(fh, length)
                    return
        self._engine.check_writable()
        span = zones.truncated(os.fstat(fh).st_size, length, self._zone)
        if span is not None:
            self._record(file, fh, *span)
        if kill:
            self._clear_privileges(fh, file)
        self._apply(file, fh, span or (0, 0), lambda: steps.data_truncate(fh, length), Op.TRUNCATE, a=length)

    def allocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        """Allocate, or punch a hole: modes that move data are left to the application."""
        file = self._handles[fh]
        if file.local:
            with self._engine.files.border:
                if file.local:
                    syscalls.fallocate(fh, mode, offset, length)
                    return
        if mode not in FALLOCATE_MODES:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        self._engine.check_writable()
        span = zones.allocated(offset, length, os.fstat(fh).st_size, self._zone)
        self._record(file, fh, *span)
        self._apply(
            file,
            fh,
            span,
            lambda: syscalls.fallocate(fh, mode, offset, length),
            Op.FALLOCATE,
            a=offset,
            b=length,
            extra=mode,
        )

    def _apply(
        self,
        file: File,
        fh: int,
        span: zones.Span,
        local: Callable[[], Any],
        op: Op,
        a: int,
        b: int = 0,
        extra: int = 0,
    ) -> None:
        """A change of content other than a write, in zones that were recorded."""
        engine = self._engine
        number = 0
        lenient = False
        with engine.order:
            if not engine.writable:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            if file.era != engine.tracker.era:
                self._record(file, fh, *span)  # a checkpoint came in between
            file.version += 1
            try:
                local()
            finally:
                file.version += 1
            engine.times.changed(file)
            stream = None if file.orphan else engine.stream
            if stream is not None and not stream.bind(file):
                stream = None
            if stream is not None:
                number = stream.send(op, self._index, file.fid, a, b, extra=extra)
                lenient = engine.lenient(stream)
        try:
            code = engine.settle(stream, number)
            if lenient and code:
                self._changes.revisit_file(file)
        finally:
            engine.settled()
