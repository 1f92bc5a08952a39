"""A disk of a node's own: an ext4 in a sparse file, which forgets what was not synced when the power fails.

Nodes share this host's kernel, and with it the page cache: what a process wrote without fsync survives its death. A
file system of its own can be shut down (FS_IOC_SHUTDOWN) without writing its cache and its journal.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lab.errors import LabError

IMAGE: Final = "disk.img"
_SIZE: Final = 32 << 30  # bytes; sparse
_SHUTDOWN: Final = 0x8004587D  # FS_IOC_SHUTDOWN, linux/fs.h; ext4 and xfs share it
_NO_LOG_FLUSH: Final = 2
# No thread writes inode tables in the background; the journal waits longer than the default 5 s for someone's fsync,
# so that a sync which is missing shows.
_OPTIONS: Final = "loop,noatime,noinit_itable,commit=60"


def check_host(folders: Sequence[str]) -> None:
    """Raises LabError when this host cannot make disks."""
    if not any(Path(folder, "mkfs.ext4").exists() for folder in folders):
        raise LabError("the command mkfs.ext4 is missing", "install the package e2fsprogs, or leave --disks out")
    if not Path("/dev/loop-control").exists():
        raise LabError("this kernel has no loop devices", "modprobe loop, or leave --disks out")


def make(directory: Path) -> None:
    """Make the disk of the node that is kept in `directory`, unless it has one. Raises LabError."""
    image = directory / IMAGE
    if image.exists():
        return
    new = image.with_suffix(".new")
    with new.open("wb") as file:
        file.truncate(_SIZE)
    done = subprocess.run(["mkfs.ext4", "-q", "-F", str(new)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"no file system could be made in {new}: {done.stderr.strip()}", "see the message")
    new.rename(image)


def attach(directory: Path) -> Path:
    """Mount the disk of a node in the caller's mount namespace. Raises CalledProcessError."""
    place = directory / "disk"
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", _OPTIONS, str(directory / IMAGE), str(place)], check=True)
    return place


def power_off(inside: Path) -> None:
    """The file system that `inside` lies on forgets what it did not write, and writes nothing more. Raises OSError."""
    descriptor = os.open(inside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(descriptor)


def wait_released(directory: Path, timeout: float) -> None:
    """Until no loop device holds the disk: it is unmounted some time after the last process of the node. Raises
    LabError after `timeout` seconds."""
    image = str(directory / IMAGE)
    deadline = time.monotonic() + timeout
    while image in _held():
        if time.monotonic() > deadline:
            raise LabError(f"{image} is still mounted", f"see: losetup -j {image}")
        time.sleep(0.01)


def _held() -> set[str]:
    """Files behind the loop devices of this host."""
    found = set()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.add(backing.read_text().rstrip("\n").removesuffix(" (deleted)"))
        except OSError:  # released while we looked
            continue
    return found
