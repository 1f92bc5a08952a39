"""Requests to safenotify, which delivers messages to people, and is asked whether it runs."""

from __future__ import annotations

from dataclasses import dataclass

from safekit.bus import asking

SAFENOTIFY = "safenotify"


@dataclass(frozen=True, slots=True)
class Ping(asking.Ping):
    """Whether it runs, and as which process."""

    process = SAFENOTIFY
