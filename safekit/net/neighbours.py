"""Permanent ARP entries for the peers of the heartbeats, kept right (13.3.3, permanent_arp).

An entry that never expires spares the resolution when a peer has been silent, but would cut the heartbeats
for ever if the peer's network card were replaced: each refresh asks the peer on the wire, and follows its
answer. A peer that does not answer keeps its entry.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from safekit.net import addresses as net
from safekit.net.frames import FrameSocket
from safekit.net.netlink import Netlink
from safekit.net.packets import IP, IPv4, IPv6, Sort, arp_request, mac_text, neighbour_solicitation

ANSWER_SECONDS = 0.25
REFRESH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Change:
    """A permanent entry that was made, or whose MAC changed (`old` is None when there was none)."""

    interface: str
    address: str
    old: str | None
    new: str


async def ask_mac(link: net.Link, own: IP, target: IP, timeout: float = ANSWER_SECONDS) -> bytes | None:
    """The MAC that answers on the wire for `target` now, None when nobody does within `timeout` seconds.

    Raises OSError when the interface is down or gone, or raw packets are not permitted.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()
    frames = FrameSocket(link.name, link.index, (target,))

    def listen() -> None:
        for said in frames.heard():
            if said.sort is Sort.CLAIM and said.address == target and not answer.done():
                answer.set_result(said.mac)

    try:
        for descriptor in frames.filenos():
            loop.add_reader(descriptor, listen)
        if isinstance(target, IPv4) and isinstance(own, IPv4):
            frames.send(arp_request(link.mac, own, target))
        elif isinstance(target, IPv6) and isinstance(own, IPv6):
            frames.send(neighbour_solicitation(link.mac, own, target))
        else:
            raise ValueError(f"{own} and {target} are of different families")
        return await asyncio.wait_for(answer, timeout)
    except TimeoutError:
        return None
    finally:
        for descriptor in frames.filenos():
            loop.remove_reader(descriptor)
        frames.close_aside()


class PermanentNeighbours:
    """The permanent entries that one process keeps: `refresh` at start and then every REFRESH_SECONDS,
    `release` when they are no longer wanted (permanent_arp set to off)."""

    def __init__(self) -> None:
        self.held: dict[IP, tuple[str, bytes]] = {}

    async def refresh(self, peers: Iterable[str]) -> list[Change]:
        """Make or correct the entries of these addresses; what changed. A peer behind a router is passed over.

        Takes at most ANSWER_SECONDS, all peers together. Raises OSError when the kernel refuses an entry.
        """
        with Netlink() as kernel:
            links = {link.index: link for link in net.links(kernel)}
            addresses = net.addresses(kernel)
        asked = [found for peer in peers if (found := _neighbour_on(ipaddress.ip_address(peer), links, addresses))]
        answers = await asyncio.gather(*(ask_mac(*question) for question in asked), return_exceptions=True)
        changes: list[Change] = []
        for (link, _, ip), answer in zip(asked, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, OSError):
                raise answer
            mac = answer if isinstance(answer, bytes) else self._known(ip, link)
            if mac is None or (self.held.get(ip) == (link.name, mac) and self._in_kernel(ip, mac)):
                continue
            old = self.held.get(ip)
            net.set_permanent_neighbour(link.name, ip, mac)
            self.held[ip] = (link.name, mac)
            if old != (link.name, mac):
                changes.append(Change(link.name, str(ip), mac_text(old[1]) if old else None, mac_text(mac)))
        return changes

    def _known(self, ip: IP, link: net.Link) -> bytes | None:
        """For a silent peer: what we held, else what the kernel has learned."""
        if ip in self.held:
            return self.held[ip][1]
        learned = net.learned_mac(ip)
        return learned[1] if learned is not None and learned[0] == link.name else None

    @staticmethod
    def _in_kernel(ip: IP, mac: bytes) -> bool:
        return any(n.ip == ip and n.mac == mac and n.permanent for n in net.neighbours())

    def release(self, keep: Iterable[str] = ()) -> None:
        """Delete the entries, but those of the addresses to keep. Raises OSError when the kernel refuses."""
        kept = {ipaddress.ip_address(peer) for peer in keep}
        for ip, (interface, _) in list(self.held.items()):
            if ip in kept:
                continue
            if net.link_named(interface) is not None:
                net.forget_neighbour(interface, ip)
            del self.held[ip]


def _neighbour_on(
    ip: IP, links: dict[int, net.Link], addresses: Iterable[net.Address]
) -> tuple[net.Link, IP, IP] | None:
    """Interface, our own address there and the peer's, when the peer is in a network of ours that resolves."""
    for address in sorted(addresses, key=lambda a: -a.prefix):
        link = links.get(address.index)
        if link is not None and link.resolves and link.up and address.ip != ip and ip in address.network:
            return link, address.ip, ip
    return None
