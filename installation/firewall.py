"""The answer to the installer's question about the firewall (guide 2.1.3), and what follows from it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from installation.target import SAFE, Target, write_file

FIREWALLCFG = f"{SAFE}/private/bin/firewallcfg"
_SECONDS = 120


def firewall_setting(target: Target) -> Path:
    """Says on or off; read by safekit.net.firewall."""
    return target.safevar / "firewall"


def setup_firewall(target: Target, gid: int, wanted: bool | None) -> str:
    """Remember the answer and act on it; None keeps what was answered before. One line of what was done."""
    setting = firewall_setting(target)
    if wanted is None:
        wanted = setting.exists() and setting.read_text().strip() == "on"
    else:
        write_file(setting, "on\n" if wanted else "off\n", mode=0o640, gid=gid)
    if not wanted:
        return f"the local firewall is left alone; {FIREWALLCFG} add opens the ports, {FIREWALLCFG} auto on always"
    if not target.is_this_system:
        return "the local firewall follows the configurations from the first start of safeadmin on"
    return _said("auto", "on")


def forget_firewall(target: Target) -> list[str]:
    """Before an uninstallation: our rules go where they were made automatically (guide 2.4)."""
    setting = firewall_setting(target)
    if not target.is_this_system or not setting.exists() or setting.read_text().strip() != "on":
        return []
    said = _said("auto", "off")
    setting.write_text("on\n")  # a new version goes on as this one
    return [said]


def _said(*arguments: str) -> str:
    """Output of firewallcfg; a firewall that refuses is told and stops nothing."""
    try:
        done = subprocess.run([FIREWALLCFG, *arguments], capture_output=True, text=True, check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Warning: the firewall was not changed: {error}"
    if done.returncode:
        return f"Warning: the firewall was not changed: {done.stderr.strip()}"
    return done.stdout.strip()
