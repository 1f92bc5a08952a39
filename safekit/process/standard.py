"""Standard input and output of a command, whatever it was started with: closed, full, or with nobody at the other end.

A closed descriptor would be given to the next file that is opened, and what is printed would go into it. What cannot
be written must end in one sentence and an exit code, not in a traceback at the end of the interpreter.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

FAILED = 1
_broken = False


class _Output(io.FileIO):
    """Standard output, whose errors say that it is standard output that failed."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            global _broken
            _broken = _broken or isinstance(error, BrokenPipeError)
            error.filename = "standard output"
            raise


def prepare() -> None:
    """Open /dev/null for each of the three that is closed: what is printed there is lost, as who closed it wanted."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free descriptor is this one: those below it are open.
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    known = sys.stdout
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(1, "w", closefd=False)),
        encoding="utf-8" if known is None else known.encoding,
        errors="strict" if known is None else known.errors,
        line_buffering=os.isatty(1),
    )


def run(command: Callable[[], int]) -> NoReturn:
    """Run a command and end the program with its exit code; an OSError that comes out of it is told in one line."""
    prepare()
    try:
        code = command()
    except BrokenPipeError:
        code = 0
        _discard(1)
    except OSError as error:
        code = FAILED
        where = f"{error.filename}: " if error.filename else ""
        with contextlib.suppress(OSError):
            print(f"Error: {where}{error.strerror or error}", file=sys.stderr)
    except SystemExit as end:  # click ends the program itself
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    leave(code)


def leave(code: int, failed: int = FAILED) -> NoReturn:
    """End the program: what is still to be written is written first.

    Exits with `code`; with `failed` when standard output cannot take what was printed. A reader that has gone away
    (`safekit log | head`) is no error.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(1)
    except OSError as error:
        _discard(1)
        if not code:
            code = failed
            with contextlib.suppress(OSError):
                print(f"Error: standard output: {error.strerror}", file=sys.stderr)
    try:
        sys.stderr.flush()
    except OSError:
        _discard(2)
    sys.exit(code)


def reader_has_gone() -> bool:
    """Whether nobody reads standard output any more, as behind `| head`."""
    return _broken


def discard_output() -> None:
    """Nobody reads standard output any more: what is still in the buffer goes nowhere."""
    _discard(1)


def _discard(number: int) -> None:
    """What is left in the buffer goes nowhere: the interpreter writes it once more when it ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, number)
    os.close(null)
