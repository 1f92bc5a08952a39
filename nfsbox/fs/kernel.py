"""The few requests of the kernel's FUSE protocol that we answer ourselves, and how (linux/fuse.h).

libfuse 2 keeps names and inodes. What it does not know (large writes, falloc, SEEK_HOLE, renameat2, the
kernel's clearing of setuid), or what every microsecond counts for (read, write), never reaches it.
"""

from __future__ import annotations

import stat
import struct
from typing import Final

LOOKUP: Final = 1
FORGET: Final = 2
GETATTR: Final = 3
SETATTR: Final = 4
READLINK: Final = 5
SYMLINK: Final = 6
MKNOD: Final = 8
MKDIR: Final = 9
UNLINK: Final = 10
RENAME: Final = 12
LINK: Final = 13
OPEN: Final = 14
READ: Final = 15
WRITE: Final = 16
STATFS: Final = 17
RELEASE: Final = 18
FSYNC: Final = 20
GETXATTR: Final = 22
LISTXATTR: Final = 23
FLUSH: Final = 25
INIT: Final = 26
OPENDIR: Final = 27
READDIR: Final = 28
RELEASEDIR: Final = 29
FSYNCDIR: Final = 30
ACCESS: Final = 34
CREATE: Final = 35
INTERRUPT: Final = 36
BMAP: Final = 37
IOCTL: Final = 39
POLL: Final = 40
BATCH_FORGET: Final = 42
FALLOCATE: Final = 43
RENAME2: Final = 45
LSEEK: Final = 46
SYNCFS: Final = 50
TMPFILE: Final = 51
STATX: Final = 52

IN: Final = struct.Struct("<IIQQIIIHH")  # len opcode unique nodeid uid gid pid ext padding
OUT: Final = struct.Struct("<IiQ")  # len error unique
READ_IN: Final = struct.Struct("<QQII")  # fh offset size flags
WRITE_IN: Final = struct.Struct("<QQII")  # fh offset size flags
WRITE_OUT: Final = struct.Struct("<IiQII")
OPEN_IN: Final = struct.Struct("<I")  # flags
HANDLE_IN: Final = struct.Struct("<Q")  # fh, of WRITE, FALLOCATE, RELEASE
FSYNC_IN: Final = struct.Struct("<QI")  # fh flags
LSEEK_IN: Final = struct.Struct("<QQI")  # fh offset whence
FALLOCATE_IN: Final = struct.Struct("<QQQI")  # fh offset length mode
RENAME2_IN: Final = struct.Struct("<QII")  # newdir flags padding
GETATTR_IN: Final = struct.Struct("<IIQ")  # flags dummy fh
ATTR_OUT: Final = struct.Struct("<QII" + "QQQQQQIIIIIIIIII")
INIT_IN: Final = struct.Struct("<IIIII")  # major minor max_readahead flags flags2
INIT_OUT: Final = struct.Struct("<IIIIHHIIHHII24x")

HEADER: Final = 40  # in-header
RENAME_IN_SIZE: Final = 8  # newdir
CREATE_IN_SIZE: Final = 16  # flags mode umask open_flags
WRITE_DATA: Final = 80  # where the data of a WRITE begins in the request
WRITE_KILL_SUIDGID: Final = 4
FSYNC_DATA: Final = 1
GETATTR_FH: Final = 1

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

#: No opcode of the kernel: a request that we make ourselves, so that the names that libfuse keeps follow.
OWN: Final = 0

#: Requests that change nothing which the peer must know: they never wait for it.
QUIET: Final = frozenset(
    (
        *(LOOKUP, FORGET, GETATTR, READLINK, READ, STATFS, FSYNC, GETXATTR, LISTXATTR, FLUSH, INIT, OPENDIR),
        *(READDIR, RELEASEDIR, FSYNCDIR, ACCESS, INTERRUPT, BATCH_FORGET, LSEEK, BMAP, IOCTL, POLL, SYNCFS, STATX),
    )
)
#: Requests whose file is told by a handle, and that change it or its being open.
BY_HANDLE: Final = frozenset((WRITE, FALLOCATE, RELEASE))

_ASYNC_READ = 1 << 0
_ATOMIC_O_TRUNC = 1 << 3
_BIG_WRITES = 1 << 5
_ASYNC_DIO = 1 << 15
_WRITEBACK_CACHE = 1 << 16
_PARALLEL_DIROPS = 1 << 18
_POSIX_ACL = 1 << 20
_MAX_PAGES = 1 << 22
_HANDLE_KILLPRIV_V2 = 1 << 28
_INIT_EXT = 1 << 30
_DIRECT_IO_ALLOW_MMAP = 1 << (36 - 32)  # in flags2

#: Largest write of one request; older kernels without MAX_PAGES send 128 KiB at most.
MAX_WRITE: Final = 1 << 20
#: The request buffer: largest write, its headers, and a page of luck.
BUFFER_SIZE: Final = MAX_WRITE + 4096 + 4096
#: Protocol minor that libfuse 2.9 speaks: what it is told in place of the kernel's.
LIBFUSE_MINOR: Final = 19


class InitError(OSError):
    """The kernel's protocol is too old."""


def init_reply(request: bytes | bytearray, unique: int, *, writeback: bool) -> bytes:
    """Answer to INIT: what we want of what the kernel offers. Raises InitError for another major version."""
    major, minor, readahead, offered, offered2 = INIT_IN.unpack_from(request, HEADER)
    if major != 7:
        raise InitError(71, f"FUSE protocol {major}.{minor} of the kernel, 7 expected")
    wanted = (
        _ASYNC_READ
        | _ATOMIC_O_TRUNC
        | _BIG_WRITES
        | _ASYNC_DIO
        | _PARALLEL_DIROPS
        | _POSIX_ACL
        | _MAX_PAGES
        | _HANDLE_KILLPRIV_V2
        | _INIT_EXT
    )
    if writeback:
        wanted |= _WRITEBACK_CACHE
    flags = offered & wanted
    flags2 = offered2 & _DIRECT_IO_ALLOW_MMAP if flags & _INIT_EXT else 0
    pages = MAX_WRITE // 4096 if flags & _MAX_PAGES else 0
    max_write = MAX_WRITE if flags & _MAX_PAGES else 128 << 10
    body = INIT_OUT.pack(7, min(minor, 38), readahead, flags, 64, 48, max_write, 1, pages, 0, flags2, 0)
    return OUT.pack(OUT.size + len(body), 0, unique) + body


def libfuse_init(unique: int) -> bytes:
    """The INIT that libfuse is given: its own version, the features that concern it."""
    body = struct.pack("<IIII", 7, LIBFUSE_MINOR, 128 << 10, _ASYNC_READ | _ATOMIC_O_TRUNC | _BIG_WRITES)
    return IN.pack(HEADER + len(body), INIT, unique, 0, 0, 0, 0, 0, 0) + body


def create_request(request: bytes | bytearray, name: bytes) -> bytes:
    """A TMPFILE as the CREATE of a name."""
    _, _, unique, nodeid, uid, gid, pid, *_ = IN.unpack_from(request, 0)
    body = bytes(request[HEADER : HEADER + CREATE_IN_SIZE]) + name + b"\0"
    return IN.pack(HEADER + len(body), CREATE, unique, nodeid, uid, gid, pid, 0, 0) + body


def rename_request(request: bytes | bytearray, olddir: int, old: bytes, newdir: int, new: bytes) -> bytes:
    """A RENAME by the caller of `request`, for libfuse."""
    _, _, unique, _, uid, gid, pid, *_ = IN.unpack_from(request, 0)
    body = newdir.to_bytes(8, "little") + old + b"\0" + new + b"\0"
    return IN.pack(HEADER + len(body), RENAME, unique, olddir, uid, gid, pid, 0, 0) + body


def as_rename(request: memoryview, size: int) -> int:
    """Rewrite a RENAME2 of that size as the RENAME that libfuse knows; the kernel has checked NOREPLACE itself. The new
    size, 0 for what is not served."""
    newdir, flags, _ = RENAME2_IN.unpack_from(request, HEADER)
    if flags & ~RENAME_NOREPLACE:
        return 0
    names = bytes(request[HEADER + RENAME2_IN.size : size])
    size -= RENAME2_IN.size - RENAME_IN_SIZE
    header = list(IN.unpack_from(request, 0))
    header[0], header[1] = size, RENAME
    IN.pack_into(request, 0, *header)
    request[HEADER : HEADER + RENAME_IN_SIZE] = newdir.to_bytes(RENAME_IN_SIZE, "little")
    request[HEADER + RENAME_IN_SIZE : size] = names
    return size


def exchanges(request: bytes | bytearray) -> bool:
    """Whether a RENAME2 has two names change places."""
    flags: int = RENAME2_IN.unpack_from(request, HEADER)[1]
    return flags & 0xFF == RENAME_EXCHANGE


def kills_privileges(request: bytes | bytearray, opcode: int) -> bool:
    """Whether a request that is none to write takes the set-id bits and capabilities of its file away."""
    if opcode == SETATTR:
        return bool(request[41] & 8)  # FATTR_KILL_SUIDGID, bit 11 of `valid`
    if opcode == OPEN:
        return bool(request[44] & 1)  # FUSE_OPEN_KILL_SUIDGID
    return False


_ENTRIES: Final = frozenset((LOOKUP, SYMLINK, MKNOD, MKDIR, LINK, CREATE))
_ATTRIBUTES: Final = frozenset((GETATTR, SETATTR))
_TYPE_AND_NAMES: Final = struct.Struct("<II")  # mode, nlink inside struct fuse_attr
_MODE_IN_ENTRY: Final = OUT.size + 40 + 60
_MODE_IN_ATTR: Final = OUT.size + 16 + 60


_NOTIFY_INVAL_INODE: Final = 2
_INVAL_INODE: Final = struct.Struct("<Qqq")  # node offset length
_NODE_IN_ENTRY: Final = struct.Struct("<Q")
_GENERATION_IN_ENTRY: Final = OUT.size + 8
_ENTRY_SIZE: Final = 128


def opened(opcode: int, reply: bytes, asked: int) -> tuple[int, int] | None:
    """Handle and node of a file that was opened by a reply, which belongs to a request about `asked`; None when none
    was."""
    if opcode not in (CREATE, OPEN) or reply[4:8] != b"\0\0\0\0":
        return None
    at = OUT.size + (_ENTRY_SIZE if opcode == CREATE else 0)
    (handle,) = HANDLE_IN.unpack_from(reply, at)
    return handle, entry_node(reply) if opcode == CREATE else asked


def entry_node(reply: bytes) -> int:
    """The node that a reply which tells of an entry gives to it."""
    node: int = _NODE_IN_ENTRY.unpack_from(reply, OUT.size)[0]
    return node


def tells_file(opcode: int, reply: bytes) -> bool:
    """Whether a reply gives the kernel a node of a regular file."""
    if opcode not in _ENTRIES or reply[4:8] != b"\0\0\0\0" or len(reply) < _MODE_IN_ENTRY + 8:
        return False
    return stat.S_ISREG(_TYPE_AND_NAMES.unpack_from(reply, _MODE_IN_ENTRY)[0])


def of_generation(reply: bytes, generation: int) -> bytes:
    """An entry whose node is another file than the one that the kernel knew by an older generation. The kernel keeps
    32 bits of it; the entry is looked up each time, so that a name leads to none of before."""
    told = (int.from_bytes(reply[_GENERATION_IN_ENTRY : _GENERATION_IN_ENTRY + 8], "little") + generation) % (1 << 32)
    return reply[:_GENERATION_IN_ENTRY] + told.to_bytes(8, "little") + bytes(8) + reply[40:48] + bytes(4) + reply[52:]


def invalidation(node: int, *, pages: bool) -> bytes:
    """Tells the kernel that what it has of a node is old: attributes, and with `pages` the content."""
    return OUT.pack(OUT.size + _INVAL_INODE.size, _NOTIFY_INVAL_INODE, 0) + _INVAL_INODE.pack(
        node, 0 if pages else -1, 0
    )


def node_of_link(request: bytes | bytearray) -> int:
    """The node that gets another name by a LINK."""
    node: int = _NODE_IN_ENTRY.unpack_from(request, HEADER)[0]
    return node


def adjusted(opcode: int, reply: bytes, *, caching: bool, names: int | None = None) -> bytes:
    """A reply of libfuse with the time-outs that are right, and with the number of names that a file has (None: as it
    is). Without `caching` the kernel keeps neither names nor attributes. With it, whatever has several names, or none
    yet, has attributes that are asked for each time: the kernel takes its names for different files, and would not see
    what is changed through another one."""
    if opcode in _ENTRIES:
        mode_at = _MODE_IN_ENTRY
    elif opcode in _ATTRIBUTES:
        mode_at = _MODE_IN_ATTR
    else:
        return reply
    if reply[4:8] != b"\0\0\0\0" or len(reply) < mode_at + 8:
        return reply
    mode, told = _TYPE_AND_NAMES.unpack_from(reply, mode_at)
    if names is not None and names != told:
        reply = reply[: mode_at + 4] + names.to_bytes(4, "little") + reply[mode_at + 8 :]
        told = names
    several = told != 1 and not stat.S_ISDIR(mode)
    if caching and not several:
        return reply
    if opcode in _ATTRIBUTES:
        return reply[:16] + bytes(12) + reply[28:]
    if not caching:
        return reply[:32] + bytes(24) + reply[56:]
    return reply[:40] + bytes(8) + reply[48:52] + bytes(4) + reply[56:]
