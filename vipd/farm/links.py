"""The farm's sockets: one for each lan of the module, everything sealed with the cluster key (guide 13.4).

A lan whose address is not there yet, or a peer whose name has no address yet, is tried again: at boot the
network may come after us.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from safekit.log.module import ModuleLog
from safekit.log.refusals import Refusals
from safekit.model.types import Lan
from safekit.wire.seal import Opener, Sealer, SealError

RETRY_SECONDS = 5.0
DRAIN = 512
"""Datagrams taken in one wake-up: a burst must not look like silence, and is bounded."""
_IP_FREEBIND, _IPV6_FREEBIND = 15, 78

Receive = Callable[[str, bytes], None]


@dataclass
class _Link:
    lan: Lan
    sock: socket.socket
    family: int
    peers: dict[str, tuple[str, int]] = field(default_factory=dict)


class Links:
    """`receive(sender, payload)` is called for each authentic datagram of another server of the module."""

    def __init__(
        self,
        log: ModuleLog,
        lans: tuple[Lan, ...],
        port: int,
        node: str,
        names: tuple[str, ...],
        sealer: Sealer,
        opener: Opener,
        receive: Receive,
    ) -> None:
        self._log, self._lans, self._port = log, lans, port
        self._node, self._names = node, names
        self._sealer, self._opener, self._receive = sealer, opener, receive
        self._links: dict[str, _Link] = {}
        self._task: asyncio.Task[None] | None = None
        self._told: set[tuple[str, str]] = set()
        self._refusals = Refusals()
        self.sent = self.accepted = self.refused = 0

    async def open(self) -> None:
        """Bind on every lan and find the peers; what fails is said once and tried again in the background."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if not await self._complete():
            self._task = asyncio.get_running_loop().create_task(self._retry())

    async def use(self, lans: tuple[Lan, ...]) -> None:
        """Go over to these lans, names looked up again. Where the new addresses cannot be had, the former ones stay."""
        self._lans = lans
        for name in [name for name in self._links if all(lan.name != name for lan in lans)]:
            self._drop(self._links.pop(name))
        for lan in lans:
            if lan.name in self._links:
                await self._renew(self._links[lan.name], lan)
        await self.open()

    async def _renew(self, link: _Link, lan: Lan) -> None:
        link.lan, own = lan, lan.node(self._node)
        if own is not None:
            with contextlib.suppress(OSError):
                if (await self._resolve(own.bind_address))[1] != link.sock.getsockname()[0]:
                    former = self._links.pop(lan.name)
                    fresh = await self._open(lan)
                    if fresh is None:
                        self._links[lan.name] = former
                    else:
                        self._drop(former)
                        link = fresh
        for entry in lan.nodes:
            if entry.name in link.peers:
                with contextlib.suppress(OSError):
                    link.peers[entry.name] = ((await self._resolve(entry.addr, link.family))[1], self._port)

    @staticmethod
    def _drop(link: _Link) -> None:
        asyncio.get_running_loop().remove_reader(link.sock.fileno())
        link.sock.close()

    def close(self) -> None:
        """Close the sockets."""
        if self._task is not None:
            self._task.cancel()
        for link in self._links.values():
            self._drop(link)
        self._links.clear()

    @property
    def version(self) -> int:
        """The protocol version that the other servers of which something was heard understand."""
        return self._opener.version_heard()

    def send(self, payload: bytes) -> None:
        """To every other server, on every lan. Raises OverflowError (see Sealer)."""
        version = self._opener.version_for(*(name for name in self._names if name != self._node))
        datagram = self._sealer.seal(payload, version)
        for link in self._links.values():
            for address in link.peers.values():
                # A lan that is down: the silence tells it to the others, our own interface check to heart.
                with contextlib.suppress(OSError):
                    link.sock.sendto(datagram, address)
                    self.sent += 1

    def complain(self, subject: str, kind: str, reason: str) -> None:
        """Say once what is wrong with a subject."""
        known = any(subject == address[0] for link in self._links.values() for address in link.peers.values())
        stranger = not known and subject not in self._names
        if self._refusals.say(subject, kind, time.monotonic(), stranger=stranger) is not None:
            self._log.event("peer_rejected", peer=subject, wire="farm", reason=reason)

    async def _retry(self) -> None:
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            if await self._complete():
                return

    async def _complete(self) -> bool:
        complete = True
        for lan in self._lans:
            link = self._links.get(lan.name) or await self._open(lan)
            if link is None:
                complete = False
                continue
            for entry in lan.nodes:
                if entry.name in (self._node, *link.peers) or entry.name not in self._names:
                    continue
                try:
                    _, address = await self._resolve(entry.addr, link.family)
                except OSError as error:
                    complete = False
                    self._unusable(lan, f"{entry.name}: {entry.addr} has no address ({error.strerror or error})")
                else:
                    link.peers[entry.name] = (address, self._port)
        return complete

    async def _open(self, lan: Lan) -> _Link | None:
        own = lan.node(self._node)
        if own is None:
            self._unusable(lan, f"{self._node} is not on it")
            return None
        try:
            family, address = await self._resolve(own.bind_address)
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            self._unusable(lan, f"{own.bind_address}: {error.strerror or error}")
            return None
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            sock.bind((address, self._port))
        except OSError as error:
            sock.close()
            self._unusable(lan, f"UDP port {self._port} of {address}: {error.strerror}")
            return None
        link = self._links[lan.name] = _Link(lan, sock, family)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable, link)
        return link

    def _unusable(self, lan: Lan, reason: str) -> None:
        if (lan.name, reason) not in self._told:
            self._told.add((lan.name, reason))
            self._log.event("farm_lan", lan=lan.name, reason=reason)

    @staticmethod
    async def _resolve(name: str, family: int = 0) -> tuple[int, str]:
        found = await asyncio.get_running_loop().getaddrinfo(name, None, family=family, type=socket.SOCK_DGRAM)
        return int(found[0][0]), str(found[0][4][0])

    def _readable(self, link: _Link) -> None:
        for _ in range(DRAIN):
            try:
                datagram, origin = link.sock.recvfrom(65535)
            except OSError:
                # Nothing more, or what ICMP reports about a peer that is down.
                return
            try:
                opened = self._opener.open(datagram)
            except SealError as error:
                # The same datagram comes once on every lan: a replay is the normal case.
                if error.kind != "replay":
                    self.refused += 1
                    self.complain(str(origin[0]), error.kind, error.detail)
                continue
            self.accepted += 1
            self._receive(opened.sender, opened.payload)
