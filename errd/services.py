"""systemd services as processes (guide 13.9, service="yes")."""

from __future__ import annotations

import subprocess

ASK_LIMIT = 5.0


def parse_show(text: str) -> tuple[bool, int]:
    """(active, main pid) from the output of `systemctl show`."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    pid = values.get("MainPID", "0")
    return values.get("ActiveState") in ("active", "reloading"), int(pid) if pid.isdigit() else 0


def service_state(name: str) -> tuple[bool, int]:
    """Whether a service is active, and its main process: 0 for one without, such as a oneshot that remains after its
    exit. Not active when systemd does not answer."""
    try:
        shown = subprocess.run(
            ["systemctl", "show", "--property=ActiveState,MainPID", "--", name],
            capture_output=True,
            text=True,
            timeout=ASK_LIMIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False, 0
    return parse_show(shown.stdout)
