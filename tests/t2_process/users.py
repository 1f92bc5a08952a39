"""A user without rights of its own."""

from __future__ import annotations

import subprocess

USER = 2001


def as_user(*command: str) -> bool:
    """Whether a command of that user succeeds."""
    return subprocess.run(command, user=USER, group=USER, extra_groups=[], capture_output=True).returncode == 0
