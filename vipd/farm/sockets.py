"""Open TCP connections of this server to the virtual addresses, from the kernel, and their buckets."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable
from ipaddress import ip_address

from safekit.net.netlink import NETLINK_SOCK_DIAG, Netlink
from safekit.net.packets import IP
from vipd.farm.layout import Connection, Layout
from vipd.tcpreset import connections

_MAPPED = bytes(10) + b"\xff\xff"
_CHUNK = 500


def open_connections(vips: Iterable[IP]) -> list[Connection]:
    """Connections whose local address is a virtual one, without listeners and TIME_WAIT. Raises OSError."""
    found: list[Connection] = []
    with Netlink(NETLINK_SOCK_DIAG) as kernel:
        for vip in vips:
            for _, identity in connections(kernel, vip):
                local, remote = struct.unpack_from("!HH", identity)
                client = identity[20:36]
                if vip.version == 4:
                    client = client[12:] if client.startswith(_MAPPED) else client[:4]
                found.append((client, remote, vip.packed, local))
    return found


async def stay(
    layout: Layout, found: Iterable[Connection], mine: tuple[int, ...], shared: tuple[int, ...]
) -> tuple[frozenset[Connection], tuple[int, ...]]:
    """Which connections need an entry to stay here, since their bucket is not plainly ours, and for each group
    the buckets they are in."""
    staying: list[Connection] = []
    buckets = [0] * len(layout.groups)
    vips = {vip.packed: vip for vip in layout.vips}
    for count, connection in enumerate(found, 1):
        client, port, address, service = connection
        rule = layout.rule_for(vips[address], "tcp", service)
        if rule is not None:
            bucket = rule.bucket(ip_address(client), port)
            if not mine[rule.group] >> bucket & 1 or shared[rule.group] >> bucket & 1:
                staying.append(connection)
                buckets[rule.group] |= 1 << bucket
        if count % _CHUNK == 0:
            # A real-time process that never sleeps for long would be ended by the kernel.
            await asyncio.sleep(0.001)
    return frozenset(staying), tuple(buckets)
