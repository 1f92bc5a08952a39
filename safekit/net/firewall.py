"""Whether this server's firewall follows the configurations by itself (guide 2.1.3, 10.2.1).

The installer asks, SAFEVAR/firewall remembers; `firewallcfg auto on|off` changes it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from safekit.disk.paths import safebin, safevar

_SECONDS = 120.0


def setting_file() -> Path:
    """Says on or off."""
    return safevar() / "firewall"


def automatic() -> bool:
    """Off unless an administrator asked for it."""
    try:
        return setting_file().read_text().strip() == "on"
    except OSError:
        return False


def follow(module: str, *, configured: bool) -> str:
    """After a change of a module's configuration: open or close its ports when that was asked for.

    What went wrong and what to do, for a warning; empty when all is well.
    """
    return _run("add" if configured else "del", module) if automatic() else ""


def follow_cluster() -> str:
    """After a change of the cluster configuration, whose port may be another one. As `follow`."""
    return _run("add") if automatic() else ""


def restore() -> str:
    """At the start of safeadmin: rules that went with the server's power come back. As `follow`."""
    return _run("auto", "on") if automatic() else ""


def _run(*arguments: str) -> str:
    command = [str(safebin() / "firewallcfg"), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the firewall was not changed: {error}; as root: {' '.join(command)}"
    if done.returncode == 0:
        return ""
    said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0]
    return f"the firewall was not changed: {said}; as root: {' '.join(command)}"
