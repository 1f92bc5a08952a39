"""The one shape in which every command answers a program (`--json`), its errors included.

A command that shows something has a JSON of its own, told by its help. All others answer with one object:

    {"ok": true, "code": 0, ...what the command tells..., "output": ["a line", ...], "warnings": ["a line", ...]}

and whatever a command is, what it cannot do is, on standard output and with the exit code of the command:

    {"ok": false, "code": 1, "error": "cause", "next_step": "what to do", "output": [...], "warnings": [...]}

A release adds names to an answer; it does not take any away, and gives none another meaning.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from safekit.spelling import plain_dashes


@dataclass
class Said:
    """Lines that were written to standard output and to standard error."""

    output: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """As they stand in an answer."""
        return {"output": self.output, "warnings": self.warnings}


def wanted(words: Sequence[str]) -> bool:
    """Whether a command line asks for JSON."""
    before_dashes = words[: list(words).index("--")] if "--" in words else words
    return any(plain_dashes(word) in ("--json", "-json") for word in before_dashes)


@contextlib.contextmanager
def captured() -> Iterator[Said]:
    """What is written meanwhile, by scripts and other programs that are started too; known when it has ended."""
    said, streams = Said(), (sys.stdout, sys.stderr)
    for stream in streams:
        stream.flush()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        kept = [os.dup(number) for number in (1, 2)]
        try:
            for number, file in ((1, out), (2, err)):
                os.dup2(file.fileno(), number)
            sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            yield said
        finally:
            for number, stream in ((1, sys.stdout), (2, sys.stderr)):
                stream.flush()
                os.dup2(kept[number - 1], number)
                os.close(kept[number - 1])
            sys.stdout, sys.stderr = streams
            for file, lines in ((out, said.output), (err, said.warnings)):
                file.seek(0)
                lines += file.read().decode("utf-8", "replace").splitlines()


def of_success(code: int, told: dict[str, Any], said: Said) -> dict[str, Any]:
    """The answer of a command that has ended with this exit code."""
    return {"ok": code == 0, "code": code, **told, **said.data()}


def of_failure(code: int, error: str, next_step: str, more: dict[str, Any]) -> dict[str, Any]:
    """The answer of one that could not do its work; `more`: what it had told and said before."""
    return {"ok": False, "code": code, "error": error, "next_step": next_step, **more}
