"""Where an installation goes, and how files get there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from safekit import syscalls

SAFE = "/opt/safekit"
SAFEVAR = "/var/safekit"


class InstallError(Exception):
    """Installation cannot go on: the cause, and the next step."""

    def __init__(self, cause: str, next_step: str) -> None:
        super().__init__(cause)
        self.next_step = next_step


@dataclass(frozen=True)
class Target:
    """The file system that is installed into: `/`, or the root of another system (`--root`)."""

    root: Path = Path("/")

    @property
    def is_this_system(self) -> bool:
        return self.root == Path("/")

    def at(self, absolute: str) -> Path:
        """Where the path `absolute` of the target lies as seen from here."""
        return self.root / absolute.lstrip("/")

    @property
    def safe(self) -> Path:
        return self.at(SAFE)

    @property
    def safevar(self) -> Path:
        return self.at(SAFEVAR)

    @property
    def environment(self) -> Path:
        return self.safe / "private" / "env"


def write_file(path: Path, content: str | bytes, *, mode: int = 0o644, gid: int | None = None) -> bool:
    """Make `path` hold `content`; replaces it whole. True when something changed."""
    data = content.encode() if isinstance(content, str) else content
    if path.is_file() and not path.is_symlink() and path.read_bytes() == data:
        path.chmod(mode)
        if gid is not None:
            os.chown(path, 0, gid)
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(data)
    if gid is not None:
        os.chown(temporary, 0, gid)
    temporary.chmod(mode)
    temporary.rename(path)
    return True


def replace_tree(new: Path, place: Path) -> None:
    """Put the directory `new` at `place`, where there is always one of the two; what was there goes away afterwards."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if not os.path.lexists(place):
        new.rename(place)
    elif _exchange(new, place):
        new.rename(old)
    else:
        place.rename(old)
        new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.EXDEV)


def _exchange(one: Path, other: Path) -> bool:
    """Both change places in one step; False where the file system cannot. Raises OSError."""
    try:
        syscalls.exchange(one, other)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def make_durable(directory: Path) -> None:
    """All of its file system is on disk: what is renamed afterwards survives a power failure whole."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syscalls.sync_filesystem(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path, *, mode: int, gid: int) -> None:
    """A directory of root and `gid`. The set-group-id bit in `mode` hands the group on to what is made inside."""
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, 0, gid)
    path.chmod(mode)
