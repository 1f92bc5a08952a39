"""vipd's ears and mouth on the networks of the virtual addresses.

One set of packet sockets per interface is opened at start and stays open. It asks before an address is taken,
announces it, and hears a machine that claims an address which we hold. Closing a packet socket takes the
kernel 15 ms or more (it waits until no processor looks at it), so nothing is opened and closed while the
clients wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from safekit.net import addresses as net
from safekit.net.addresses import Link
from safekit.net.frames import FrameSocket
from safekit.net.netlink import Netlink
from safekit.net.packets import IP, Heard, IPv4, arp_probe, neighbour_probe
from vipd.announce import take_over_frames
from vipd.plan import Verdict, judge

# The RFCs (5227 2.1, 4862 5.4) wait for seconds, for hosts that sleep; a failover has 200 ms in all. A machine
# that serves the address at this moment answers within a few milliseconds, because its kernel does; a later
# answer is still heard while the address is held.
PROBE_TIMES = (0.0, 0.02, 0.04)
PROBE_END = 0.06

QUIET_SECONDS = 300.0
CONFLICT_SECONDS = 10.0


@dataclass
class _Claim:
    """The last machine that claimed an address of ours. Times are monotonic seconds."""

    mac: bytes = b""
    seen: float = -math.inf
    told: float = -math.inf
    defended: float = -math.inf


class Wires:
    """Sockets on the interfaces. `conflict(ip, mac, who, interface)` is called when another machine claims an
    address that we hold: once per machine, again after QUIET_SECONDS without a claim, never more often than
    every CONFLICT_SECONDS."""

    def __init__(self, peers: Mapping[IP, str], conflict: Callable[[IP, bytes, str, str], None]) -> None:
        self._peers = dict(peers)
        self._conflict = conflict
        self._sockets: dict[int, FrameSocket] = {}
        self._held: dict[IP, Link] = {}
        self._claims: dict[IP, _Claim] = {}
        self._peer_macs: dict[bytes, str] = {}
        self._heard: list[Heard] | None = None
        self._shared: frozenset[bytes] = frozenset()

    # ------------------------------------------------------------------------ peers

    def expect(self, peers: Mapping[IP, str]) -> None:
        """Other addresses of the other nodes; MACs that are known stay known."""
        self._peers = dict(peers)

    def refresh_peers(self) -> None:
        """Note the MACs under which the other nodes are known now; they are remembered after their death."""
        with Netlink() as kernel:
            for neighbour in net.neighbours(kernel):
                node = self._peers.get(neighbour.ip)
                if node is not None:
                    self._peer_macs[neighbour.mac] = node

    def learn_peer(self, mac: bytes, node: str) -> None:
        """Note a MAC of a node that was found otherwise than by the addresses of the cluster's lans."""
        if mac not in {link.mac for link in net.links()}:
            self._peer_macs[mac] = node

    def peer_macs(self) -> dict[bytes, str]:
        """MACs of the other nodes of the cluster, with their names."""
        self.refresh_peers()
        return dict(self._peer_macs)

    def share(self, macs: Iterable[bytes]) -> None:
        """MACs that have the addresses together with us: the other servers of a farm, a virtual MAC."""
        self._shared = frozenset(macs)

    @property
    def shared(self) -> frozenset[bytes]:
        """MACs whose claims to our addresses are right."""
        return self._shared

    # ---------------------------------------------------------------------- sockets

    def listen(self, wanted: Mapping[Link, set[IP]]) -> None:
        """Have a socket on each of these interfaces that hears about these addresses, at least.

        Raises OSError when raw packets are not permitted.
        """
        for link, addresses in wanted.items():
            opened = self._sockets.get(link.index)
            if link.resolves and (opened is None or not addresses <= opened.addresses):
                self._drop(link.index)
                self._open(link, addresses | (opened.addresses if opened else frozenset()))

    def _open(self, link: Link, addresses: Iterable[IP]) -> FrameSocket:
        opened = FrameSocket(link.name, link.index, addresses)
        self._sockets[link.index] = opened
        for descriptor in opened.filenos():
            asyncio.get_running_loop().add_reader(descriptor, self._listen, opened)
        return opened

    def gone(self, index: int) -> None:
        """An interface does not exist any more."""
        self._drop(index)

    def _drop(self, index: int) -> None:
        opened = self._sockets.pop(index, None)
        if opened is not None:
            for descriptor in opened.filenos():
                asyncio.get_running_loop().remove_reader(descriptor)
            opened.close_aside()

    def close(self) -> None:
        for index in list(self._sockets):
            self._drop(index)

    # ----------------------------------------------------------------- ask, announce

    async def probe(self, targets: Iterable[tuple[IP, Link]]) -> list[Heard]:
        """Everything said about the targets within PROBE_END seconds, all of them together.

        Interfaces without ARP or that are down have nobody to ask. One caller at a time. Raises OSError when
        raw packets are not permitted.
        """
        asked: dict[Link, set[IP]] = {}
        for ip, link in targets:
            if link.resolves and link.up:
                asked.setdefault(link, set()).add(ip)
        if not asked:
            return []
        self.listen(asked)
        loop = asyncio.get_running_loop()
        start = loop.time()
        heard: list[Heard] = []
        self._heard = heard
        try:
            for moment in PROBE_TIMES:
                await asyncio.sleep(max(0.0, start + moment - loop.time()))
                for link, addresses in asked.items():
                    self._send(link, *(_probe_frame(link.mac, ip) for ip in addresses))
            await asyncio.sleep(max(0.0, start + PROBE_END - loop.time()))
        finally:
            self._heard = None
        return heard

    def take_over(self, link: Link, ip: IP, gratuitous: bool) -> None:
        """Tell the neighbours that `ip` is here. An interface that is down has nobody to tell."""
        if link.resolves:
            own = [a.ip for a in net.addresses() if a.index == link.index]
            self._send(link, *take_over_frames(link.mac, ip, own, gratuitous))

    def _send(self, link: Link, *frames: bytes) -> None:
        # An interface that goes down or away at this moment is reported by the watcher of the kernel's events.
        with contextlib.suppress(OSError):
            (self._sockets.get(link.index) or self._open(link, ())).send(*frames)

    # ------------------------------------------------------------------------- hear

    def hold(self, held: Mapping[IP, Link]) -> None:
        """From now on these addresses are ours: report who else claims one of them."""
        self._held = dict(held)
        self._claims = {ip: claim for ip, claim in self._claims.items() if ip in held}

    def _listen(self, frames: FrameSocket) -> None:
        try:
            heard = list(frames.heard())
        except OSError:
            # ENETDOWN: said once when the interface goes down; the socket hears again when it is up.
            return
        if self._heard is not None:
            self._heard.extend(heard)
        for said in heard:
            link = self._held.get(said.address)
            if link is not None:
                self._judge(said, link)

    def _judge(self, said: Heard, link: Link) -> None:
        finding = judge(said.address, (said,), {link.mac} | self._shared, self._peer_macs)
        if finding.verdict is Verdict.FOREIGN:
            # Perhaps another interface of ours, or a peer that was not in the tables yet.
            own = {known.mac for known in net.links()} | self._shared
            finding = judge(said.address, (said,), own, self.peer_macs())
        if finding.verdict is Verdict.FREE:
            return
        now = time.monotonic()
        claim = self._claims.setdefault(said.address, _Claim())
        if now - claim.told >= CONFLICT_SECONDS and (claim.mac != said.mac or now - claim.seen > QUIET_SECONDS):
            claim.mac, claim.told = said.mac, now
            self._conflict(said.address, said.mac, finding.who, link.name)
        # The peer may have taken over because this server was frozen: never take the clients back from it.
        if finding.verdict is Verdict.FOREIGN and now - claim.defended >= CONFLICT_SECONDS:
            claim.defended = now
            self.take_over(link, said.address, gratuitous=True)
        claim.seen = now


def _probe_frame(mac: bytes, ip: IP) -> bytes:
    """The question that changes no table."""
    return arp_probe(mac, ip) if isinstance(ip, IPv4) else neighbour_probe(mac, ip)
