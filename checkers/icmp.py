"""Echo requests and replies (RFC 792, RFC 4443): one socket, no child process."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct

from checkers.frame import resolve
from safekit.net.packets import checksum

_ECHO = struct.Struct(">BBHHH")
_V4_REQUEST, _V4_REPLY = 8, 0
_V6_REQUEST, _V6_REPLY = 128, 129
_COOKIE = 16
TRIES = 3


def echo_request(family: int, identifier: int, sequence: int, payload: bytes) -> bytes:
    """An echo request; the kernel fills in the checksum of ICMPv6."""
    kind = _V4_REQUEST if family == socket.AF_INET else _V6_REQUEST
    unsummed = _ECHO.pack(kind, 0, 0, identifier, sequence) + payload
    total = checksum(unsummed) if family == socket.AF_INET else 0
    return _ECHO.pack(kind, 0, total, identifier, sequence) + payload


def is_reply(family: int, datagram: bytes, identifier: int, payload: bytes) -> bool:
    """True for the echo reply to our request. Takes hostile bytes."""
    if family == socket.AF_INET:
        if not datagram:
            return False
        datagram = datagram[(datagram[0] & 15) * 4 :]
    if len(datagram) < _ECHO.size + len(payload):
        return False
    kind, code, _, answered, _ = _ECHO.unpack_from(datagram)
    wanted = _V4_REPLY if family == socket.AF_INET else _V6_REPLY
    return kind == wanted and code == 0 and answered == identifier and datagram[_ECHO.size :].startswith(payload)


class Pinger:
    """Pings one target. The requests carry random bytes, so that nobody answers for the target by guessing
    and the reply to an earlier request is not taken for a new one."""

    def __init__(self, addr: str) -> None:
        self.addr = addr
        self._identifier = os.getpid() & 0xFFFF
        self._sequence = itertools.count(1)
        self._sockets: dict[int, socket.socket] = {}

    def close(self) -> None:
        """Close the sockets."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()

    def _socket(self, family: int) -> socket.socket:
        if family not in self._sockets:
            protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
            sock = socket.socket(family, socket.SOCK_RAW, protocol)
            sock.setblocking(False)
            self._sockets[family] = sock
        return self._sockets[family]

    async def ping(self, timeout: float) -> bool:
        """True when the target answers one of three requests within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                targets = await resolve(self.addr, 0, socket.SOCK_DGRAM)
                for attempt in range(TRIES):
                    share = timeout / TRIES / max(len(targets), 1)
                    for family, address in targets:
                        last = attempt == TRIES - 1 and (family, address) == targets[-1]
                        if await self._once(family, address, timeout if last else share):
                            return True
        except (TimeoutError, OSError):
            return False
        return False

    async def _once(self, family: int, address: tuple[str, int], timeout: float) -> bool:
        loop = asyncio.get_running_loop()
        sock = self._socket(family)
        payload = os.urandom(_COOKIE)
        request = echo_request(family, self._identifier, next(self._sequence) & 0xFFFF, payload)
        begin = loop.time()
        try:
            async with asyncio.timeout(timeout):
                await loop.sock_sendto(sock, request, address)
                while not is_reply(family, await loop.sock_recv(sock, 2048), self._identifier, payload):
                    continue
        except TimeoutError:
            return False
        except OSError:
            # No route, or the interface is down: the next attempt comes at its own time, not at once.
            await asyncio.sleep(max(begin + min(timeout, 1.0) - loop.time(), 0.0))
            return False
        return True
