"""systemd services as processes (guide 13.9, service="yes")."""

from __future__ import annotations

import asyncio

ASK_LIMIT = 5.0

State = tuple[bool, int]
"""Active, and the main process."""


def parse_show(text: str) -> State | None:
    """(active, main pid) from the output of `systemctl show`; None when it says nothing."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if "ActiveState" not in values:
        return None
    pid = values.get("MainPID", "0")
    return values.get("ActiveState") in ("active", "reloading"), int(pid) if pid.isdigit() else 0


async def service_state(name: str) -> State | None:
    """Whether a service is active, and its main process: 0 for one without, such as a oneshot that remains after its
    exit. None when systemd does not answer: that says nothing of the service."""
    try:
        process = await asyncio.create_subprocess_exec(
            "systemctl",
            "show",
            "--property=ActiveState,MainPID",
            "--",
            name,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return None
    try:
        shown, _ = await asyncio.wait_for(process.communicate(), ASK_LIMIT)
    except TimeoutError:
        process.kill()
        await process.wait()
        return None
    return parse_show(shown.decode("utf-8", "replace"))
