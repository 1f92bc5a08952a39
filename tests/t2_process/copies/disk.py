"""A small disk of a server: an ext4 in memory with few inodes, so that their numbers are used again at once. When its
power fails, it forgets what was not synced."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_SHUTDOWN: Final = 0x8004587D  # FS_IOC_SHUTDOWN
_NO_LOG_FLUSH: Final = 2
_FIBMAP: Final = 1
_FIGETBSZ: Final = 2
_PUNCH_HOLE: Final = 1 | 2  # and keep the size
_SIZE: Final = 40 << 20
_INODES: Final = 512
_OPTIONS: Final = b"noinit_itable,commit=60"
_LIBC = ctypes.CDLL(None, use_errno=True)
_long: Final = ctypes.c_int64
_DETACH: Final = 2
_NOFOLLOW: Final = 8


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _blank(directory: Path) -> Path:
    image = directory / "blank.img"
    if not image.exists():
        with image.open("wb") as handle:
            handle.truncate(_SIZE)
        subprocess.run(
            ["mkfs.ext4", "-q", "-F", "-m", "0", "-b", "1024", "-J", "size=4", "-N", str(_INODES), str(image)],
            check=True,
        )
    return image


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Where numbers follow one another: the first, and how many."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == sum(found[-1]):
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((number, 1))
    return found


class Disk:
    """Mounted at `place`."""

    def __init__(self, memory: Path, name: str, place: Path) -> None:
        self.place = place
        self._image = memory / f"{name}.img"
        self._filler = memory / "filler"
        shutil.copyfile(_blank(memory), self._image)
        place.mkdir(parents=True)
        self._device = subprocess.run(
            ["losetup", "--find", "--show", str(self._image)], check=True, capture_output=True, text=True
        ).stdout.strip()
        self.off = False
        self.mount()

    def mount(self) -> None:
        """As at a start of the system. Raises OSError."""
        _check(_LIBC.mount(self._device.encode(), os.fsencode(self.place), b"ext4", 0, _OPTIONS))
        self.off = False

    def refuse(self, file: Path) -> None:
        """The blocks of a file, but for the first page, cannot be written any more, because there is no room for them
        where all disks are: the system takes what is written, says once that it could not be put on disk, and shows it
        from memory. Needs a room of a bounded size. Raises OSError.

        A write that begins in the first page is shortened, which the loop device takes for done."""
        with open(file, "rb") as handle:
            size = struct.unpack("i", fcntl.ioctl(handle, _FIGETBSZ, struct.pack("i", 0)))[0]
            count = -(-os.fstat(handle.fileno()).st_size // size)
            blocks = [
                struct.unpack("i", fcntl.ioctl(handle, _FIBMAP, struct.pack("i", number)))[0] for number in range(count)
            ]
        for image in self._image.parent.glob("*.img"):
            with image.open("r+b") as whole:
                os.posix_fallocate(whole.fileno(), 0, _SIZE)  # nothing else fails
        with self._image.open("r+b") as image_file:
            for first, count in _runs(blocks):  # the room is given back by pages
                _check(_LIBC.fallocate(image_file.fileno(), _PUNCH_HOLE, _long(first * size), _long(count * size)))
        with self._filler.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1 << 12))

    def take(self) -> None:
        """What is written from now on is put on disk again."""
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        """When nobody uses it any more. Raises OSError."""
        deadline = time.monotonic() + 20
        while True:
            try:
                _check(_LIBC.umount2(os.fsencode(self.place), 0))
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def power_off(self) -> None:
        """What was not synced is forgotten, and nothing is written any more. Raises OSError."""
        if self.off:
            return
        self.off = True
        descriptor = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Free everything."""
        detach(self.place)
        subprocess.run(["losetup", "--detach", self._device], check=False)
        self._image.unlink()


def detach(path: Path) -> None:
    """Unmount whatever is mounted there, dead or alive."""
    while _LIBC.umount2(os.fsencode(path), _DETACH | _NOFOLLOW) == 0:
        pass
