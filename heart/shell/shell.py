"""The shell around the automaton: it feeds events in, carries actions out, and owns every clock and socket.

Order that must hold: the actions of one decision are carried out in their
order, durable memory included, before the next event is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from heart.core import plans
from heart.core.actions import Abort, Action, Announce, Exit, Forget, Log, Marker, Reboot, Remember, Reply, Run, Send
from heart.core.decide import beat, deadline, decide, new_state
from heart.core.events import (
    Done,
    Event,
    Heard,
    LinkOpened,
    Ordered,
    Overslept,
    Proved,
    ResourceSet,
    SupervisorDied,
    Tick,
)
from heart.core.state import State
from heart.core.values import Beat, Command, Reason, Role, Sibling
from heart.shell import configured, proof
from heart.shell.effects import Effects
from heart.shell.figures import TakeOvers
from heart.shell.links import Links
from heart.shell.publish import History, LifeSign, Published, RunningMark
from heart.shell.telling import PEER_FILE, Sent, Telling
from heart.shell.wire import CONTEXT, LinkSocket, Route
from safekit.bus.endpoint import BusError
from safekit.bus.requests import errd, vipd
from safekit.bus.requests.safeadmin.node import GetOtherServer
from safekit.bus.requests.safeadmin.processes import Ended, Respawn
from safekit.disk.stats import forget
from safekit.log.refusals import Refusals
from safekit.net.neighbours import REFRESH_SECONDS, PermanentNeighbours
from safekit.process.frame import Context
from safekit.process.scripts import ScriptRunner
from safekit.wire.keys import encrypted, wire_keys
from safekit.wire.rotation import Rotation, follow_keys
from safekit.wire.seal import Opener, Sealer, next_epoch

RECENT = 200
"""Decisions kept in memory for `status`."""
LINGER_PULSES = 3
"""At the end of a stop the peer is told STOP again for so many pulses, or until it has heard it."""
LINGER_SECONDS = 2.0
SUPERVISOR_SECONDS = 0.5
"""Between two attempts to reach a supervisord that ended the connection."""
CLUSTER_SECONDS = 2.0
"""Between two questions to safeadmin."""
RETRY_SECONDS = 5.0
DIFFERENT_SECONDS = 5.0
"""The servers are configured one after the other: a difference that passes is none."""
FORGOTTEN_SECONDS = 60.0
"""Figures of a process that has published none for so long, at the start of heart."""
FIRST_COMMAND_SECONDS = 60.0
"""A heart that nobody orders anything ends after this long."""


def beat_after(now: float, pulse: float) -> float:
    """When the next heartbeat is due: links of the same pulse beat together, so that heart wakes once for all."""
    due = (now // pulse + 1) * pulse
    return due if due - now > pulse / 10 else due + pulse


def _sibling(told: Mapping[str, Any]) -> Sibling:
    """A server of the module, as safeadmin tells it."""
    agrees = tuple((str(name), str(value)) for name, value in told.get("agrees") or ())
    return Sibling(str(told.get("node")), agrees, str(told.get("state") or ""), int(told.get("since") or 0))


class Shell:
    """One per heart."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.plan = configured.read(context.config, context.cluster, context.node)
        paths = context.paths
        paths.var.mkdir(mode=0o770, parents=True, exist_ok=True)
        incarnation = next_epoch(paths.var / "heart.epoch")
        self.state: State = new_state(self.plan.setup, incarnation)
        self.published = Published(paths)
        self.history = History(paths.why, context.node)
        self.peer_history = History(paths.why, self.plan.setup.peer, PEER_FILE)
        self.telling = Telling(paths.why)
        self.mark = RunningMark(paths.marker)
        self.life = LifeSign(paths.var / "heart.alive")
        self.scripts = ScriptRunner(paths, context.config.user, context.log)
        self.scripts.end_leftover()
        self.effects = Effects(context, self.scripts, self._on_done)
        self.effects.processes.checkers = self.plan.checkers
        self.effects.processes.silenced = self._silenced
        self.recent: deque[tuple[float, Reason]] = deque(maxlen=RECENT)
        self._refusals = Refusals()
        self.ended = asyncio.Event()
        self.exit: Exit | None = None
        self._sent = Sent(incarnation)
        self.rotation = Rotation(wire_keys(context.module))
        self._sealer = Sealer(self.rotation.keys[0], CONTEXT + context.module, context.node, incarnation)
        self._links = Links(self._link, self._begin_link, self._link_moved, self._link_held)
        self.reloading = asyncio.Lock()
        self._replies: dict[int, asyncio.Future[Reply]] = {}
        self._reply_token = 0
        self._setters: dict[str, str] = {"splitbrain.uptodate": "splitbraincheck"}
        self._complained: dict[tuple[str, str], str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._beside = context.beside()
        self._neighbours = PermanentNeighbours()
        self.neighbours_due = asyncio.Event()
        self._retrying = False
        self._take_overs = TakeOvers()
        self._differs_since = 0.0
        self.die: Callable[[int], object] = os._exit

    # -- events in, actions out

    def feed(self, event: Event) -> None:
        """One event, carried out completely.

        When that fails (a memory that cannot be put on disk, a defect), heart ends at once: its successor
        takes up what is on disk, which is always a state that may be acted on.
        """
        try:
            self._feed(event)
        except Exception as error:
            with contextlib.suppress(OSError):
                self.context.log.event("internal", text=f"heart ends: {type(event).__name__}: {error!r}")
            self.die(1)
            raise

    def _feed(self, event: Event) -> None:
        decision = decide(self.state, event, time.monotonic())
        peer_before = self.state.peer
        self.state = decision.state
        for action in decision.actions:
            self._perform(action)
        if self.state.peer is not peer_before:
            self._look_at_peer(self.state.peer)
        self.published.flush()
        self._record(decision.reasons)
        heard = max((link.arrivals.last for link in self._links.now), default=0.0)
        self._take_overs.note(self.state.role, self.state.color, heard, time.monotonic(), time.time())
        self._schedule()

    def _perform(self, action: Action) -> None:
        match action:
            case Log(code, fields):
                self.context.log.event(code, **dict(fields))
            case Remember(values):
                self.published.remember(values, self._setters)
                if any(name == "usersetting.errd" for name, _ in values) and self.context.config.errd is not None:
                    self.context.bus.tell(self.context.module, errd.Look())
            case Forget(names):
                self.published.forget(names)
            case Send():
                self.send()
            case Run(token, effect):
                self.effects.start(token, effect)
            case Abort(token):
                self.effects.abort(token)
            case Announce():
                if self.context.config.vip is not None:
                    self.context.bus.tell(self.context.module, vipd.AnnounceAgain())
            case Marker(present):
                if present:
                    self.scripts.trim_userlog()
                self.mark.set(present)
            case Reply():
                future = self._replies.pop(action.token, None)
                if future is not None and not future.done():
                    future.set_result(action)
            case Reboot():
                self.start_task(self._reboot())
            case Exit():
                self.exit = action
                self.start_task(self._end())

    def _on_done(self, done: Done) -> None:
        self.feed(done)

    def _record(self, reasons: tuple[Reason, ...]) -> None:
        now = time.time()
        self.recent.extend((now, reason) for reason in reasons)
        try:
            self.history.record(self.telling.add(reasons, self.published.detail))
        except OSError as error:
            self.complain(("why", ""), f"the decision history cannot be written: {error}")

    def _schedule(self) -> None:
        """Tick when the automaton needs one.  A timer that is already right stays."""
        due = deadline(self.state)
        if self._timer is not None:
            if abs(due - self._due) < 0.001:
                return
            self._timer.cancel()
        self._due = due
        delay = max(due - time.monotonic(), 0.001)
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.feed(Tick())

    # -- heartbeats

    def send(self) -> None:
        """Heartbeats on every link, now."""
        self._give_sign()
        self._sent.another(time.monotonic())
        now = self._beat()
        for link in self._links.now:
            link.send(now)

    def _give_sign(self) -> None:
        try:
            self.life.give(time.monotonic() - self.state.confirmed_at)
        except OSError as error:
            self.complain(("alive", ""), f"heart.alive cannot be written: {error}")

    def _beat(self) -> Beat:
        """What a heartbeat says now."""
        return dataclasses.replace(
            beat(self.state),
            sequence=self._sent.sequence,
            decided=self.telling.pending() if self.state.peer is not None else (),
            decided_seen=self.telling.seen,
        )

    def _heard(self, ident: str, heard: Beat) -> None:
        self.telling.acknowledged(heard.decided_seen)
        fresh = self.telling.fresh(heard.decided)
        if fresh:
            try:
                self.peer_history.record(fresh)
            except OSError as error:
                self.complain(("why", ""), f"the decision history cannot be written: {error}")
        self.feed(Heard(ident, heard, self._sent.when(heard.echo)))

    def _rejected(self, peer: str, ident: str, reason: str) -> None:
        stranger = all(peer != link.peer_address for link in self._links.now)
        if self._refusals.say(peer, f"{ident} {reason}", time.monotonic(), stranger=stranger) is not None:
            self.context.log.event("peer_rejected", reason=reason, peer=peer, wire=f"heartbeat.{ident}")

    def complain(self, about: tuple[str, str], reason: str, code: str = "internal", **fields: str) -> None:
        """Say something once, until it changes."""
        if self._complained.get(about) == reason or len(self._complained) > RECENT:
            return
        self._complained[about] = reason
        if code == "internal":
            self.context.log.event(code, text=reason)
        else:
            self.context.log.event(code, reason=reason, **fields)

    def settle(self, about: tuple[str, str]) -> None:
        """What was complained of is over: it is said again when it comes back."""
        self._complained.pop(about, None)

    def _look_at_peer(self, peer: Beat | None) -> None:
        self.published.remote(peer)
        if peer is None or not peer.signature or not self.state.setup.signature:
            return
        if peer.signature == self.state.setup.signature:
            self._differs_since = 0.0
            self.settle(("signature", peer.node))
            return
        self._differs_since = self._differs_since or time.monotonic()
        if time.monotonic() - self._differs_since >= DIFFERENT_SECONDS:
            self.complain(("signature", peer.node), peer.signature, code="config_differs", peer=peer.node)

    async def open_links(self) -> None:
        """Use the links of the plan; those without an address yet are tried again at each pulse, those that keep a
        former address every few seconds."""
        if not await self._links.use(self.plan.routes) and not self._retrying:
            self._retrying = True
            self.start_task(self._open_links_later())
        for ident, lan in self.plan.unused:
            self.complain(("unused", ident), lan, code="heartbeat_unused", ident=ident, lan=lan)

    async def _open_links_later(self) -> None:
        await asyncio.sleep(RETRY_SECONDS)
        self._retrying = False
        async with self.reloading:
            await self.open_links()

    def _link(self, route: Route) -> LinkSocket:
        opener = Opener(self.rotation.keys, CONTEXT + self.context.module, [self.plan.setup.peer])
        return LinkSocket(route, self.context.module, self._sealer, opener, self._heard, self._rejected)

    def _begin_link(self, link: LinkSocket) -> None:
        self.start_task(self._pulse(link))

    def _link_moved(self, link: LinkSocket) -> None:
        assert link.places is not None
        self.settle(("held", link.route.ident))
        self.context.log.event(
            "heartbeat_moved", ident=link.route.ident, own=link.places.own[0], peer=link.places.peer[0]
        )

    def _link_held(self, link: LinkSocket, reason: str) -> None:
        assert link.places is not None
        self.complain(
            ("held", link.route.ident), reason, code="heartbeat_held", ident=link.route.ident, own=link.places.own[0],
            peer=link.places.peer[0],
        )  # fmt: skip

    def datagrams(self) -> dict[str, dict[str, int]]:
        """What each link in use has sent, accepted and refused."""
        return {
            link.route.ident: {"sent": link.sent, "accepted": link.accepted, "refused": link.refused}
            for link in self._links.now
        }

    async def _pulse(self, link: LinkSocket) -> None:
        """Heartbeats of one link, for as long as it is used."""
        while link in self._links.now:
            deaf = bool(link.problem)
            if deaf:
                await link.open()
                if link.problem:
                    self.complain(("link", link.route.ident), f"heartbeat {link.route.ident}: {link.problem}")
            self._give_sign()
            self._sent.another(time.monotonic())
            link.send(self._beat())
            if deaf and not link.problem:
                self._complained.pop(("link", link.route.ident), None)
                self.feed(LinkOpened(link.route.ident))
            due = beat_after(time.monotonic(), link.route.pulse)
            await asyncio.sleep(due - time.monotonic())
            self.context.lateness.note(due)

    def _figures(self) -> dict[str, Any]:
        """For monitoring; see safekit.disk.stats."""
        return {"heartbeats": {link.route.ident: link.told() for link in self._links.now}, **self._take_overs.told()}

    def rekey(self) -> None:
        self._sealer.use(self.rotation.keys[0])
        for link in self._links.now:
            link.opener.use(self.rotation.keys)

    def publish_encryption(self) -> None:
        """Whether the module has a key of its own (guide 10.4); without one the cluster's key protects it."""
        value = "on" if encrypted(self.context.module) else "off"
        self.published.remember([("encryption.module", value)], {})

    # -- requests

    async def ask(self, make: Any) -> Reply:
        """Feed the event `make(token)` and wait for its answer."""
        self._reply_token += 1
        token = self._reply_token
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._replies[token] = future
        self.feed(make(token))
        try:
            return await asyncio.wait_for(future, 5.0)
        finally:
            self._replies.pop(token, None)

    def set_resource(self, name: str, value: str, who: str) -> bool:
        """A resource set from outside; True when its value changed."""
        before = self.state.resources.get(name)
        self._setters[name] = who
        self.feed(ResourceSet(name, value, who))
        return self.state.resources.get(name) != before

    def _silenced(self, name: str) -> None:
        if name in self.state.resources:
            self.set_resource(name, "init", "heart")

    # -- watching

    def start_watching(self) -> None:
        """What goes on beside the events."""
        self.start_task(self._watch_supervisor())
        self.start_task(self.effects.processes.adopt())
        self.start_task(self._watch_cluster())
        forget(self.context.paths, FORGOTTEN_SECONDS)
        self.context.figures = self._figures
        self.start_task(follow_keys(self.context.module, self.rotation, self.rekey))
        if self.plan.setup.mirror:
            self.start_task(self._keep_neighbours())

    async def prove(self) -> None:
        """Whether the parts of the role that was adopted are there; those that are not are made again."""
        found = proof.Lost()
        try:
            found = await self._look()
        finally:
            self.feed(Proved(found.names, found.resources, found.data))

    async def _look(self) -> proof.Lost:
        s, rfs = self.state, self.context.config.rfs
        if not s.role.running:
            return proof.Lost()
        return await proof.lost(
            self.effects.processes,
            plans.phases(s.role),
            [replicated.dir for replicated in rfs.replicated] if rfs is not None else [],
            checkers=s.resource("usersetting.checker", "on") != "off",
        )

    async def _watch_supervisor(self) -> None:
        """supervisord runs the others: its end is an event (M5).  A connection that stays open tells it at once."""
        sock = Path(self.context.paths.supervisor_sock)
        failures = 0
        while True:
            try:
                reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(str(sock)), 5.0)
                failures = 0
                try:
                    while await reader.read(64):
                        pass
                finally:
                    writer.close()
            except (OSError, TimeoutError):
                failures += 1
            if failures == 2 and self.exit is None and self.state.role is not Role.STOP:
                self.feed(SupervisorDied())
            await asyncio.sleep(SUPERVISOR_SECONDS)

    async def _watch_cluster(self) -> None:
        """cluster() of the rules is safeadmin's view."""
        from heart.core.events import ClusterView

        while True:
            value, siblings = "unknown", self.state.siblings
            with contextlib.suppress(BusError):
                told = await self.context.bus.ask("", GetOtherServer(self.context.module), 1.0)
                value = told.value
                servers = {self.context.node, self.plan.setup.peer, *self.plan.members}
                siblings = tuple(_sibling(each) for each in told.servers if each.get("node") in servers)
            if (value, siblings) != (self.state.cluster, self.state.siblings):
                self.feed(ClusterView(value, siblings))
            await asyncio.sleep(CLUSTER_SECONDS)

    async def _keep_neighbours(self) -> None:
        while True:
            self.neighbours_due.clear()
            places = [link.places for link in self._links.now if link.route.ident in self.plan.permanent_arp]
            peers = tuple(dict.fromkeys(str(where.peer[0]).partition("%")[0] for where in places if where is not None))
            try:
                await self._neighbours.refresh(peers)
                self._neighbours.release(keep=peers)
            except (OSError, ValueError) as error:
                addresses = ", ".join(peers)
                self.complain(("arp", addresses), str(error), code="arp_refused", addr=addresses)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.neighbours_due.wait(), REFRESH_SECONDS)

    def on_late(self, seconds: float) -> None:
        """The frame measured that the loop woke late."""
        self.feed(Overslept(seconds))

    # -- the end

    async def _reboot(self) -> None:
        self.context.log.event("rebooting")
        process = await asyncio.create_subprocess_exec("systemctl", "reboot")
        status = await process.wait()
        if status != 0:
            self.context.log.event("internal", text=f"systemctl reboot failed (status {status}): reboot by hand")

    async def _end(self) -> None:
        """The module has stopped: make sure that the peer heard it, then have our supervisor end."""
        limit = time.monotonic() + min(LINGER_PULSES * self.state.setup.pulse, LINGER_SECONDS)
        said = self._sent.sequence
        while time.monotonic() < limit:
            peer = self.state.peer
            if peer is None or peer.role is Role.STOP:
                break
            if peer.echo[0] == self.state.incarnation and peer.echo[1] >= said:
                break
            await asyncio.sleep(0.02)
        assert self.exit is not None
        module = self.context.module
        told = Respawn(module) if self.exit.respawn else Ended(module)
        try:
            await self.context.bus.ask(module, told)
        except BusError as error:
            self.context.log.debug(f"safeadmin was not told {told.op}: {error.text}")
            with contextlib.suppress(Exception):
                await self.effects.supervisor.shutdown()
        self.ended.set()

    def start_task(self, work: Any) -> None:
        """Run it beside the decisions; its defects go to the log."""
        self._beside.start(work)

    async def close(self) -> None:
        """Leave: sockets, timers, tasks.  Scripts that run are left to run: their module goes on."""
        if self._timer is not None:
            self._timer.cancel()
        self._beside.cancel()
        self._links.close()
        self.effects.processes.close()
        self.life.close()

    def command(self, command: Command) -> None:
        """A command without an asker."""
        self.feed(Ordered(command))
