"""The file to which a process writes what nobody foresaw: its standard output and error."""

from __future__ import annotations

import os

from safekit.disk.paths import ModulePaths

MAX_BYTES = 1 << 20


def opened(paths: ModulePaths, name: str) -> int:
    """A descriptor of SAFEVAR/modules/AM/log/NAME.log, which begins again when it has grown large. Raises OSError."""
    paths.log_dir.mkdir(mode=0o770, parents=True, exist_ok=True)
    path = paths.log_dir / f"{name}.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o660)
    if os.fstat(descriptor).st_size > MAX_BYTES:
        os.ftruncate(descriptor, 0)
    return descriptor
