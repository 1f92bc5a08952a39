"""flatlogdump -O stdout|FILE: the XML logs of replication checks, read on standard input, as lines of text
(guide 13.6.4.5)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import IO
from xml.parsers import expat

from safekit.process import standard

USAGE = 'usage: flatlogdump -O stdout|"FILE" < LOG.xml'
MAX_TEXT = 65536


class Flattener:
    """One line an element: its name, its attributes, its text. Nothing is kept, so a log may be of any size."""

    def __init__(self, put: Callable[[str], object]) -> None:
        self._put = put
        self._pending: list[str] | None = None
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.EntityDeclHandler = self._entity

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Raises expat.ExpatError for what is not XML, ValueError for an entity declaration."""
        self._parser.Parse(data, last)

    def _entity(self, name: str, *_: object) -> None:
        raise ValueError(f"a log declares no entities, but this one declares {name}")

    def _flush(self) -> None:
        if self._pending is not None:
            line = " ".join(part for part in self._pending if part)
            self._put("".join(c if c.isprintable() else " " for c in line) + "\n")
            self._pending = None

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._flush()
        self._pending = [name, *(f"{key}={value}" for key, value in attributes.items())]

    def _characters(self, text: str) -> None:
        if self._pending is not None and len(self._pending) < MAX_TEXT:
            self._pending.append(text.strip())

    def _end(self, name: str) -> None:
        self._flush()


def flatten(source: IO[bytes], target: IO[str]) -> str:
    """Write the lines; what was wrong with the XML, '' when it was whole. A log that is still written ends early."""
    flattener = Flattener(target.write)
    try:
        while data := source.read(65536):
            flattener.feed(data)
        flattener.feed(b"", last=True)
    except (expat.ExpatError, ValueError) as error:
        return str(error)
    return ""


def run(arguments: Sequence[str]) -> int:
    """0 done, 1 the log is not whole XML or the file cannot be written, 2 wrong usage."""
    if len(arguments) != 2 or arguments[0] != "-O":
        print(USAGE, file=sys.stderr)
        return 2
    if arguments[1] == "stdout":
        problem = flatten(sys.stdin.buffer, sys.stdout)
    else:
        try:
            with open(arguments[1], "w", encoding="utf-8") as handle:
                problem = flatten(sys.stdin.buffer, handle)
        except OSError as error:
            print(f"flatlogdump: {arguments[1]}: {error.strerror}", file=sys.stderr)
            return 1
    if problem:
        print(f"flatlogdump: the log is not whole: {problem}", file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    standard.run(lambda: run(sys.argv[1:]))
