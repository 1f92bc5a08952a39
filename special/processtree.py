"""processtree list|kill [all|NAME] [REGEX]: the processes of this server (guide 14.5.3)."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Sequence

from safekit.disk.files import process_start_time
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
    except re.error as error:
        print(f"processtree: {pattern!r} is not a regular expression: {error}", file=sys.stderr)
        return 2
    own = _ancestors(table)
    if verb == "kill" or name != "all":
        found = [process for process in found if process.pid not in own]
    lines = [f"{p.pid} {p.name} {p.command}" for p in found] if name == "all" else tree_lines(found)
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
    alive = {process.pid: process_start_time(process.pid) for process in found}
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid, started in list(alive.items()):
            # The number may belong to another process by now.
            if started is None or process_start_time(pid) != started:
                del alive[pid]
                continue
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                del alive[pid]
            except PermissionError:
                print(f"processtree: process {pid} may not be killed by this user", file=sys.stderr)
                return 1
        deadline = time.monotonic() + GRACE_SECONDS
        while alive and time.monotonic() < deadline:
            alive = {pid: at for pid, at in alive.items() if _lives(pid, at)}
            time.sleep(0.02)
    if alive:
        print(f"processtree: still there after SIGKILL: {', '.join(map(str, alive))}", file=sys.stderr)
    return 1 if alive else 0


def _lives(pid: int, started: int | None) -> bool:
    """Whether the process runs: one that only waits to be collected does not."""
    if process_start_time(pid) != started:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as handle:
            return handle.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
