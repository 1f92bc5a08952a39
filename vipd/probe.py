"""Duplicate address probe: who else uses these addresses? (RFC 5227 2.1, RFC 4862 5.4)

The RFCs wait for seconds, for hosts that sleep; a failover has 200 ms in all. Three probes within 90 ms find
every machine that serves the address at this moment, because its kernel answers within a few milliseconds.
A later answer is still heard while the address is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Iterable

from safekit.frames import FrameSocket
from safekit.net import IP, Link
from safekit.packets import Heard, IPv4, arp_probe, neighbour_probe

PROBE_TIMES = (0.0, 0.03, 0.06)
PROBE_END = 0.09
_GONE = (errno.ENODEV, errno.ENXIO, errno.ENETDOWN)


def probe_frame(mac: bytes, ip: IP) -> bytes:
    """The question that changes no table."""
    return arp_probe(mac, ip) if isinstance(ip, IPv4) else neighbour_probe(mac, ip)


async def probe(targets: Iterable[tuple[IP, Link]]) -> list[Heard]:
    """Everything said about the targets within PROBE_END seconds, all of them together.

    Interfaces without ARP or that are down have nobody to ask. Raises OSError when raw packets are refused.
    """
    by_link: dict[Link, set[IP]] = {}
    for ip, link in targets:
        if link.resolves and link.up:
            by_link.setdefault(link, set()).add(ip)
    if not by_link:
        return []
    loop = asyncio.get_running_loop()
    heard: list[Heard] = []
    with contextlib.ExitStack() as stack:
        sockets: list[tuple[FrameSocket, Link, set[IP]]] = []
        for link, ips in by_link.items():
            try:
                frames = FrameSocket(link.name, link.index, ips)
            except OSError as error:
                if error.errno in _GONE:
                    continue
                raise
            stack.callback(frames.close)
            for descriptor in frames.filenos():
                loop.add_reader(descriptor, _collect, frames, heard)
                stack.callback(loop.remove_reader, descriptor)
            sockets.append((frames, link, ips))
        start = loop.time()
        for moment in PROBE_TIMES:
            await asyncio.sleep(max(0.0, start + moment - loop.time()))
            for frames, link, ips in sockets:
                # The interface may go down between the question and the answer: then nobody answers.
                with contextlib.suppress(OSError):
                    frames.send(*(probe_frame(link.mac, ip) for ip in ips))
        await asyncio.sleep(max(0.0, start + PROBE_END - loop.time()))
    return heard


def _collect(frames: FrameSocket, heard: list[Heard]) -> None:
    heard.extend(frames.heard())
