"""log, logview, logsave, printi, printe (guide 9.5): the module log in either language."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import click

from safekit.cli.base import FILE, Failure, colored, command, json_option, module_option, module_paths
from safekit.log import Line, parse_line
from safekit.messages import Language
from safekit.paths import ModulePaths, node_name

DEFAULT_COUNT = 300
FOLLOW_INTERVAL = 0.1
_LEVELS = {"E": frozenset("E"), "I": frozenset("EI"), "A": frozenset("EID")}


def show(line: Line, language: Language) -> str:
    """A line for people: date | node | level | process | text (B6)."""
    return f"{line.date} | {line.node} | {line.level} | {line.process:<9} | {line.text(language)}"


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
    wanted = _LEVELS[levels]
    lines = event_lines(paths) if levels == "E" else (x for x in verbose_lines(paths) if x.level in wanted)
    return lines if count is None else deque(lines, maxlen=count)


def log_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options -I, -A, -l."""
    function = click.option(
        "-l", "language", type=click.Choice(["en", "fr"]), default="en", help="Language (default en)."
    )(function)
    function = click.option("-A", "everything", is_flag=True, help="All messages, debug ones too.")(function)
    return click.option("-I", "information", is_flag=True, help="E(vent) and I(nformation) messages.")(function)


def levels_of(information: bool, everything: bool) -> str:
    """The levels that the options -I and -A ask for."""
    return "A" if everything else "I" if information else "E"


_count: Callable[..., Any] = click.option(
    "-s", "count", type=click.IntRange(min=1), metavar="NB", help="Number of messages."
)


@command("log", example="safekit log -m mirror -s 20\nsafekit log -m mirror -A -l fr")
@module_option
@_count
@log_options
@json_option
def log_command(
    module: str | None, count: int | None, information: bool, everything: bool, language: Language, as_json: bool
) -> int:
    """Show the last NB messages of the module log (300 by default), E(vent) messages only unless asked.

    The JSON is one message a line, with its code and fields, which do not depend on the language.
    """
    paths = module_paths(module)
    for line in select(paths, levels_of(information, everything), count or DEFAULT_COUNT):
        if as_json:
            import json

            click.echo(json.dumps(_data(line, language)))
        else:
            _print(line, language)
    return 0


def _data(line: Line, language: Language) -> dict[str, Any]:
    return {
        "date": line.date,
        "node": line.node,
        "level": line.level,
        "process": line.process,
        "code": line.code,
        "fields": dict(line.fields),
        "text": line.text(language),
    }


def _print(line: Line, language: Language) -> None:
    text = show(line, language)
    if colored() and line.level != "E":
        text = click.style(text, dim=True)
    click.echo(text)


class Tail:
    """New lines of a file that is rotated by renaming. `poll` never blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: IO[bytes] | None = open(path, "rb") if path.exists() else None  # noqa: SIM115 - followed until the end
        self._partial = b""

    def skip(self) -> None:
        """Begin at the end of what is there now."""
        if self._handle is not None:
            self._handle.seek(0, os.SEEK_END)

    def poll(self) -> Iterator[Line]:
        """Lines that were appended since the last call, those of a file that has just been rotated included."""
        yield from self._drain()
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return
        if self._handle is None or os.fstat(self._handle.fileno()).st_ino != status.st_ino:
            # A line may have been appended to the old file between the read above and its renaming.
            yield from self._drain()
            if self._handle is not None:
                self._handle.close()
            self._handle = open(self.path, "rb")  # noqa: SIM115 - as above
            self._partial = b""
            yield from self._drain()

    def _drain(self) -> Iterator[Line]:
        if self._handle is None:
            return
        *whole, self._partial = (self._partial + self._handle.read()).split(b"\n")
        for data in whole:
            line = parse_line(data.decode("utf-8", "replace"))
            if line is not None:
                yield line


@command("logview", example="safekit logview -m mirror -s 300")
@module_option
@_count
@log_options
def logview_command(
    module: str | None, count: int | None, information: bool, everything: bool, language: Language
) -> int:
    """Follow the module log: the last NB messages (10 by default), then new ones until Ctrl-C."""
    paths = module_paths(module)
    levels = levels_of(information, everything)
    tail = Tail(paths.log)
    tail.skip()
    for line in select(paths, levels, count or 10):
        _print(line, language)
    while True:
        for line in tail.poll():
            if line.level in _LEVELS[levels]:
                _print(line, language)
        sys.stdout.flush()
        time.sleep(FOLLOW_INTERVAL)


@command("logsave", example="safekit logsave -m mirror -A /tmp/mirror.txt", modifies=False)
@module_option
@log_options
@click.argument("file", type=FILE)
def logsave_command(module: str | None, information: bool, everything: bool, language: Language, file: str) -> int:
    """Save the messages of the module log in FILE (absolute path)."""
    if not os.path.isabs(file):
        raise Failure(f"{file} is not an absolute path", f"safekit logsave -m AM {os.path.abspath(file)}")
    paths = module_paths(module)
    lines = [show(line, language) + "\n" for line in select(paths, levels_of(information, everything), None)]
    with open(file, "w", encoding="utf-8") as handle:
        handle.writelines(lines)
    click.echo(f"{len(lines)} messages saved in {file}")
    return 0


def _write(module: str | None, level: str, message: tuple[str, ...]) -> int:
    from safekit.log import ModuleLog

    paths = module_paths(module)
    ModuleLog(paths.module, "user", node_name()).event(f"print{level}", text=" ".join(message))
    return 0


_message: Callable[..., Any] = click.argument("message", nargs=-1, required=True)


@command("printi", example='safekit printi -m mirror "the application is started"', admin=False)
@module_option
@_message
def printi_command(module: str | None, message: tuple[str, ...]) -> int:
    """Write an I(nformation) message in the module log. Needs no running module and no safeadmin."""
    return _write(module, "i", message)


@command("printe", example='safekit printe -m mirror "the application cannot start"', admin=False)
@module_option
@_message
def printe_command(module: str | None, message: tuple[str, ...]) -> int:
    """Write an E(vent) message in the module log. Needs no running module and no safeadmin."""
    return _write(module, "e", message)
