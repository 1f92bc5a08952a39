"""Requests to arpreroute, which repeats announcements of virtual addresses (guide 13.5.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safekit.bus.asking import Ask

ARPREROUTE = "arpreroute"


@dataclass(frozen=True, slots=True)
class Announcing:
    """The addresses that are announced."""

    announcing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Announce(Ask[Announcing]):
    """Replace what was announced before. The maps are those of `vipd.announce.Announcement`."""

    process = ARPREROUTE
    op = "announce"
    announcements: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Status:
    """The addresses that are still repeated, and the frames that were sent."""

    announcing: tuple[str, ...]
    sent: int


@dataclass(frozen=True, slots=True)
class GetStatus(Ask[Status]):
    """How far it is."""

    process = ARPREROUTE
    op = "status"
