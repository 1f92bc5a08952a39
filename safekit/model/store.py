"""The numbered active configurations behind SAFE/private/modules/AM.

A configuration is prepared in a directory of its own, put on disk whole, and becomes active by the
rename of one symbolic link. The last three stay.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from safekit.disk.files import sync_directory

KEPT = 3
ACTIVE_JSON = "active.json"
MAX_FILES = 10_000
USER_SCRIPTS = frozenset(
    f"{verb}_{role}" for verb in ("start", "stop") for role in ("prim", "second", "both", "sec")
) | {"prestart", "poststop", "transition", "config", "deconfig", "confcheck", "state", "level"}


class TreeError(Exception):
    """A module's files cannot be copied: a device, or too many of them."""


def files_of(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file and link of conf/ and bin/ under `root`, by relative path, in order. Raises TreeError."""
    count = 0
    for top in ("bin", "conf"):
        for directory, names, leaves in os.walk(root / top, onerror=_raise):
            names.sort()
            linked = [name for name in names if os.path.islink(os.path.join(directory, name))]
            names[:] = [name for name in names if name not in linked]
            for leaf in sorted([*leaves, *linked]):
                path = Path(directory, leaf)
                count += 1
                if count > MAX_FILES:
                    raise TreeError(f"{root} has more than {MAX_FILES} files; a module is meant for scripts")
                yield str(path.relative_to(root)), path


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def signature(root: Path, without: frozenset[str] = frozenset()) -> str:
    """sha256 (hex) of names and content of conf/ and bin/, the same on every server with the same files.

    Modes and dates do not count; neither does our compiled file, nor `without`. Raises OSError, TreeError.
    """
    total = hashlib.sha256()
    for name, path in files_of(root):
        if name == f"conf/{ACTIVE_JSON}" or name in without:
            continue
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            content = b"link " + os.fsencode(os.readlink(path))
        elif stat.S_ISREG(mode):
            content = b"file " + hashlib.sha256(path.read_bytes()).digest()
        else:
            raise TreeError(f"{path} is neither a file nor a link; remove it from the module")
        total.update(b"%d %d " % (len(os.fsencode(name)), len(content)) + os.fsencode(name) + content)
    return total.hexdigest()


def modified(root: Path) -> float:
    """The latest modification of a file of conf/ or bin/, as a Unix time; 0 without files."""
    return max((os.lstat(p).st_mtime for name, p in files_of(root) if name != f"conf/{ACTIVE_JSON}"), default=0.0)


def size(root: Path) -> int:
    """Bytes of conf/ and bin/, in blocks of 4096 as a file system would use."""
    return sum((os.lstat(path).st_size // 4096 + 1) * 4096 for _, path in files_of(root))


def prepare(source: Path, target: Path, compiled: bytes, programs: frozenset[str] = frozenset()) -> None:
    """Build a complete configuration in `target` and put it on disk. Raises OSError, TreeError.

    User scripts become executable, and the `programs` of bin/: an editor or a web form easily loses the bit.
    """
    target.mkdir(mode=0o770)
    for top in ("conf", "bin"):
        (target / top).mkdir(mode=0o770)
    for name, path in files_of(source):
        copy = target / name
        copy.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(path), copy)
        elif stat.S_ISREG(status.st_mode):
            mode = stat.S_IMODE(status.st_mode)
            if name.startswith("bin/") and (Path(name).name in USER_SCRIPTS or name[len("bin/") :] in programs):
                mode |= (mode & 0o444) >> 2
            write(copy, path.read_bytes(), mode)
            os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
        else:
            raise TreeError(f"{path} is neither a file nor a link; remove it from the module")
    write(target / "conf" / ACTIVE_JSON, compiled, 0o640)
    for directory, _, _ in os.walk(target, topdown=False):
        sync_directory(Path(directory))


def write(path: Path, data: bytes, mode: int) -> None:
    """A file with its content on disk. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def numbers(store: Path) -> tuple[int, ...]:
    """The numbers of the complete configurations, oldest first."""
    try:
        return tuple(sorted(int(entry.name) for entry in os.scandir(store) if entry.name.isdecimal()))
    except FileNotFoundError:
        return ()


def active_number(link: Path) -> int | None:
    """The number that the link leads to; None when there is no active configuration."""
    try:
        name = os.path.basename(os.readlink(link))
    except FileNotFoundError:
        return None
    return int(name) if name.isdecimal() else None


def point(link: Path, store: Path, number: int | None) -> None:
    """Make a configuration the active one in one step, None for no configuration. Raises OSError."""
    if number is None:
        link.unlink(missing_ok=True)
    else:
        temporary = link.with_name(f".{link.name}.{os.getpid()}.link")
        temporary.unlink(missing_ok=True)
        os.symlink(os.path.join(store.name, str(number)), temporary)
        try:
            os.rename(temporary, link)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    sync_directory(link.parent)


def sweep(store: Path, active: int | None) -> None:
    """Remove what a crash left half-made, what is newer than the active one, and all but the last three."""
    keep = {n for n in numbers(store) if active is not None and n <= active}
    keep = set(sorted(keep)[-KEPT:])
    for entry in list(os.scandir(store)):
        if entry.is_dir(follow_symlinks=False) and not (entry.name.isdecimal() and int(entry.name) in keep):
            shutil.rmtree(entry.path)


def free_bytes(path: Path) -> int:
    """What an unprivileged process may still write on the file system of `path`, which need not exist yet."""
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
