"""Requests to safeagent, the SNMP agent, which is asked whether it runs."""

from __future__ import annotations

from dataclasses import dataclass

from safekit.bus import asking

SAFEAGENT = "safeagent"


@dataclass(frozen=True, slots=True)
class Ping(asking.Ping):
    """Whether it runs, and as which process."""

    process = SAFEAGENT
