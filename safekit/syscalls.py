"""System calls that Python has no name for, each once; they raise OSError as those of `os` do.

Imported where they are used, not at the top of what commands import: ctypes costs a command its start. (Those that work
on replicated data, relative to descriptors, are in `safekit.rfs.tree`.)
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_NAME_LENGTH = 15


def _check(result: int, *about: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *about)


def exchange(one: str | Path, other: str | Path) -> None:
    """Two names change places in one step (renameat2). Raises OSError: EINVAL, ENOSYS where a file system cannot."""
    result = _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    _check(result, str(other))


def sync_filesystem(descriptor: int) -> None:
    """All that is written to the file system of a descriptor is on disk (syncfs)."""
    _check(_libc.syncfs(descriptor))


def detach(target: str | Path) -> None:
    """Take a mount away from the tree, even when it is in use (umount2)."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), str(target))


def name_process(name: str) -> None:
    """The name that ps, top and ss show; the kernel keeps 15 bytes of it (prctl)."""
    _check(_libc.prctl(_PR_SET_NAME, name.encode()[:_NAME_LENGTH], 0, 0, 0))


def adopt_orphans() -> None:
    """Orphans below this process become its children, not those of process 1 (prctl)."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def die_with_parent() -> None:
    """This process gets SIGKILL when the thread that made it ends (prctl)."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def lock_memory() -> None:
    """Keep this process in memory, page by page as it is touched (mlockall)."""
    _check(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT))


def trim_memory() -> None:
    """Return free memory to the system (malloc_trim)."""
    _libc.malloc_trim(0)
