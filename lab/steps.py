"""What a person sees while a lab is made: which step it is at, for how long, and how long the rest will take."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

from safekit.disk.files import write_atomic
from safekit.view.words import duration

INTERVAL = 0.5
CLEAR = "\r\x1b[K"
GUESSES: Mapping[str, float] = {"image": 40.0, "boot": 5.0, "cluster": 5.0}
"""Seconds on a small machine, before it is known here."""
TEXTS: Mapping[str, str] = {
    "image": "installing the product into an image, kept for the next labs",
    "boot": "booting the nodes",
    "cluster": "configuring the cluster",
}


class Steps:
    """The steps of one lab. Nothing is shown without `out`; on a terminal it is one line that is rewritten."""

    def __init__(self, out: TextIO | None = None, times: Path | None = None) -> None:
        self._out = out
        self._times = times
        self._known = {**GUESSES, **_read(times)}
        self._left: list[str] = []

    def expect(self, *names: str) -> None:
        """The steps that will come, in their order."""
        self._left = list(names)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """While a step goes on. Its time is remembered when it ends well."""
        began = time.monotonic()
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(name, began, ended), daemon=True)
        if self._out is not None:
            watcher.start()
        try:
            yield
            self._known[name] = time.monotonic() - began
            self._remember()
        finally:
            ended.set()
            if self._out is not None:
                watcher.join()
            if name in self._left:
                self._left.remove(name)

    def line(self, name: str, passed: float) -> str:
        """`booting the nodes (2 s), about 8 s left`."""
        rest = max(self._known.get(name, 0.0) - passed, 0.0)
        rest += sum(self._known.get(each, 0.0) for each in self._left if each != name)
        since = f" ({duration(passed)})" if passed >= 1 else ""
        return f"{TEXTS.get(name, name)}{since}, about {duration(max(rest, 1.0))} left"

    def _watch(self, name: str, began: float, ended: threading.Event) -> None:
        assert self._out is not None
        if not self._out.isatty():
            print(self.line(name, 0.0), file=self._out, flush=True)
            return
        while True:
            print(CLEAR + self.line(name, time.monotonic() - began), end="", file=self._out, flush=True)
            if ended.wait(INTERVAL):
                print(CLEAR, end="", file=self._out, flush=True)
                return

    def _remember(self) -> None:
        if self._times is not None:
            with contextlib.suppress(OSError):  # the next lab guesses
                write_atomic(self._times, json.dumps(self._known).encode(), durable=False)


def _read(path: Path | None) -> dict[str, float]:
    try:
        found = json.loads(path.read_bytes()) if path is not None else {}
        return {str(name): float(seconds) for name, seconds in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # none is known yet


def shown() -> Steps:
    """Steps for whoever runs `safelab up`."""
    from lab.state import labs_directory

    return Steps(sys.stderr, labs_directory() / ".times")
