"""Symbolic link while stopped, mount while running (guide 13.6.3), and what a crash leaves in between.

stopped   /dir -> /dir_For_SafeKit_Replication
running   /dir is a mount over an empty directory, in which nobody can write
crashed   /dir is that directory, with or without a dead mount on it
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nfsbox.pair.engine import Root
from safekit.disk import placeholder
from safekit.process import holders
from safekit.rfs.exclusions import is_hidden, parent
from safekit.rfs.tree import NOTHING
from safekit.syscalls import detach, unmount

log = logging.getLogger("nfsbox")

#: What was noted went away in order; its directory may be something else by now.
_GONE: Final = NOTHING | {errno.EXDEV}


class SwitchFailure(OSError):
    """A replicated directory cannot be prepared; the text names the cause and the next step."""


def is_mounted(path: bytes) -> bool:
    """Whether something is mounted on `path`, dead or alive. Asks the kernel's table: a dead mount cannot be
    asked itself."""
    wanted = os.path.normpath(path)
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            point = line.split(b" ")[4]
            if b"\\" in point:
                point = point.decode("unicode_escape").encode("latin-1")
            if point == wanted:
                return True
    return False


def mount_point(path: bytes) -> bytes:
    """Where the file system of an existing path is mounted. Raises OSError."""
    device = os.stat(path).st_dev
    while path != b"/" and os.stat(os.path.dirname(path)).st_dev == device:
        path = os.path.dirname(path)
    return path


def _empty(path: bytes) -> bool:
    with os.scandir(path) as entries:
        return all(entry.name == b"lost+found" for entry in entries)


def check(root: Root, mounted_on: bytes | None = None) -> None:
    """The data is where it must be, and what <tocheck> names is there. `mounted_on`: where its file system was mounted
    when it was here last; the empty directory below a missing one would become the data of both servers. Raises
    SwitchFailure."""
    backing = os.fsdecode(root.backing)
    try:
        status = os.lstat(root.backing)
    except FileNotFoundError:
        raise SwitchFailure(
            errno.ENOENT,
            f"{backing} does not exist: mount its file system; if it never held data, run safekit config again",
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise SwitchFailure(errno.ENOTDIR, f"{backing} is not a directory")
    if mounted_on is not None and _empty(root.backing) and mount_point(root.backing) != mounted_on:
        raise SwitchFailure(
            errno.ENOENT,
            f"{backing} is empty, and its file system, which was mounted on {os.fsdecode(mounted_on)}, is not: mount "
            "it; if it is gone for good, put any file into the directory and start this server as the secondary",
        )
    root.tree.open()
    for path in root.tocheck:
        if not root.tree.exists(path):
            raise SwitchFailure(
                errno.ENOENT,
                f"{root.tree.shown(path)} (tocheck) does not exist: check that the file system of "
                f"{os.fsdecode(root.mount)} is mounted",
            )


def _take_off(path: bytes) -> None:
    try:
        unmount(path)
    except OSError:
        detach(path)


def to_mount_point(root: Root) -> None:
    """Make /dir an empty directory to mount on, whatever a crash left. Raises SwitchFailure."""
    path = root.mount
    while is_mounted(path):
        try:
            _take_off(path)
        except OSError as error:
            raise SwitchFailure(
                error.errno, f"cannot unmount what was left on {os.fsdecode(path)}: {error.strerror}"
            ) from None
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        os.mkdir(path, 0)
    else:
        _empty_directory(root, path, status)
    if not placeholder.seal(path):
        log.info("%s, under the mount, can be written by root from other mount namespaces", os.fsdecode(path))


def _empty_directory(root: Root, path: bytes, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        os.unlink(path)
        os.mkdir(path, 0)
    elif not stat.S_ISDIR(status.st_mode):
        raise SwitchFailure(errno.ENOTDIR, f"{os.fsdecode(path)} is neither a link nor a directory")
    elif os.listdir(path):
        raise SwitchFailure(
            errno.ENOTEMPTY,
            f"{os.fsdecode(path)} holds files beside the replicated data{_by_whom(path)}: move them away "
            f"(the data is in {os.fsdecode(root.backing)})",
        )


def _by_whom(path: bytes) -> str:
    found = holders.holders(path)
    return f", and is held by {holders.told(found)[0]}" if found else ""


def to_link(root: Root, *, put_aside: bool = True) -> None:
    """Make /dir a link to the data again; nothing may be mounted there. What was written beside the data while the
    module ran is put aside. Raises OSError."""
    target = os.path.basename(root.backing)
    if os.path.dirname(root.backing) != os.path.dirname(root.mount):
        target = root.backing
    temporary = root.mount + b".safekit-link"
    try:
        if stat.S_ISDIR(os.lstat(root.mount).st_mode):
            placeholder.unseal(root.mount)
            _remove(root.mount, put_aside=put_aside)
    except FileNotFoundError:
        pass  # the link is made below
    try:
        os.symlink(target, temporary)
    except FileExistsError:
        os.unlink(temporary)
        os.symlink(target, temporary)
    os.rename(temporary, root.mount)


def _remove(path: bytes, *, put_aside: bool) -> None:
    try:
        os.rmdir(path)
    except OSError as error:
        if not put_aside or error.errno not in (errno.ENOTEMPTY, errno.EBUSY):
            raise
        aside = path + b".beside-the-data." + time.strftime("%Y%m%d-%H%M%S").encode()
        log.warning(
            "%s holds files beside the replicated data%s; nobody replicated them: they are in %s",
            os.fsdecode(path),
            _by_whom(path),
            os.fsdecode(aside),
        )
        os.rename(path, aside)
        os.chmod(aside, 0o700)


def clean_hidden(directory: Path, roots: Sequence[Root]) -> int:
    """Remove the place holders of unlinked files that were still open at the end, or at a crash; how many. Their
    directories keep their times: to users the names were gone. Raises OSError, which names the file."""
    notes = directory / "hidden"
    try:
        data = notes.read_bytes()
    except FileNotFoundError:
        return 0
    removed = 0
    for entry in data.split(b"\0"):
        number, _, path = entry.partition(b" ")
        # A crash may have torn a note: what it begins with can be the name of a file of the users.
        if number.isdigit() and int(number) < len(roots) and is_hidden(path):
            tree = roots[int(number)].tree
            try:
                mtime = tree.lstat(parent(path)).st_mtime_ns
                tree.unlink(path)
                tree.set_times(parent(path), None, mtime)
                removed += 1
            except OSError as error:
                if error.errno not in _GONE:
                    text = f"{tree.shown(path)} cannot be removed ({error.strerror}): check its file system"
                    raise OSError(error.errno, text) from None
    notes.unlink()
    return removed
