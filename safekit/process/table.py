"""The processes of this system: the one place that reads /proc for them.

A number alone does not name a process, because the kernel uses it again: what is sent to a process or believed of it
later goes by its number and its start time together.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from safekit.model.regex import Expression

COMMAND_LIMIT = 65536
"""Bytes of a command line that are looked at."""
_KEPT_NAME = 15
_SCRIPT_WORDS = 3


@dataclass(frozen=True, slots=True)
class Process:
    """A process as it was when it was looked at.

    `name` is the kernel's name of it, `born` its start in clock ticks since boot, `ended` true for one that only waits
    for its parent to collect it. `arguments` is empty for the kernel's own threads.
    """

    pid: int
    parent: int
    name: str
    arguments: tuple[str, ...] = ()
    born: int = 0
    ended: bool = False

    @property
    def command(self) -> str:
        """Path and arguments, as regular expressions see them; '[name]' for the kernel's own threads."""
        return " ".join(self.arguments) or f"[{self.name}]"

    @property
    def line(self) -> str:
        """The command for people: in one line, whatever its arguments hold."""
        text = self.command
        return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)

    @property
    def alive(self) -> bool:
        """Whether exactly this process still runs."""
        return lives(self.pid, self.born)

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to exactly this process; False when it has ended. Raises PermissionError."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # Looked at after the descriptor was opened: from here on nobody else can get the number.
            if start_time(self.pid) != self.born:
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True


@dataclass(frozen=True, slots=True)
class _Stat:
    name: str
    ended: bool
    parent: int
    born: int


def _stat(pid: int) -> _Stat | None:
    """What /proc/PID/stat tells; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as handle:
            head, _, tail = handle.read().rpartition(b")")  # the name may hold brackets and blanks
        fields = tail.split()
        name = head.partition(b"(")[2].decode("utf-8", "replace")
        return _Stat(name, fields[0] in (b"Z", b"X"), int(fields[1]), int(fields[19]))
    except (OSError, IndexError, ValueError):
        return None


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None when it does not exist."""
    stat = _stat(pid)
    return None if stat is None else stat.born


def lives(pid: int, born: int) -> bool:
    """Whether that process runs; one that has ended and waits for its parent does not."""
    stat = _stat(pid)
    return stat is not None and stat.born == born and not stat.ended


def runs(pid: int) -> bool:
    """Whether a process of this number runs, whichever it is."""
    stat = _stat(pid)
    return stat is not None and not stat.ended


def arguments(pid: int) -> tuple[str, ...]:
    """Command line of a process in words; empty for the kernel's own threads and when it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as handle:
            raw = handle.read(COMMAND_LIMIT).rstrip(b"\0")
    except OSError:
        return ()
    return tuple(word.decode("utf-8", "replace") for word in raw.split(b"\0")) if raw else ()


def environment(pid: int) -> dict[str, str]:
    """Environment of a process as it began; empty when it may not be read or the process is gone."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as handle:
            data = handle.read()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in data.split(b"\0") if item)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def namespace(pid: int) -> str:
    """The PID namespace of a process, as the kernel names it; empty when it is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def numbers() -> list[int]:
    """The numbers of all processes, ascending."""
    return sorted(int(entry) for entry in os.listdir("/proc") if entry.isdecimal())


def process(pid: int) -> Process | None:
    """One process; None when it does not exist."""
    stat = _stat(pid)
    if stat is None:
        return None
    return Process(pid, stat.parent, stat.name, arguments(pid), stat.born, stat.ended)


def processes() -> Iterator[Process]:
    """Every process, by number. One that ends meanwhile is left out."""
    for pid in numbers():
        found = process(pid)
        if found is not None:
            yield found


def programs() -> tuple[Process, ...]:
    """Every program that runs: not the kernel's own threads, and not what has ended."""
    return tuple(found for found in processes() if found.arguments and not found.ended)


def descendants(roots: Iterable[int]) -> list[int]:
    """All below these processes, and not they themselves; a parent stands before its children."""
    children: dict[int, list[int]] = {}
    for pid in numbers():
        stat = _stat(pid)
        if stat is not None:
            children.setdefault(stat.parent, []).append(pid)
    tops = set(roots)
    seen, level, found = set(tops), sorted(tops), list[int]()
    while level:
        level = [child for pid in level for child in children.get(pid, ()) if child not in seen]
        seen.update(level)
        found += level
    return found


def named(process: Process, name: str) -> bool:
    """Whether this is the process's name, and not its neighbour's.

    The kernel keeps 15 characters of it. A longer one must be the file name of the program as well, or of the script
    that an interpreter runs: two programs may share their first 15 characters.
    """
    if len(name) <= _KEPT_NAME:
        return process.name == name
    if process.name != name[:_KEPT_NAME]:
        return False
    return any(os.path.basename(word) == name for word in process.arguments[:_SCRIPT_WORDS])


def chosen(table: Iterable[Process], name: str | None, pattern: str | None) -> list[Process]:
    """The processes of a name (None: every name) whose command matches `pattern` somewhere. Raises
    BadExpression.

    A program that was started by another name than its file's is found by both.
    """
    wanted = None if pattern is None else Expression(pattern)
    return [
        process
        for process in table
        if (name is None or named(process, name) or os.path.basename((*process.arguments, "")[0]) == name)
        and (wanted is None or wanted.found_in(process.command))
    ]


def tree_lines(table: Sequence[Process]) -> list[str]:
    """The processes as a tree, children indented below their parents."""
    by_pid = {process.pid: process for process in table}
    children: dict[int, list[Process]] = {}
    for process in table:
        top = process.parent if process.parent in by_pid and process.parent != process.pid else 0
        children.setdefault(top, []).append(process)
    lines: list[str] = []
    stack = [(process, 0) for process in reversed(children.get(0, []))]
    while stack:
        process, depth = stack.pop()
        lines.append(f"{'  ' * depth}{process.pid} {process.name} {process.line}")
        stack += [(child, depth + 1) for child in reversed(children.get(process.pid, []))]
    return lines
