"""Who may read and who may write. Pure.

Our own judgement, beside that of the library: its access control lets a community without a write view write
everything, and a write here stops modules. So nothing is asked of it, and every value passes this file.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from safekit.model.snmpd import Address, AgentSettings, Level, Network, Oid


@dataclass(frozen=True)
class Requester:
    """Who asks: a community (`model` 1 and 2: SNMPv1, v2c) or a user (3) as the library has recognised it."""

    model: int
    name: str
    level: Level
    address: Address

    def text(self) -> str:
        """For the commands log: never the community, which is a password."""
        return f"snmp{f':{self.name}' if self.model == 3 else ''}@{self.address}"


def plain(address: str) -> Address:
    """An address as a person writes it: without zone, and IPv4 where it came in an IPv6 socket."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found


def _covers(network: Network, address: Address) -> bool:
    return network.version == address.version and address in network


def may(settings: AgentSettings, who: Requester, oid: Oid, *, write: bool) -> bool:
    """Whether `who` may read, or write, this object.

    A line that names no address lets its community read from everywhere, and write from the loopback only. A user of
    SNMPv3 needs the level of its line.
    """
    if who.model == 3:
        return any(
            user.name == who.name
            and user.access
            and who.level.reaches(user.level)
            and (user.write or not write)
            and oid[: len(user.subtree)] == user.subtree
            for user in settings.users
        )
    return any(
        line.name == who.name
        and (line.write or not write)
        and oid[: len(line.subtree)] == line.subtree
        and (_covers(line.source, who.address) if line.source else not write or who.address.is_loopback)
        for line in settings.communities
    )


def known(settings: AgentSettings, who: Requester) -> bool:
    """Whether a community may ask anything at all from where it is: others get no answer, as from net-snmp."""
    if who.model == 3:
        return True
    return any(
        line.name == who.name and (line.source is None or _covers(line.source, who.address))
        for line in settings.communities
    )
