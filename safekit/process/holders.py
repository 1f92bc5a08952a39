"""Who holds a directory: open files, mapped files, working and root directories, mounts, loop devices, swap.

Whoever holds something of a replicated directory from before the mount goes on past it, and what it writes is
replicated by nobody. Paths are no proof: a container sees the same files under other names. So a place is known as the
file system and the path in it, and each mount namespace is asked where it shows that place.

Everything is read from /proc; no file system is asked itself, because a dead one would keep us waiting.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safekit.process import table

#: Processes that begin while we look are looked at as well, so many times.
ROUNDS: Final = 5
#: Seconds after which a holder is none who only comes by.
PATIENCE: Final = 5.0
#: Holders that a message names.
TOLD: Final = 5
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_CONTAINER: Final = re.compile(r"(docker|libpod|crio|cri-containerd|nspawn|lxc)[-.:/]([0-9a-f]{12})?")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of mountinfo: the file system, the directory of it that is mounted, and where."""

    device: bytes
    root: bytes
    point: bytes


@dataclass(frozen=True, slots=True)
class Place:
    """A directory, whatever name it has in a mount namespace."""

    device: bytes
    path: bytes


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds something. `pid` 0 is the kernel. `how` tells what it has, with `path` as that process knows it; `unit`
    is its systemd unit, "" when it has none."""

    pid: int
    name: str
    unit: str
    how: str
    path: str

    @property
    def text(self) -> str:
        """For people."""
        who = f"process {self.pid}" + (f", unit {self.unit}" if self.unit else "") if self.pid else "kernel"
        return f"{self.name} ({who}) {self.how} {self.path}"

    @property
    def remedy(self) -> str:
        """The command that ends it."""
        container = _CONTAINER.match(self.unit)
        if container and container.group(1) in ("docker", "libpod") and container.group(2):
            return f"{'docker' if container.group(1) == 'docker' else 'podman'} stop {container.group(2)}"
        if self.unit.endswith((".service", ".socket")):
            return f"systemctl stop {self.unit}"
        if self.how == WORKS:
            return f"leave the directory there (cd /) or kill {self.pid}"
        if self.how in _KERNEL_REMEDIES and not self.pid:
            return _KERNEL_REMEDIES[self.how].format(name=self.name, path=self.path)
        return f"kill {self.pid}"


OPEN: Final = "has open"
MAPS: Final = "has mapped"
RUNS: Final = "runs"
WORKS: Final = "works in"
ROOTED: Final = "has as its root"
MOUNTS: Final = "has it mounted at"
LOOPS: Final = "is a device of"
SWAPS: Final = "swaps to"
_KERNEL_REMEDIES: Final = {LOOPS: "losetup -d /dev/{name}", SWAPS: "swapoff {path}", MOUNTS: "umount {path}"}


# --- what the kernel's tables say: pure ---------------------------------------------------------------------


def parse(text: bytes) -> tuple[Mounted, ...]:
    """The lines of a mountinfo table, in their order."""
    found = []
    for line in text.splitlines():
        fields = line.split(b" ", 5)
        if len(fields) == 6:
            found.append(Mounted(fields[2], _plain(fields[3]), _plain(fields[4])))
    return tuple(found)


def _plain(field: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match.group(1), 8)]), field) if b"\\" in field else field


def below(path: bytes, directory: bytes) -> bool:
    """Whether a path is a directory, or lies in it."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def _join(directory: bytes, rest: bytes) -> bytes:
    return (directory.rstrip(b"/") + b"/" + rest.lstrip(b"/")).rstrip(b"/") or b"/"


def place(path: bytes, mounts: Sequence[Mounted]) -> Place | None:
    """What a path is, by the mount that it lies in: the deepest, and of several at one point the last."""
    best = None
    for mount in mounts:
        if below(path, mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    if best is None:
        return None
    return Place(best.device, _join(best.root, path[len(best.point.rstrip(b"/")) :]))


def views(wanted: Place, mounts: Sequence[Mounted]) -> tuple[set[bytes], set[bytes]]:
    """Where these mounts show a place: (in a larger mount, as a mount of its own or of a part of it)."""
    inside, own = set(), set()
    for mount in mounts:
        if mount.device != wanted.device:
            continue
        if below(mount.root, wanted.path):
            own.add(mount.point)
        elif below(wanted.path, mount.root):
            inside.add(_join(mount.point, wanted.path[len(mount.root.rstrip(b"/")) :]))
    return inside, own


def mapped(text: bytes) -> set[bytes]:
    """Paths of the files in a table of maps."""
    found = set()
    for line in text.splitlines():
        fields = line.split(None, 5)
        if len(fields) == 6 and fields[5].startswith(b"/"):
            found.add(fields[5].replace(b"\\012", b"\n"))
    return found


def unit(text: str) -> str:
    """The systemd unit of a process, from its cgroup table; "" when there is none."""
    for line in text.splitlines():
        for part in reversed(line.rpartition(":")[2].split("/")):
            if part.endswith((".service", ".scope", ".socket")):
                return part
    return ""


# --- looking ------------------------------------------------------------------------------------------------


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""  # it ended meanwhile


def _link(path: str) -> bytes:
    try:
        return os.readlink(os.fsencode(path))
    except OSError:
        return b""


class _Namespaces:
    """Where each mount namespace shows a directory. One of its processes answers for all; one with a root directory of
    its own would not see the whole."""

    def __init__(self, directory: bytes) -> None:
        own = parse(_read("/proc/self/mountinfo"))
        self._directory = directory
        self._mine = _link("/proc/self/ns/mnt")
        self._place = place(directory, own)
        self._seen: dict[bytes, tuple[tuple[bytes, ...], set[bytes]]] = {self._mine: self._of(own)}

    def _of(self, mounts: Sequence[Mounted]) -> tuple[tuple[bytes, ...], set[bytes]]:
        if self._place is None:
            return (), set()
        inside, own = views(self._place, mounts)
        # Where a file system of its own lies here, each namespace has a copy of that mount: it is the place itself.
        return tuple(inside | own), own - {self._directory}

    def of(self, pid: int) -> tuple[tuple[bytes, ...], set[bytes], bool]:
        """(where the directory is seen, of those as a mount of its own, whether nobody of that namespace was asked)."""
        name = _link(f"/proc/{pid}/ns/mnt")
        new = name not in self._seen
        if new:
            if not name or _link(f"/proc/{pid}/root") not in (b"/", b""):
                return (*self._of(parse(_read(f"/proc/{pid}/mountinfo"))), False)
            self._seen[name] = self._of(parse(_read(f"/proc/{pid}/mountinfo")))
        return (*self._seen[name], new)

    @property
    def mine(self) -> set[bytes]:
        return self._seen[self._mine][1]


def _uses(pid: int) -> Iterator[tuple[str, bytes]]:
    """What a process has: working and root directory, program, open and mapped files."""
    base = f"/proc/{pid}"
    for how, name in ((WORKS, "cwd"), (ROOTED, "root"), (RUNS, "exe")):
        yield how, _link(f"{base}/{name}")
    try:
        descriptors = os.listdir(f"{base}/fd")
    except OSError:
        descriptors = []
    for number in descriptors:
        yield OPEN, _link(f"{base}/fd/{number}")
    for path in mapped(_read(f"{base}/maps")):
        yield MAPS, path


def _gone(path: bytes) -> bool:
    """A file that was removed has no name by which it could be replicated."""
    return path.endswith(b" (deleted)") and not os.path.lexists(path)


def _holder(pid: int, how: str, path: bytes) -> Holder | None:
    found = table.process(pid)
    if found is None or found.ended:
        return None
    group = _read(f"/proc/{pid}/cgroup").decode("utf-8", "replace")
    return Holder(pid, found.name, unit(group), how, os.fsdecode(path))


def _of_process(pid: int, namespaces: _Namespaces) -> Holder | None:
    """The first thing by which a process holds the directory."""
    seen, own, new = namespaces.of(pid)
    if new and own:
        return _holder(pid, MOUNTS, min(own))
    for how, path in _uses(pid) if seen else ():
        if path and any(below(path, view) for view in seen) and not _gone(path):
            return _holder(pid, how, path)
    return None


def _kernel(directory: bytes) -> Iterator[Holder]:
    for device in Path("/sys/block").glob("loop*"):
        backing = _read(f"{device}/loop/backing_file").rstrip(b"\n")
        if backing and below(backing, directory):
            yield Holder(0, device.name, "", LOOPS, os.fsdecode(backing))
    for line in _read("/proc/swaps").splitlines()[1:]:
        path = _plain(line.split()[0])
        if below(path, directory):
            yield Holder(0, "swap", "", SWAPS, os.fsdecode(path))


def mounted_below(directory: bytes) -> list[bytes]:
    """Where file systems are mounted below a directory, in our mount namespace."""
    points = {mount.point for mount in parse(_read("/proc/self/mountinfo"))}
    return sorted(point for point in points if point != directory and below(point, directory))


def holders(directory: bytes, ignored: Iterable[int] = ()) -> list[Holder]:
    """Whoever holds an existing directory or something in it; one line for each process. `ignored`: processes that may;
    we may ourselves."""
    namespaces = _Namespaces(directory)
    found = list(_kernel(directory))
    found += [Holder(0, "mount", "", MOUNTS, os.fsdecode(point)) for point in sorted(namespaces.mine)]
    seen = {os.getpid(), *ignored}
    for _ in range(ROUNDS):
        # One that was begun by another which ended meanwhile may have inherited what that had open.
        fresh = [pid for pid in table.numbers() if pid not in seen]
        if not fresh:
            break
        seen.update(fresh)
        found += [holder for pid in fresh if (holder := _of_process(pid, namespaces)) is not None]
    return found


def objection(directory: bytes, patience: float = PATIENCE) -> tuple[str, str] | None:
    """Why no role can be taken with the data of this directory: (the problem, the next step). Whoever only comes by (a
    backup, a search through all files) has `patience` seconds to go."""
    end = time.monotonic() + patience
    while (found := _objection(directory)) is not None and time.monotonic() < end:
        time.sleep(0.5)
    return found


def _objection(directory: bytes) -> tuple[str, str] | None:
    shown = os.fsdecode(directory)
    inside = mounted_below(directory)
    if inside:
        point = os.fsdecode(inside[0])
        return (
            f"a file system is mounted on {point}, inside {shown}",
            f"umount {point}, or replicate that file system as a directory of its own",
        )
    found = holders(directory)
    if not found:
        return None
    who, remedy = told(found)
    return (
        f"{shown} is held by others, and what they write would not be replicated: {who}",
        f"end them, then start the module again: {remedy}. A service that the module starts must not start by itself: "
        "systemctl disable",
    )


def told(found: Sequence[Holder]) -> tuple[str, str]:
    """(who they are, what ends them), for a message."""
    names = "; ".join(holder.text for holder in found[:TOLD])
    more = f"; and {len(found) - TOLD} more" if len(found) > TOLD else ""
    return names + more, "; ".join(dict.fromkeys(holder.remedy for holder in found[:TOLD])) + more
