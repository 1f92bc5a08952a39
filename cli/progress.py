"""What a person sees while a command takes its time: one line that is rewritten. Nothing where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from cli.base import on_terminal
from safekit.view.words import duration, size

CLEAR = "\r\x1b[K"
INTERVAL = 0.1
RATE_AFTER = 0.5
"""Seconds before a rate, and what is left by it, means anything."""


class Live:
    """The line. Leave it with `end`, or use it as a context."""

    def __init__(self, *, keep: bool = False) -> None:
        self._keep = keep
        self._watched = on_terminal()
        self._shown = ""
        self._at = float("-inf")

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def show(self, text: str, *, now: bool = True) -> None:
        """Put `text` in the place of what stands there; without `now` at most every INTERVAL seconds."""
        if not self._watched or text == self._shown or (not now and time.monotonic() - self._at < INTERVAL):
            return
        import shutil

        width = shutil.get_terminal_size().columns - 1
        click.echo(CLEAR + (text if len(text) <= width else text[: max(width - 1, 0)] + "…"), nl=False)
        self._shown, self._at = text, time.monotonic()

    def end(self) -> None:
        """Go on below the line (`keep`), or where it stood."""
        if self._shown:
            click.echo("" if self._keep else CLEAR, nl=self._keep)
            self._shown = ""


class Meter:
    """How far something of a known size is, how fast, and how long it will take."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = max(total, 0)
        self._clock = clock
        self._began = clock()

    def line(self, done: int) -> str:
        """`25%, 12 s left: 12.0 MB of 48.0 MB, 3.0 MB/s`."""
        percent = 100 * done // self._total if self._total else 100
        passed = self._clock() - self._began
        rate = done / passed if passed >= RATE_AFTER else 0.0
        left = f", {duration((self._total - done) / rate)} left" if rate and done < self._total else ""
        speed = f", {size(rate)}/s" if rate else ""
        return f"{percent}%{left}: {size(done)} of {size(self._total)}{speed}"
