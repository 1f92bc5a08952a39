"""How much a reintegration would copy, from what this server has recorded since it went on alone (13.6.4.6)."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from safekit.rfs.exclusions import Exclusions
from safekit.rfs.journal import Loaded, expand
from safekit.rfs.tree import NOTHING, Tree

Range = tuple[float, float]
ENOUGH: Final = 1 << 20
"""Bytes that a reintegration must have copied for its rate to say something."""


@dataclass(frozen=True, slots=True)
class Changed:
    """A regular file: its directory (number), its path there, its size, the bytes that would be copied."""

    root: int
    path: bytes
    size: int
    copied: int


def to_copy(size: int, zones: Iterable[int] | None, zone_size: int) -> int:
    """Bytes of the zones (None: all) that are inside a file of that size."""
    if zones is None:
        return size
    return sum(min(zone_size, size - zone * zone_size) for zone in set(zones) if zone * zone_size < size)


def changed(loaded: Loaded, trees: Sequence[Tree]) -> Iterator[Changed]:
    """The regular files that were changed, each once, as they are now."""
    found: dict[tuple[int, bytes], set[int] | None] = {}
    for root, path, _, zones, _ in expand(loaded.changes, trees):
        known = found.get((root, path), set())
        found[root, path] = None if zones is None or known is None else known | set(zones)
    for (root, path), wanted in found.items():
        try:
            status = trees[root].lstat(path)
        except OSError:
            continue  # it is gone: nothing of it is copied
        yield Changed(root, path, status.st_size, to_copy(status.st_size, wanted, loaded.zone_size))


def everything(trees: Sequence[Tree], exclusions: Sequence[Exclusions]) -> Iterator[Changed]:
    """Every regular file that is replicated: what is compared, and copied where it differs, when the record proves
    nothing."""
    for root, (tree, stays) in enumerate(zip(trees, exclusions, strict=True)):
        pending = [b""]
        while pending:
            directory = pending.pop()
            try:
                with tree.inside(directory) as inside:
                    for entry in inside.entries():
                        path = directory + b"/" + entry.name if directory else entry.name
                        if stays.match(path):
                            continue
                        if entry.kind == stat.S_IFDIR:
                            pending.append(path)
                        elif entry.kind == stat.S_IFREG:
                            size = inside.lstat(entry.name).st_size
                            yield Changed(root, path, size, size)
            except OSError as error:
                if error.errno not in NOTHING:
                    raise
                continue  # it is gone, and what was in it


def rates(reintegrations: Iterable[tuple[int, float]]) -> Range | None:
    """The slowest and the fastest of earlier reintegrations (bytes, seconds), in bytes a second; None: not known."""
    found = [copied / seconds for copied, seconds in reintegrations if copied >= ENOUGH and seconds > 0]
    return (min(found), max(found)) if found else None
