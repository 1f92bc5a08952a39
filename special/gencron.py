"""gencron del|add USER all|COMMAND -c COMMENT: entries of a crontab that run on one server only (guide 14.5.2).

A disabled entry is a comment line with COMMENT, then the entry behind a `#`. Both lines are what `add` looks for,
so that it restores exactly what `del` took away and nothing that an administrator commented out.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

from safekit.process import crontab, standard

USAGE = 'usage: gencron del|add USER all|COMMAND -c "COMMENT"'
_ASSIGNMENT = re.compile(r"\s*[A-Za-z_]\w*\s*=")


def is_entry(line: str) -> bool:
    """Whether a line of a crontab runs something."""
    return bool(line.strip()) and not line.lstrip().startswith("#") and _ASSIGNMENT.match(line) is None


def runs(line: str, command: str) -> bool:
    """Whether the entry is meant: `all`, or a word of it is the command, with or without its directory."""
    return command == "all" or any(word == command or os.path.basename(word) == command for word in line.split())


def disable(text: str, command: str, comment: str) -> tuple[str, int]:
    """The crontab with its entries of `command` disabled, and how many they were."""
    made: list[str] = []
    count = 0
    for line in text.splitlines(keepends=True):
        if is_entry(line) and runs(line, command):
            made += [f"# {comment}\n", f"#{line}"]
            count += 1
        else:
            made.append(line)
    return "".join(made), count


def enable(text: str, command: str, comment: str) -> tuple[str, int]:
    """The crontab with what `disable` took away, and how many entries that were."""
    made: list[str] = []
    count = 0
    lines = text.splitlines(keepends=True)
    index = 0
    while index < len(lines):
        entry = lines[index + 1][1:] if index + 1 < len(lines) and lines[index + 1].startswith("#") else ""
        if lines[index] == f"# {comment}\n" and is_entry(entry) and runs(entry, command):
            made.append(entry)
            count += 1
            index += 2
        else:
            made.append(lines[index])
            index += 1
    return "".join(made), count


def run(arguments: Sequence[str]) -> int:
    """0 done (also when there was nothing to do), 1 the crontab could not be read or written, 2 wrong usage."""
    if len(arguments) != 5 or arguments[0] not in ("add", "del") or arguments[3] != "-c" or "\n" in arguments[4]:
        print(USAGE, file=sys.stderr)
        return 2
    action, user, command, _, comment = arguments
    try:
        text, count = (disable if action == "del" else enable)(crontab.read(user), command, comment)
        if count:
            crontab.write(user, text)
    except crontab.CrontabError as error:
        print(f"gencron: {error}", file=sys.stderr)
        return 1
    print(f"{count} entries of the crontab of {user} are {'disabled' if action == 'del' else 'enabled'}")
    return 0


if __name__ == "__main__":
    standard.run(lambda: run(sys.argv[1:]))
