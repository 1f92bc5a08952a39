"""processtree list|kill [all|NAME] [REGEX]: the processes of this server (guide 14.5.3)."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

from safekit.model.regex import BadExpression
from safekit.process import standard
from safekit.process.table import Process, chosen, processes, tree_lines

USAGE = 'usage: processtree list [all|NAME ["REGEX"]]\n       processtree kill NAME|all ["REGEX"]   (all needs a REGEX)'
GRACE_SECONDS = 2.0


def run(arguments: Sequence[str]) -> int:
    """0 done, 1 a process could not be killed, 2 wrong usage."""
    words = list(arguments)
    verb = words.pop(0) if words else ""
    name = words.pop(0) if words else None
    pattern = words.pop(0) if words else None
    dangerous = verb == "kill" and (name is None or (name == "all" and pattern is None))
    if verb not in ("list", "kill") or words or dangerous:
        print(USAGE, file=sys.stderr)
        return 2
    table = list(processes())
    if name is None:
        print("\n".join(tree_lines(table)))
        return 0
    try:
        found = chosen(table, None if name == "all" else name, pattern)
    except BadExpression as error:
        print(f"processtree: {pattern!r} is not a regular expression: {error}", file=sys.stderr)
        return 2
    own = _ancestors(table)
    if verb == "kill" or name != "all":
        found = [process for process in found if process.pid not in own]
    lines = [f"{p.pid} {p.name} {p.line}" for p in found] if name == "all" else tree_lines(found)
    if lines:
        print("\n".join(lines), flush=True)
    return _kill(found) if verb == "kill" else 0


def _ancestors(table: Sequence[Process]) -> set[int]:
    """This command, what started it, and process 1: their arguments hold the regular expression too."""
    parents = {process.pid: process.parent for process in table}
    found, pid = {1}, os.getpid()
    while pid > 1 and pid not in found:
        found.add(pid)
        pid = parents.get(pid, 0)
    return found


def _kill(found: Sequence[Process]) -> int:
    """SIGTERM, and SIGKILL to those that are still there two seconds later."""
    left = list(found)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in left:
            try:
                process.send(number)
            except PermissionError:
                print(f"processtree: process {process.pid} may not be killed by this user", file=sys.stderr)
                return 1
        deadline = time.monotonic() + GRACE_SECONDS
        while (left := [process for process in left if process.alive]) and time.monotonic() < deadline:
            time.sleep(0.02)
    if left:
        numbers = ", ".join(str(process.pid) for process in left)
        print(f"processtree: still there after SIGKILL: {numbers}", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    standard.run(lambda: run(sys.argv[1:]))
