"""Figures that a process of a module publishes for monitoring: SAFEVAR/modules/AM/stats/PROCESS.json.

The frame of the processes writes the file of each about every STATS_SECONDS, when the process is awake anyway; whoever
wants the figures reads the file and wakes nobody. Nothing is decided by them, so they are not durable, and a disk that
is full leaves old ones: `at` tells their age.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safekit.disk.files import write_atomic
from safekit.disk.paths import ModulePaths

STATS_SECONDS = 10.0
MAX_STATS = 256 << 10


def stats_dir(paths: ModulePaths) -> Path:
    """Where the files are."""
    return paths.var / "stats"


def publish(paths: ModulePaths, process: str, values: Mapping[str, Any]) -> None:
    """Replace the figures of a process. Never raises."""
    with contextlib.suppress(OSError):
        stats_dir(paths).mkdir(mode=0o770, exist_ok=True)
        data = json.dumps({"at": time.time(), **values}).encode()
        write_atomic(stats_dir(paths) / f"{process.replace('/', '_')}.json", data, durable=False)


def forget(paths: ModulePaths, older: float) -> None:
    """Remove the figures of processes that have published nothing for so many seconds: those of a former configuration
    would stay for ever. Never raises."""
    with contextlib.suppress(OSError):
        for path in stats_dir(paths).glob("*.json"):
            if time.time() - path.stat().st_mtime > older:
                path.unlink()


def published(paths: ModulePaths) -> Iterator[tuple[str, dict[str, Any]]]:
    """(process, figures) of a module, by name. A damaged file is passed over."""
    for path in sorted(stats_dir(paths).glob("*.json")):
        try:
            with open(path, "rb") as handle:
                values = json.loads(handle.read(MAX_STATS))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            yield path.stem, values
