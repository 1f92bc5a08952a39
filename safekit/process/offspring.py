"""All that a program of a module started, however it detached itself: told by a variable in its environment.

A process group loses who calls setsid, and the parent's number is lost by a double fork; the environment is
inherited by all of them.  (A program that empties its environment and detaches itself as well is lost to this.)
"""

from __future__ import annotations

import contextlib
import os
import signal

from safekit.disk.paths import safevar
from safekit.process.table import environment, namespace, numbers

VARIABLE = "SAFERUN"
ROUNDS = 20
"""Looks, at most, for what was forked while its parents were killed."""


def mark(module: str, run: str) -> dict[str, str]:
    """Environment of a run: `module/run`, for example `mirror/custom.disk`."""
    return {VARIABLE: f"{module}/{run}"}


def carriers(module: str, run: str) -> set[int]:
    """Processes of a run, or of all runs whose name begins with `run`, in this PID namespace and of this SAFEVAR."""
    wanted, space = f"{module}/{run}", namespace(os.getpid())
    found = set()
    for pid in numbers():
        if pid == os.getpid():
            continue
        variables = environment(pid)
        if not variables.get(VARIABLE, "").startswith(wanted) or variables.get("SAFEVAR") != str(safevar()):
            continue
        if namespace(pid) == space:
            found.add(pid)
    return found


def kill(module: str, run: str) -> bool:
    """SIGKILL for all of a run; True when nothing of it is left that could still be killed."""
    for _ in range(ROUNDS):
        found = carriers(module, run)
        if not found:
            return True
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    return False
