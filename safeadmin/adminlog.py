"""The server's own log: SAFEVAR/safeadmin.log, two files of at most MAX_BYTES.

A line: ISO date | node | level | text, levels as in the module log (E for what needs somebody, I otherwise).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from time import monotonic

from safekit.log.module import now
from safekit.log.refusals import Refusals

MAX_BYTES = 1 << 20
MAX_TEXT = 2000


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

    Hostile datagrams can come from any address: see safekit.log.refusals.
    """

    def __init__(self, log: AdminLog) -> None:
        self._log = log
        self._refusals = Refusals()

    def say(self, subject: str, problem: str, text: str, now_: float | None = None, *, stranger: bool = False) -> bool:
        """Log `text` unless this problem of this subject was logged lately; True if logged. `stranger`: the
        configuration does not name the subject."""
        silent = self._refusals.say(subject, problem, monotonic() if now_ is None else now_, stranger=stranger)
        if silent is None:
            return False
        self._log.error(text + (f" ({silent} more since it was last said)" if silent else ""))
        return True

    def settle(self, subject: str, text: str) -> None:
        """The subject is all right: log it if there was a complaint."""
        if self._refusals.settle(subject):
            self._log.info(text)
