"""The heartbeats of a heart: when they are sent on which link, what was sent when, and whom they are heard from
(guide 13.3). What they say, and what follows from what is heard, is the shell's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Coroutine
from typing import Any, Protocol

from heart.core.events import Event, LinkOpened
from heart.core.values import Beat
from heart.shell.complaints import Complaints
from heart.shell.configured import Plan
from heart.shell.links import Links
from heart.shell.telling import Sent
from heart.shell.wire import CONTEXT, LinkSocket, Route
from safekit.log.refusals import Refusals
from safekit.process.frame import Context
from safekit.wire.keys import wire_keys
from safekit.wire.rotation import Rotation
from safekit.wire.seal import Opener, Sealer

RETRY_SECONDS = 5.0


def beat_after(now: float, pulse: float) -> float:
    """When the next heartbeat is due: links of the same pulse beat together, so that heart wakes once for all."""
    due = (now // pulse + 1) * pulse
    return due if due - now > pulse / 10 else due + pulse


class Speaker(Protocol):
    """Whose heartbeats they are."""

    plan: Plan
    complaints: Complaints
    reloading: asyncio.Lock

    def give_sign(self) -> None:
        """Asked before each heartbeat: this heart lives."""

    def says(self, sequence: int) -> Beat:
        """What the heartbeat of that number says."""
        ...

    def hears(self, ident: str, heard: Beat, echoed: float | None) -> None:
        """A heartbeat on link `ident`; `echoed`: when that of ours was sent which it confirms."""

    def feed(self, event: Event) -> None: ...

    def start_task(self, work: Coroutine[Any, Any, None]) -> None: ...


class Heartbeats:
    """One per heart."""

    def __init__(self, context: Context, incarnation: int, speaker: Speaker) -> None:
        self._context, self._speaker = context, speaker
        self._sent = Sent(incarnation)
        self.rotation = Rotation(wire_keys(context.module))
        self._sealer = Sealer(self.rotation.keys[0], CONTEXT + context.module, context.node, incarnation)
        self._links = Links(self._link, self._begin, self._moved, self._held)
        self._refusals = Refusals()
        self._retrying = False

    @property
    def sequence(self) -> int:
        """The number of the last heartbeat that was sent."""
        return self._sent.sequence

    @property
    def last_heard(self) -> float:
        """When the other server was heard last on any link (monotonic clock); 0.0: never."""
        return max((link.arrivals.last for link in self._links.now), default=0.0)

    def send(self) -> None:
        """Heartbeats on every link, now."""
        now = self._next()
        for link in self._links.now:
            link.send(now)

    def _next(self) -> Beat:
        self._speaker.give_sign()
        self._sent.another(time.monotonic())
        return self._speaker.says(self._sent.sequence)

    async def open(self) -> None:
        """Use the links of the plan; those without an address yet are tried again at each pulse, those that keep a
        former address every few seconds."""
        plan = self._speaker.plan
        if not await self._links.use(plan.routes) and not self._retrying:
            self._retrying = True
            self._speaker.start_task(self._open_later())
        for ident, lan in plan.unused:
            self._speaker.complaints.say(("unused", ident), lan, code="heartbeat_unused", ident=ident, lan=lan)

    async def _open_later(self) -> None:
        await asyncio.sleep(RETRY_SECONDS)
        self._retrying = False
        async with self._speaker.reloading:
            await self.open()

    def rekey(self) -> None:
        """Take the keys of the rotation up."""
        self._sealer.use(self.rotation.keys[0])
        for link in self._links.now:
            link.opener.use(self.rotation.keys)

    def peers(self, idents: Collection[str]) -> tuple[str, ...]:
        """The addresses of the other server on these links, each once; a scope is left out."""
        places = [link.places for link in self._links.now if link.route.ident in idents]
        return tuple(dict.fromkeys(str(where.peer[0]).partition("%")[0] for where in places if where is not None))

    def datagrams(self) -> dict[str, dict[str, int]]:
        """What each link in use has sent, accepted and refused."""
        return {
            link.route.ident: {"sent": link.sent, "accepted": link.accepted, "refused": link.refused}
            for link in self._links.now
        }

    def figures(self) -> dict[str, Any]:
        """Of each link, for monitoring."""
        return {link.route.ident: link.told() for link in self._links.now}

    def close(self) -> None:
        self._links.close()

    # -- what the links need and tell

    def _link(self, route: Route) -> LinkSocket:
        opener = Opener(self.rotation.keys, CONTEXT + self._context.module, [self._speaker.plan.setup.peer])
        return LinkSocket(route, self._context.module, self._sealer, opener, self._heard, self._rejected)

    def _begin(self, link: LinkSocket) -> None:
        self._speaker.start_task(self._pulse(link))

    async def _pulse(self, link: LinkSocket) -> None:
        """Heartbeats of one link, for as long as it is used."""
        about = ("link", link.route.ident)
        while link in self._links.now:
            deaf = bool(link.problem)
            if deaf:
                await link.open()
                if link.problem:
                    self._speaker.complaints.say(about, f"heartbeat {link.route.ident}: {link.problem}")
            link.send(self._next())
            if deaf and not link.problem:
                self._speaker.complaints.over(about)
                self._speaker.feed(LinkOpened(link.route.ident))
            due = beat_after(time.monotonic(), link.route.pulse)
            await asyncio.sleep(due - time.monotonic())
            self._context.lateness.note(due)

    def _heard(self, ident: str, heard: Beat) -> None:
        self._speaker.hears(ident, heard, self._sent.when(heard.echo))

    def _rejected(self, peer: str, ident: str, reason: str) -> None:
        stranger = all(peer != link.peer_address for link in self._links.now)
        if self._refusals.say(peer, f"{ident} {reason}", time.monotonic(), stranger=stranger) is not None:
            self._context.log.event("peer_rejected", reason=reason, peer=peer, wire=f"heartbeat.{ident}")

    def _moved(self, link: LinkSocket) -> None:
        assert link.places is not None
        self._speaker.complaints.over(("held", link.route.ident))
        self._context.log.event(
            "heartbeat_moved", ident=link.route.ident, own=link.places.own[0], peer=link.places.peer[0]
        )

    def _held(self, link: LinkSocket, reason: str) -> None:
        assert link.places is not None
        self._speaker.complaints.say(
            ("held", link.route.ident), reason, code="heartbeat_held", ident=link.route.ident, own=link.places.own[0],
            peer=link.places.peer[0],
        )  # fmt: skip
