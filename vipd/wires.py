"""vipd's ears and mouth on the networks of the virtual addresses.

One packet socket per interface stays open while addresses are held: an announcement costs no set-up, and a
machine that claims one of our addresses is heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from safekit import net
from safekit.frames import FrameSocket
from safekit.net import IP, Link
from safekit.netlink import Netlink
from safekit.packets import Heard
from vipd.announce import take_over_frames
from vipd.plan import Verdict, judge

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
        self._links: dict[int, Link] = {}
        self._claims: dict[IP, _Claim] = {}
        self._peer_macs: dict[bytes, str] = {}

    # ------------------------------------------------------------------------ peers

    def refresh_peers(self) -> None:
        """Note the MACs under which the other nodes are known now; they are remembered after their death."""
        with Netlink() as kernel:
            for neighbour in net.neighbours(kernel):
                node = self._peers.get(neighbour.ip)
                if node is not None:
                    self._peer_macs[neighbour.mac] = node

    def peer_macs(self) -> dict[bytes, str]:
        """MACs of the other nodes of the cluster, with their names."""
        self.refresh_peers()
        return dict(self._peer_macs)

    # --------------------------------------------------------------------- announce

    def take_over(self, link: Link, ip: IP, gratuitous: bool) -> None:
        """Tell the neighbours that `ip` is here. An interface that is down has nobody to tell."""
        if not link.resolves:
            return
        own = [a.ip for a in net.addresses() if a.index == link.index]
        frames = take_over_frames(link.mac, ip, own, gratuitous)
        try:
            self._socket(link).send(*frames)
        except OSError:
            # Perhaps the interface was made again under the same name: once more on a new socket.
            self._drop(link.index)
            with contextlib.suppress(OSError):
                self._socket(link).send(*frames)

    # ------------------------------------------------------------------------ watch

    def watch(self, wanted: Mapping[Link, set[IP]]) -> None:
        """Hear what is said about these addresses from now on, and about no others."""
        for index in set(self._sockets) - {link.index for link in wanted}:
            self._drop(index)
        self._links = {link.index: link for link in wanted}
        for link, addresses in wanted.items():
            opened = self._sockets.get(link.index)
            if link.resolves and (opened is None or opened.addresses != addresses):
                self._drop(link.index)
                # An interface that has just gone is reported by the watcher of the kernel's events.
                with contextlib.suppress(OSError):
                    self._open(link, addresses)
        held = {ip for addresses in wanted.values() for ip in addresses}
        self._claims = {ip: claim for ip, claim in self._claims.items() if ip in held}

    def _socket(self, link: Link) -> FrameSocket:
        return self._sockets.get(link.index) or self._open(link, set())

    def _open(self, link: Link, addresses: set[IP]) -> FrameSocket:
        opened = FrameSocket(link.name, link.index, addresses)
        self._sockets[link.index] = opened
        for descriptor in opened.filenos():
            asyncio.get_running_loop().add_reader(descriptor, self._listen, opened, link)
        return opened

    def _drop(self, index: int) -> None:
        opened = self._sockets.pop(index, None)
        if opened is not None:
            for descriptor in opened.filenos():
                asyncio.get_running_loop().remove_reader(descriptor)
            opened.close()

    def _listen(self, frames: FrameSocket, link: Link) -> None:
        try:
            heard = list(frames.heard())
        except OSError:
            # ENETDOWN: said once when the interface goes down; the socket hears again when it is up.
            return
        for said in heard:
            self._heard(said, link)

    def _heard(self, said: Heard, link: Link) -> None:
        own = {known.mac for known in self._links.values()}
        finding = judge(said.address, (said,), own, self._peer_macs)
        if finding.verdict is Verdict.FREE:
            return
        if finding.verdict is Verdict.FOREIGN:
            # Our other interfaces, and a peer that was not in the tables yet.
            if said.mac in {known.mac for known in net.links()}:
                return
            finding = judge(said.address, (said,), own, self.peer_macs())
            if finding.verdict is Verdict.FREE:
                return
        now = time.monotonic()
        claim = self._claims.setdefault(said.address, _Claim())
        if now - claim.told >= CONFLICT_SECONDS:
            if claim.mac != said.mac or now - claim.seen > QUIET_SECONDS:
                claim.mac, claim.told = said.mac, now
                self._conflict(said.address, said.mac, finding.who, link.name)
            # The peer may have taken over because this server was frozen: never take the clients back from it.
            if finding.verdict is Verdict.FOREIGN and now - claim.defended >= CONFLICT_SECONDS:
                claim.defended = now
                self.take_over(link, said.address, gratuitous=True)
        claim.seen = now

    def close(self) -> None:
        for index in list(self._sockets):
            self._drop(index)
