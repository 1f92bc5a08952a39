"""The programs that a configuration names: custom checkers, and handlers of <errd>. Relative ones are in bin/."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from safekit.model.findings import Finding, Places
from safekit.model.types import ModuleConfig

ACTIONS = frozenset({"restart", "stopstart", "stop", "noaction"})
"""Actions of a <proc> that are not programs."""


def named(config: ModuleConfig) -> Iterator[tuple[str, str]]:
    """(place in the configuration, program)."""
    for index, custom in enumerate(config.check.custom):
        yield f"check.custom[{index}].exec", custom.exec
    for index, proc in enumerate(config.errd.procs if config.errd is not None else ()):
        if proc.action not in ACTIONS:
            yield f"errd.procs[{index}].action", proc.action


def scripts(config: ModuleConfig) -> frozenset[str]:
    """Those in bin/: they become executable with the user scripts."""
    return frozenset(os.path.normpath(program) for _, program in named(config) if not os.path.isabs(program))


def check(config: ModuleConfig, places: Places, bin_dir: Path) -> list[Finding]:
    """A warning for each program that is not there: it is found out on the day it is needed otherwise."""
    found = []
    for place, program in named(config):
        path = bin_dir / program
        if not path.is_file():
            found.append(places.finding(place, f"there is no program {path}; put it there", "warning"))
        elif os.path.isabs(program) and not os.access(path, os.X_OK):
            found.append(places.finding(place, f"{path} is not executable; chmod +x it", "warning"))
    return found
