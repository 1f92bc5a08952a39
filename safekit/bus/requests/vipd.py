"""Requests to vipd, which has the virtual addresses of a module, and the filters of a farm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from safekit.bus.asking import Ask, Document, Done

VIPD = "vipd"


@dataclass(frozen=True, slots=True)
class Removed:
    """Addresses that were there."""

    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Init(Ask[Removed]):
    """At start, in WAIT: remove what a crash left."""

    process = VIPD
    op = "vip_init"


@dataclass(frozen=True, slots=True)
class Expect(Ask[Done]):
    """Set is about to follow."""

    process = VIPD
    op = "vip_expect"


@dataclass(frozen=True, slots=True)
class IsSet:
    """Addresses that are held."""

    set: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Set(Ask[IsSet]):
    """Take the virtual addresses. Answered when they are held; refused when another machine has one."""

    process = VIPD
    op = "vip_set"


@dataclass(frozen=True, slots=True)
class IsUnset:
    """Addresses that were held."""

    unset: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unset(Ask[IsUnset]):
    """Let the virtual addresses go. Answered when they are gone."""

    process = VIPD
    op = "vip_unset"


@dataclass(frozen=True, slots=True)
class AnnounceAgain(Ask[Done]):
    """The other server may have told the network that it has the addresses: tell that they are here."""

    process = VIPD
    op = "vip_announce"


@dataclass(frozen=True, slots=True)
class Announcements:
    """Maps of `vipd.announce.Announcement`, for arpreroute."""

    announcements: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class GetAnnouncements(Ask[Announcements]):
    """What is held and has to be repeated."""

    process = VIPD
    op = "announcements"


@dataclass(frozen=True, slots=True)
class Reload(Ask[Done]):
    """The cluster configuration has changed."""

    process = VIPD
    op = "reload"


@dataclass(frozen=True, slots=True)
class GetStatus(Ask[Document]):
    """What vipd does.

    Of a mirror: addresses (maps with addr, ip, interface, prefix, mac, present), refused, peers; of a farm: what
    `vipd.farm.report` makes.
    """

    process = VIPD
    op = "status"


@dataclass(frozen=True, slots=True)
class GetCounters(Ask[Document]):
    """Packets and connections of each rule of a farm. Refused with farm_filter."""

    process = VIPD
    op = "counters"


@dataclass(frozen=True, slots=True)
class Join(Ask[Document]):
    """Take part in the farm; answered, with the status, when the share of this server is in its filters.

    Refused with farm_not_set before Set, with farm_timeout when it goes on in the background.
    """

    process = VIPD
    op = "farm_join"


@dataclass(frozen=True, slots=True)
class Left:
    """Connections that are still open here."""

    connections: int


@dataclass(frozen=True, slots=True)
class Leave(Ask[Left]):
    """Take no part any more; answered when the others have taken over. Refused with farm_timeout."""

    process = VIPD
    op = "farm_leave"
