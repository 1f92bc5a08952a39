"""What runs on this server, and which of it a <proc> means."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass

from safekit.model.types import Proc

_COMM_LIMIT = 15


@dataclass(frozen=True, slots=True)
class Running:
    """A process: the kernel's command name, the argument list, the parent."""

    pid: int
    command: str
    arguments: tuple[str, ...]
    parent: int

    @property
    def command_line(self) -> str:
        """Arguments with the executable's name, as `argregex` sees them."""
        return " ".join(self.arguments)


def scan() -> tuple[Running, ...]:
    """Every process that is alive; kernel threads and zombies are not programs and are left out."""
    found: list[Running] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as handle:
                stat = handle.read()
            with open(f"/proc/{entry}/cmdline", "rb") as handle:
                raw = handle.read(65536)
        except OSError:
            continue
        head, _, tail = stat.rpartition(b")")
        fields = tail.split()
        if len(fields) < 2 or fields[0] in (b"Z", b"X") or not raw:
            continue
        arguments = tuple(part.decode("utf-8", "replace") for part in raw.rstrip(b"\0").split(b"\0"))
        command = head.partition(b"(")[2].decode("utf-8", "replace")
        found.append(Running(int(entry), command, arguments, int(fields[1])))
    return tuple(found)


def named(process: Running, name: str) -> bool:
    """True when `name` is its command name. The kernel keeps 15 characters; the rest is compared with the
    executable's own name."""
    if process.command == name:
        return True
    own = os.path.basename(process.arguments[0]) if process.arguments else ""
    return len(name) > _COMM_LIMIT and process.command == name[:_COMM_LIMIT] and own == name


def send(processes: Iterable[Running], number: signal.Signals) -> None:
    """Send a signal to processes; those that have ended meanwhile are passed over."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


class Matcher:
    """Selects the processes of a <proc>: by name or nameregex, and by argregex (13.9.3)."""

    def __init__(self, name: str, nameregex: str | None = None, argregex: str | None = None) -> None:
        self._name = name
        self._nameregex = re.compile(nameregex) if nameregex is not None else None
        self._argregex = re.compile(argregex) if argregex is not None else None

    @classmethod
    def of(cls, proc: Proc) -> Matcher:
        """The matcher of a configured <proc>. Raises re.error, which the configuration check excludes."""
        return cls(proc.name, proc.nameregex, proc.argregex)

    def __call__(self, process: Running) -> bool:
        if self._nameregex is not None:
            if not self._nameregex.search(process.command):
                return False
        elif not named(process, self._name):
            return False
        return self._argregex is None or bool(self._argregex.search(process.command_line))

    def select(self, processes: Iterable[Running]) -> tuple[Running, ...]:
        """Those that match."""
        return tuple(process for process in processes if self(process))
