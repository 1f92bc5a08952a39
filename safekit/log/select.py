"""Which lines of a module log are shown: by level, the last ones, across the rotation (guide 9.5)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from safekit.disk.paths import ModulePaths
from safekit.log.module import Line, parse_line

DEFAULT_COUNT = 300
LEVELS = {"E": frozenset("E"), "I": frozenset("EI"), "A": frozenset("EID")}


def lines_of(path: Path) -> Iterator[Line]:
    """Lines of one file, damaged ones left out; nothing for a missing file."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            for text in handle:
                line = parse_line(text)
                if line is not None:
                    yield line
    except FileNotFoundError:
        return


def verbose_lines(paths: ModulePaths) -> Iterator[Line]:
    """Every level, oldest first, across the rotation."""
    yield from lines_of(paths.log.with_name(paths.log.name + ".1"))
    yield from lines_of(paths.log)


def event_lines(paths: ModulePaths) -> Iterator[Line]:
    """E lines, oldest first: those that the verbose log has already dropped come from the short log."""
    verbose = [line for line in verbose_lines(paths) if line.level == "E"]
    first = next(verbose_lines(paths), None)
    # Lines of the same millisecond are told apart by what they say.
    same = {(line.code, line.english) for line in verbose if first is not None and line.date == first.date}
    for path in (paths.elog.with_name(paths.elog.name + ".1"), paths.elog):
        for line in lines_of(path):
            known = (line.code, line.english) in same if first is not None and line.date == first.date else False
            if first is None or (line.date <= first.date and not known):
                yield line
    yield from verbose


def select(paths: ModulePaths, levels: str, count: int | None) -> Iterable[Line]:
    """The last `count` lines (None: all) of the levels 'E', 'I' or 'A'."""
    wanted = LEVELS[levels]
    lines = event_lines(paths) if levels == "E" else (x for x in verbose_lines(paths) if x.level in wanted)
    return lines if count is None else deque(lines, maxlen=count)


def levels_of(information: bool, everything: bool) -> str:
    """The levels that the options -I and -A ask for."""
    return "A" if everything else "I" if information else "E"
