"""safekit -r COMMAND ARGS (guide 14.5): a special command, run in the SafeKit environment."""

from __future__ import annotations

import os
from collections.abc import Sequence

from safekit.cli.base import Failure
from safekit.paths import ModulePaths, safe, safebin, safevar


def run_special(words: Sequence[str], module: str | None) -> int:
    """Replace this process by the special command. Raises Failure when there is no such command."""
    if not words:
        raise Failure("option -r needs a special command", f"the special commands are in {safebin()}")
    program = words[0] if os.path.isabs(words[0]) else str(safebin() / words[0])
    if not os.access(program, os.X_OK):
        try:
            known = ", ".join(sorted(entry.name for entry in os.scandir(safebin()) if entry.is_file()))
        except FileNotFoundError:
            known = ""
        raise Failure(f"{program} is not a special command", f"{safebin()} has: {known or 'none'}")
    environment = {**os.environ, "SAFE": str(safe()), "SAFEVAR": str(safevar()), "SAFEBIN": str(safebin())}
    name = module or os.environ.get("SAFEMODULE")
    if name:
        try:
            environment.update(ModulePaths(name).environment())
        except ValueError as error:
            raise Failure(str(error), "safekit module list shows the names") from None
    os.execve(program, [program, *words[1:]], environment)
