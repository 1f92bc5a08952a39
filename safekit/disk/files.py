"""Files that must survive a power failure, and identities of a running system."""

from __future__ import annotations

import _thread
import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from safekit.disk import steps
from safekit.process.table import start_time


def write_atomic(path: Path, data: bytes, *, mode: int = 0o660, durable: bool = True) -> None:
    """Replace `path` whole or not at all.

    With `durable` the data and the directory entry are on disk when the call returns; without it a
    power failure may bring the old content back. On a full disk what was put by with `reserve` is used. Raises OSError;
    the old content is then untouched.
    """
    try:
        _write_new(path, data, mode, durable)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not _write_reserved(path, data, mode):
            raise
    if durable:
        sync_directory(path.parent)


def _write_new(path: Path, data: bytes, mode: int, durable: bool) -> None:
    # Threads of one process may write one file at the same time.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{_thread.get_native_id()}.tmp")
    try:
        descriptor = steps.file_create(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        try:
            steps.file_mode(descriptor, mode)
            view = memoryview(data)
            while view:
                view = view[steps.file_write(descriptor, view) :]
            if durable:
                steps.file_settle(descriptor)
        finally:
            os.close(descriptor)
        steps.file_install(temporary, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            steps.file_remove(temporary)
        raise


def _reserve(path: Path) -> Path:
    return path.with_name(f".{path.name}.reserve")


def reserve(path: Path, size: int = 4096) -> None:
    """Put room by for `path`, a text to which empty lines at its end mean nothing: a disk that others have filled must
    not keep a server from remembering what it has to. Raises OSError."""
    if not _reserve(path).exists():
        _write_new(_reserve(path), b"\n" * size, 0o660, True)


def _write_reserved(path: Path, data: bytes, mode: int) -> bool:
    """Write over the reserve, and have it change places with the file, which is the reserve from then on. False when
    there is none. Raises OSError."""
    spare = _reserve(path)
    try:
        descriptor = steps.reserve_open(spare, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Never shorter than it was: the system would take back what is put by.
        whole = data.ljust(os.fstat(descriptor).st_size, b"\n")
        done = 0
        while done < len(whole):
            done += steps.reserve_write(descriptor, whole[done:], done)
        steps.file_mode(descriptor, mode)
        steps.file_settle(descriptor)
    finally:
        os.close(descriptor)
    if not (path.exists() and _exchange(spare, path)):
        steps.file_install(spare, path)
    return True


def _exchange(one: Path, other: Path) -> bool:
    from safekit import syscalls  # what is hardly ever needed costs no command its start

    try:
        syscalls.exchange(one, other)
    except OSError:
        return False
    return True


def sync_directory(path: Path) -> None:
    """Put the entries of a directory on disk."""
    descriptor = steps.directory_open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        steps.directory_settle(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created when missing). Raises BlockingIOError when not `wait`ing."""
    descriptor = steps.lock_open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced or written: cheaper to compare than what is in it. None where it is not."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def boot_identity() -> str:
    """Changes at every boot of the machine, or of the container or lab node that we run in."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot_id = "unknown"
    return f"{boot_id}/{start_time(1)}"


def machine_identity(file: Path = Path("/etc/machine-id")) -> str:
    """Names this machine, without telling its secret number (machine-id(5)); "" when the system has none."""
    try:
        number = file.read_text(errors="replace").strip()
    except OSError:
        return ""
    known = len(number) == 32 and number.isalnum()
    return blake2b(b"safekit" + number.encode(), digest_size=8).hexdigest() if known else ""


def of_another_boot(marker: Path) -> bool:
    """Whether the mark of a running module was left by a power failure: nobody has taken it up since."""
    try:
        return marker.read_text(errors="replace").strip() != boot_identity()
    except (FileNotFoundError, NotADirectoryError):
        return False
