"""The commands log of a server: every command that changes the system, SAFEVAR/commandlog (guide 10.10).

    ^ 2013-12-02T11:18:58.372680 |  28138 | running     | config -m mirror
    ^ 2013-12-02T11:18:59.621361 |  28138 | return    0 | config -m mirror

The pid ties the two lines together. Dates are local time, as the guide shows them. At most two files
(commandlog, commandlog.1) of MAX_BYTES each are kept.
"""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from safekit.disk.files import locked
from safekit.disk.paths import safevar

MAX_BYTES = 1 << 20
MAX_ARGUMENTS = 2000
_LINE = re.compile(
    r"\^ (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}) \| +(\d+) \| (?:running    |return *(-?\d+)) \| (.*)", re.ASCII
)
_PASSWORD = re.compile(r"(\w+://[^:@/]*):[^@/]*@", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """One line: `code` is None when the command starts, its exit code when it has ended."""

    date: str
    pid: int
    code: int | None
    arguments: str


def path() -> Path:
    """Where the log is."""
    return safevar() / "commandlog"


def format_entry(entry: Entry) -> str:
    """The line of an entry, with its newline; what would break the line is shown escaped."""
    field = f"{'running':<11}" if entry.code is None else f"return {entry.code:4d}"
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in entry.arguments)
    if len(text) > MAX_ARGUMENTS:
        text = text[:MAX_ARGUMENTS] + " [cut]"
    return f"^ {entry.date} | {entry.pid:6d} | {field} | {text}\n"


def parse_entry(line: str) -> Entry | None:
    """The entry of a line; None for a damaged one."""
    found = _LINE.fullmatch(line.rstrip("\n"))
    if found is None:
        return None
    date, pid, code, arguments = found.groups()
    return Entry(date, int(pid), None if code is None else int(code), arguments)


def _append(entry: Entry) -> None:
    """One line at the end. A log that cannot be written must not stop the command, which says so instead."""
    log = path()
    data = format_entry(entry).encode("utf-8", "surrogateescape")
    try:
        with locked(log.with_name(".commandlog.lock")):
            try:
                if log.stat().st_size + len(data) > MAX_BYTES:
                    os.replace(log, log.with_name("commandlog.1"))
            except FileNotFoundError:
                pass
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o660)
            try:
                os.write(descriptor, data)
            finally:
                os.close(descriptor)
    except OSError as error:
        print(f"Warning: this command is not in {log}: {error.strerror}", file=sys.stderr)


def _now() -> str:
    return datetime.now().isoformat(timespec="microseconds")


def started(*words: str) -> Entry:
    """Record that this process runs a command; give the result to `finished`. A password in a URL (`-H
    http://USER:PASSWORD@HOST:9010`) is not written: every Monitor may read the log, and snapshots have it."""
    entry = Entry(_now(), os.getpid(), None, " ".join(_PASSWORD.sub(r"\1:***@", word) for word in words))
    _append(entry)
    return entry


def finished(entry: Entry, code: int) -> None:
    """Record the exit code of a command."""
    _append(Entry(_now(), entry.pid, code, entry.arguments))


def read(limit: int | None = None) -> Iterator[Entry]:
    """The entries, oldest first; the last `limit` of them when it is given. Damaged lines are passed over.
    Raises OSError for a file that exists and cannot be read."""
    kept: deque[Entry] = deque(maxlen=limit)
    for file in (path().with_name("commandlog.1"), path()):
        try:
            with open(file, encoding="utf-8", errors="replace") as handle:
                kept.extend(entry for entry in map(parse_entry, handle) if entry is not None)
        except FileNotFoundError:
            continue
    return iter(kept)
