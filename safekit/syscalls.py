"""System calls that Python has no name for, each once; they raise OSError as those of `os` do, and begin again when a
signal interrupts them.

Imported where they are used, not at the top of what commands import: ctypes costs a command its start.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = 0x100, 0x1000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_NAME_LENGTH = 15
_OPENAT2, _FCHMODAT2 = 437, 452  # by number: the C library has no name for the first, or is older than the second
_HOW: Final = struct.Struct("=QQQ")  # flags, mode, resolve
_OMIT = (1 << 30) - 2
_TIMES: Final = struct.Struct("@llll")
_STATX_BTIME = 0x800
_BTIME: Final = struct.Struct("@qI")
_HANDLE: Final = struct.Struct("@Ii")  # bytes, type
_HANDLE_ROOM = 128
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION = 1  # the flag that asks for it
_LANDLOCK_READ = 1 << 2 | 1 << 3  # files, directories
_LANDLOCK_FILES: Final = ((5, (1 << 16) - 1), (3, (1 << 15) - 1), (2, (1 << 14) - 1), (1, (1 << 13) - 1))
"""Since which version which rights to files can be taken away."""
_LANDLOCK_TCP, _LANDLOCK_SCOPES = 0b11, 0b11
_SECCOMP_ALLOW, _SECCOMP_ERRNO = 0x7FFF0000, 0x00050000

_int, _long, _text = ctypes.c_int, ctypes.c_long, ctypes.c_char_p


def _named(name: str, *types: Any) -> Any:
    return ctypes.CFUNCTYPE(*types, use_errno=True)((name, _libc))


_openat2 = _named("syscall", _long, _long, _int, _text, _text, ctypes.c_size_t)
_fchmodat2 = _named("syscall", _long, _long, _int, _text, ctypes.c_uint, _int)
_renameat2 = _named("renameat2", _int, _int, _text, _int, _text, ctypes.c_uint)
_syscall3 = _named("syscall", _long, _long, _int, ctypes.c_uint)
_syscall4 = _named("syscall", _long, _long, _text, ctypes.c_size_t, ctypes.c_uint)
_syscall5 = _named("syscall", _long, _long, _int, _int, _text, ctypes.c_uint)
_fallocate = _named("fallocate", _int, _int, _int, ctypes.c_int64, ctypes.c_int64)
_handle_at = _named("name_to_handle_at", _int, _int, _text, ctypes.c_void_p, ctypes.c_void_p, _int)


def _call(function: Callable[..., int], *arguments: Any, about: str = "") -> int:
    while (result := function(*arguments)) < 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number), *((about,) if about else ()))
    return result


def exchange(one: str | Path, other: str | Path) -> None:
    """Two names change places in one step (renameat2). Raises OSError: EINVAL, ENOSYS where a file system cannot."""
    names = os.fsencode(one), os.fsencode(other)
    _call(_renameat2, _AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE, about=str(other))


def exchange_at(above: int, one: bytes, other_above: int, other: bytes) -> None:
    """The same for names in open directories."""
    _call(_renameat2, above, one, other_above, other, _RENAME_EXCHANGE)


def open_beneath(top: int, path: bytes, flags: int, resolve: int) -> int:
    """A descriptor of a path below an open directory (openat2). Raises OSError: ENOSYS, EPERM where it is not there."""
    return _call(_openat2, _OPENAT2, top, path, _HOW.pack(flags, 0, resolve), _HOW.size)


def chmod_at(above: int, name: bytes, mode: int) -> None:
    """Permission bits of a name in an open directory, never of what a link leads to (fchmodat2). Raises OSError:
    ENOSYS, EPERM where it is not there."""
    _call(_fchmodat2, _FCHMODAT2, above, name, mode, _AT_SYMLINK_NOFOLLOW)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """Allocate, punch or zero a range of a file, as `mode` says (fallocate)."""
    _call(_fallocate, descriptor, mode, offset, length)


def set_times(target: bytes | int, atime_ns: int | None, mtime_ns: int | None, above: int = _AT_FDCWD) -> None:
    """Set times of a name in the directory `above` (a symbolic link's own) or of a descriptor; None leaves one as it
    is (utimensat, futimens)."""
    times = _TIMES.pack(*_timespec(atime_ns), *_timespec(mtime_ns))
    if isinstance(target, int):
        _call(_libc.futimens, target, times)
    else:
        _call(_libc.utimensat, above, target, times, _AT_SYMLINK_NOFOLLOW)


def _timespec(value: int | None) -> tuple[int, int]:
    return (0, _OMIT) if value is None else divmod(value, 1_000_000_000)


def birth_ns(above: int, name: bytes) -> int | None:
    """When the inode of a name in the directory `above`, or of the open file itself (b""), was made, in ns; None when
    the file system does not tell (statx)."""
    buffer = ctypes.create_string_buffer(256)
    _call(_libc.statx, above, name, _AT_SYMLINK_NOFOLLOW if name else _AT_EMPTY_PATH, _STATX_BTIME, buffer)
    if not int.from_bytes(buffer.raw[:4], "little") & _STATX_BTIME:
        return None
    seconds, nanoseconds = _BTIME.unpack_from(buffer, 80)
    return int(seconds * 1_000_000_000 + nanoseconds)


def handle(above: int, name: bytes, flags: int) -> bytes:
    """The type and the bytes of the handle of a name in an open directory, or of the open file itself (b"")
    (name_to_handle_at)."""
    buffer = ctypes.create_string_buffer(_HANDLE.size + _HANDLE_ROOM)
    _HANDLE.pack_into(buffer, 0, _HANDLE_ROOM, 0)
    mount = ctypes.c_int()
    _call(_handle_at, above, name, buffer, ctypes.byref(mount), flags if name else flags | _AT_EMPTY_PATH)
    size, kind = _HANDLE.unpack_from(buffer)
    return b"%d " % kind + buffer.raw[_HANDLE.size : _HANDLE.size + size]


def sync_filesystem(descriptor: int) -> None:
    """All that is written to the file system of a descriptor is on disk (syncfs)."""
    _call(_libc.syncfs, descriptor)


def unmount(target: str | bytes | Path) -> None:
    """Take a mount off (umount2); not one that a link leads to. Raises OSError: EBUSY; EINVAL when there is none."""
    _call(_libc.umount2, os.fsencode(target), _UMOUNT_NOFOLLOW, about=os.fsdecode(target))


def detach(target: str | bytes | Path) -> None:
    """Take a mount away from the tree, even when it is in use (umount2); not one that a link leads to."""
    _call(_libc.umount2, os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW, about=os.fsdecode(target))


def name_process(name: str) -> None:
    """The name that ps, top and ss show; the kernel keeps 15 bytes of it (prctl)."""
    _call(_libc.prctl, _PR_SET_NAME, name.encode()[:_NAME_LENGTH], 0, 0, 0)


def adopt_orphans() -> None:
    """Orphans below this process become its children, not those of process 1 (prctl)."""
    _call(_libc.prctl, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent() -> None:
    """This process gets SIGKILL when the thread that made it ends (prctl)."""
    _call(_libc.prctl, _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def lock_memory() -> None:
    """Keep this process in memory, page by page as it is touched (mlockall)."""
    _call(_libc.mlockall, _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)


def trim_memory() -> None:
    """Return free memory to the system (malloc_trim)."""
    _libc.malloc_trim(0)


def unshare(flags: int) -> None:
    """Name spaces of its own for this process (unshare). Raises OSError: EPERM without the right to it."""
    _call(_libc.unshare, flags)


def forgo_privileges() -> None:
    """No program that this process starts gets rights that it has not (prctl PR_SET_NO_NEW_PRIVS)."""
    _call(_libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def hide_memory() -> None:
    """No process of the same user can look into this one, and it leaves no copy of itself (prctl PR_SET_DUMPABLE)."""
    _call(_libc.prctl, _PR_SET_DUMPABLE, 0, 0, 0, 0)


def restrict_files(readable: Iterable[str | Path]) -> None:
    """From now on this process opens files for reading below these directories only, and none for writing; what is open
    stays so. From Linux 6.7 on it can neither bind nor connect TCP ports, from 6.12 on reach no socket by an abstract
    name and signal nobody else (Landlock). After `forgo_privileges`. Raises OSError: ENOSYS, EOPNOTSUPP where the
    kernel has none."""
    version = _call(_syscall4, _LANDLOCK_CREATE, None, 0, _LANDLOCK_VERSION)
    handled = next(mask for since, mask in _LANDLOCK_FILES if version >= since)
    network = _LANDLOCK_TCP if version >= 4 else 0
    rules = struct.pack("=QQQ", handled, network, _LANDLOCK_SCOPES if version >= 6 else 0)
    rules = rules[: 24 if version >= 6 else 16 if version >= 4 else 8]
    descriptor = _call(_syscall4, _LANDLOCK_CREATE, rules, len(rules), 0)
    try:
        for path in readable:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = struct.pack("=Qi", _LANDLOCK_READ, place)
                _call(_syscall5, _LANDLOCK_ADD, descriptor, 1, rule, 0)
            finally:
                os.close(place)
        _call(_syscall3, _LANDLOCK_RESTRICT, descriptor, 0)
    finally:
        os.close(descriptor)


def refuse_calls(names: Iterable[str]) -> None:
    """From now on these system calls fail with EPERM in this process; one that this machine does not have is passed
    over (libseccomp, which systemd needs too). After `forgo_privileges`. Raises OSError: ENOSYS where it is missing."""
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        raise OSError(errno.ENOSYS, "libseccomp.so.2 is not there") from None
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_SECCOMP_ALLOW)))
    try:
        for name in names:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number >= 0:
                _seccomp(library.seccomp_rule_add(context, ctypes.c_uint32(_SECCOMP_ERRNO | errno.EPERM), number, 0))
        _seccomp(library.seccomp_load(context))
    finally:
        library.seccomp_release(context)


def _seccomp(result: int) -> None:
    """It returns the number of an error, negative."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
