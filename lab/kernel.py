"""System calls that Python has no name for, and looks into /proc."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lab.errors import LabError
from safekit.process import table
from safekit.process.table import lives

CLONE_NEWNET = 0x40000000
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
OVERLAYFS_MAGIC = 0x794C7630
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def enter(namespace: int, flags: int) -> None:
    """setns(2): the calling thread goes into the namespace of that descriptor. Raises OSError."""
    _check(_libc.setns(namespace, flags), "setns")


def mount(source: str, target: str | Path, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2). Raises OSError that names the mount."""
    result = _libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _check(result, f"mount {kind or source} on {target}")


def bind(source: str | Path, target: str | Path, *, read_only: bool = False) -> None:
    mount(str(source), target, "", MS_BIND)
    if read_only:
        mount(str(source), target, "", MS_BIND | MS_REMOUNT | MS_RDONLY)


def on_overlay(path: Path) -> bool:
    """Whether `path` lies on an overlay, which cannot carry the changes of another overlay."""

    class StatFs(ctypes.Structure):
        _fields_ = (("kind", ctypes.c_long), ("rest", ctypes.c_char * 256))

    info = StatFs()
    _check(_libc.statfs(os.fsencode(path), ctypes.byref(info)), f"statfs {path}")
    return int(info.kind) == OVERLAYFS_MAGIC


def start_time(pid: int) -> int | None:
    """Start of a process in ticks since boot: with the pid it names one process for ever. None when it is gone or
    a zombie."""
    found = table.process(pid)
    return None if found is None or found.ended else found.born


def processes_of(init: int) -> Iterator[tuple[int, str]]:
    """(pid, name) of every process in the PID namespace of the process `init`."""
    space = table.namespace(init)
    if not space:
        return
    for pid in table.numbers():
        if table.namespace(pid) == space and (found := table.process(pid)) is not None:
            yield pid, found.name


def send_signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def wait_gone(pid: int, start: int, timeout: float) -> None:
    """Raises LabError when the process is still there after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while lives(pid, start):
        if time.monotonic() > deadline:
            raise LabError(f"process {pid} did not end within {timeout:g} s", f"see: ps -o pid,stat,wchan,cmd {pid}")
        time.sleep(0.005)
