"""The server's own log: SAFEVAR/safeadmin.log, two files of at most MAX_BYTES.

A line: ISO date | node | level | text, levels as in the module log (E for what needs somebody, I otherwise).
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from pathlib import Path
from time import monotonic

from safekit.log.module import now

MAX_BYTES = 1 << 20
MAX_TEXT = 2000
REPEAT_SECONDS = 3600.0
MAX_SUBJECTS = 256


class AdminLog:
    """Appends lines, one write each; a full disk costs lines, never the daemon."""

    def __init__(self, path: Path, node: str) -> None:
        self.path = path
        self.node = node
        self._failed = False

    def info(self, text: str) -> None:
        """Something that happened."""
        self._append("I", text)

    def error(self, text: str) -> None:
        """Something that an administrator should know; also on standard error (the journal)."""
        self._append("E", text)
        print(text, file=sys.stderr, flush=True)

    def _append(self, level: str, text: str) -> None:
        line = f"{now()} | {self.node} | {level} | {' '.join(text.split())[:MAX_TEXT]}\n".encode("utf-8", "replace")
        try:
            self._rotate(len(line))
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o660)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
            self._failed = False
        except OSError as error:
            if not self._failed:
                print(f"{self.path}: {error}; lines are lost until it can be written", file=sys.stderr, flush=True)
                self._failed = True

    def _rotate(self, growth: int) -> None:
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return
        if size + growth > MAX_BYTES:
            os.replace(self.path, self.path.with_name(self.path.name + ".1"))


class Complaints:
    """Says once what is wrong with a subject (a peer's address), then is silent for an hour.

    The number of subjects is bounded: hostile datagrams can come from any address.
    """

    def __init__(self, log: AdminLog) -> None:
        self._log = log
        self._said: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def say(self, subject: str, problem: str, text: str, now_: float | None = None) -> bool:
        """Log `text` unless this problem of this subject was logged within the hour; True if logged."""
        when = monotonic() if now_ is None else now_
        last, silent = self._said.get((subject, problem), (float("-inf"), 0))
        if when - last < REPEAT_SECONDS:
            self._said[subject, problem] = (last, silent + 1)
            return False
        full = len(self._said) >= MAX_SUBJECTS and when - next(iter(self._said.values()))[0] < REPEAT_SECONDS
        if full and (subject, problem) not in self._said:
            return False  # datagrams whose senders' addresses are made up: no line for each of them
        again = f" ({silent} more since it was last said)" if silent else ""
        self._log.error(text + again)
        self._said[subject, problem] = (when, 0)
        self._said.move_to_end((subject, problem))
        while len(self._said) > MAX_SUBJECTS:
            self._said.popitem(last=False)
        return True

    def settle(self, subject: str, text: str) -> None:
        """The subject is all right: log it if there was a complaint, and complain again at once next time."""
        if not self._said:
            return
        problems = [key for key in self._said if key[0] == subject]
        for key in problems:
            del self._said[key]
        if problems:
            self._log.info(text)
