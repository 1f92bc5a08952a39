"""The file system of a node: overlays of this host's, with the changes of the node in a directory of its own.

Reads of what the node did not change see this host, so that its packages (PostgreSQL, tools) are there. The
product itself is a change: a node starts with a copy of the image's (overlays refuse a lower layer inside another
one, and the labs' directory usually lies below `/`).
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lab import kernel

# File systems with an administrator's files; the rest of /proc/mounts is the kernel's or another node's.
_REAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "jfs", "reiserfs"})
_OF_INTEREST = ("/usr", "/etc", "/opt", "/var", "/home", "/root", "/srv", "/lib", "/bin", "/sbin")
_DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_BUSY_RETRY = 5.0


def host_mounts(labs: Path) -> list[str]:
    """Mount points of this host that a node needs overlays of, `/` first. Raises OSError."""
    found = {"/"}
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            _, place, kind, *_ = line.split(" ")
            path = place.encode("utf-8", "surrogateescape").decode("unicode_escape")
            if kind in _REAL and any(path == top or path.startswith(f"{top}/") for top in _OF_INTEREST):
                inside_lab = (
                    path == str(labs) or path.startswith(f"{labs}/") or str(labs).startswith(f"{path}/lib/docker")
                )
                if not inside_lab and not path.startswith(("/var/lib/docker", "/var/lib/containerd", "/var/snap")):
                    found.add(path)
    return sorted(found)


def _layer(path: str) -> str:
    return "root" if path == "/" else path.strip("/").replace("/", "_")


def mount_overlays(root: Path, changes: Path, places: Sequence[str]) -> None:
    """Mount the overlays on `root`; `changes` gets what is written.

    The former user of `changes` may still be on its way out after a power-off: that is waited for.
    """
    for place in places:
        upper, work = changes / "upper" / _layer(place), changes / "work" / _layer(place)
        upper.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        if not any(upper.iterdir()):
            origin = os.stat(place)
            os.chown(upper, origin.st_uid, origin.st_gid)
            upper.chmod(stat.S_IMODE(origin.st_mode))
        options = f"lowerdir={place},upperdir={upper},workdir={work},redirect_dir=on,index=off"
        deadline = time.monotonic() + _BUSY_RETRY
        while True:
            try:
                kernel.mount("overlay", root / place.lstrip("/"), "overlay", 0, options)
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)


def copy_changes(image: Path, changes: Path) -> None:
    """Start a node with the image's changes, as an installation of long ago: on disk. Raises CalledProcessError."""
    new = changes / ".upper.new"
    shutil.rmtree(new, ignore_errors=True)
    # cp keeps what makes an overlay's layer: whiteouts are devices, opaque directories have an attribute.
    subprocess.run(["cp", "-a", "--reflink=auto", str(image / "upper"), str(new)], check=True, capture_output=True)
    new.rename(changes / "upper")
    subprocess.run(["sync", "-f", str(changes)], check=True, capture_output=True)


def mount_kernel_file_systems(root: Path) -> None:
    """/proc, /sys, /dev, /run: new ones that show this node's namespaces only."""
    plain = kernel.MS_NOSUID | kernel.MS_NOEXEC | kernel.MS_NODEV
    kernel.mount("proc", root / "proc", "proc", plain)
    kernel.mount("sysfs", root / "sys", "sysfs", plain)
    if (root / "sys/fs/fuse/connections").is_dir():
        kernel.mount("fusectl", root / "sys/fs/fuse/connections", "fusectl", plain)
    device = root / "dev"
    kernel.mount("tmpfs", device, "tmpfs", kernel.MS_NOSUID, "mode=0755,size=64m")
    for name, major, minor in _DEVICES:
        _make_device(device / name, major, minor)
    fuse = os.stat("/dev/fuse").st_rdev
    _make_device(device / "fuse", os.major(fuse), os.minor(fuse))
    if Path("/dev/net/tun").exists():
        (device / "net").mkdir()
        _make_device(device / "net/tun", 10, 200)
    for name in ("pts", "shm", "mqueue"):
        (device / name).mkdir()
    kernel.mount(
        "devpts", device / "pts", "devpts", kernel.MS_NOSUID | kernel.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"
    )
    kernel.mount("tmpfs", device / "shm", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=1777")
    kernel.mount("mqueue", device / "mqueue", "mqueue", plain)
    (device / "ptmx").symlink_to("pts/ptmx")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        (device / name).symlink_to(f"/proc/self/fd/{number}")
    (device / "fd").symlink_to("/proc/self/fd")
    kernel.mount("tmpfs", root / "run", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755")
    (root / "run/lock").mkdir(mode=0o1777)
    (root / "run/lock").chmod(0o1777)


def _make_device(path: Path, major: int, minor: int) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
    path.chmod(0o666)


def bind_into(root: Path, place: str, source: Path, *, read_only: bool = False) -> None:
    """Make the directory `source` appear at `place` of the node."""
    target = root / place.lstrip("/")
    target.mkdir(parents=True, exist_ok=True)
    kernel.bind(source, target, read_only=read_only)


def hide(root: Path, place: Path) -> None:
    """Show an empty read-only directory at `place`."""
    target = root / str(place).lstrip("/")
    if target.is_dir():
        kernel.mount("tmpfs", target, "tmpfs", kernel.MS_RDONLY | kernel.MS_NODEV, "size=4k")


def empty(directory: Path, mode: int) -> Path:
    """An empty directory, made anew."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    directory.chmod(mode)
    return directory
