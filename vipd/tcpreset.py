"""Reset the TCP connections of a virtual address, then take it away (tcpreset="on", 13.5.5).

The order matters: a reset leaves this server only while the address is still here. Destroyed the other way
round, connections vanish silently and the clients wait until their own time-outs. Connections which were
accepted between the last pass and the removal are found afterwards; the address then comes back for the
moment that their reset takes.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from dataclasses import dataclass

from safekit.disk.files import locked
from safekit.disk.paths import safevar
from safekit.net import addresses as net
from safekit.net.addresses import Address
from safekit.net.netlink import NETLINK_SOCK_DIAG, Netlink, attribute
from safekit.net.packets import IP

_SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 20, 21
_REQUEST = struct.Struct("=BBBxI")
_SOCKET_ID = 48
_SOURCE = slice(4, 20)
_INET_DIAG_REQ_BYTECODE = 1
_SOURCE_CONDITION = 7
_TCP_TIME_WAIT, _TCP_CLOSE, _TCP_LISTEN = 6, 7, 10
_CONNECTED = 0xFFF & ~(1 << _TCP_TIME_WAIT | 1 << _TCP_CLOSE | 1 << _TCP_LISTEN) | 1 << 12
_MAPPED = bytes(10) + b"\xff\xff"
_CHUNK = 500
_PASSES = 3


class ResetUnavailable(Exception):
    """This kernel cannot destroy sockets; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Released:
    """What came of taking an address away: connections reset, a reason when resetting was not possible, and
    addresses that had to be put back."""

    reset: int
    no_reset: str | None
    restored: tuple[Address, ...]


def connections(netlink: Netlink, ip: IP) -> list[tuple[int, bytes]]:
    """TCP sockets with the local address `ip`: (family, identity in the kernel's form). Without listeners
    and TIME_WAIT. IPv4 connections of IPv6 sockets are found too. Raises OSError."""
    families = (socket.AF_INET6,) if ip.version == 6 else (socket.AF_INET, socket.AF_INET6)
    wanted = {ip.packed.ljust(16, b"\0"), ip.packed if ip.version == 6 else _MAPPED + ip.packed}
    found: list[tuple[int, bytes]] = []
    for family in families:
        request = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _CONNECTED) + bytes(_SOCKET_ID)
        for message in netlink.dump(_SOCK_DIAG_BY_FAMILY, request + _from(ip)):
            identity = message.body[4 : 4 + _SOCKET_ID]
            if message.kind == _SOCK_DIAG_BY_FAMILY and identity[_SOURCE] in wanted:
                found.append((message.body[0], identity))
    return found


def _from(ip: IP) -> bytes:
    """Kernel-side condition `source address is ip`: a server with 100,000 connections lists only these."""
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    condition = struct.pack("=BBxxi", family, ip.max_prefixlen, -1) + ip.packed
    length = 4 + len(condition)
    # Offsets count from this operation; one beyond the end rejects.
    return attribute(_INET_DIAG_REQ_BYTECODE, struct.pack("=BBH", _SOURCE_CONDITION, length, length + 4) + condition)


async def reset(netlink: Netlink, ip: IP) -> int:
    """Destroy the connections of `ip`, so that their clients get a reset; how many there were.

    Raises ResetUnavailable, OSError.
    """
    count = 0
    for family, identity in connections(netlink, ip):
        if count and count % _CHUNK == 0:
            # A real-time process that never sleeps for long would be ended by the kernel.
            await asyncio.sleep(0.001)
        try:
            netlink.request(_SOCK_DESTROY, _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _CONNECTED) + identity)
            count += 1
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise ResetUnavailable(
                    "the kernel is built without INET_DIAG_DESTROY; their clients notice only when they send, "
                    "boot a kernel that has it"
                ) from None
            if error.errno != errno.ENOENT:
                raise
    return count


async def release(route: Netlink, address: Address, tcpreset: bool) -> Released:
    """Take `address` away from its interface, its connections reset before when `tcpreset`.

    Raises OSError; the address may then still be there.
    """
    done = 0
    no_reset: str | None = None
    restored: tuple[Address, ...] = ()
    with Netlink(NETLINK_SOCK_DIAG) as diagnosis:
        for last in (*([False] * (_PASSES - 1)), True):
            if tcpreset and no_reset is None:
                try:
                    done += await reset(diagnosis, address.ip)
                except (ResetUnavailable, OSError) as error:
                    # Two owners of one address would be worse than clients that wait: take it away anyhow.
                    no_reset = str(error)
            restored += _delete(route, address)
            if last or not tcpreset or no_reset is not None or not connections(diagnosis, address.ip):
                break
            net.add_address(route, address.where(), address.ip)
    return Released(done, no_reset, restored)


def _delete(route: Netlink, address: Address) -> tuple[Address, ...]:
    # Another module's vipd that removes its own address at this moment must not have it put back by us.
    with locked(safevar() / "vip.lock"):
        before = net.addresses(route) if net.takes_others_along(address) else ()
        net.delete_address(route, address)
        return net.restore_lost(route, before, address) if before else ()
