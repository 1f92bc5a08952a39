"""The loop of one thread that serves a mount: a request of the kernel is read, and answered.

Reads and writes are answered in place, straight from the buffer of the request; the few that libfuse does not know,
here as well; the rest goes to libfuse, and through fusepy to the same `Operations` object.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nfsbox.fs import kernel, libfuse, reading
from safekit.rfs.exclusions import place_holder

if TYPE_CHECKING:
    from nfsbox.fs.callbacks import Asked
    from nfsbox.fs.exchange import Paths
    from nfsbox.fs.known import Known
    from nfsbox.fs.operations import Operations
    from nfsbox.fs.relief import Relief

_AGAIN: Final = (errno.EINTR, errno.EAGAIN, errno.ENOENT)
_GONE: Final = (errno.ENODEV, errno.ECONNABORTED, errno.EBADF)


class Loop:
    """One per thread; what it works on belongs to the mount."""

    def __init__(
        self,
        session: libfuse.Session,
        operations: Operations,
        answers: reading.Answers,
        relief: Relief,
        known: Known,
        paths: Paths,
        asked: Asked,
    ) -> None:
        self._session = session
        self._fd = session.fd
        self._operations = operations
        self._content = operations.content
        self._answers = answers
        self._relief = relief
        self._known = known
        self._paths = paths
        self._asked = asked
        self._buffer = bytearray(kernel.BUFFER_SIZE)
        self._vector = [self._buffer]
        self._view = memoryview(self._buffer)
        self._memory = libfuse.pin(self._buffer)
        self._direct: dict[int, Callable[[int], bytes]] = {
            kernel.FSYNC: self._fsync,
            kernel.LSEEK: self._lseek,
            kernel.FALLOCATE: self._fallocate,
            kernel.FLUSH: self._flush,
        }

    def run(self) -> None:
        """Returns when the mount is gone, or when this thread was relieved and has caught up."""
        relief, waits, quiet = self._relief, self._operations.waits, kernel.QUIET
        unpack, buffer, view = kernel.IN.unpack_from, self._buffer, self._view
        write, read, op_write, op_read = self._write, self._read, kernel.WRITE, kernel.READ
        receive = self._from_kernel
        relieved = False  # this thread: it works on what was put aside
        while size := receive():
            _, opcode, unique, node, *_ = unpack(buffer, 0)
            busy = False
            try:
                if opcode not in quiet and not relieved:
                    other = relief.relieved
                    change = not other or waits(opcode, view)
                    if other and change and relief.leave(view[:size]):
                        continue
                    if change:
                        busy = relief.busy = True
                if opcode == op_write:
                    write(unique)
                elif opcode == op_read:
                    read(unique)
                elif not self._serve(opcode, unique, node, size, alone=busy or relieved):
                    return
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno != errno.ENOENT:  # the request was interrupted: nobody waits for the reply
                    raise
            finally:
                if busy and relief.done():
                    relieved, receive = True, self._from_relief

    def _from_kernel(self) -> int:
        """The size of the next request, which is in the buffer; 0 when the mount is gone."""
        while True:
            try:
                return os.readv(self._fd, self._vector)
            except OSError as error:
                if error.errno in _GONE:
                    return 0
                if error.errno not in _AGAIN:
                    raise

    def _from_relief(self) -> int:
        """The same of what was put aside; 0 when there is nothing more."""
        request = self._relief.take()
        if request is None:
            return 0
        self._buffer[: len(request)] = request
        return len(request)

    def _serve(self, opcode: int, unique: int, node: int, size: int, *, alone: bool) -> bool:
        """Answer what is neither a read nor a write. `alone`: no other thread is with a request that may wait for the
        peer. False when nothing more comes. Raises OSError when the kernel does not take the answer."""
        if opcode in self._direct:
            self._answer(unique, self._direct[opcode], size)
        elif opcode == kernel.RENAME2 and kernel.exchanges(self._buffer):
            self._answer(unique, self._exchange, size)
        elif opcode == kernel.INIT:
            self._init(unique)
        elif opcode != kernel.INTERRUPT:  # what it would interrupt is answered by the time we see it
            self._pass_on(opcode, unique, node, size, alone=alone)
            return not (self._session.closing and opcode == kernel.STATFS)
        return True

    # --- answered here --------------------------------------------------------------------------------------

    def _write(self, unique: int) -> None:
        handle, offset, count, flags = kernel.WRITE_IN.unpack_from(self._buffer, kernel.HEADER)
        try:
            done = self._content.write(handle, offset, self._view[: kernel.WRITE_DATA + count], flags)
            os.write(self._fd, kernel.WRITE_OUT.pack(kernel.WRITE_OUT.size, 0, unique, done, 0))
        except OSError as error:
            self._refuse(unique, error.errno)

    def _read(self, unique: int) -> None:
        handle, offset, count, _flags = kernel.READ_IN.unpack_from(self._buffer, kernel.HEADER)
        self._answers.read(unique, handle, offset, count)

    def _answer(self, unique: int, answer: Callable[[int], bytes], size: int) -> None:
        try:
            body = answer(size)
            os.write(self._fd, kernel.OUT.pack(kernel.OUT.size + len(body), 0, unique) + body)
        except OSError as error:
            self._refuse(unique, error.errno)

    def _refuse(self, unique: int, number: int | None) -> None:
        os.write(self._fd, kernel.OUT.pack(kernel.OUT.size, -(number or errno.EIO), unique))

    def _init(self, unique: int) -> None:
        os.write(self._fd, kernel.init_reply(self._buffer, unique, writeback=self._known.writeback))
        self._asked.begin(kernel.INIT, 0)
        self._session.tell(kernel.libfuse_init(unique))

    def _fsync(self, _size: int) -> bytes:
        handle, flags = kernel.FSYNC_IN.unpack_from(self._buffer, kernel.HEADER)
        self._operations.fsync("", flags & kernel.FSYNC_DATA, handle)
        return b""

    def _lseek(self, _size: int) -> bytes:
        handle, offset, whence = kernel.LSEEK_IN.unpack_from(self._buffer, kernel.HEADER)
        return os.lseek(handle, offset, whence).to_bytes(8, "little")

    def _fallocate(self, _size: int) -> bytes:
        handle, offset, length, mode = kernel.FALLOCATE_IN.unpack_from(self._buffer, kernel.HEADER)
        self._content.allocate(handle, mode, offset, length)
        return b""

    def _flush(self, _size: int) -> bytes:
        # Nothing is held back at close; the kernel need not ask again.
        raise OSError(errno.ENOSYS, "flush")

    def _exchange(self, size: int) -> bytes:
        self._paths.exchange(bytes(self._view[:size]))
        return b""

    # --- answered by libfuse --------------------------------------------------------------------------------

    def _pass_on(self, opcode: int, unique: int, node: int, size: int, *, alone: bool) -> None:
        """As libfuse knows it: a RENAME2 as a RENAME, a TMPFILE as the CREATE of a place holder."""
        if opcode == kernel.RENAME2:
            size, opcode = kernel.as_rename(self._view, size), kernel.RENAME
            if not size:
                self._refuse(unique, errno.EINVAL)
                return
        known_as = opcode
        if opcode == kernel.TMPFILE:
            request = kernel.create_request(self._buffer, place_holder(secrets.token_hex(8)))
            size, known_as = len(request), kernel.CREATE
            self._buffer[:size] = request
        elif opcode == kernel.RELEASE:
            self._known.closed(kernel.HANDLE_IN.unpack_from(self._buffer, kernel.HEADER)[0])
        self._asked.begin(known_as, kernel.node_of_link(self._buffer) if opcode == kernel.LINK else node)
        if alone:
            self._operations.request = (opcode, node)
            self._operations.kill_privileges = kernel.kills_privileges(self._buffer, opcode)
            self._session.handle(self._memory, size)
        else:
            with self._paths.lock:
                self._session.handle(self._memory, size)
