"""The module log. A process appends its lines itself, one write per line, so that nothing is lost while circlog
is dead or restarting; circlog bounds the file and keeps the copy with E(vent) lines only.

A line: ISO date | node | level | process | code | JSON fields | English text
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safekit.disk.paths import ModulePaths
from safekit.log.journal import INFORMATION, NOTICE, Journal
from safekit.log.messages import MESSAGES, Language, Level, render
from safekit.spelling import harmless

MAX_LINE = 4000
_SEPARATOR = "|"


@dataclass(frozen=True)
class Line:
    """One line of a log."""

    date: str
    node: str
    level: Level
    process: str
    code: str
    fields: dict[str, Any] = field(default_factory=dict)
    english: str = ""

    def text(self, language: Language = "en") -> str:
        """The message in a language."""
        if language == "en" or self.code not in MESSAGES:
            return self.english
        return render(self.code, self.fields, language)


def format_line(line: Line) -> bytes:
    """Bytes of a line, cut to MAX_LINE so that one append stays one write."""
    fields = json.dumps(line.fields, ensure_ascii=False, separators=(",", ":"), default=str)
    english = line.english
    if len(fields) > MAX_LINE // 2:
        fields = "{}"
    if len(english) > MAX_LINE // 2:
        english = english[: MAX_LINE // 2] + " [cut]"
    # The English text comes last: it may hold the separator; the fields may as well, so they are escaped.
    parts = (line.date, line.node, line.level, line.process, line.code, fields.replace("|", "\\u007c"), english)
    return (_SEPARATOR.join(harmless(part) for part in parts) + "\n").encode("utf-8", "replace")


def parse_line(text: str) -> Line | None:
    """A line of a log file; None for one that is damaged (cut by a full disk). After a power failure zeros may stand
    where lines were not on disk yet, before the first line of the next life."""
    parts = text.rstrip("\n").lstrip("\0").split(_SEPARATOR, 6)
    if len(parts) != 7 or parts[2] not in ("E", "I", "D"):
        return None
    try:
        fields = json.loads(parts[5])
    except ValueError:
        fields = {}
    level: Level = "E" if parts[2] == "E" else "I" if parts[2] == "I" else "D"
    return Line(parts[0], parts[1], level, parts[3], parts[4], fields if isinstance(fields, dict) else {}, parts[6])


def now() -> str:
    """Date of a line: UTC with milliseconds."""
    return datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class ModuleLog:
    """Writes the log of a module in the name of a process."""

    def __init__(self, module: str, process: str, node: str) -> None:
        self.path: Path = ModulePaths(module).log
        self.journal = Journal()
        self._module = module
        self.process = process
        self.node = node
        self._descriptor = -1
        self._identity = (0, 0)
        self._complained = False
        self._cut = False

    def event(self, code: str, **fields: Any) -> None:
        """Log a message; its level comes from the table. Raises KeyError for a code that is not there."""
        message = MESSAGES[code]
        fields = {name: harmless(value) if isinstance(value, str) else value for name, value in fields.items()}
        line = Line(now(), self.node, message.level, self.process, code, fields, render(code, fields))
        self._append(line)
        if line.level != "D":
            self.journal.send(
                f"{self._module}: {line.english}",
                NOTICE if line.level == "E" else INFORMATION,
                {
                    "SYSLOG_IDENTIFIER": self.process,
                    "SAFEKIT_MODULE": self._module,
                    "SAFEKIT_CODE": code,
                    "SAFEKIT_LEVEL": line.level,
                    "SAFEKIT_NODE": self.node,
                },
            )

    def debug(self, text: str) -> None:
        """A line for us, shown with -A."""
        self.event("debug", text=text)

    def info(self, text: str) -> None:
        """An I(nformation) line without a code of its own."""
        self.event("printi", text=text)

    def _reopen(self) -> None:
        """circlog rotates by renaming: follow the name, not the old file."""
        try:
            status = os.stat(self.path)
            identity = (status.st_dev, status.st_ino)
        except FileNotFoundError:
            identity = (0, 0)
        if self._descriptor >= 0 and identity == self._identity:
            return
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self.path.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o660)
        status = os.fstat(self._descriptor)
        self._identity = (status.st_dev, status.st_ino)

    def _append(self, line: Line) -> None:
        data = format_line(line)
        try:
            self._reopen()
            # A line that a full disk cut must not swallow the next one.
            whole = b"\n" + data if self._cut else data
            self._cut = os.write(self._descriptor, whole) < len(whole)
            if self._cut:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._complained = False
        except OSError as error:
            # A full disk must not stop a failover. The line goes to the process's own error output, which may be on the
            # same disk.
            with contextlib.suppress(OSError):
                if not self._complained:
                    print(f"{self.path}: {error}", file=sys.stderr)
                    self._complained = True
                sys.stderr.buffer.write(data)
                sys.stderr.flush()
