"""What is sent to make the neighbours learn where a virtual address is now. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from safekit.net.packets import IP, IPv4, arp_request, gratuitous_arp, unsolicited_advertisement

# A Linux neighbour refuses a second change of an entry within a second, unless it is gratuitous.
REPEAT_AFTER = 1.2
AGAIN_AFTER = (REPEAT_AFTER, 3.0, 6.0)
"""When the other server may just have announced too: seconds until each repetition."""


def take_over_frames(mac: bytes, ip: IP, own: Iterable[IP], gratuitous: bool) -> tuple[bytes, ...]:
    """Frames for the moment when `ip` is taken.

    With arpreroute on: gratuitous ARP in both forms. With off, the guide wants none to be broadcast; one
    ordinary request, as the kernel sends it for the first packet from the address, is enough for the
    neighbours that know the address (RFC 826). It asks for an address of our own, so nobody answers.
    IPv6 has its own means and needs no option (13.5.7.3).
    """
    if not isinstance(ip, IPv4):
        return (unsolicited_advertisement(mac, ip),)
    if gratuitous:
        return gratuitous_arp(mac, ip)
    target = next((mine for mine in own if isinstance(mine, IPv4) and mine != ip), None)
    return () if target is None else (arp_request(mac, ip, target),)


def repeat_frames(mac: bytes, ip: IP) -> tuple[bytes, ...]:
    """Frames which arpreroute repeats."""
    return gratuitous_arp(mac, ip) if isinstance(ip, IPv4) else (unsolicited_advertisement(mac, ip),)


@dataclass(frozen=True, slots=True)
class Announcement:
    """What arpreroute has to repeat: every `interval` seconds, until `elapse` seconds after the address was
    taken, which was `elapsed` seconds ago."""

    ip: str
    interface: str
    interval: float
    elapse: float
    elapsed: float = 0.0

    def to_fields(self) -> dict[str, Any]:
        """As a map for the bus."""
        return {
            "ip": self.ip,
            "interface": self.interface,
            "interval": self.interval,
            "elapse": self.elapse,
            "elapsed": self.elapsed,
        }

    @classmethod
    def from_fields(cls, fields: Any) -> Announcement:
        """From a map. Raises ValueError for anything else than `to_fields` makes."""
        try:
            made = cls(
                str(fields["ip"]),
                str(fields["interface"]),
                float(fields["interval"]),
                float(fields["elapse"]),
                float(fields["elapsed"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an announcement: {error}") from None
        if not made.interval > 0:
            raise ValueError("the interval between two announcements must be positive")
        return made


def moments(interval: float, elapse: float) -> Iterator[float]:
    """Seconds after the take-over at which to announce: at once, then every `interval` while within `elapse`."""
    count = 0
    while count == 0 or count * interval <= elapse:
        yield count * interval
        count += 1


def next_moment(announcement: Announcement, elapsed: float) -> float | None:
    """The first moment at or after `elapsed` seconds since the take-over, None when all are past."""
    if elapsed <= 0:
        return 0.0
    count = -(-elapsed // announcement.interval)
    moment = count * announcement.interval
    return moment if moment <= announcement.elapse else None
