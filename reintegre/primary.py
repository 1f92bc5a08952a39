"""What reintegre asks of the primary's nfsbox (the list is in nfsbox/control.py), as typed calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reintegre.plan import Entry
from reintegre.records import Item
from safekit.rfs.wire import unpack_time


class ProtocolFault(Exception):
    """The primary answered something that cannot be."""


class Service(Protocol):
    """One connection to the service; one request at a time. `call` raises OSError when the connection is lost,
    when the primary refuses, or when no answer comes within the time allowed."""

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """The fields of the answer."""
        ...

    def close(self) -> None:
        """Cut the connection; a thread that waits in `call` gets an OSError."""
        ...


@dataclass(frozen=True, slots=True)
class Dirty:
    """What the primary recorded. moved: directories that stand for something else than they did."""

    reliable: bool
    files: Sequence[Item]
    moved: frozenset[tuple[int, bytes]] = frozenset()


def entry(fields: Sequence[Any]) -> Entry:
    """An entry as `list` and `stat` send it. Raises ProtocolFault."""
    try:
        name, mode, uid, gid, size, atime, mtime, ino, nlink, rdev, blocks, extra, *rest = fields
        target = extra.get("t") if extra else None
        xattrs = {bytes(key): bytes(value) for key, value in (extra.get("x") or {}).items()} if extra else {}
        return Entry(
            bytes(name),
            int(mode),
            int(uid),
            int(gid),
            int(size),
            unpack_time(atime),
            unpack_time(mtime),
            int(ino),
            int(nlink),
            int(rdev),
            int(blocks),
            int(rest[0]) if rest else 0,
            target,
            xattrs,
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ProtocolFault(f"malformed entry: {error}") from None


class Primary:
    """Typed calls over one connection."""

    def __init__(self, service: Service) -> None:
        self._call = service.call
        self.close = service.close

    def info(self) -> dict[str, Any]:
        """State, zone size, packet size, session and roots of the primary."""
        return self._call("info")

    def dirty(self) -> Dirty:
        """All that the primary recorded."""
        answer = self._call("dirty")
        files: list[Item] = []
        directories: set[tuple[int, bytes]] = set()
        reliable, cursor = bool(answer["reliable"]), answer.get("cursor")
        while cursor is not None:
            page = self._call("dirty_next", cursor=cursor)
            files += [(int(root), bytes(path), int(inode), zones) for root, path, inode, zones in page["files"]]
            directories.update((root, path) for root, path in page["dirs"])
            cursor = page["cursor"]
        return Dirty(reliable, files, frozenset(directories))

    def pages(self, root: int, path: bytes) -> Iterator[tuple[Entry | None, list[Entry]]]:
        """The directory itself (with its first page only) and its entries, page by page. Raises FileNotFoundError,
        NotADirectoryError."""
        cursor: Any = 0
        while cursor is not None:
            answer = self._call("list", root=root, path=path, cursor=cursor)
            own = answer.get("self")
            yield entry(own) if own else None, [entry(fields) for fields in answer["entries"]]
            cursor = answer["cursor"]

    def stat(self, root: int, path: bytes) -> Entry | None:
        """One entry, None when the primary has none."""
        fields = self._call("stat", root=root, path=path)["entry"]
        return None if fields is None else entry(fields)

    def birth(self, root: int, path: bytes) -> int:
        """When a file was made, ns; the end of time when the primary cannot tell."""
        return int(self._call("stat", root=root, path=path).get("birth") or 1 << 63)

    def hash(self, root: int, path: bytes, ranges: Sequence[tuple[int, int]]) -> tuple[int, int, list[bytes]]:
        """Inode, size and digests. Raises ProtocolFault when a digest is missing."""
        answer = self._call("hash", root=root, path=path, zones=[list(r) for r in ranges])
        digests = [bytes(d) for d in answer["digests"]]
        if len(digests) != len(ranges):
            raise ProtocolFault(f"{len(digests)} digests for {len(ranges)} zones")
        return int(answer["ino"]), int(answer["size"]), digests

    def push_entry(self, root: int, path: bytes, *, fresh: bool = False) -> tuple[str, int, bool, int]:
        """Make or correct an entry here: its kind, its inode on the primary, whether it has no content yet, and its
        size at this point of the stream. fresh: as a new object."""
        answer = self._call("push_entry", root=root, path=path, **({"fresh": True} if fresh else {}))
        return str(answer["kind"]), int(answer.get("ino") or 0), bool(answer.get("fresh")), int(answer.get("size") or 0)

    def push_files(self, root: int, paths: Sequence[bytes]) -> list[tuple[str, int, int, int]]:
        """Make regular files here, whole: kind, inode on the primary, bytes, errno of each. Kind "single": it must be
        pushed by itself. Raises OSError with EOPNOTSUPP when the primary is of an older release."""
        answer = [
            (str(kind), int(ino), int(size), int(code))
            for kind, ino, size, code in self._call("push_files", root=root, paths=list(paths))["files"]
        ]
        if len(answer) != len(paths):
            raise ProtocolFault(f"{len(answer)} answers for {len(paths)} files")
        return answer

    def push_zone(self, root: int, path: bytes, offset: int, length: int) -> tuple[int, int | None]:
        """Send a range of a file: bytes sent, and the inode they came from."""
        answer = self._call("push_zone", root=root, path=path, off=offset, len=length)
        return int(answer["sent"]), answer.get("ino")

    def push_link(self, root: int, existing: bytes, path: bytes) -> bool:
        """Make `path` a further name of `existing` here. True when what was written meanwhile may have gone to the
        file that had the name `path` here."""
        return bool(self._call("push_link", root=root, existing=existing, path=path).get("open"))

    def push_delete(self, root: int, path: bytes) -> bool:
        """Remove an entry here if the primary has none."""
        return bool(self._call("push_delete", root=root, path=path)["gone"])

    def finish(self, root: int, path: bytes) -> None:
        """Times and size after the last zone."""
        self._call("finish", root=root, path=path)

    def flush(self) -> None:
        """Everything sent so far is on this server's disk when it returns."""
        self._call("flush")

    def revisit(self) -> list[tuple[int, bytes, bool]]:
        """Entries to compare again, taken off the primary's list; True: with everything below."""
        return [
            (item[0], item[1], bool(item[2]) if len(item) > 2 else False) for item in self._call("revisit")["paths"]
        ]

    def end(self, server: int) -> tuple[bool, int, dict[str, Any] | None]:
        """True and the primary's state when both servers are paired; else how many entries are to be revisited."""
        answer = self._call("end", server=server)
        return bool(answer["done"]), int(answer.get("revisit") or 0), answer.get("state")

    def progress(self, fields: dict[str, object]) -> None:
        """What the primary shows of us."""
        self._call("progress", **fields)
