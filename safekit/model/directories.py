"""Replicated directories on disk: in what state they are, conversion and its undoing (13.6.3, 13.6.4.2).

While a module is stopped, /a/dir is a symbolic link to /a/dir_For_SafeKit_Replication, where the data
is; while it runs, a mount stands in the place of the link. After a hard failure the link is missing:
an empty directory in which nobody can write, or nothing, is left beside the data. From the first start on the data is
root's alone, until it is a plain directory again.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safekit.disk import placeholder
from safekit.disk.files import sync_directory
from safekit.rfs import top
from safekit.rfs.tree import open_top


class State(enum.Enum):
    """How a replicated directory was found."""

    PLAIN = "a directory that can be converted"
    CONVERTED = "a link to its data"
    MOUNTED = "served by a running module"
    INTERRUPTED = "its data is in place and the link is missing"
    MOUNT_POINT = "a mount point"
    MISSING = "missing"
    NOT_A_DIRECTORY = "not a directory"
    FOREIGN_LINK = "a link to something else"
    BOTH = "beside a directory that already has its data's name"


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    point: str
    fstype: str
    source: str


def mounts() -> tuple[Mount, ...]:
    """The mounts that this process sees."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def parse_mountinfo(data: bytes) -> tuple[Mount, ...]:
    """Mounts of a mountinfo table; later lines hide earlier ones at the same point."""
    found = []
    for line in data.split(b"\n"):
        head, separator, tail = line.partition(b" - ")
        left, right = head.split(b" "), tail.split(b" ")
        if separator and len(left) >= 5 and len(right) >= 2:
            found.append(Mount(_unescape(left[4]), os.fsdecode(right[0]), _unescape(right[1])))
    return tuple(found)


def _unescape(field: bytes) -> str:
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, char)
    return os.fsdecode(field)


def state(directory: str, suffix: str, table: Iterable[Mount]) -> State:
    """The state of a replicated directory. Raises OSError when it cannot be looked at."""
    backing = directory + suffix
    here = [mount for mount in table if mount.point == directory]
    if here:
        return State.MOUNTED if here[-1].fstype.startswith("fuse") and os.path.isdir(backing) else State.MOUNT_POINT
    if os.path.islink(directory):
        if not os.path.isdir(backing):
            return State.MISSING if os.readlink(directory) in _targets(backing) else State.FOREIGN_LINK
        return State.CONVERTED if os.readlink(directory) in _targets(backing) else State.FOREIGN_LINK
    if not os.path.lexists(directory):
        return State.INTERRUPTED if os.path.isdir(backing) else State.MISSING
    if not os.path.isdir(directory):
        return State.NOT_A_DIRECTORY
    if not os.path.lexists(backing):
        return State.PLAIN
    with os.scandir(directory) as entries:
        empty = next(entries, None) is None
    return State.INTERRUPTED if empty and os.path.isdir(backing) else State.BOTH


def _targets(backing: str) -> tuple[str, str]:
    return (os.path.basename(backing), backing)


def explain(directory: str, suffix: str, found: State) -> str | None:
    """What is wrong with a directory that is to be replicated and what to do; None when nothing is."""
    backing = directory + suffix
    if found in (State.PLAIN, State.CONVERTED, State.MOUNTED, State.INTERRUPTED):
        return None
    if found is State.MOUNT_POINT:
        return (
            f"Device or resource busy: {directory} is a mount point; run umount {directory}, then safekit config, "
            f"change {directory} to {backing} in /etc/fstab, then run mount {backing}"
        )
    if found is State.MISSING and os.path.islink(directory):
        return f"{directory} is a link to {backing}, which does not exist; mount it or restore the data there"
    if found is State.MISSING:
        return f"{directory} does not exist on this node; create it (mkdir -p {directory}) with its owner and mode"
    if found is State.NOT_A_DIRECTORY:
        return f"{directory} is not a directory; expected a directory"
    if found is State.FOREIGN_LINK:
        target = os.readlink(directory)
        return f"{directory} is a symbolic link to {target}; replicate the directory that it leads to"
    return f"both {directory} and {backing} hold data; keep the good one as {directory} and move the other away"


def convert(directory: str, suffix: str, table: Iterable[Mount]) -> State | None:
    """Bring a directory to State.CONVERTED; the state in which it was, None when nothing was to do.

    The caller has checked `explain`. A crash between the two steps leaves State.INTERRUPTED, which the
    next conversion completes. Raises OSError; what was done in this call is then undone.
    """
    found = state(directory, suffix, table)
    if found in (State.CONVERTED, State.MOUNTED):
        return None
    problem = explain(directory, suffix, found)
    if problem is not None:
        raise OSError(errno.EBUSY if found is State.MOUNT_POINT else errno.EINVAL, problem)
    backing = directory + suffix
    if found is State.PLAIN:
        _rename(directory, backing)
    elif os.path.lexists(directory):
        placeholder.unseal(os.fsencode(directory))
        os.rmdir(directory)
    try:
        os.symlink(os.path.basename(backing), directory)
        sync_directory(Path(directory).parent)
    except OSError:
        if found is State.PLAIN:
            if os.path.islink(directory):
                os.unlink(directory)
            os.rename(backing, directory)
        raise
    return found


def _rename(directory: str, backing: str) -> None:
    try:
        os.rename(directory, backing)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # A directory of the lower layer of an overlay, as in the image of a container.
        copy = f"cp -a {directory} {directory}.new && rm -rf {directory} && mv {directory}.new {directory}"
        raise OSError(errno.EXDEV, f"{directory} comes from an image and cannot be renamed; run {copy}") from error


def open_to_users(backing: str) -> bool:
    """Give the data of a replicated directory its mode and owner back, which the module has taken so that nobody
    writes beside the mount; False when they are there. Raises OSError."""
    descriptor = open_top(os.fsencode(backing))
    try:
        return top.reopen(descriptor)
    finally:
        os.close(descriptor)


def restore(directory: str, suffix: str, table: Iterable[Mount]) -> bool:
    """Turn a converted directory back into itself; True when something changed. Raises OSError.

    A mounted replicated directory is refused: its module still runs.
    """
    backing = directory + suffix
    table = tuple(table)
    found = state(directory, suffix, table)
    if found is State.MOUNTED:
        raise OSError(errno.EBUSY, f"{directory} is still mounted; stop the module first")
    if any(mount.point == backing for mount in table):
        raise OSError(
            errno.EBUSY,
            f"Device or resource busy: {backing} is a mount point; run umount {backing}, then safekit deconfig, "
            f"change {backing} to {directory} in /etc/fstab, then run mount {directory}",
        )
    if found not in (State.CONVERTED, State.INTERRUPTED):
        return False
    open_to_users(backing)
    if os.path.islink(directory):
        os.unlink(directory)
    elif os.path.lexists(directory):
        placeholder.unseal(os.fsencode(directory))
        os.rmdir(directory)
    os.rename(backing, directory)
    sync_directory(Path(directory).parent)
    return True
