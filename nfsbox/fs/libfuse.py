"""libfuse 2, as it is bound here, and one session of it with the kernel.

libfuse's own loop hands every request to libfuse. Ours (`nfsbox/fs/loop.py`) reads the same descriptor and hands on
what it does not answer itself; what libfuse replies passes us before the kernel gets it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any

import fuse

from nfsbox.fs import kernel
from safekit.syscalls import detach

#: Seconds that the kernel may keep names and attributes of a primary, where nobody else writes.
CACHE_SECONDS = 1.0

_lib = fuse._libfuse


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


def _let_go(descriptor: int) -> None:
    """Close what a descriptor stands for and keep its number: a thread that still works on a request (its disk hangs)
    answers by that number, which must never be a file of somebody else."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, descriptor, inheritable=False)
    os.close(null)


def pin(buffer: bytearray) -> Any:
    """The memory of a buffer, as `Session.handle` takes it; the buffer keeps its size from now on."""
    return (ctypes.c_char * len(buffer)).from_buffer(buffer)


def take_away(path: bytes) -> None:
    """Unmount, whoever uses it: it is gone from the names at once."""
    with contextlib.suppress(OSError):  # nothing is mounted there any more
        detach(path)


class Session:
    """One mount's. `adjusted` gives what the kernel gets in place of a reply of libfuse; None: it waits for none."""

    def __init__(self, path: bytes, adjusted: Callable[[bytes], bytes | None]) -> None:
        self.fd = -1
        """The descriptor by which the kernel asks."""
        self.closing = False
        """The request that comes last is on its way."""
        self._path = path
        self._adjusted = adjusted
        self._chan: Any = None
        self._fuse: Any = None
        self._session: Any = None
        self._own_channel: Any = None
        self._held: list[Any] = []  # what C code points to

    def open(self, options: str, callbacks: Any) -> None:
        """Mount with these options. `callbacks`: the structure of what libfuse calls. Raises MountFailure."""
        mount_args = _args("nfsbox", "-o", options)
        self._chan = _fuse_mount(self._path, ctypes.byref(mount_args))
        if not self._chan:
            raise MountFailure(
                errno.EIO,
                f"cannot mount {os.fsdecode(self._path)}: check that /dev/fuse exists (modprobe fuse) and that the "
                "directory is empty",
            )
        self.fd = _lib.fuse_chan_fd(self._chan)
        new_args = _args(
            "nfsbox",
            "-o",
            f"use_ino,entry_timeout={CACHE_SECONDS},attr_timeout={CACHE_SECONDS},negative_timeout=0,"
            f"big_writes,max_write={kernel.MAX_WRITE},atomic_o_trunc",
        )
        self._fuse = _fuse_new(
            self._chan, ctypes.byref(new_args), ctypes.addressof(callbacks), ctypes.sizeof(callbacks), None
        )
        if not self._fuse:
            take_away(self._path)
            _lib.fuse_chan_destroy(self._chan)  # and its descriptor
            self.fd = -1
            raise MountFailure(
                errno.EIO,
                f"libfuse refuses to serve {os.fsdecode(self._path)}: it tells why in log/nfsbox.log; stop the "
                "module and start it again",
            )
        self._session = _lib.fuse_get_session(self._fuse)
        self._own_channel = self._make_channel()
        self._held += [mount_args, new_args, callbacks]

    def _make_channel(self) -> Any:
        string_at = ctypes.string_at

        def receive(_chan: object, _buffer: object, _size: int) -> int:
            return -errno.ENOSYS

        def send(_chan: object, vector: Any, count: int) -> int:
            if not count:
                return 0  # a request that has no reply (FORGET)
            reply = string_at(vector[0].base, vector[0].len)
            for index in range(1, count):
                reply += string_at(vector[index].base, vector[index].len)
            try:
                answer = self._adjusted(reply)
                if answer is not None:
                    os.write(self.fd, answer)
            except OSError as error:
                # The request was interrupted meanwhile (ENOENT): nobody waits for the reply.
                return 0 if error.errno == errno.ENOENT else -(error.errno or errno.EIO)
            return 0

        def destroy(_chan: object) -> None:
            return None

        ops = _ChannelOps(_RECEIVE(receive), _SEND(send), _DESTROY(destroy))
        self._held.append(ops)
        return _fuse_chan_new(ctypes.byref(ops), self.fd, kernel.BUFFER_SIZE, None)

    def handle(self, memory: Any, size: int) -> None:
        """Have libfuse answer the request that stands there (see `pin`)."""
        _lib.fuse_session_process(self._session, ctypes.addressof(memory), size, self._own_channel)

    def tell(self, request: bytes) -> None:
        """The same of a request that we make ourselves."""
        self.handle(ctypes.create_string_buffer(request), len(request))

    def invalidate(self, node: int, *, pages: bool) -> None:
        """Tell the kernel that what it has of a node is old."""
        with contextlib.suppress(OSError):  # the kernel has nothing of it any more
            os.write(self.fd, kernel.invalidation(node, pages=pages))

    def close(self, *, at_work: bool) -> None:
        """The mount is gone; whoever still has a file open gets errors from here on. `at_work`: a thread of ours still
        is with a request (its disk hangs), so that libfuse must stay as it is.

        Else what libfuse has of this mount is given back: memory, one of the 1024 keys that a process has for its
        threads, the descriptor. What it keeps of files that were unlinked and are still open, it unlinks."""
        descriptor, self.fd = (
            self.fd,
            -1,
        )  # first: `invalidate` of another thread must not find the number of another file
        if descriptor < 0:
            return
        if at_work:
            _let_go(descriptor)
        else:
            _lib.fuse_chan_destroy(self._own_channel)
            _lib.fuse_destroy(self._fuse)
