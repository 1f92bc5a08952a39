"""How many streams of events there may be: of everybody together, and of one user, who may have half of them, so that a
program which forgets to close its own does not shut out the others. Pure."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator


class TooMany(Exception):
    """The text says of what."""


class Streams:
    """The open streams of a kind by who follows them."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def one(self, who: str) -> Iterator[None]:
        """While a stream is open. Raises TooMany."""
        if self._open.total() >= self._most:
            raise TooMany(f"{self._most} {self._what} already")
        if self._open[who] >= self._most // 2:
            raise TooMany(f"{self._most // 2} {self._what} already by {who}")
        self._open[who] += 1
        try:
            yield
        finally:
            self._open[who] -= 1
            if not self._open[who]:
                del self._open[who]
