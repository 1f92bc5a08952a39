"""What reintegre asks of the primary's nfsbox (the list is in nfsbox/control.py), as typed calls."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from reintegre.plan import Entry
from reintegre.records import Item
from safekit.rfs.identity import Identity
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
    """What the primary recorded. moved: directories that stand for something else than they did; entered: since when
    entries of a directory were made or removed there, ns of its clock."""

    reliable: bool
    files: Sequence[Item]
    moved: frozenset[tuple[int, bytes]] = frozenset()
    entered: Mapping[tuple[int, bytes], int] = field(default_factory=dict)


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
            int(rest[1]) if len(rest) > 1 else 0,
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise ProtocolFault(f"malformed entry: {error}") from None


def _file(answer: Mapping[str, Any]) -> Identity:
    return Identity(int(answer.get("ino") or 0), int(answer.get("gen") or 0))


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
        entered: dict[tuple[int, bytes], int] = {}
        reliable, cursor = bool(answer["reliable"]), answer.get("cursor")
        while cursor is not None:
            page = self._call("dirty_next", cursor=cursor)
            named = page["files"]
            generations = page.get("gens") or [0] * len(named)  # a release before knows none
            files += [
                (int(root), bytes(path), int(inode), zones, int(generation))
                for (root, path, inode, zones), generation in zip(named, generations, strict=True)
            ]
            entered.update(((int(root), bytes(path)), int(since)) for root, path, since in page.get("marks", ()))
            directories.update((root, path) for root, path in page["dirs"])
            cursor = page["cursor"]
        return Dirty(reliable, files, frozenset(directories), entered)

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
        """One entry, None when the primary has none; it may have a link on the way to it."""
        try:
            fields = self._call("stat", root=root, path=path)["entry"]
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            return None
        return None if fields is None else entry(fields)

    def birth(self, root: int, path: bytes) -> int:
        """When a file was made, ns; the end of time when the primary cannot tell."""
        return int(self._call("stat", root=root, path=path).get("birth") or 1 << 63)

    def hash(self, root: int, path: bytes, ranges: Sequence[tuple[int, int]]) -> tuple[Identity, int, list[bytes]]:
        """Which file, size and digests. Raises ProtocolFault when a digest is missing."""
        answer = self._call("hash", root=root, path=path, zones=[list(r) for r in ranges])
        digests = [bytes(d) for d in answer["digests"]]
        if len(digests) != len(ranges):
            raise ProtocolFault(f"{len(digests)} digests for {len(ranges)} zones")
        return _file(answer), int(answer["size"]), digests

    def push_entry(self, root: int, path: bytes, *, fresh: bool = False) -> tuple[str, Identity, bool, int]:
        """Make or correct an entry here: its kind, which file it is on the primary, whether it has no content yet,
        and its size at this point of the stream. fresh: as a new object."""
        answer = self._call("push_entry", root=root, path=path, **({"fresh": True} if fresh else {}))
        return str(answer["kind"]), _file(answer), bool(answer.get("fresh")), int(answer.get("size") or 0)

    def push_files(self, root: int, paths: Sequence[bytes]) -> list[tuple[str, Identity, int, int]]:
        """Make regular files here, whole: kind, which file on the primary, bytes, errno of each. Kind "single": it
        must be pushed by itself. Raises OSError with EOPNOTSUPP when the primary is of an older release."""
        answer = self._call("push_files", root=root, paths=list(paths))
        files = answer["files"]
        generations = answer.get("gens") or [0] * len(files)
        if not len(files) == len(generations) == len(paths):
            raise ProtocolFault(f"{len(files)} answers for {len(paths)} files")
        return [
            (str(kind), Identity(int(ino), int(generation)), int(size), int(code))
            for (kind, ino, size, code), generation in zip(files, generations, strict=True)
        ]

    def push_zone(self, root: int, path: bytes, offset: int, length: int) -> tuple[int, Identity]:
        """Send a range of a file: bytes sent, and which file they came from."""
        answer = self._call("push_zone", root=root, path=path, off=offset, len=length)
        return int(answer["sent"]), _file(answer)

    def push_link(self, root: int, existing: bytes, path: bytes) -> bool:
        """Make `path` a further name of `existing` here. True when what was written meanwhile may have gone to the
        file that had the name `path` here."""
        return bool(self._call("push_link", root=root, existing=existing, path=path).get("open"))

    def push_delete(self, root: int, path: bytes) -> bool:
        """Remove an entry here if the primary has none."""
        return bool(self._call("push_delete", root=root, path=path)["gone"])

    def flush(self) -> None:
        """Everything sent so far is on this server's disk when it returns."""
        self._call("flush")

    def revisit(self) -> tuple[list[tuple[int, bytes, bool]], list[tuple[int, Identity]]]:
        """Entries to compare again, taken off the primary's list, True: with everything below; and files whose content
        may differ although it was found equal."""
        answer = self._call("revisit")
        paths = [(item[0], item[1], bool(item[2]) if len(item) > 2 else False) for item in answer["paths"]]
        return paths, [(int(root), Identity(int(ino), int(gen))) for root, ino, gen in answer.get("doubts", ())]

    def end(self, server: int) -> tuple[bool, int, dict[str, Any] | None]:
        """True and the primary's state when both servers are paired; else how many entries are to be revisited."""
        answer = self._call("end", server=server)
        return bool(answer["done"]), int(answer.get("revisit") or 0), answer.get("state")

    def progress(self, fields: dict[str, object]) -> None:
        """What the primary shows of us."""
        self._call("progress", **fields)
