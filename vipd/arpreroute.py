"""arpreroute: repeats gratuitous ARP for the virtual addresses of interfaces with arpreroute="on" (13.5.5).

vipd has announced an address once when it took it; this process announces it at once too, then every
arpinterval seconds during arpelapse, for equipment that missed it or forgets. It keeps nothing: restarted,
it asks vipd what is held and since when, and goes on with the same rhythm.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from safekit.bus.asking import Service
from safekit.bus.endpoint import BusError, Handler
from safekit.bus.requests import arpreroute as asked
from safekit.bus.requests.vipd import GetAnnouncements
from safekit.net import addresses as net
from safekit.net.frames import FrameSocket
from safekit.process.frame import Context, run
from vipd.announce import Announcement, next_moment, repeat_frames

LATE_SECONDS = 2.0
MAX_ANNOUNCEMENTS = 1000
ASK_TRIES = 5


@dataclass
class Repeater:
    """One address. `taken` is the monotonic time at which the address was taken; `next` the next moment,
    in seconds after it, None when the work is done."""

    announcement: Announcement
    taken: float
    next: float | None = field(default=0.0)


class ArpReroute:
    """The process."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._repeaters: dict[str, Repeater] = {}
        self._sockets: dict[str, FrameSocket] = {}
        self._changed = asyncio.Event()
        self.sent = 0

    def service(self) -> Service:
        """What arpreroute serves."""
        return Service(asked.ARPREROUTE, [(asked.Announce, self._announce), (asked.GetStatus, self._status)])

    async def _announce(self, ask: asked.Announce) -> asked.Announcing:
        self._replace(ask.announcements)
        return asked.Announcing(tuple(sorted(self._repeaters)))

    async def _status(self, _: asked.GetStatus) -> asked.Status:
        due = sorted(ip for ip, repeater in self._repeaters.items() if repeater.next is not None)
        return asked.Status(tuple(due), self.sent)

    def _replace(self, wanted: Sequence[dict[str, Any]]) -> None:
        if len(wanted) > MAX_ANNOUNCEMENTS:
            raise BusError("bad_request", f"announce: a list of at most {MAX_ANNOUNCEMENTS} announcements is wanted")
        try:
            asked = [Announcement.from_fields(entry) for entry in wanted]
        except ValueError as error:
            raise BusError("bad_request", f"announce: {error}") from None
        now = time.monotonic()
        fresh: dict[str, Repeater] = {}
        for announcement in asked:
            known = self._repeaters.get(announcement.ip)
            taken = now - announcement.elapsed
            # The same take-over told again (another address changed) must not start its rhythm again.
            if known is not None and abs(known.taken - taken) < 1.0:
                fresh[announcement.ip] = known
            elif announcement.elapsed < LATE_SECONDS:
                fresh[announcement.ip] = Repeater(announcement, taken)
            else:
                fresh[announcement.ip] = Repeater(announcement, taken, next_moment(announcement, announcement.elapsed))
        self._repeaters = fresh
        for name in set(self._sockets) - {a.interface for a in asked}:
            self._sockets.pop(name).close()
        self._changed.set()

    async def main(self) -> None:
        """Run until SIGTERM."""
        stopping = asyncio.ensure_future(self._context.stopping.wait())
        asking = asyncio.ensure_future(self._ask_vipd())
        try:
            while not stopping.done():
                pause = self._emit()
                changed = asyncio.ensure_future(self._changed.wait())
                await asyncio.wait((stopping, changed), timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                self._changed.clear()
        finally:
            stopping.cancel()
            asking.cancel()
            for opened in self._sockets.values():
                opened.close()

    async def _ask_vipd(self) -> None:
        """What is held already. vipd may start after us: then it tells us when it takes an address."""
        for _ in range(ASK_TRIES):
            try:
                held = await self._context.bus.ask(self._context.module, GetAnnouncements(), 1.0)
            except BusError:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), 1.0)
                if self._repeaters or self._context.stopping.is_set():
                    return
                continue
            if not self._repeaters:
                self._replace(held.announcements)
            return

    def _emit(self) -> float | None:
        """Announce what is due; seconds until the next moment, None when there is none."""
        now = time.monotonic()
        pauses: list[float] = []
        for repeater in self._repeaters.values():
            if repeater.next is None:
                continue
            due = repeater.taken + repeater.next
            if due <= now:
                # A server that was frozen may have lost the address: it must not take the clients back.
                if now - due < LATE_SECONDS:
                    self._send(repeater.announcement)
                repeater.next = next_moment(repeater.announcement, max(now - repeater.taken, 1e-6))
            if repeater.next is not None:
                pauses.append(repeater.taken + repeater.next - now)
        return max(min(pauses), 0.0) if pauses else None

    def _send(self, announcement: Announcement) -> None:
        link = net.link_named(announcement.interface)
        ip = ipaddress.ip_address(announcement.ip)
        # The kernel's word counts: an address that is gone must not draw clients here.
        held = any(a.ip == ip and link is not None and a.index == link.index for a in net.addresses())
        if link is None or not link.resolves or not held:
            return
        opened = self._sockets.get(link.name)
        if opened is not None and opened.index != link.index:
            opened.close()
            opened = None
        try:
            if opened is None:
                opened = self._sockets[link.name] = FrameSocket(link.name, link.index)
            opened.send(*repeat_frames(link.mac, ip))
            self.sent += 1
        except OSError as error:
            self._context.log.debug(f"arpreroute: {ip} not announced on {link.name}: {error.strerror}")
            if opened is not None:
                opened.close()
            self._sockets.pop(link.name, None)


def main() -> NoReturn:
    """Entry point of the process."""
    made: list[ArpReroute] = []

    def handler(context: Context) -> Handler:
        made.append(ArpReroute(context))
        return made[0].service().handle

    async def body(_: Context) -> None:
        await made[0].main()

    run("arpreroute", body, handler=handler)


if __name__ == "__main__":
    main()
