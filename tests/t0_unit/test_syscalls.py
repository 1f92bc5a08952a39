"""System calls without a name in Python: what they do, and the errors that they raise."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from safekit import syscalls


def test_two_names_change_places(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")
    syscalls.exchange(one, other)
    assert (one.read_text(), other.read_text()) == ("2", "1")
    with pytest.raises(FileNotFoundError) as caught:
        syscalls.exchange(one, tmp_path / "none")
    assert caught.value.filename == str(tmp_path / "none")


def test_a_file_system_is_synced(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    syscalls.sync_filesystem(descriptor)
    os.close(descriptor)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        syscalls.sync_filesystem(descriptor)


@pytest.mark.parametrize("take_off", [syscalls.detach, syscalls.unmount])
def test_what_is_no_mount_is_not_taken_off(tmp_path: Path, take_off: Callable[[Path], None]) -> None:
    with pytest.raises(OSError, match=str(tmp_path)):
        take_off(tmp_path)


def test_a_call_that_a_signal_interrupts_is_made_again() -> None:
    """As those of `os`: whoever has a file system change something is not told of signals of his own process."""
    left = [errno.EINTR, errno.EINTR]

    def interrupted() -> int:
        if left:
            ctypes.set_errno(left.pop())
            return -1
        return 7

    assert syscalls._call(interrupted) == 7

    def refused() -> int:
        ctypes.set_errno(errno.ENOSPC)
        return -1

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        syscalls._call(refused)


def test_files_below_a_directory(tmp_path: Path) -> None:
    """Each call with a result that another one shows."""
    (tmp_path / "file").write_bytes(b"x" * 10_000)
    (tmp_path / "link").symlink_to("file")
    above = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    descriptor = os.open(tmp_path / "file", os.O_RDWR)
    try:
        syscalls.set_times(b"link", 1, 2_000_000_003, above)
        assert (tmp_path / "link").lstat().st_mtime_ns == 2_000_000_003
        syscalls.set_times(descriptor, None, 5)
        assert (tmp_path / "file").stat().st_mtime_ns == 5 != (tmp_path / "file").stat().st_atime_ns
        syscalls.fallocate(descriptor, 0, 0, 20_000)
        assert os.fstat(descriptor).st_size == 20_000
        assert syscalls.handle(above, b"file", 0) == syscalls.handle(descriptor, b"", 0)
        assert syscalls.handle(above, b"link", 0) != syscalls.handle(above, b"file", 0)
        assert syscalls.birth_ns(above, b"file") == syscalls.birth_ns(descriptor, b"")
        (tmp_path / "other").touch()
        syscalls.exchange_at(above, b"file", above, b"other")
        assert (tmp_path / "file").stat().st_size == 0
        with pytest.raises(FileNotFoundError):
            syscalls.exchange_at(above, b"file", above, b"none")
    finally:
        os.close(descriptor)
        os.close(above)


def test_a_process_takes_its_name_and_adopts_orphans() -> None:
    script = (
        "from safekit import syscalls, process; from safekit.process import table; import os, subprocess;"
        "syscalls.name_process('a-name-of-more-than-15'); syscalls.adopt_orphans(); syscalls.trim_memory();"
        "print(table.process(os.getpid()).name);"
        "p = subprocess.run(['sh', '-c', 'sleep 60 >/dev/null 2>&1 & echo $!'], capture_output=True, text=True);"
        "orphan = table.process(int(p.stdout)); print(orphan.parent == os.getpid()); os.kill(orphan.pid, 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["a-name-of-more-", "True"], done.stderr
