"""System calls without a name in Python: what they do, and the errors that they raise."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
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


def test_what_is_no_mount_is_not_detached(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=str(tmp_path)):
        syscalls.detach(tmp_path)


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
