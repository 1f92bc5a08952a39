"""The shared resource file: one `class.id value since setter` a line.

There is exactly one writer at a time: heart while the module lives, otherwise the command that holds
`resources.lock`. Readers never lock: the file is replaced by a rename, so they see one version whole.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from safekit.disk.files import write_atomic

DURABLE = frozenset(
    {"rfs.uptodate", "rfs.lastprimstate", "rfs.paired", "rfs.swapping", "rfs.inconsistent", "state.local"}
)
DURABLE_PREFIXES = ("usersetting.",)
MAX_FILE = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\.[^\s]{1,128}")
_BLANKS = re.compile(r"\s+")


@dataclass(frozen=True)
class Resource:
    """A resource as published. `since` is a Unix time in seconds; `setter` is the process or user that set it."""

    name: str
    value: str
    since: float
    setter: str


def is_durable(name: str) -> bool:
    """Values that must be on disk before anyone acts on them."""
    return name in DURABLE or name.startswith(DURABLE_PREFIXES)


def valid_name(name: str) -> bool:
    """`class.id` without blanks."""
    return _NAME.fullmatch(name) is not None


def parse(text: str) -> dict[str, Resource]:
    """Resources of a file's text. A line that cannot be understood is passed over: a reader must live
    with a file written by a newer version."""
    found: dict[str, Resource] = {}
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) != 4 or not valid_name(fields[0]):
            continue
        try:
            since = float(fields[2])
        except ValueError:
            continue
        found[fields[0]] = Resource(fields[0], fields[1], since, fields[3])
    return found


def render(resources: dict[str, Resource]) -> str:
    """Text of a resource file, sorted by name."""
    return "".join(f"{r.name} {r.value} {r.since:.3f} {r.setter}\n" for _, r in sorted(resources.items()))


def load(path: Path) -> dict[str, Resource]:
    """Read a resource file; a missing file is an empty one. Raises OSError for anything else."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return parse(handle.read(MAX_FILE))
    except FileNotFoundError:
        return {}


class ResourceWriter:
    """The single writer. Durable values are on disk when `set` returns; the others are published with them
    or by the next `flush`, which a caller makes once per burst of changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.resources = load(path)
        self._dirty = False

    def value(self, name: str, default: str = "unknown") -> str:
        """Current value, `default` when the resource does not exist."""
        resource = self.resources.get(name)
        return default if resource is None else resource.value

    def set(self, name: str, value: str, setter: str) -> bool:
        """Set a resource; True when its value changed (a repeat keeps `since`).

        Raises ValueError for a name or value that does not fit a line, OSError when a durable value could
        not be put on disk: the caller must then not act on it.
        """
        previous = self.resources.get(name)
        if not self.put(name, value, setter):
            return False
        if is_durable(name):
            try:
                self.flush(durable=True)
            except OSError:
                if previous is None:
                    del self.resources[name]
                else:
                    self.resources[name] = previous
                raise
        return True

    def put(self, name: str, value: str, setter: str) -> bool:
        """As `set`, without any write: for several values that one `flush` puts on disk together."""
        if not valid_name(name):
            raise ValueError(f"{name!r} is not a resource name (class.id)")
        if not value or len(value) > 256 or _BLANKS.search(value):
            raise ValueError(f"{value!r} is not a resource value (one word)")
        previous = self.resources.get(name)
        if previous is not None and previous.value == value:
            return False
        self.resources[name] = Resource(name, value, time.time(), _BLANKS.sub("_", setter) or "unknown")
        self._dirty = True
        return True

    def remove(self, name: str) -> None:
        """Forget a resource (a checker that is no longer configured)."""
        if self.resources.pop(name, None) is not None:
            self._dirty = True

    def flush(self, *, durable: bool = False) -> None:
        """Publish what changed. Raises OSError; the previous file is then still whole."""
        if not self._dirty:
            return
        write_atomic(self.path, render(self.resources).encode(), durable=durable)
        self._dirty = False


class Follower:
    """Asynchronous iteration over the changes of a resource file.

    inotify tells when to look; because its queue can overflow, and because the file may not exist yet, the
    file is also looked at every `interval` seconds.
    """

    def __init__(self, path: Path, interval: float = 1.0) -> None:
        self.path = path
        self.interval = interval

    async def changes(self) -> AsyncIterator[dict[str, Resource]]:
        """Yield the resources now, then again after each change of the file."""
        from safekit.disk.watch import DirectoryWatch

        with DirectoryWatch(self.path.parent) as watch:
            last: dict[str, Resource] | None = None
            while True:
                current = load(self.path)
                if current != last:
                    last = current
                    yield current
                await watch.wait(self.interval)


async def wait_for(path: Path, name: str, value: str, timeout: float) -> bool:
    """Wait until a resource has a value; False after `timeout` seconds."""
    import asyncio

    try:
        async with asyncio.timeout(timeout):
            async for resources in Follower(path).changes():
                resource = resources.get(name)
                if resource is not None and resource.value == value:
                    return True
    except TimeoutError:
        return False
    return False
