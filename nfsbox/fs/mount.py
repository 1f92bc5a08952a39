"""How requests of the kernel reach the file system: fusepy's trampolines over libfuse 2, in a loop of ours.

libfuse's own loop hands every request to libfuse. Ours reads the same descriptor and answers reads and writes in
place, straight from its buffer; the rest goes to libfuse and through fusepy to the same `Operations` object. It
also tells the operations which request a callback belongs to, and how long the kernel may keep a reply: not at all
while this server is not primary, because files change underneath then.

One thread serves a mount, so that changes of a directory are made one after the other. When the peer keeps one of
them waiting, a second thread takes the loop over: it answers what waits for nobody and puts changes aside for the
first, which ends when it has caught up. The loop ends when the mount is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import secrets
import threading
import traceback
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import fuse

from nfsbox.fs import kernel, reading
from safekit.rfs.exclusions import is_hidden, place_holder
from safekit.rfs.system import ENCODING
from safekit.rfs.tree import Tree
from safekit.syscalls import detach, unmount

if TYPE_CHECKING:
    from nfsbox.fs.operations import Operations

log = logging.getLogger("nfsbox")

#: Seconds that the kernel may keep names and attributes of a primary, where nobody else writes.
CACHE_SECONDS = 1.0
#: Bytes of requests put aside while a change waits for the peer; when there are more, everything waits.
MAX_ASIDE = 64 << 20

#: Seconds that the threads of a mount may take to end once it is gone.
END_SECONDS = 10.0

_lib = fuse._libfuse
_UTIME_NOW = (1 << 30) - 1
_UTIME_OMIT = (1 << 30) - 2
_ASIDE = b"\x01safekit exchange"  # a name inside libfuse, never of a file
_KEPT = ((os.ST_NOEXEC, "noexec"), (os.ST_NOATIME, "noatime"), (os.ST_SYNCHRONOUS, "sync"))


class MountFailure(OSError):
    """The mount could not be made; the text names the cause and the next step."""


class _Args(ctypes.Structure):
    _fields_ = (("argc", ctypes.c_int), ("argv", ctypes.POINTER(ctypes.c_char_p)), ("allocated", ctypes.c_int))


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


_RECEIVE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_SEND = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(_Iovec), ctypes.c_size_t)
_DESTROY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _ChannelOps(ctypes.Structure):
    _fields_ = (("receive", _RECEIVE), ("send", _SEND), ("destroy", _DESTROY))


_libc = ctypes.CDLL(None)
_libc.dlvsym.restype = ctypes.c_void_p
_libc.dlvsym.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p]


def _versioned(name: bytes, *types: Any) -> Any:
    # libfuse 2 exports these names several times; an unversioned look-up may find those of 2004.
    address = _libc.dlvsym(_lib._handle, name, b"FUSE_2.6")
    if not address:
        raise ImportError(f"libfuse has no {name.decode()} of version 2.6: install libfuse2")
    return ctypes.CFUNCTYPE(*types)(address)


_fuse_mount = _versioned(b"fuse_mount", ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(_Args))
_fuse_new = _versioned(
    b"fuse_new",
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.POINTER(_Args),
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_void_p,
)
_fuse_chan_new = _versioned(
    b"fuse_chan_new",
    ctypes.c_void_p,
    ctypes.POINTER(_ChannelOps),
    ctypes.c_int,
    ctypes.c_size_t,
    ctypes.c_void_p,
)
_lib.fuse_get_session.restype = ctypes.c_void_p
_lib.fuse_get_session.argtypes = [ctypes.c_void_p]
_lib.fuse_chan_fd.argtypes = [ctypes.c_void_p]
for _free in (_lib.fuse_chan_destroy, _lib.fuse_destroy):
    _free.restype = None
    _free.argtypes = [ctypes.c_void_p]
_lib.fuse_session_process.restype = None
_lib.fuse_session_process.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


def _args(*words: str) -> _Args:
    encoded = [word.encode() for word in words]
    array = (ctypes.c_char_p * (len(encoded) + 1))(*encoded, None)
    return _Args(len(encoded), array, 0)


def _taken_off(path: bytes) -> bool:
    """Unmount; False when it is in use."""
    try:
        unmount(path)
    except OSError as error:
        return error.errno != errno.EBUSY  # whatever is mounted there no more is off
    return True


def _take_away(path: bytes) -> None:
    with contextlib.suppress(OSError):  # nothing is mounted there any more
        detach(path)


def kept_options(flags: int) -> tuple[str, ...]:
    """Options of the mount that the file system of the data was mounted with: what an administrator has forbidden on it
    stays forbidden (f_flag of statvfs)."""
    return (
        "nosuid" if flags & os.ST_NOSUID else "suid",
        "nodev" if flags & os.ST_NODEV else "dev",
        *(option for flag, option in _KEPT if flags & flag),
    )


def _let_go(descriptor: int) -> None:
    """Close what a descriptor stands for and keep its number: a thread that still works on a request (its disk hangs)
    answers by that number, which must never be a file of somebody else."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, descriptor, inheritable=False)
    os.close(null)


class Mount(fuse.FUSE):  # type: ignore[misc]
    """One replicated directory, mounted. `start` mounts and returns; a thread serves it."""

    def __init__(self, operations: Operations, path: bytes, name: str, *, writeback: bool = False) -> None:
        # fusepy's own __init__ mounts and serves until the end; its trampolines are what we inherit.
        self.operations = operations
        self.path = path
        self.name = name
        self.raw_fi = True
        self.encoding = ENCODING
        self.use_ns = True
        self._writeback = writeback
        self._fd = -1
        self._thread: threading.Thread | None = None  # the one that reads requests
        self._former: list[threading.Thread] = []
        self._serving = 0  # threads inside the loop
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._paths = threading.Lock()  # what libfuse takes names for is what they stand for
        self._busy = False  # with a request that may wait for the peer
        self._relieved = False  # such a request waits; another thread reads the next ones
        self._aside: deque[bytes] = deque()  # changes for the relieved thread, in their order
        self._aside_bytes = 0
        self._now = threading.local()  # .opcode of the request that libfuse works on
        self._stopping = False
        self._open: dict[int, int] = {}  # handle -> node
        self._tenure = 0  # rises whenever what the kernel has of files is void
        self._tenures: dict[int, int] = {}  # node -> its tenure, of those that differ from the rest
        self._stat_type = fuse.c_stat
        self._held: list[Any] = []  # what C code points to

    # --- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Mount and serve. Raises MountFailure."""
        options = ",".join(("allow_other,default_permissions", *kept_options(self.operations.tree.statvfs().f_flag)))
        options += f",fsname={self.name},subtype=safekit"
        mount_args = _args("nfsbox", "-o", options)
        self._chan = _fuse_mount(self.path, ctypes.byref(mount_args))
        if not self._chan:
            raise MountFailure(
                errno.EIO,
                f"cannot mount {os.fsdecode(self.path)}: check that /dev/fuse exists (modprobe fuse) and that the "
                "directory is empty",
            )
        self._fd = _lib.fuse_chan_fd(self._chan)
        new_args = _args(
            "nfsbox",
            "-o",
            f"use_ino,entry_timeout={CACHE_SECONDS},attr_timeout={CACHE_SECONDS},negative_timeout=0,"
            f"big_writes,max_write={kernel.MAX_WRITE},atomic_o_trunc",
        )
        ops = self._fuse_operations()
        self._fuse = _fuse_new(self._chan, ctypes.byref(new_args), ctypes.addressof(ops), ctypes.sizeof(ops), None)
        if not self._fuse:
            _take_away(self.path)
            _lib.fuse_chan_destroy(self._chan)  # and its descriptor
            self._fd = -1
            raise MountFailure(
                errno.EIO,
                f"libfuse refuses to serve {os.fsdecode(self.path)}: it tells why in log/nfsbox.log; stop the "
                "module and start it again",
            )
        self._session = _lib.fuse_get_session(self._fuse)
        self._own_channel = self._make_channel()
        self._held += [mount_args, new_args, ops]
        self.operations.engine.relief.append(self._relieve)
        self._begin()

    def _begin(self) -> None:
        self._serving += 1
        self._thread = threading.Thread(target=self._run, name=f"fuse {self.name}", daemon=True)
        self._thread.start()

    def _relieve(self) -> None:
        with self._turn:
            if not self._busy or self._relieved or self._thread is None:
                return
            self._relieved = True
            self._former = [thread for thread in self._former if thread.is_alive()] + [self._thread]
            self._begin()

    def _fuse_operations(self) -> Any:
        ops = fuse.fuse_operations()
        for entry in fuse.fuse_operations._fields_:
            name, prototype = entry[:2]
            wanted = {"ftruncate": "truncate", "fgetattr": "getattr"}.get(name, name)
            value = getattr(self.operations, wanted, None)
            if value is None:
                continue
            if hasattr(prototype, "argtypes"):
                value = prototype(partial(self._wrapper, getattr(self, name)))
            setattr(ops, name, value)
        return ops

    def _make_channel(self) -> Any:
        operations, adjusted, string_at = self.operations, kernel.adjusted, ctypes.string_at

        def receive(_chan: object, _buffer: object, _size: int) -> int:
            return -errno.ENOSYS

        def send(_chan: object, vector: Any, count: int) -> int:
            opcode = self._now.opcode
            if opcode == kernel.INIT:
                return 0  # the kernel has had ours
            if opcode == kernel.OWN:
                return 0  # nobody asked
            if not count:
                return 0  # a request that has no reply (FORGET)
            reply = string_at(vector[0].base, vector[0].len)
            for index in range(1, count):
                reply += string_at(vector[index].base, vector[index].len)
            if opcode == kernel.LINK:
                self._has_two_names(self._now.node)
            opened = kernel.opened(opcode, reply, self._now.node)
            if opened is not None:
                with self._lock:
                    self._open[opened[0]] = opened[1]
            try:
                caching = operations.caching and not self._now.shared
                reply = adjusted(opcode, reply, caching=caching, names=self._now.names)
                if (self._writeback or self._tenures) and kernel.tells_file(opcode, reply):
                    tenure = self._tenures.get(kernel.entry_node(reply), self._tenure if self._writeback else 0)
                    reply = kernel.of_generation(reply, tenure)
                os.write(self._fd, reply)
            except OSError as error:
                # The request was interrupted meanwhile (ENOENT): nobody waits for the reply.
                return 0 if error.errno == errno.ENOENT else -(error.errno or errno.EIO)
            return 0

        def destroy(_chan: object) -> None:
            return None

        ops = _ChannelOps(_RECEIVE(receive), _SEND(send), _DESTROY(destroy))
        self._held.append(ops)
        return _fuse_chan_new(ctypes.byref(ops), self._fd, kernel.BUFFER_SIZE, None)

    def stop(self, *, force: bool = True) -> bool:
        """Unmount; False when it is in use and not `force`. With `force`, files that are still open get errors.
        Returns when the serving thread has ended."""
        if not _taken_off(self.path):
            if not force:
                return False
            # The loop sleeps in read: a last request wakes it. The mount must still be reachable for that.
            self._stopping = True
            with contextlib.suppress(OSError):
                os.statvfs(self.path)
            _take_away(self.path)
        relief = self.operations.engine.relief
        if self._relieve in relief:
            relief.remove(self._relieve)
        threads = [*self._former, *([self._thread] if self._thread is not None else [])]
        for thread in threads:
            thread.join(END_SECONDS)
        if self._fd >= 0:
            # Whoever still has a file open gets errors from here on.
            if any(thread.is_alive() for thread in threads):
                _let_go(self._fd)
            else:
                self._free()
            self._fd = -1
        return True

    def _free(self) -> None:
        """Give back what libfuse has of this mount: memory, one of the 1024 keys that a process has for its threads,
        the descriptor. What it keeps of files that were unlinked and are still open, it unlinks."""
        _lib.fuse_chan_destroy(self._own_channel)
        _lib.fuse_destroy(self._fuse)

    @property
    def alive(self) -> bool:
        """Whether the loop still serves."""
        return self._thread is not None and self._thread.is_alive()

    # --- the loop -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with reading.Answers(self._fd) as answers:
                self._loop(answers)
        except BaseException:
            log.critical("the loop of %s ended: %s", self.name, traceback.format_exc())
            # While we live, whoever uses the mount waits without end; of our death there is a reaction (M5).
            os._exit(1)
        finally:
            with self._turn:
                self._serving -= 1
                last = not self._serving
                self._turn.notify_all()
            if last:
                self.operations.ended()

    def _has_two_names(self, node: int) -> None:
        """What the kernel keeps of a file under its first name would hide what is changed through the second. It is
        told between the change and its answer."""
        with contextlib.suppress(OSError):  # it keeps nothing of that
            os.write(self._fd, kernel.invalidation(node, pages=False))

    def forget_pages(self) -> None:
        """The data of open files may have changed underneath: the kernel shall read it again. Waits for pages that were
        changed, which the loop takes meanwhile."""
        with self._lock:
            nodes = set(self._open.values())
            paths = self._forget_files()
        for node in nodes:
            with contextlib.suppress(OSError):  # the kernel knows it no more
                os.write(self._fd, kernel.invalidation(node, pages=True))
        if not paths:
            return
        seen = Tree(self.path)
        seen.open()
        try:
            for path in paths:
                with contextlib.suppress(OSError):  # it is gone again
                    seen.lstat(path)  # an append goes where the kernel believes the end to be
        finally:
            seen.close()

    def _forget_files(self) -> set[bytes]:
        """Files that are other ones for the kernel from now on: who has the former one open gets errors. Those whose
        name was given to another file meanwhile: their pages, and whose they are, would be mixed. With write-back all:
        the kernel then believes the size and the times that it has rather than ours, as long as it has anything of a
        file, open or not, and would write behind an end of before, over what the other server acknowledged since; what
        is open and stays local is as it knows it. Paths of the replicated files that are open."""
        former = self.operations.forget_replicated()
        self._tenure += 1
        if self._writeback:
            kept = {node for handle, node in self._open.items() if handle not in former}
            self._tenures = {node: self._tenures.get(node, self._tenure - 1) for node in kept}
        else:
            self._tenures |= {
                self._open[h]: self._tenure for h, path in former.items() if path is None and h in self._open
            }
        return {path for path in former.values() if path is not None and not is_hidden(path)}

    def _put_aside(self, request: memoryview) -> bool:
        """Leave a change to the relieved thread; False when that has caught up meanwhile."""
        with self._turn:
            self._turn.wait_for(self._room)
            if self._relieved:
                self._aside.append(bytes(request))
                self._aside_bytes += len(request)
            return self._relieved

    def _room(self) -> bool:
        return not self._relieved or self._aside_bytes <= MAX_ASIDE or self._serving < 2

    def _take(self, vector: list[bytearray]) -> int:
        """The next change that was put aside; its size, 0 when there is none: the other thread makes the next."""
        with self._turn:
            if not self._aside:
                self._busy = self._relieved = False
                self._turn.notify_all()
                return 0
            request = self._aside.popleft()
            self._aside_bytes -= len(request)
            self._turn.notify_all()
        vector[0][: len(request)] = request
        return len(request)

    def _loop(self, answers: reading.Answers) -> None:
        fd = self._fd
        buffer = bytearray(kernel.BUFFER_SIZE)
        vector = [buffer]
        view = memoryview(buffer)
        pinned = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        address = ctypes.addressof(pinned)
        ops = self.operations
        receive: Callable[[list[bytearray]], int] = partial(os.readv, fd)
        relieved = False  # this thread: it works on what is put aside
        lock, waits, quiet, paths = self._lock, ops.waits, kernel.QUIET, self._paths
        write, read = os.write, answers.read
        unpack_in, unpack_write, unpack_read = (
            kernel.IN.unpack_from,
            kernel.WRITE_IN.unpack_from,
            kernel.READ_IN.unpack_from,
        )
        pack_out, pack_write_out = kernel.OUT.pack, kernel.WRITE_OUT.pack
        process, session, channel = _lib.fuse_session_process, self._session, self._own_channel
        op_write, op_read, op_init = kernel.WRITE, kernel.READ, kernel.INIT
        own: dict[int, Callable[[bytearray, int], bytes]] = {
            kernel.FSYNC: self._on_fsync,
            kernel.LSEEK: self._on_lseek,
            kernel.FALLOCATE: self._on_fallocate,
            kernel.FLUSH: self._on_flush,
        }
        while True:
            try:
                size = receive(vector)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                if error.errno in (errno.ENODEV, errno.ECONNABORTED, errno.EBADF):
                    return
                raise
            if not size:
                return
            _, opcode, unique, nodeid, *_ = unpack_in(buffer, 0)
            busy = False
            try:
                if opcode not in quiet and not relieved:
                    other = self._relieved
                    aside = other and waits(opcode, view)
                    if aside and self._put_aside(view[:size]):
                        continue
                    if aside or not other:
                        busy = self._busy = True
                if opcode == op_write:
                    handle, offset, count, flags = unpack_write(buffer, 40)
                    try:
                        done = ops.write_request(handle, offset, view[: 80 + count], flags)
                        write(fd, pack_write_out(24, 0, unique, done, 0))
                    except OSError as error:
                        write(fd, pack_out(16, -(error.errno or errno.EIO), unique))
                    continue
                if opcode == op_read:
                    handle, offset, count, _flags = unpack_read(buffer, 40)
                    read(unique, handle, offset, count)
                    continue
                answer = own.get(opcode)
                if answer is not None:
                    try:
                        body = answer(buffer, size)
                        write(fd, pack_out(16 + len(body), 0, unique) + body)
                    except OSError as error:
                        write(fd, pack_out(16, -(error.errno or errno.EIO), unique))
                    continue
                if opcode == op_init:
                    self._on_init(buffer, unique)
                    continue
                if opcode == kernel.INTERRUPT:
                    continue  # what it would interrupt is answered by the time we see this
                if opcode == kernel.RENAME2:
                    if buffer[48] == kernel.RENAME_EXCHANGE:
                        try:
                            self._exchange(bytes(view[:size]))
                            write(fd, pack_out(16, 0, unique))
                        except OSError as error:
                            write(fd, pack_out(16, -(error.errno or errno.EIO), unique))
                        continue
                    size = self._as_rename(view, size)
                    if not size:
                        write(fd, pack_out(16, -errno.EINVAL, unique))
                        continue
                    opcode = kernel.RENAME
                asked = opcode
                if opcode == kernel.TMPFILE:
                    request = kernel.create_request(buffer, place_holder(secrets.token_hex(8)))
                    size, opcode = len(request), kernel.CREATE
                    buffer[:size] = request
                self._now.opcode, self._now.shared, self._now.node, self._now.names = opcode, False, nodeid, None
                if opcode == kernel.LINK:
                    self._now.node = kernel.node_of_link(buffer)
                elif opcode == kernel.RELEASE:
                    with lock:
                        self._open.pop(kernel.HANDLE_IN.unpack_from(buffer, kernel.HEADER)[0], None)
                if busy or relieved:
                    ops.request = (asked, nodeid)
                    ops.kill_privileges = self._kills(buffer, opcode)
                    process(session, address, size, channel)
                else:
                    with paths:
                        process(session, address, size, channel)
                if self._stopping and opcode == kernel.STATFS:
                    return  # the request by which `stop` woke us
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno != errno.ENOENT:  # the request was interrupted: nobody waits for the reply
                    raise
            finally:
                if busy:
                    with lock:
                        self._busy = False
                        if self._relieved:
                            relieved, receive = True, self._take

    @staticmethod
    def _kills(buffer: bytearray, opcode: int) -> bool:
        if opcode == kernel.SETATTR:
            return bool(buffer[41] & 8)  # FATTR_KILL_SUIDGID, bit 11 of `valid`
        if opcode == kernel.OPEN:
            return bool(buffer[44] & 1)  # FUSE_OPEN_KILL_SUIDGID
        return False

    def _exchange(self, request: bytes) -> None:
        """RENAME2 with EXCHANGE. libfuse does not know it: it tells us the two paths, and afterwards its names follow
        by way of a third one, all with renames that change nothing but its table. Raises OSError."""
        olddir = kernel.IN.unpack_from(request, 0)[3]
        newdir = kernel.RENAME2_IN.unpack_from(request, kernel.HEADER)[0]
        old, new, _ = request[kernel.HEADER + kernel.RENAME2_IN.size :].split(b"\0", 2)

        def told(*names: Any) -> list[bytes]:
            answer = ctypes.create_string_buffer(kernel.rename_request(request, *names))
            self._now.opcode = kernel.OWN
            self._now.told = []
            _lib.fuse_session_process(self._session, ctypes.addressof(answer), len(answer) - 1, self._own_channel)
            found: list[bytes] = self._now.told
            if not found:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return found

        self._now.result = -errno.ECANCELED
        one, other = told(olddir, old, olddir, _ASIDE)[0], told(newdir, new, newdir, _ASIDE)[0]

        def swap(change: Callable[[], None]) -> None:
            change()
            self._now.result = 0
            for names in ((olddir, old, olddir, _ASIDE), (newdir, new, olddir, old), (olddir, _ASIDE, newdir, new)):
                told(*names)

        self.operations.exchange(one, other, swap, self._paths)

    def rename(self, old: bytes, new: bytes) -> int:
        """The callback of libfuse; see `_exchange`."""
        if self._now.opcode == kernel.OWN:
            self._now.told = [old, new]
            result: int = self._now.result
            return result
        super().rename(old, new)
        return 0

    def _as_rename(self, view: memoryview, size: int) -> int:
        """Rewrite a RENAME2 as the RENAME that libfuse knows; the kernel has checked NOREPLACE itself. Returns the
        new size, 0 for what is not served."""
        newdir, flags, _ = kernel.RENAME2_IN.unpack_from(view, kernel.HEADER)
        if flags & ~kernel.RENAME_NOREPLACE:
            return 0
        names = bytes(view[kernel.HEADER + 16 : size])
        size -= 8
        header = list(kernel.IN.unpack_from(view, 0))
        header[0], header[1] = size, kernel.RENAME
        kernel.IN.pack_into(view, 0, *header)
        view[kernel.HEADER : kernel.HEADER + 8] = newdir.to_bytes(8, "little")
        view[kernel.HEADER + 8 : size] = names
        return size

    def _on_init(self, buffer: bytearray, unique: int) -> None:
        os.write(self._fd, kernel.init_reply(buffer, unique, writeback=self._writeback))
        request = ctypes.create_string_buffer(kernel.libfuse_init(unique))
        self._now.opcode = kernel.INIT
        _lib.fuse_session_process(self._session, ctypes.addressof(request), len(request) - 1, self._own_channel)

    def _on_fsync(self, buffer: bytearray, _size: int) -> bytes:
        handle, flags = kernel.FSYNC_IN.unpack_from(buffer, kernel.HEADER)
        self.operations.fsync("", flags & kernel.FSYNC_DATA, handle)
        return b""

    def _on_lseek(self, buffer: bytearray, _size: int) -> bytes:
        handle, offset, whence = kernel.LSEEK_IN.unpack_from(buffer, kernel.HEADER)
        return os.lseek(handle, offset, whence).to_bytes(8, "little")

    def _on_fallocate(self, buffer: bytearray, _size: int) -> bytes:
        handle, offset, length, mode = kernel.FALLOCATE_IN.unpack_from(buffer, kernel.HEADER)
        self.operations.fallocate(handle, mode, offset, length)
        return b""

    def _on_flush(self, _buffer: bytearray, _size: int) -> bytes:
        # Nothing is held back at close; the kernel need not ask again.
        raise OSError(errno.ENOSYS, "flush")

    # --- trampolines that fusepy lacks or that must not lose anything ---------------------------------------

    @staticmethod
    def _wrapper(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs) or 0
        except OSError as error:
            return -(error.errno or errno.EIO)
        except Exception:
            log.error("error inside %s: %s", getattr(func, "__name__", func), traceback.format_exc())
            return -errno.EIO

    def init(self, conn: Any) -> Any:
        return None

    def destroy(self, private_data: Any) -> None:
        return None

    def getattr(self, path: bytes, buf: Any) -> int:
        return self._fill(buf.contents, self.operations.lstat(path))

    def fgetattr(self, path: bytes, buf: Any, fip: Any) -> int:
        status = os.fstat(fip.contents.fh) if fip else self.operations.lstat(path)
        return self._fill(buf.contents, status)

    def _fill(self, target: Any, status: os.stat_result) -> int:
        hidden = self.operations.hidden
        target.st_ino = status.st_ino
        target.st_mode = status.st_mode
        # A name that stands for an unlinked open file is none that users may count.
        self._now.names = target.st_nlink = status.st_nlink
        if status.st_ino in hidden:
            target.st_nlink -= hidden[status.st_ino]
            self._now.names = target.st_nlink  # libfuse takes one more off where it has hidden the name
            self._now.shared = True  # the kernel knows it by two nodes, and must not keep what each of them shows
        target.st_uid = status.st_uid
        target.st_gid = status.st_gid
        target.st_rdev = status.st_rdev
        target.st_size = status.st_size
        target.st_blocks = status.st_blocks
        target.st_blksize = status.st_blksize
        time = target.st_atimespec
        time.tv_sec, time.tv_nsec = divmod(status.st_atime_ns, 1_000_000_000)
        time = target.st_mtimespec
        time.tv_sec, time.tv_nsec = divmod(status.st_mtime_ns, 1_000_000_000)
        time = target.st_ctimespec
        time.tv_sec, time.tv_nsec = divmod(status.st_ctime_ns, 1_000_000_000)
        return 0

    def utimens(self, path: bytes, buf: Any) -> int:
        def value(spec: Any) -> int | None:
            if spec.tv_nsec == _UTIME_OMIT:
                return None
            return -1 if spec.tv_nsec == _UTIME_NOW else spec.tv_sec * 1_000_000_000 + spec.tv_nsec

        times = (value(buf.contents.actime), value(buf.contents.modtime)) if buf else (-1, -1)
        self.operations.utimens(path.decode(ENCODING), times)
        return 0

    def readdir(self, path: Any, buf: Any, filler: Any, offset: int, fip: Any) -> int:
        entry = self._stat_type()
        for name, inode, mode in self.operations.listing(fip.contents.fh):
            entry.st_ino = inode
            entry.st_mode = mode
            if filler(buf, name, entry, 0):
                break
        return 0

    def listxattr(self, path: bytes, namebuf: Any, size: int) -> int:
        names = b"".join(name + b"\0" for name in self.operations.xattr_names(path))
        if not namebuf:
            return len(names)
        if len(names) > size:
            return -errno.ERANGE
        ctypes.memmove(namebuf, names, len(names))
        return len(names)

    def setxattr(self, path: bytes, name: bytes, value: Any, size: int, options: int, *_: Any) -> int:
        data = ctypes.string_at(value, size)
        self.operations.setxattr(path.decode(ENCODING), name.decode(ENCODING), data, options)
        return 0

    def getxattr(self, path: bytes, name: bytes, value: Any, size: int, *_: Any) -> int:
        data: bytes = self.operations.getxattr(path.decode(ENCODING), name.decode(ENCODING))
        if not size:
            return len(data)
        if len(data) > size:
            return -errno.ERANGE
        ctypes.memmove(value, data, len(data))
        return len(data)

    def mounted(self) -> None:
        """Wait until the mount answers. Raises OSError."""
        reading.read_ahead(os.stat(self.path).st_dev)
