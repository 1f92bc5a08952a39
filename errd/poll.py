"""The special command errdpoll_running: every running process in a file (guide 13.9.4)."""

from __future__ import annotations

import sys

from safekit.disk.files import write_atomic
from safekit.disk.paths import safevar
from safekit.process import standard
from safekit.process.table import programs

FILE = "errdpoll_reserrd"


def main() -> int:
    """One line per process: `<pid> <command name> <full name and arguments> (parent=<pid>)`."""
    path = safevar() / FILE
    lines = [f"{p.pid} {p.name} {p.line} (parent={p.parent})\n" for p in programs()]
    try:
        write_atomic(path, "".join(lines).encode("utf-8", "surrogateescape"), durable=False)
    except OSError as error:
        print(f"Error: {path}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{len(lines)} processes in {path}")
    return 0


if __name__ == "__main__":
    standard.run(main)
