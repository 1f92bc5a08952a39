"""The processes of this system, as /proc tells."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Process:
    """A process: `name` is the kernel's name of it, `command` its path and arguments in one line ('[name]' for the
    kernel's own threads)."""

    pid: int
    parent: int
    name: str
    command: str


def processes() -> Iterator[Process]:
    """Every process, by pid. One that ends meanwhile is left out."""
    for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdecimal()):
        try:
            with open(f"/proc/{pid}/stat", "rb") as handle:
                head, _, tail = handle.read().rpartition(b")")
            with open(f"/proc/{pid}/cmdline", "rb") as handle:
                words = handle.read(65536).rstrip(b"\0").split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        name = head.partition(b"(")[2].decode("utf-8", "replace")
        text = b" ".join(words).decode("utf-8", "replace")
        command = text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
        yield Process(pid, int(tail.split()[1]), name, command or f"[{name}]")


def chosen(table: Iterable[Process], name: str | None, pattern: str | None) -> list[Process]:
    """The processes of a name (None: every name) whose command matches `pattern` somewhere. Raises re.error.

    A name longer than the kernel keeps is compared with what it keeps, and with the program's file name.
    """
    wanted = None if pattern is None else re.compile(pattern)
    found = []
    for process in table:
        names = (process.name, os.path.basename(process.command.split(" ", 1)[0]))
        if (name is None or name in names or name[:15] == process.name) and (
            wanted is None or wanted.search(process.command)
        ):
            found.append(process)
    return found


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
        lines.append(f"{'  ' * depth}{process.pid} {process.name} {process.command}")
        stack += [(child, depth + 1) for child in reversed(children.get(process.pid, []))]
    return lines


def environment(pid: int) -> dict[str, str]:
    """Environment of a process; empty when it may not be read or the process is gone."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as handle:
            data = handle.read()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in data.split(b"\0") if item)
    return {k.decode("utf-8", "replace"): v.decode("utf-8", "replace") for k, _, v in pairs}


def of_module(module: str, safevar: str, names: Iterable[str], supervisor_conf: str = "") -> list[Process]:
    """The processes of these names that belong to a module of this product, told by their environment, or by the
    supervisor's configuration in their command. Those of another container (or lab node), which may use the same
    paths, are not."""
    wanted = set(names)
    found = []
    for process in processes():
        if process.name not in wanted or _namespace(process.pid) != _namespace(os.getpid()):
            continue
        variables = environment(process.pid)
        own = variables.get("SAFEMODULE") == module and variables.get("SAFEVAR", "/var/safekit") == safevar
        if own or (supervisor_conf and supervisor_conf in process.command.split()):
            found.append(process)
    return found


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
