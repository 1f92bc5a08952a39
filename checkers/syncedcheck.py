"""syncedcheck: how long ago was the data of this server up to date? (guide 13.6.4.4, syncdelta)

rfs.synced is up while the data is consistent and was up to date less than syncdelta minutes ago. The failover rule
force_uptodate then lets a server that is alone in the world start as primary on it.

When the data is up to date, its time is noted on disk, so that a power failure leaves the last note before it. A
note of the future says nothing: the clock was set back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from checkers.frame import Reporter, probe_periodically, until_stopped
from safekit.disk import resources
from safekit.disk.files import write_atomic
from safekit.process.frame import Context, run

INTERVAL = 10.0
"""Between two looks; the time that a note is behind, at most."""
RESOURCE = "rfs.synced"


def synced(values: Mapping[str, str], noted: float, now: float, minutes: int) -> bool:
    """Whether data with these resources, last known to be up to date at `noted`, may be used (Unix seconds)."""
    if values.get("rfs.inconsistent") == "up":
        return False
    if values.get("rfs.uptodate") == "up":
        return True
    return 0 <= now - noted < minutes * 60


class Note:
    """SAFEVAR/modules/AM/rfs.lastsync: when the data was up to date the last time, as far as is known."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "rfs.lastsync"

    def read(self) -> float:
        """Unix seconds; 0 when it is not known."""
        try:
            return float(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0.0

    def write(self, now: float) -> None:
        """Durably. Raises OSError."""
        write_atomic(self._path, f"{now:.0f}\n".encode())


async def check(context: Context) -> None:
    """Run the checker of a module with syncdelta."""
    assert context.config.rfs is not None, "syncdelta is an attribute of <rfs>"
    minutes = context.config.rfs.syncdelta
    note = Note(context.paths.var)
    reporter = Reporter(context, RESOURCE)

    async def probe() -> bool:
        found = resources.load(context.paths.resources)
        values = {name: item.value for name, item in found.items()}
        now = time.time()
        if values.get("rfs.uptodate") == "up" and values.get("rfs.inconsistent") != "up":
            try:
                note.write(now)
            except OSError as error:
                context.log.info(f"syncedcheck: the time of the data cannot be noted: {error}; free space")
        return synced(values, note.read(), now, minutes)

    await until_stopped(context, reporter.run(), probe_periodically(reporter, probe, INTERVAL))


def main() -> None:
    """Entry point."""
    run("syncedcheck", check, instance="ident")


if __name__ == "__main__":
    main()
