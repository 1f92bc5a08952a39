"""What a heart complains of: once, until it changes or is over."""

from __future__ import annotations

from safekit.log.module import ModuleLog

MOST = 200
"""Complaints that are remembered; what comes beyond them is not said."""
About = tuple[str, str]
"""The kind of trouble, and whose it is."""


class Complaints:
    """One per heart."""

    def __init__(self, log: ModuleLog) -> None:
        self._log = log
        self._said: dict[About, str] = {}

    def say(self, about: About, reason: str, code: str = "internal", **fields: str) -> None:
        """Say something once, until its reason changes. `code` and `fields`: its message."""
        if self._said.get(about) == reason or len(self._said) > MOST:
            return
        self._said[about] = reason
        if code == "internal":
            self._log.event(code, text=reason)
        else:
            self._log.event(code, reason=reason, **fields)

    def over(self, about: About) -> None:
        """It is said again when it comes back."""
        self._said.pop(about, None)
