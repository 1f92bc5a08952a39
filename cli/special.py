"""safekit -r COMMAND ARGS (guide 14.5): a special command, run in the SafeKit environment."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from cli.base import Failure
from safekit.disk.paths import ModulePaths, safe, safebin, safevar

# What changes the system, by its first argument (None: whatever it is): recorded in the commands log (guide 10.10).
CHANGES: dict[str, frozenset[str] | None] = {
    "gencron": None,
    "firewallcfg": frozenset({"add", "del", "auto", "probes"}),
    "processtree": frozenset({"kill"}),
}


def known() -> list[str]:
    """The special commands of this installation."""
    try:
        return sorted(entry.name for entry in os.scandir(safebin()) if entry.is_file())
    except FileNotFoundError:
        return []


def _program(word: str) -> str:
    return word if os.path.isabs(word) else str(safebin() / word)


def run_special(words: Sequence[str], module: str | None) -> int:
    """Run the special command; this process becomes it where nothing is to be recorded afterwards.

    The guide writes the command and its arguments in one word, too. Raises Failure when there is no such command.
    """
    if not words:
        raise Failure("option -r needs a special command", f"{safebin()} has: {', '.join(known()) or 'none'}")
    if len(words) == 1 and not os.path.exists(_program(words[0])):
        try:
            words = shlex.split(words[0]) or words
        except ValueError as error:
            raise Failure(f"{words[0]}: {error}", "write it without quotes: safekit -r COMMAND ARGS") from None
    program = _program(words[0])
    if not os.access(program, os.X_OK):
        raise Failure(f"{program} is not a special command", f"{safebin()} has: {', '.join(known()) or 'none'}")
    environment = {**os.environ, "SAFE": str(safe()), "SAFEVAR": str(safevar()), "SAFEBIN": str(safebin())}
    name = module or os.environ.get("SAFEMODULE")
    if name:
        try:
            environment.update(ModulePaths(name).environment())
        except ValueError as error:
            raise Failure(str(error), "safekit module list shows the names") from None
    arguments = [program, *words[1:]]
    if not _changes(words):
        os.execve(program, arguments, environment)
    return _recorded(arguments, words, environment)


def _changes(words: Sequence[str]) -> bool:
    verbs = CHANGES.get(words[0], frozenset())
    if verbs is None:
        return True
    return len(words) > 1 and words[1] in verbs and list(words[1:3]) != ["auto", "status"]


def _recorded(arguments: Sequence[str], words: Sequence[str], environment: dict[str, str]) -> int:
    import subprocess

    from safekit.log.commands import finished, started

    entry, code = started("-r", *words), 1
    try:
        code = subprocess.run(arguments, env=environment, check=False).returncode
        code = code if code >= 0 else 128 - code
    finally:
        finished(entry, code)
    return code
